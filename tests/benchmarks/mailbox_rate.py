"""How many messages a minute one mailbox takes at 50 ms a command, and how wrong their latencies are."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field

from pydantic import SecretStr

from monitor.ledger.store import SqlLedger, open_ledger
from probes.core.clock import SystemClock
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Arrivals, Settled, Unexpected
from probes.delivery.mailboxes.imap import ImapMailbox
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.mailbox import Mailbox
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.delivery.message_life import Message
from probes.delivery.watcher import MailboxWatcher
from probes.messages.synthetic_message import compose
from probes.messages.token import Token, TokenSigner
from tests.fakes.mail_site.connection import Pace
from tests.fakes.mail_site.process import MailSite, mail_site
from tests.fakes.mail_site.store import Seen
from tests.fakes.message import intent

GOAL_RATE = 5000.0
GOAL_ERROR = 0.06
ROUND_TRIP = 0.05
RATES = (250.0, 5000.0)
SECONDS = 20.0
GRACE = 5.0
"""Seconds after the last message in which arrivals still count."""

ROUTES = 100
LEFT_OVER = "left-over"
"""The probe of messages that were in the mailbox before the watcher."""

_SIGNER = TokenSigner(b"key of the benchmark")


@dataclass
class Outcome:
    """The messages that were found, and the processor time that sending and watching took."""

    found: dict[str, Message] = field(default_factory=dict)
    began: float = 0.0
    last_at: float = 0.0
    processor: float = 0.0
    lost: int = 0
    cleaned_up: int = 0
    cleaned_at: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    seen: Seen = field(default_factory=Seen)

    async def found_all(self, count: int) -> None:
        while len(self.found) < count:
            self.changed.clear()
            await self.changed.wait()

    def settled(self, settled: Settled) -> None:
        self.changed.set()
        if settled.message.probe == LEFT_OVER:
            self.cleaned_up += 1
            self.cleaned_at = time.monotonic()
            return
        if settled.message.state is MessageState.LOST:
            self.lost += 1
            return
        self.found[settled.message.id] = settled.message
        self.last_at = time.monotonic()

    def unexpected_found(self, mailbox: str, reason: Unexpected) -> None:
        raise AssertionError(f"{mailbox}: {reason}")

    def poll_throttled(self, mailbox: str, now: float) -> None:
        raise AssertionError(mailbox)

    @property
    def a_minute(self) -> float:
        return 60 * len(self.found) / (self.last_at - self.began)

    def errors(self) -> list[tuple[float, float]]:
        """Return the error of each published latency and its uncertainty, in seconds, by the server's log."""
        return [
            (
                abs((message.delivery_seconds or 0) + (message.connected_mono or 0) - self.seen.arrived[key]),
                message.uncertainty_seconds or 0.0,
            )
            for key, message in self.found.items()
        ]


def _mailbox(protocol: str, server: MailSite, clock: SystemClock) -> Mailbox:
    endpoint = {"protocol": protocol, "host": "127.0.0.1", "port": server.ports[protocol], "tls": "none"}
    settings = ServerSettings.model_validate(endpoint | {"timeout": "30s"})
    account = MailboxSettings.model_construct(
        address="canary@example.com", server="in", username="canary", password=SecretStr("x")
    )
    budget = LoginBudget(6000.0, clock)
    if protocol == "imap":
        return ImapMailbox(account, settings, clock, budget, retention=86400.0)
    return Pop3Mailbox(account, settings, clock, budget)


@dataclass
class _Site:
    ledger: SqlLedger
    watcher: MailboxWatcher
    clock: SystemClock
    deliveries: asyncio.StreamWriter
    deadline: float
    is_dead: bool

    async def round_trip(self, route: int, delay: float) -> None:
        """Let one message be sent and arrive."""
        sent, content = await self.sent(f"trip-{route}")
        self.watcher.await_arrival(sent)
        if not self.is_dead:
            await asyncio.sleep(delay)
            self.deliver(content)

    def deliver(self, content: bytes) -> None:
        """Put a message into the mailbox."""
        self.deliveries.write(b"canary %d\n" % len(content) + content)

    async def sent(self, probe: str) -> tuple[Message, bytes]:
        """Return a message of this probe that was just sent, and its content."""
        now = self.clock.monotonic()
        message = intent(self.clock, probe=probe, deadline_seconds=self.deadline)
        content = compose(
            probe=message.probe,
            location="here",
            sender="canary@example.com",
            recipient="canary@example.com",
            run=message.id,
            token=_SIGNER.sign(Token(message.probe, message.id, round(message.created_at * 1e6))),
            created_at=message.created_at,
        )
        await self.ledger.intend(message)
        dot = self.clock.monotonic()
        sent = await self.ledger.advance(
            message.id,
            MessageState.SENT,
            connected_mono=now,
            dot_mono=dot,
            accepted_mono=dot,
            octets=len(content.content),
            digest=content.digest,
        )
        assert sent is not None  # nobody else moves it
        return sent, content.content


