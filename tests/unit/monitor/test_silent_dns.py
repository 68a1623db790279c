"""Unanswered DNS queries affect only their own probes."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import dns.message
import pytest

from monitor.runner import Result, Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings, Site
from probes.protocols import name_resolution
from probes.smtp import Smtp, SmtpSettings
from tests.fakes.dns_server import DnsServer, dns_server, response
from tests.fakes.resolver_files import resolution
from tests.fakes.scripted_server import dialogue, on_each_loop, scripted_server

ROOT = Path(__file__).parents[3]

AGENT = """
import sys
from pathlib import Path
from monitor.commands import main
from probes.protocols import name_resolution
from tests.fakes.resolver_files import resolution
name_resolution.system = resolution(Path(sys.argv[1]), port=int(sys.argv[2]))
main(["run", "--config", sys.argv[3]])
"""

SILENT = 30
"""Names whose DNS is silent: far more than any pool has threads."""


class SilentDns:
    """A name server that knows sound.test and answers no other query."""

    def __init__(self) -> None:
        self.silent_names: set[str] = set()
        self.all_asked = asyncio.Event()

    def script(self, query: dns.message.Message) -> Sequence[bytes | dns.message.Message]:
        name, rdtype = query.question[0].name.to_text(), query.question[0].rdtype.name
        if name == "sound.test.":
            return [response(query, *(["sound.test. 300 IN A 127.0.0.1"] if rdtype == "A" else []))]
        self.silent_names.add(name)
        if len(self.silent_names) == SILENT:
            self.all_asked.set()
        return []


@asynccontextmanager
async def silent_dns() -> AsyncIterator[tuple[SilentDns, DnsServer]]:
    silent = SilentDns()
    async with dns_server(silent.script) as server:
        yield silent, server


def smtp_run(host: str, port: int, deadline: str) -> asyncio.Task[Result]:
    """Start a run of an ``smtp`` probe of ``host``."""
    server = ServerSettings.model_validate(
        {"protocol": "smtp", "host": host, "port": port, "tls": "none", "timeout": deadline}
    )
    settings = SmtpSettings.model_validate(
        {"name": "mail", "kind": "smtp", "server": "mail", "deadline": deadline}
    )
    probe = Smtp(settings, Context(SystemClock(), Site("here", {"mail": server}, {})))
    return asyncio.create_task(Runner(SystemClock(), "here").run(probe))


@on_each_loop
async def test_a_sound_name_does_not_wait_for_silent_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While many names wait for DNS, a probe of another server is ok; the waiting ones end unknown."""
    greeting = dialogue(b"220 mail.test", (rb"EHLO .*", b"250 mail.test"), (rb"QUIT", b"221 bye"))
    async with silent_dns() as (silent, dns_port), scripted_server(greeting) as server:
        monkeypatch.setattr(name_resolution, "system", resolution(tmp_path, port=dns_port.port))
        stuck = [smtp_run(f"silent{number}.test", 25, "60s") for number in range(SILENT)]
        async with asyncio.timeout(120):
            await silent.all_asked.wait()
            sound = await smtp_run("sound.test", server.port, "60s")
        assert sound.verdict.reason is Reason.NONE
        assert not any(task.done() for task in stuck)
        for task in stuck:
            task.cancel()
        await asyncio.wait(stuck)
        late = await smtp_run("silent0.test", 25, "200ms")
    assert late.verdict.reason is Reason.DNS_TIMEOUT
    assert late.verdict.detail.startswith("in phase resolve: ")


async def test_sigterm_does_not_wait_for_silent_names(tmp_path: Path) -> None:
    """An agent with all names waiting for DNS stops cleanly within 10 seconds."""
    servers = [
        f"  s{number}: {{protocol: smtp, host: silent{number}.test, port: 25, tls: none}}"
        for number in range(SILENT)
    ]
    probes = [
        f"  - {{name: p{number}, kind: smtp, interval: 60s, deadline: 60s, server: s{number}}}"
        for number in range(SILENT)
    ]
    configuration = tmp_path / "mailsonde.yaml"
    agent = f"agent: {{ledger: 'sqlite:{tmp_path}/ledger.db', listen: '127.0.0.1:0'}}"
    configuration.write_text("\n".join([agent, "servers:", *servers, "probes:", *probes]))
    resolution(tmp_path)  # writes the files
    async with silent_dns() as (silent, server):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", AGENT, str(tmp_path), str(server.port), str(configuration)),
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(120):
                await silent.all_asked.wait()
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                _, log = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in log
