"""What hangs costs its own probes a verdict, and nobody else anything."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from monitor.agent import running_agent
from monitor.config.models import Configuration
from monitor.runner import Result
from monitor.runtime import open_runtime
from probes.core.clock import SystemClock
from probes.core.reasons import Outcome, Reason
from probes.core.verdict import TURN, PhaseTimer
from probes.protocols import connection_limits
from probes.protocols.connection_limits import PER_SERVER, ConnectionLimits
from tests.fakes.scripted_server import dialogue, scripted_server

SILENT, MOST = 12, 4
"""Three times as many servers that hang as connections."""


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> ConnectionLimits:
    """The limits of this process, for one test."""
    made = ConnectionLimits()
    monkeypatch.setattr(connection_limits, "system", made)
    return made


def configuration(directory: Path, **parts: Any) -> Configuration:
    agent = {"ledger": f"sqlite:{directory / 'ledger.db'}", "listen": "127.0.0.1:0"}
    return Configuration.model_validate({**parts, "agent": {**agent, **parts.get("agent", {})}})


async def test_servers_that_hang_hold_up_no_other(tmp_path: Path) -> None:
    """With more servers that hang than connections, a run of one that answers finds a connection at once."""
    greeting = dialogue(b"220 here", (b"EHLO .*", b"250 here"), (b"QUIT", b"221 bye"))
    entry, probe = (
        {"protocol": "smtp", "host": "127.0.0.1", "tls": "none"},
        {"kind": "smtp", "interval": "1s"},
    )
    servers, probes = {}, []
    with ExitStack() as hanging:
        for name in (f"hangs-{n}" for n in range(SILENT)):
            listener = hanging.enter_context(socket.create_server(("127.0.0.1", 0)))
            servers[name] = {**entry, "port": listener.getsockname()[1]}
            probes.append({**probe, "name": name, "server": name, "deadline": "500ms"})
        async with scripted_server(greeting) as sound:
            servers["sound"] = {**entry, "port": sound.port}
            probes.append({**probe, "name": "sound", "server": "sound"})
            made = configuration(tmp_path, agent={"max_connections": MOST}, servers=servers, probes=probes)
            async with running_agent(made) as agent, asyncio.timeout(60):
                of_sound = await _once_all_hang(agent.results)
    assert {result.verdict.reason for result in of_sound} == {Reason.NONE}
    assert TURN not in set().union(*(result.verdict.phases for result in of_sound))


async def _once_all_hang(results: asyncio.Queue[Result]) -> list[Result]:
    """Return some results of the sound server, from when it had answered and the others had hung twice."""
    hung, answered, of_sound = Counter[str](), False, list[Result]()
    while len(of_sound) < 3:
        result = await results.get()
        if result.probe != "sound":
            assert result.verdict.reason in {Reason.TIMEOUT, Reason.LOCAL_RESOURCES}
            hung[result.probe] += 1
        elif answered and len(hung) == SILENT and min(hung.values()) > 1:
            of_sound.append(result)
        else:
            answered = result.verdict.outcome is Outcome.OK
    return of_sound


@pytest.mark.parametrize(("setting", "most"), [({}, PER_SERVER + 2), ({"max_connections": 50}, 50)])
async def test_mailboxes_leave_connections_for_probes(
    tmp_path: Path, limits: ConnectionLimits, setting: dict[str, int], most: int
) -> None:
    """By default, each watched IMAP mailbox has a connection besides; else what is configured counts."""
    (tmp_path / "password").write_text("secret")
    place = "mail.example.test", 993
    server = {"protocol": "imap", "tls": "implicit", "host": place[0], **setting}
    login = {"username": "canary", "password": {"file": str(tmp_path / "password")}}
    mailbox = {"address": "canary@example.test", "server": "imap", **login}
    made = configuration(
        tmp_path,
        servers={"imap": server},
        mailboxes={"one": mailbox, "two": mailbox},
        probes=[{"name": "imap", "kind": "imap", "server": "imap"}],
    )
    async with open_runtime(made, SystemClock(), "test"):
        (await limits.take(*place, PhaseTimer(SystemClock()))).release(timed_out=False)
        slots = [await limits.take(*place, PhaseTimer(SystemClock())) for _ in range(most)]
        timer = PhaseTimer(SystemClock())
        beyond = asyncio.create_task(limits.take(*place, timer))
        while timer.current != TURN:  # noqa: ASYNC110 # of another task
            await asyncio.sleep(0)
        slots.pop().release()
        await beyond
