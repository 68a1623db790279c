"""Each message gets its own right state, whatever happens to messages on the way, in any order."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from pydantic import SecretStr

from monitor.ledger.store import SqlLedger, open_ledger
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Arrivals, Settled, Unexpected
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.delivery.message_life import Message
from probes.delivery.watcher import MailboxWatcher
from probes.messages.synthetic_message import SyntheticMessage, compose
from probes.messages.token import HEADER, Token, TokenSigner
from tests.fakes.clock import InstantClock
from tests.fakes.mailbox import FakeMailbox, Stored
from tests.fakes.message import intent

S = MessageState
DEADLINE = 300.0
SERVER = ServerSettings(protocol="pop3", host="mail.example.com", port=995, tls="implicit")
MAILBOX = MailboxSettings.model_construct(
    address="canary@example.com", server="pop", username="canary", password=SecretStr("x")
)
SIGNER = TokenSigner(b"key of the test")

REPORT = """\
Content-Type: multipart/report; report-type=delivery-status; boundary="b1"
Subject: Undelivered Mail Returned to Sender

--b1
Content-Type: message/delivery-status

Reporting-MTA: dns; mail.example.com

Final-Recipient: rfc822; canary@example.com
Action: {action}
Status: {status}
Diagnostic-Code: smtp; 550 {status} no

--b1
Content-Type: text/rfc822-headers

{header_section}
--b1--
"""


class StandingClock(InstantClock):
    """A clock that only the test moves, so that the watcher never polls by itself."""

    async def sleep(self, seconds: float) -> None:
        if seconds > 0.1:
            await asyncio.get_running_loop().create_future()
        self.now += seconds


@dataclass
class Way:
    """The model's record of a message."""

    message: Message
    composed: SyntheticMessage
    state: MessageState = S.SENT
    findings: str = ""
    waiting: list[Stored] = field(default_factory=list)


