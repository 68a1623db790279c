"""Running a probe in front of a server that commits a fault, beside a healthy one that must not notice."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from monitor.runner import Result, Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.probe import Probe
from probes.core.reasons import Outcome
from probes.core.settings import ServerSettings, Site
from probes.imap import Imap
from probes.pop3 import Pop3
from probes.smtp import Smtp
from tests.fakes.scripted_server import PASSWORD, scripted_server
from tests.faults.dialogues import SMTP

USERNAME = "canary@example.test"

TIMEOUT = 0.3
"""Seconds that the servers' settings give a command: these servers answer at once, or never."""


@dataclass(frozen=True)
class Ran:
    """What came of a run, and of the healthy one beside it."""

    result: Result
    beside: Result


def server_settings(protocol: str, port: int, **options: Any) -> ServerSettings:
    """Return the settings of a server at ``port`` that credentials are sent to."""
    tls = options.pop("tls", "none")
    made = ServerSettings.model_validate(
        {
            "protocol": protocol,
            "host": "127.0.0.1",
            "port": port,
            "tls": tls,
            "timeout": f"{TIMEOUT}s",
            "allow_insecure_auth": tls == "none",
        }
    )
    login = {"username": USERNAME, "password": SecretStr(PASSWORD)}
    return made.model_copy(update={**login, "tls_ca": options.pop("tls_ca", None)})


def probe_of(kind: str, server: ServerSettings, deadline: float = 5.0) -> Probe:
    """Return a probe that goes through the whole of its kind's dialogue."""
    written: dict[str, Any] = {"name": kind, "kind": kind, "server": "it", "deadline": f"{deadline:g}s"}
    if kind == "smtp":
        written |= {"mail_from": "a@example.test", "rcpt_to": "b@example.test"}
    made = {"smtp": Smtp, "pop3": Pop3, "imap": Imap}[kind]
    context = Context(SystemClock(), Site("here", {"it": server}, {}))
    return made(made.settings_model.model_validate(written), context)


async def run(probe: Probe) -> Ran:
    """Run ``probe``, and a sound one at the same time."""
    runner = Runner(SystemClock(), "here")
    async with scripted_server(SMTP.committing(_farewell, "quit")) as healthy:
        beside = asyncio.create_task(runner.run(probe_of("smtp", server_settings("smtp", healthy.port))))
        return Ran(await runner.run(probe), await beside)


async def _farewell(peer: Any) -> None:
    await peer.send(b"221 bye")


def hold_to_promises(ran: Ran, deadline: float = 5.0) -> None:
    """Assert what holds for every fault: the deadline, no secrets, others undisturbed."""
    assert ran.beside.verdict.outcome is Outcome.OK, ran.beside
    assert ran.result.duration_seconds < deadline + 1.0
    shown = str(ran.result.with_transcript())
    assert PASSWORD not in shown
