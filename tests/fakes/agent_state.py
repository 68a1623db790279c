"""Probes that never run, for tests of the state and the metrics."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.probe import Probe
from probes.core.settings import MailboxSettings, ServerSettings, Site
from probes.core.verdict import Run, Verdict
from probes.delivery.message_probe import MessageProbe
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
_CONTEXT: Any = Context(SystemClock(), SITE)


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
