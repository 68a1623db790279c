"""An agent short of file descriptors says so, sends nothing, and still answers scrapes."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from probes.core import descriptors
from probes.core.descriptors import kept, raise_limit, require_descriptor
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from tests.real_servers.process import free_port

ROOT = Path(__file__).parents[3]

LIMIT, TARGETS = 96, 90
SOME = LIMIT * 3 // 4
"""More probes than may be connected at once."""

AGENT = f"""
import resource, sys
from monitor.commands import main
resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT // 2}, {LIMIT}))
main(["run", "--config", sys.argv[1]])
"""


@pytest.fixture
def few_allowed() -> Iterator[int]:
    """Allow this process a few more descriptors than it has open; yield the limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(int(each.name) for each in Path("/proc/self/fd").iterdir()) + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def files_until(number: int) -> ExitStack:
    """Open files until ``number`` is the lowest free descriptor."""
    opened = ExitStack()
    while True:
        opened.callback(os.close, latest := os.open(os.devnull, os.O_RDONLY))
        if latest == number - 1:
            return opened


def refused(*, for_sending: bool = False) -> str | None:
    """Return the detail of the refusal for lack of local resources, if there is one."""
    try:
        require_descriptor(for_sending=for_sending)
    except ProbeFault as fault:
        return str(fault).removeprefix(f"{Reason.LOCAL_RESOURCES}: ")
    return None


def test_sends_stop_before_probes_and_probes_before_the_limit(few_allowed: int) -> None:
    """Near the limit, first sending stops, then all probes, while serving continues."""
    left = kept()
    assert left == few_allowed // 4
    assert (refused(), refused(for_sending=True)) == (None, None)
    with files_until(few_allowed - 2 * left):
        assert refused() is None
        assert refused(for_sending=True) == (
            f"no message is sent while fewer than {2 * left} of {few_allowed} file descriptors are free"
        )
    with files_until(few_allowed - left):
        assert refused() == (
            f"no connection is opened while fewer than {left} of {few_allowed} file descriptors are free"
        )
    with files_until(few_allowed):
        assert refused() == os.strerror(24)
    assert (refused(), refused(for_sending=True)) == (None, None)


def test_the_limit_is_raised_as_far_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft limit is raised to the hard limit; if the system refuses, nothing changes."""
    set_to: list[tuple[int, int]] = []

    def setrlimit(_: int, limits: tuple[int, int]) -> None:
        set_to.append(limits)
        raise ValueError("the hidden limit is lower")

    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(descriptors.resource, "setrlimit", setrlimit)
    raise_limit()
    assert set_to == [(4096, 4096)]
    assert kept() == descriptors.MOST_KEPT


async def test_metrics_are_served_when_probes_use_up_the_descriptors(tmp_path: Path) -> None:
    """With more silent servers than descriptors, scrapes work, and runs without one are unknown."""
    port = free_port()
    peers: list[asyncio.StreamWriter] = []

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer)

    silent = await asyncio.start_server(accept, "127.0.0.1", 0)
    address = f"host: 127.0.0.1, port: {silent.sockets[0].getsockname()[1]}"
    server = f"{{protocol: smtp, {address}, tls: none, max_connections: 1000}}"
    probe = "  - {name: pN, kind: smtp, interval: 60s, deadline: 60s, server: mail}"
    configuration = tmp_path / "mailsonde.yaml"
    configuration.write_text(
        "agent:\n"
        f"  {{max_connections: 1000, ledger: 'sqlite:{tmp_path}/ledger.db', listen: '127.0.0.1:{port}'}}\n"
        f"servers:\n  mail: {server}\nprobes:\n"
        + "\n".join(probe.replace("N", str(number)) for number in range(TARGETS))
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", AGENT, str(configuration)), cwd=ROOT, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(60):
            while ended(await metrics(port)).get("local_resources", 0.0) < TARGETS - SOME:  # noqa: ASYNC110 # of a process
                await asyncio.sleep(0.1)
        for _ in range(20):  # none of them gets one
            reasons = ended(await metrics(port, patience=False))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        for writer in peers:
            writer.transport.abort()
        silent.close()
    assert len(peers) > LIMIT // 2  # the limit was raised to the hard one
    assert set(reasons) == {"local_resources"}


def ended(text: str) -> dict[str, float]:
    """Return how many runs ended with each reason."""
    found: dict[str, float] = {}
    for reason, count in re.findall(
        r'^mailsonde_probe_reasons_total\{.*reason="(\w+)".*\} (\S+)$', text, re.M
    ):
        if float(count):
            found[reason] = found.get(reason, 0.0) + float(count)
    return found


async def metrics(port: int, *, patience: bool = True) -> str:
    """Return the metrics; with ``patience``, return nothing if the agent does not listen yet."""
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    except httpx.ConnectError:
        if patience:
            return ""
        raise
    assert answer.status_code == 200
    return answer.text