async def _measured(
    protocol: str,
    server: MailSite,
    rate: float,
    seconds: float,
    deadline: float,
    *,
    is_dead: bool,
    left_over: int,
) -> Outcome:
    outcome, clock = Outcome(), SystemClock()
    chance = random.Random("delays")  # noqa: S311
    _, deliveries = await asyncio.open_connection("127.0.0.1", server.ports["delivery"])
    with tempfile.TemporaryDirectory(prefix="mailsonde-bench-", dir="/var/tmp") as directory:
        async with open_ledger(f"sqlite://{directory}/ledger.db", clock, "me", "here") as ledger:
            arrivals = Arrivals("canary", clock=clock, ledger=ledger, signer=_SIGNER, retention=86400.0)
            watcher = MailboxWatcher(
                "canary",
                _mailbox(protocol, server, clock),
                arrivals,
                clock=clock,
                observer=outcome,
                retention=86400.0,
            )
            site = _Site(ledger, watcher, clock, deliveries, deadline, is_dead)
            for _ in range(left_over):
                sent, content = await site.sent(LEFT_OVER)
                watcher._awaited.add(sent)
                site.deliver(content)
            await deliveries.drain()
            outcome.began, used = time.monotonic(), time.process_time()
            count = int(rate * seconds / 60)
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    await asyncio.sleep(outcome.began + number * 60 / rate - time.monotonic())
                    delay = 0.3 * 2.718281828 ** chance.gauss(0.0, 0.3)
                    group.create_task(site.round_trip(number % ROUTES, delay))
            with suppress(TimeoutError):
                await asyncio.wait_for(outcome.found_all(count), GRACE)
            outcome.processor = time.process_time() - used
            await watcher.close()
    deliveries.close()
    return outcome


def measure(
    protocol: str,
    rate: float,
    seconds: float = SECONDS,
    deadline: float = 300.0,
    *,
    is_dead: bool = False,
    foreign: int = 0,
    left_over: int = 0,
    command: float = 0.0,
) -> Outcome:
    """Send messages at ``rate`` a minute; return what became of them.

    The mailbox already has ``foreign`` messages and ``left_over`` ones of ours. Each command takes the server
    ``command`` seconds.
    """
    with mail_site(Pace(ROUND_TRIP)) as server:
        server.fill("canary", foreign)
        server.set(command=command)
        outcome = asyncio.run(
            _measured(protocol, server, rate, seconds, deadline, is_dead=is_dead, left_over=left_over)
        )
        outcome.seen = server.seen()
    return outcome


def main() -> None:
    """Print a table: messages a minute, commands a message, and the error of the published latency."""
    print(f"one mailbox, {ROUND_TRIP * 1000:g} ms a command; goal: {GOAL_RATE:g} a minute by IMAP,")
    print(f"error of the published latency at most {GOAL_ERROR * 1000:g} ms:")
    print(
        f"{'':6}{'offered':>9}{'found':>8}{'a minute':>10}{'commands':>10}{'error ms p50':>14}{'p99':>8}",
        end="",
    )
    print(f"{'max':>8}{'uncertainty':>13}{'within':>9}{'CPU ms':>8}")
    for protocol in ("imap", "pop3"):
        for rate in RATES:
            outcome = measure(protocol, rate)
            errors = sorted(outcome.errors())
            count = len(errors)
            within = sum(error <= uncertainty + 1e-4 for error, uncertainty in errors) / count
            print(
                f"{protocol:6}{rate:9.0f}{count:8}{outcome.a_minute:10.0f}"
                f"{sum(outcome.seen.commands.values()) / count:10.2f}"
                f"{errors[count // 2][0] * 1000:14.1f}{errors[int(count * 0.99)][0] * 1000:8.1f}"
                f"{errors[-1][0] * 1000:8.1f}"
                f"{statistics.median(uncertainty for _, uncertainty in errors) * 1000:13.1f}"
                f"{within:9.1%}{outcome.processor * 1000 / count:8.2f}",
                flush=True,
            )
            if "-v" in sys.argv:
                print(dict(outcome.seen.commands))


if __name__ == "__main__":
    main()
