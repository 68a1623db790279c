"""An agent with many routes that sends nothing: its results are made up, its metrics and pages are real.

``python -m tests.benchmarks.many_routes ROUTES PORT`` serves them until the process is terminated.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from starlette.applications import Starlette

from monitor.collector import AgentCollector
from monitor.config.models import Configuration
from monitor.ledger.counters import Counters, Total
from monitor.ledger.last_week import LastWeek, ends_of
from monitor.ledger.store import SqlLedger
from monitor.recent import Recent
from monitor.runner import Result
from monitor.runtime import Runtime
from monitor.web.app import web_app
from monitor.web.pages import Pages
from monitor.web.probe_endpoint import ProbeEndpoint
from monitor.web.serving import served
from monitor.web.views import Views
from probes.core.clock import SystemClock
from probes.core.finding import Check, Finding, Severity
from probes.core.probe import Probe
from probes.core.reasons import Reason
from probes.core.transcript import Transcript
from probes.core.verdict import MessageState, Verdict
from probes.delivery.arrivals import Settled, Unexpected
from probes.delivery.message_life import ArrivalIssue, Message
from probes.messages.authentication_results import AuthenticationResults
from probes.messages.hops import Hop
from tests.benchmarks.processes import serving

INTERVAL = 60.0
"""Seconds between two runs of a route."""

LOCATION = "bench"
MAILBOX = "canary"

DAY = 86400.0
PHASES = {
    "roundtrip": {"connect": 0.01, "banner": 0.02, "ehlo": 0.01, "auth": 0.03, "data": 0.05},
    "smtp": {"resolve": 0.002, "connect": 0.01, "banner": 0.02, "ehlo": 0.01, "starttls": 0.01, "tls": 0.03},
    "mx": {"mx_lookup": 0.01},
}


def configuration(routes: int) -> Configuration:
    """Return a site with ``routes`` routes: of ten probes, eight round trips, one of SMTP and one of MX."""
    server = {"host": "127.0.0.1", "tls": "none"}
    roundtrip: dict[str, Any] = {
        "kind": "roundtrip",
        "deadline": "5m",
        "from": "canary@example.com",
        "send_via": "mail",
        "to": MAILBOX,
        "slo": {"objective": "99%", "within": "30s"},
        "alerts": {"overdue": "2m"},
    }
    probes = []
    for number in range(routes):
        kind = {8: "smtp", 9: "mx"}.get(number % 10, "roundtrip")
        own: dict[str, dict[str, Any]] = {
            "roundtrip": roundtrip,
            "smtp": {"kind": "smtp", "server": "mail"},
            "mx": {"kind": "mx", "domain": f"d{number}.example"},
        }
        probes.append(
            {
                "name": f"{kind}-{number:05}",
                "interval": f"{INTERVAL:g}s",
                "labels": {"team": f"team-{number % 20}"},
                **own[kind],
            }
        )
    return Configuration.model_validate(
        {
            "agent": {"location": LOCATION, "ledger": "sqlite:unused.db"},
            "servers": {
                "mail": {"protocol": "smtp", "port": 25, **server},
                "imap": {"protocol": "imap", "port": 143, **server, "allow_insecure_auth": True},
            },
            "mailboxes": {
                MAILBOX: {
                    "server": "imap",
                    "address": "canary@example.com",
                    "username": "canary",
                    "password": {"env": "HOME"},
                }
            },
            "probes": probes,
        }
    )


class ManyRoutes:
    """The runtime and the recent runs of an agent. Each `run` makes up the next result of a route.

    Every route has its own usual latency, and one in a hundred fails often.
    """

    def __init__(self, configured: Configuration) -> None:
        self._clock = SystemClock()
        self._random = random.Random(16)  # noqa: S311 # not for secrets
        self._ledger = SimpleNamespace(token_key=b"k" * 32, last_week=LastWeek(), counters=Counters())
        self._totals: dict[tuple[str, str, MessageState], Total] = {}
        ledger = cast(SqlLedger, self._ledger)
        self.runtime = Runtime(configured, self._clock, ledger, "bench", runs_all=False)
        self.recent = Recent(self._clock.time())
        self.probes = list(self.runtime.assembly.probes.values())

    def app(self) -> Starlette:
        """Return the agent's HTTP application."""
        collector = AgentCollector(
            self.runtime.state, lambda: self.runtime.ledger.counters, self.runtime.overdue_after
        )
        pages = Pages(Views(self.runtime, self.recent), self.runtime.ledger)
        return web_app(collector, lambda: True, pages, ProbeEndpoint(self.runtime), ())

    def run(self, number: int) -> None:
        """Make up a run of the route with this number."""
        probe, at = self.probes[number], self._clock.time()
        name, kind, target = probe.settings.name, probe.settings.kind, probe.target
        usual = 0.2 * 1.5 ** (number % 13)
        is_bad = self._random.random() < (0.4 if number % 100 == 0 else 0.002)
        cause = (
            self._random.choice([Reason.CONNECT_REFUSED, Reason.DNS_TIMEOUT, Reason.TIMEOUT])
            if is_bad
            else Reason.NONE
        )
        message = self._message(probe, at, usual, is_bad=is_bad) if kind == "roundtrip" else None
        if message is not None and is_bad:
            cause = Reason.MESSAGE_LOST
        verdict = Verdict(
            cause,
            phases={
                phase: seconds * self._random.uniform(0.5, 2.0) for phase, seconds in PHASES[kind].items()
            },
            broken_phase=next(iter(PHASES[kind])) if is_bad else "",
            certificate_not_after=at + (2 + number % 89) * DAY if kind == "smtp" else None,
            message=message.report() if message is not None else None,
            findings=self._findings(number) if kind == "mx" else None,
        )
        seconds = sum(verdict.phases.values())
        self.runtime.state.ran(name, target, verdict, ended_at=at, duration=seconds)
        result = Result(
            secrets.token_hex(16), name, kind, target, LOCATION, verdict, at, seconds, Transcript(self._clock)
        )
        self.recent.take_in(result.with_transcript())

    def _findings(self, number: int) -> tuple[Finding, ...]:
        if number % 50 != 9:
            return ()
        return (
            Finding(Check.MX_MISSING, Severity.CRITICAL, f"d{number}.example", "nothing", "an MX record"),
        )

    def _message(self, probe: Probe, at: float, usual: float, *, is_bad: bool) -> Message:
        """Make up a message that was delivered, or lost, and count it."""
        name, target = probe.settings.name, probe.target
        seconds = None if is_bad else usual * self._random.lognormvariate(0.0, 0.3)
        message = Message(
            id=secrets.token_hex(16),
            probe=name,
            target=target,
            mailbox=MAILBOX,
            state=MessageState.LOST if is_bad else MessageState.DELIVERED,
            created_at=at - (seconds or 300.0),
            deadline_seconds=300.0,
            instance="bench",
            boot="bench",
            created_mono=0.0,
            delivery_seconds=seconds,
            uncertainty_seconds=None if is_bad else 0.01,
            findings=str(ArrivalIssue.JUNKED) if self._random.random() < 0.01 else "",
        )
        for state in (MessageState.INTENT, MessageState.SENT, message.state):
            earlier = self._totals.get((name, target, state))
            self._totals[name, target, state] = Total(
                name, target, state, (earlier.entered if earlier else 0) + 1, 0, None
            )
        if is_bad or self._random.random() < 0.02:  # another one is on its way
            sent = self._totals[name, target, MessageState.SENT]
            self._totals[name, target, MessageState.SENT] = replace(sent, held=1, oldest=at)
        hops = (
            Hop("mx.example", "out.example", "ESMTPS", at, 0.1, False, 0.0),
            Hop("box.example", "mx.example", "LMTP", at, usual / 2, False, 0.0),
        )
        passed = AuthenticationResults("box.example", {"spf": "pass", "dkim": "pass", "dmarc": "fail"})
        self.runtime.state.settled(Settled(message, hops, passed))
        if (ends := ends_of(message)) is not None:
            self._ledger.last_week.add([ends])
        return message

    def count(self) -> None:
        """Let metrics and pages see the messages of the runs so far."""
        self._ledger.counters = Counters().updated(self._totals.values())

    async def keep_running(self) -> None:
        """Run every route once in each interval."""
        done, begun = 0, self._clock.monotonic()
        while True:
            due = int((self._clock.monotonic() - begun) / INTERVAL * len(self.probes))
            for number in range(done, due):
                self.run(number % len(self.probes))
            done = due
            self.count()
            await asyncio.sleep(1.0)


def many_routes(routes: int) -> AbstractContextManager[tuple[str, int]]:
    """Serve an agent with ``routes`` routes in a process of its own; yield its address and process id."""
    return serving("tests.benchmarks.many_routes", str(routes))


async def _serve(routes: int, port: int) -> None:
    many = ManyRoutes(configuration(routes))
    many.runtime.state.unexpected_found(MAILBOX, Unexpected.DUPLICATE)
    for number in range(routes):
        many.run(number)
    many.count()
    with socket.create_server(("127.0.0.1", port)) as bound:
        bound.setblocking(False)
        async with served(many.app(), bound):
            await many.keep_running()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
