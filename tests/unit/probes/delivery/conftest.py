"""A watched mailbox in memory on a real ledger, on a clock that stands still until somebody sleeps."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr

from monitor.ledger.store import SqlLedger, open_ledger
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Arrivals, Settled, Unexpected
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.delivery.message_life import Message
from probes.delivery.watcher import MailboxWatcher
from probes.messages.synthetic_message import compose
from probes.messages.token import Token, TokenSigner
from tests.fakes.clock import InstantClock
from tests.fakes.mailbox import FakeMailbox, Stored
from tests.fakes.message import intent

SERVER = ServerSettings(protocol="pop3", host="mail.example.com", port=995, tls="implicit")
MAILBOX = MailboxSettings.model_construct(
    address="canary@example.com", server="pop", username="canary", password=SecretStr("x")
)
SIGNER = TokenSigner(b"key of the test")


@dataclass
class Found:
    """Collects the watcher's results."""

    messages: list[Message] = field(default_factory=list)
    counts: Counter[Unexpected] = field(default_factory=Counter)
    throttled: list[str] = field(default_factory=list)

    def settled(self, settled: Settled) -> None:
        self.messages.append(settled.message)

    def unexpected_found(self, mailbox: str, reason: Unexpected) -> None:
        self.counts[reason] += 1

    def poll_throttled(self, mailbox: str, now: float) -> None:
        self.throttled.append(mailbox)


@dataclass
class Bench:
    clock: InstantClock
    mailbox: FakeMailbox
    ledger: SqlLedger
    found: Found
    watcher: MailboxWatcher

    async def sent(
        self, deadline: float = 300.0, state: MessageState = MessageState.SENT, **changes: object
    ) -> Message:
        """Return a message that was just handed over."""
        now = self.clock.now
        message = intent(self.clock, deadline_seconds=deadline)
        await self.ledger.intend(message)
        times = {"connected_mono": now, "dot_mono": now, "accepted_mono": now, **changes}
        sent = await self.ledger.advance(message.id, state, **times)
        assert sent is not None
        return sent

    async def poll_ended(self) -> None:
        """Wait until a poll that is going on has ended and deleted what it counted."""
        async with self.watcher._polling:
            pass

    def arrives(self, message: Message, after: float, uid: str | None = None) -> Stored:
        """Let a copy of ``message`` arrive in the mailbox ``after`` seconds from now."""
        token = SIGNER.sign(Token(message.probe, message.id, round(message.created_at * 1e6)))
        stored = Stored(
            uid or secrets.token_hex(4), synthetic_message(token, message), self.clock.now + after
        )
        self.mailbox.stored.append(stored)
        return stored


def synthetic_message(token: str, message: Message) -> bytes:
    return compose(
        probe=message.probe,
        location="here",
        sender="canary@example.com",
        recipient="canary@example.com",
        run=message.id,
        token=token,
        created_at=message.created_at,
    ).content


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    clock = InstantClock()
    mailbox = FakeMailbox(clock)
    monkeypatch.setattr("probes.delivery.mailboxes.pop3.Pop3Session.open", mailbox.open_session)
    found = Found()
    async with open_ledger(f"sqlite://{tmp_path}/ledger.db", clock, "me", "fra1") as ledger:
        arrivals = Arrivals(
            "canary",
            clock=clock,
            ledger=ledger,
            signer=SIGNER,
            retention=7 * 86400.0,
        )
        pop3 = Pop3Mailbox(MAILBOX, SERVER, clock, LoginBudget(6000.0, clock))
        watcher = MailboxWatcher("canary", pop3, arrivals, clock=clock, observer=found, retention=7 * 86400.0)
        yield Bench(clock, mailbox, ledger, found, watcher)
        await watcher.close()
