"""Refusals because a server limits this client, as the verdict counts them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from monitor.runner import Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.probe import Probe
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings, Site
from probes.imap import Imap, ImapSettings
from probes.pop3 import Pop3, Pop3Settings
from probes.smtp import Smtp, SmtpSettings
from tests.fakes.scripted_server import Script, dialogue, scripted_server

BUSY = b"Request is throttled. Suggested Backoff Time: 299910 milliseconds"
PROBES: dict[str, type[Probe]] = {"smtp": Smtp, "pop3": Pop3, "imap": Imap}
SETTINGS: dict[str, Any] = {"smtp": SmtpSettings, "pop3": Pop3Settings, "imap": ImapSettings}
GREETINGS = {
    "smtp": (b"421 4.3.2 " + BUSY, b"421 4.3.2 going away"),
    "pop3": (b"-ERR " + BUSY, b"-ERR [SYS/TEMP] later"),
    "imap": (b"* BYE " + BUSY, b"* BYE later"),
}


async def counted(protocol: str, script: Script) -> tuple[Reason, int]:
    """Return the reason and the count of a probe's run."""
    async with scripted_server(script) as opened:
        server = ServerSettings.model_construct(
            protocol=protocol,
            host="127.0.0.1",
            port=opened.port,
            tls="none",
            username="canary",
            password=SecretStr("tr0mbone-and-Oboe"),
            allow_insecure_auth=True,
        )
        context = Context(SystemClock(), Site("here", {"it": server}, {}))
        settings = SETTINGS[protocol].model_validate({"name": "p", "kind": protocol, "server": "it"})
        verdict = (await Runner(SystemClock(), "here").run(PROBES[protocol](settings, context))).verdict
    return verdict.reason, verdict.throttled


@pytest.mark.parametrize("protocol", PROBES)
async def test_greeting_that_throttles(protocol: str) -> None:
    """A run counts one refusal if the server limits this client, and none for another reason."""
    throttled, other = GREETINGS[protocol]
    assert await counted(protocol, dialogue(throttled)) == (Reason.THROTTLED, 1)
    reason, refusals = await counted(protocol, dialogue(other))
    assert (reason.outcome, refusals) == ("failed", 0)


@pytest.mark.parametrize(
    ("protocol", "script"),
    [
        (
            "smtp",
            dialogue(
                b"220 ready", (b"EHLO.*", b"250-hi\r\n250 AUTH PLAIN"), (b"AUTH.*", b"454 4.7.0 " + BUSY)
            ),
        ),
        (
            "pop3",
            dialogue(
                b"+OK ready",
                (b"CAPA", b"+OK\r\nUSER\r\n."),
                (b"USER.*", b"+OK"),
                (b"PASS.*", b"-ERR " + BUSY),
            ),
        ),
        (
            "imap",
            dialogue(
                b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready", (b".*AUTH.*", b"M1 BAD " + BUSY)
            ),
        ),
    ],
)
async def test_login_that_throttles(protocol: str, script: Script) -> None:
    """A login that the server refuses because of its limits counts once, although it names two methods."""
    assert await counted(protocol, script) == (Reason.THROTTLED, 1)
