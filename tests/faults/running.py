"""Running a probe of a faulty server together with a healthy probe, which must not be affected."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr

from monitor.runner import Result, Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.probe import Probe
from probes.core.reasons import Outcome, Reason
from probes.core.settings import ServerSettings, Site
from probes.imap import Imap
from probes.pop3 import Pop3
from probes.smtp import Smtp
from tests.fakes.scripted_server import PASSWORD, scripted_server
from tests.faults.dialogues import SMTP
from tests.faults.misdeeds import Misdeed

T = TypeVar("T")

USERNAME = "canary@example.test"

PATIENCE = 30.0
"""Seconds that the servers' settings give a command, and a run's deadline: far more than it takes."""

TIMEOUT = 0.3
"""Seconds that they give a command in front of a server that never answers it."""

MEMORY = 24 * 2**20
"""Most octets that a run may hold at once, however much a server sends."""


@dataclass(frozen=True)
class Case:
    """A fault of a server in one state of its dialogue, and the expected result of a run."""

    kind: str
    state: str
    fault: str
    commit: Misdeed
    reason: Reason
    timeout: float = PATIENCE

    def __str__(self) -> str:
        return f"{self.kind}-{self.state}-{self.fault}"


@dataclass(frozen=True)
class Ran:
    """The results of a run and of the healthy probe."""

    result: Result
    beside: Result


def server_settings(
    protocol: str, port: int, *, host: str = "127.0.0.1", timeout: float = PATIENCE, **options: Any
) -> ServerSettings:
    """Return the settings of a server at ``port``, with credentials."""
    tls = options.pop("tls", "none")
    made = ServerSettings.model_validate(
        {
            "protocol": protocol,
            "host": host,
            "port": port,
            "tls": tls,
            "timeout": f"{timeout}s",
            "allow_insecure_auth": tls == "none",
        }
    )
    login = {"username": USERNAME, "password": SecretStr(PASSWORD)}
    return made.model_copy(update={**login, "tls_ca": options.pop("tls_ca", None)})


def probe_of(kind: str, server: ServerSettings, deadline: float = PATIENCE) -> Probe:
    """Return a probe that goes through its kind's whole dialogue."""
    written: dict[str, Any] = {"name": kind, "kind": kind, "server": "it", "deadline": f"{deadline:g}s"}
    if kind == "smtp":
        written |= {"mail_from": "a@example.test", "rcpt_to": "b@example.test"}
    made = {"smtp": Smtp, "pop3": Pop3, "imap": Imap}[kind]
    context = Context(SystemClock(), Site("here", {"it": server}, {}))
    return made(made.settings_model.model_validate(written), context)


async def run(probe: Probe) -> Ran:
    """Run ``probe`` together with a healthy one; return once all sockets of both are closed."""
    before = open_files()
    ran = await beside_a_healthy_one(probe)
    await closed(before)
    return ran


async def beside_a_healthy_one(probe: Probe) -> Ran:
    """Run ``probe`` and a healthy one at the same time."""
    return Ran(*await beside_a_healthy_run(Runner(SystemClock(), "here").run(probe)))


async def beside_a_healthy_run(work: Awaitable[T]) -> tuple[T, Result]:
    """Await ``work`` while a healthy probe runs; return both results."""
    async with scripted_server(SMTP.sound) as healthy:
        probe = probe_of("smtp", server_settings("smtp", healthy.port))
        beside = asyncio.create_task(Runner(SystemClock(), "here").run(probe))
        return await work, await beside


def open_files() -> int:
    """Return the number of files and sockets that this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def closed(before: int) -> None:
    """Return once no more files and sockets are open than ``before``; raises TimeoutError."""
    async with asyncio.timeout(PATIENCE):
        while open_files() > before:  # noqa: ASYNC110 # the kernel tells of no such event
            await asyncio.sleep(0.005)


@contextmanager
def refusing() -> Iterator[int]:
    """Yield a port that refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def bounded_memory(most: int = MEMORY) -> Iterator[None]:
    """Assert that the block never holds more than ``most`` octets at once."""
    tracemalloc.start()
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < most, f"{taken:,} octets"


def undisturbed(beside: Result) -> None:
    """Assert that a healthy probe was on time."""
    assert beside.verdict.outcome is Outcome.OK, beside
    assert beside.duration_seconds < PATIENCE


def hold_to_promises(ran: Ran, deadline: float = PATIENCE) -> None:
    """Assert what must hold for every fault: deadline, no secrets, a reason of its kind, others on time."""
    undisturbed(ran.beside)
    assert ran.result.duration_seconds < deadline + 1.0
    shown = str(ran.result.with_transcript())
    assert PASSWORD not in shown
