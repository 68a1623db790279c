"""Probes that never run, for tests of the state and the metrics."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from monitor.ledger.counters import Total
from monitor.state import AgentState
from probes.core.clock import SystemClock
from probes.core.probe import Probe
from probes.core.reasons import Reason
from probes.core.settings import MailboxSettings, ServerSettings, Site
from probes.core.verdict import MessageState, Run, Verdict
from probes.delivery.arrivals import Settled
from probes.delivery.message_life import Message
from probes.delivery.message_probe import MessageContext, MessageProbe
from probes.messages.authentication_results import results
from probes.messages.hops import hops
from probes.pop3 import Pop3, Pop3Settings
from probes.roundtrip import RoundtripSettings
from probes.smtp import Smtp, SmtpSettings

SITE = Site(
    "fra1",
    {
        "out": ServerSettings(protocol="smtp", host="fd00::1", tls="starttls"),
        "pop": ServerSettings(protocol="pop3", host="mail.example.com", tls="implicit"),
    },
    {
        "canary": MailboxSettings.model_construct(
            address="canary@example.com", server="pop", username="canary", password=SecretStr("x")
        )
    },
)
_NONE: Any = None  # they never send a message
_CONTEXT = MessageContext(SystemClock(), SITE, _NONE, _NONE, {}, "me")


def smtp_probe(name: str = "smtp", **settings: Any) -> Smtp:
    """Return a probe of the server ``out``."""
    written = {"name": name, "kind": "smtp", "interval": "60s", "server": "out"}
    return Smtp(SmtpSettings.model_validate(written | settings), _CONTEXT)


def pop3_probe() -> Pop3:
    """Return a probe of the mailbox ``canary``."""
    written = {"name": "pop3", "kind": "pop3", "mailbox": "canary"}
    return Pop3(Pop3Settings.model_validate(written), _CONTEXT)


class RouteProbe(MessageProbe):
    """A round trip into ``canary``, or a part of one, with its own target."""

    areas = Smtp.areas

    def __init__(
        self, target: str = "out", sub_probes: tuple[Probe, ...] = (), *, name: str = "trip", **settings: Any
    ) -> None:
        written = {
            "name": name,
            "kind": "roundtrip",
            "from": "a@example.com",
            "send_via": "out",
            "to": "canary",
        }
        super().__init__(RoundtripSettings.model_validate(written | settings), _CONTEXT)
        self._target, self._sub_probes = target, sub_probes

    target = property(lambda self: self._target)
    sub_probes = property(lambda self: self._sub_probes)

    async def run(self, run: Run) -> Verdict:
        """Never run."""
        raise NotImplementedError


def busy_route(agent: AgentState, name: str) -> list[Total]:
    """Add a round trip with an objective that delivers mail; return its messages as the ledger has them."""
    agent.add(RouteProbe(name=name, slo={"objective": "99.5%", "within": "30s"}), now=1_750_334_000.0)
    phases = dict.fromkeys(PHASES, 0.012345)
    for reason in (Reason.MESSAGE_LOST, Reason.NONE):
        verdict = Verdict(reason, phases=phases, certificate_not_after=1_790_000_000.0)
        agent.ran(name, "out", verdict, ended_at=1_750_334_431.25, duration=1.5)
    message = Message(
        id="0" * 32,
        probe=name,
        target="out",
        mailbox="canary",
        state=MessageState.DELIVERED,
        created_at=1_750_334_400.0,
        deadline_seconds=300.0,
        instance="me",
        boot="b",
        created_mono=1.0,
        delivery_seconds=2.3456,
        uncertainty_seconds=0.0123,
    )
    found = hops(HEADER_SECTION, sent_at=1_750_334_405.0, arrived_by=1_750_334_431.0)
    agent.settled(Settled(message, tuple(found), results(HEADER_SECTION)))
    return [
        Total(name, "out", MessageState.INTENT, entered=1235, held=0, oldest=None),
        Total(name, "out", MessageState.SENT, entered=1235, held=1, oldest=1_750_334_431.5),
        Total(name, "out", MessageState.DELIVERED, entered=1234, held=0, oldest=None),
    ]


PHASES = ("resolve", "connect", "greeting", "ehlo", "starttls", "tls", "auth", "mail", "rcpt", "data")
HEADER_SECTION = b"""\
Authentication-Results: mx.example.com; spf=pass; dkim=pass; dmarc=pass
Received: from b by mx.example.com with ESMTP; Thu, 19 Jun 2025 12:00:30 +0000
Received: from us by b with ESMTP; Thu, 19 Jun 2025 12:00:10 +0000
"""