class MessagesOnTheirWay(RuleBasedStateMachine):
    """A mailbox in memory, a real ledger, and a model of each message's expected state."""

    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.runner = asyncio.Runner()
        self.clock = StandingClock()
        self.mailbox = FakeMailbox(self.clock)
        self.ways: dict[str, Way] = {}
        self.unexpected: Counter[Unexpected] = Counter()
        self.seen_unexpected: Counter[Unexpected] = Counter()
        self.foreign: set[str] = set()
        self.uids = 0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("probes.delivery.mailboxes.pop3.Pop3Session.open", self.mailbox.open_session)

    @initialize()
    def open(self) -> None:
        self.stack = AsyncExitStack()
        opening = open_ledger(f"sqlite://{self.directory}/ledger.db", self.clock, "me", "fra1")
        self.ledger: SqlLedger = self.runner.run(self.stack.enter_async_context(opening))
        arrivals = Arrivals(
            "canary",
            clock=self.clock,
            ledger=self.ledger,
            signer=SIGNER,
            retention=7 * 86400.0,
        )
        pop3 = Pop3Mailbox(MAILBOX, SERVER, self.clock, LoginBudget(60000.0, self.clock))
        self.watcher = MailboxWatcher(
            "canary", pop3, arrivals, clock=self.clock, observer=self, retention=7 * 86400.0
        )

    def settled(self, settled: Settled) -> None:
        """Receive the watcher's result; the ledger is what is checked."""

    def unexpected_found(self, mailbox: str, reason: Unexpected) -> None:
        self.seen_unexpected[reason] += 1

    def poll_throttled(self, mailbox: str, now: float) -> None:
        raise AssertionError(mailbox)

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.runner.run(self.watcher.close())
            self.runner.run(self.stack.aclose())
        self.runner.close()
        self.patch.undo()
        shutil.rmtree(self.directory)

    def put(self, raw: bytes, *, ours: bool = True) -> None:
        self.uids += 1
        uid = f"uid-{self.uids}"
        if not ours:
            self.foreign.add(uid)
        self.mailbox.stored.append(Stored(uid, raw, self.clock.now))

    def poll(self) -> None:
        self.clock.now += 0.5
        self.runner.run(self.watcher.poll_now())
        assert self.watcher.fault is None

    @rule(target=sent)
    def send(self) -> str:
        number = len(self.ways) + 1
        message_id = f"{number:032x}"
        token = SIGNER.sign(Token("trip", message_id, round(self.clock.time() * 1e6)))
        synthetic_message = compose(
            probe="trip",
            location="here",
            sender="canary@example.com",
            recipient="canary@example.com",
            run=message_id,
            token=token,
            created_at=self.clock.time(),
        )
        now = self.clock.now
        message = intent(
            self.clock,
            id=message_id,
            deadline_seconds=DEADLINE,
            octets=len(synthetic_message.content),
            digest=synthetic_message.digest,
        )

        async def go() -> Message:
            await self.ledger.intend(message)
            times = {"connected_mono": now, "dot_mono": now, "accepted_mono": now}
            sent = await self.ledger.advance(message_id, S.SENT, **times)
            assert sent is not None
            self.watcher.await_arrival(sent)
            return sent

        self.ways[message_id] = Way(self.runner.run(go()), synthetic_message)
        return message_id

    def arrives(self, message_id: str, raw: bytes, findings: str = "") -> None:
        """Record in the model that one more copy with a valid token arrived."""
        way = self.ways[message_id]
        self.put(raw)
        if way.state in {S.SENT, S.LOST}:
            way.state = S.DELIVERED if way.state is S.SENT else S.LATE
            way.findings = findings
        else:
            self.unexpected[Unexpected.DUPLICATE] += 1

    @rule(message_id=sent)
    def deliver(self, message_id: str) -> None:
        """Deliver a copy; this may be a replay."""
        self.arrives(message_id, self.ways[message_id].composed.content)
        self.poll()

    @rule(message_id=sent)
    def deliver_twice(self, message_id: str) -> None:
        for _ in range(2):
            self.arrives(message_id, self.ways[message_id].composed.content)
        self.poll()

    @rule(first=sent, second=sent)
    def deliver_in_another_order(self, first: str, second: str) -> None:
        for message_id in (max(first, second), min(first, second)):
            self.arrives(message_id, self.ways[message_id].composed.content)
        self.poll()

    @rule(message_id=sent)
    def deliver_altered(self, message_id: str) -> None:
        raw = self.ways[message_id].composed.content.replace(b"nobody needs to", b"everybody needs to")
        self.arrives(message_id, raw, "altered")
        self.poll()

    @rule(message_id=sent)
    def deliver_marked_as_junk(self, message_id: str) -> None:
        self.arrives(message_id, b"X-Spam-Flag: YES\r\n" + self.ways[message_id].composed.content, "junked")
        self.poll()

    @rule(message_id=sent)
    def forge(self, message_id: str) -> None:
        """Deliver a token signed by another key."""
        raw = self.ways[message_id].composed.content
        token = TokenSigner(b"another key").sign(Token("trip", message_id, 1_700_000_000_000_000))
        head, field_name, rest = raw.partition(f"{HEADER}: ".encode())
        self.put(head + field_name + token.encode() + b"\r\n" + rest.partition(b"\r\n")[2], ours=False)
        self.unexpected[Unexpected.FORGED] += 1
        self.poll()

    @rule(message_id=sent, action=st.sampled_from(["failed", "delayed"]), forged=st.booleans())
    def bounce(self, message_id: str, action: str, forged: bool) -> None:
        way = self.ways[message_id]
        header_section = way.composed.content.partition(b"\r\n\r\n")[0].decode()
        if forged:
            header_section = header_section.replace("mailsonde1:trip", "mailsonde1:trap")
        report = REPORT.format(action=action, status="5.1.1", header_section=header_section)
        self.put(report.replace("\r\n", "\n").replace("\n", "\r\n").encode(), ours=not forged)
        if not forged and action == "failed" and way.state is S.SENT:
            way.state = S.BOUNCED
        self.poll()

    @rule(message_id=sent)
    def answer_automatically(self, message_id: str) -> None:
        """An auto-responder quotes our subject, or a person quotes everything."""
        content = self.ways[message_id].composed.content.decode()
        token = content.partition(f"{HEADER}: ")[2].partition("\r\n")[0]
        self.put(
            f"Subject: Auto: Re: mailsonde test message {token}\r\nAuto-Submitted: auto-replied\r\n\r\n"
            f"{content}".encode(),
            ours=False,
        )
        self.poll()

    @rule()
    def wait_past_every_deadline(self) -> None:
        self.clock.now += DEADLINE + 1.0
        self.poll()
        for way in self.ways.values():
            if way.state is S.SENT:
                way.state = S.LOST

    @invariant()
    def every_message_is_in_its_state(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert self.runner.run(self.ledger.discrepancies()) == []
        for message_id, way in self.ways.items():
            found = self.runner.run(self.ledger.find(message_id))
            assert found is not None
            assert (found.state, found.findings) == (way.state, way.findings)
        assert self.seen_unexpected == self.unexpected

    @invariant()
    def only_foreign_copies_are_left(self) -> None:
        assert {stored.uid for stored in self.mailbox.stored} == self.foreign


TestMessagesOnTheirWay = MessagesOnTheirWay.TestCase
TestMessagesOnTheirWay.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
