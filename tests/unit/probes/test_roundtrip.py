"""Round trips: the ledger and the verdict for every outcome of a submission."""

from __future__ import annotations

import asyncio
import math
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from monitor.ledger.store import SqlLedger, open_ledger
from monitor.runner import Runner
from monitor.state import AgentState
from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.settings import MailboxSettings, ServerSettings, Site
from probes.core.verdict import MessageState, PhaseTimer
from probes.delivery.arrivals import Arrivals
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.delivery.message_life import LedgerError, Message
from probes.delivery.message_probe import MessageContext
from probes.delivery.watcher import MailboxWatcher
from probes.messages.token import TokenSigner
from probes.protocols import connection_limits
from probes.protocols.connection_limits import ConnectionLimits
from probes.roundtrip import Roundtrip, RoundtripSettings
from tests.corpus.files import ENVELOPE_ID, octets
from tests.fakes.clock import InstantClock
from tests.fakes.mailbox import FakeMailbox, Stored
from tests.fakes.scripted_server import Peer, Script, ScriptedServer, dialogue, scripted_server

MAILBOX = MailboxSettings.model_construct(
    address="canary@example.test", server="pop", username="canary", password=SecretStr("x")
)
OPENING = (b"220 ready", (b"EHLO .*", b"250 mail.example.test"))
UP_TO_DATA = (*OPENING, (b"MAIL .*", b"250 2.1.0 ok"), (b"RCPT .*", b"250 2.1.5 ok"), (b"DATA", b"354 go"))


@dataclass
class Bench:
    """A round trip between a scripted SMTP server and a mailbox in memory, on a real ledger."""

    probe: Roundtrip
    runner: Runner
    ledger: SqlLedger
    mailbox: FakeMailbox
    smtp: ScriptedServer

    async def only_message(self) -> Message:
        """Return the only message in the ledger's totals."""
        assert await self.ledger.discrepancies() == []
        (message,) = self.probe.context.ledger.seen.values()
        found = await self.ledger.find(message.id)
        assert found is not None
        return found


class WatchedLedger:
    """The real ledger, which fails on demand and remembers the messages."""

    def __init__(self, ledger: SqlLedger) -> None:
        self._ledger = ledger
        self.seen: dict[str, Message] = {}
        self.full_for: set[str] = set()

    async def intend(self, message: Message) -> None:
        if "intend" in self.full_for:
            raise LedgerError("disk is full")
        await self._ledger.intend(message)
        self.seen[message.id] = message

    async def advance(self, message_id: str, state: MessageState, **changes: object) -> Message | None:
        if "advance" in self.full_for:
            raise LedgerError("disk is full")
        return await self._ledger.advance(message_id, state, **changes)

    async def find(self, message_id: str) -> Message | None:
        return await self._ledger.find(message_id)

    async def is_others(self, message: Message) -> bool:
        return await self._ledger.is_others(message)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Return a function that makes a bench from the SMTP server's script."""
    clock = InstantClock()
    mailbox = FakeMailbox(clock)
    monkeypatch.setattr("probes.delivery.mailboxes.pop3.Pop3Session.open", mailbox.open_session)
    # A clock that jumps looks like a machine that stood still.
    monkeypatch.setattr("monitor.runner.HELD_UP_SHARE", math.inf)

    @asynccontextmanager
    async def make(script: Script, deadline: str = "30s", **changes: str) -> AsyncIterator[Bench]:
        async with AsyncExitStack() as stack:
            smtp = await stack.enter_async_context(scripted_server(script))
            ledger = await stack.enter_async_context(
                open_ledger(f"sqlite://{tmp_path}/l.db", clock, "me", "fra1")
            )
            pop = ServerSettings(protocol="pop3", host="mail.example.test", tls="implicit")
            site = Site("here", {"out": smtp.settings("smtp"), "pop": pop}, {"canary": MAILBOX})
            watched, signer = WatchedLedger(ledger), TokenSigner(b"key")
            arrivals = Arrivals(
                "canary",
                clock=clock,
                ledger=watched,
                signer=signer,
                retention=86400.0,
            )
            pop3 = Pop3Mailbox(MAILBOX, pop, clock, LoginBudget(6000.0, clock))
            watcher = MailboxWatcher(
                "canary", pop3, arrivals, clock=clock, observer=AgentState(["canary"]), retention=86400.0
            )
            stack.push_async_callback(watcher.close)
            settings = RoundtripSettings.model_validate(
                {
                    "name": "trip",
                    "kind": "roundtrip",
                    "interval": "60s",
                    "deadline": deadline,
                    "from": "canary@example.test",
                    "send_via": "out",
                    "to": "canary",
                    **changes,
                }
            )
            probe = Roundtrip(
                settings, MessageContext(clock, site, watched, signer, {"canary": watcher}, "me")
            )
            yield Bench(probe, Runner(clock, "here"), ledger, mailbox, smtp)

    return make


def _taking(mailbox: Callable[[], FakeMailbox], reply: bytes | None) -> Script:
    """Return a script that reads a message up to its final dot, stores it, and answers or hangs up."""

    async def script(peer: Peer) -> None:
        await dialogue(*UP_TO_DATA)(peer)
        lines = []
        while (line := await peer.expect(b".*")) != b".":
            lines.append(line.removeprefix(b"."))
        target = mailbox()
        target.stored.append(Stored(secrets.token_hex(4), b"\r\n".join(lines), target.clock.now))
        if reply is None:
            await peer.close()
        else:
            await peer.send(reply)
            await dialogue((b"QUIT", b"221 bye"))(peer)

    return script


async def test_delivered(bench: Callable[..., object]) -> None:
    """An accepted message that arrives is delivered, with all its latencies."""
    holder: list[Bench] = []
    async with bench(_taking(lambda: holder[0].mailbox, b"250 2.6.0 queued")) as made:
        holder.append(made)
        result = await made.runner.run(made.probe)
        assert result.verdict.reason is Reason.NONE
        message = await made.only_message()
        assert message.state is MessageState.DELIVERED
        assert (message.reply_code, message.enhanced_status_code) == (250, "2.6.0")
        assert result.verdict.message is not None
        assert result.verdict.message.delivery_seconds is not None
        assert made.mailbox.stored == []


@pytest.mark.parametrize(
    ("script", "state", "reason"),
    [
        (dialogue(b"554 5.3.2 go away"), MessageState.REJECTED, Reason.SMTP_REJECTED),
        (dialogue(b"421 4.3.2 busy"), MessageState.DEFERRED, Reason.SMTP_UNAVAILABLE),
        (dialogue(*OPENING, (b"MAIL .*", b"550 5.7.1 no")), MessageState.REJECTED, Reason.SMTP_REJECTED),
        (dialogue(*OPENING, (b"MAIL .*", b"452 4.3.1 full")), MessageState.DEFERRED, Reason.SMTP_DEFERRED),
        (dialogue(*UP_TO_DATA[:-1], then=lambda p: p.close()), MessageState.DEFERRED, Reason.CONNECTION_LOST),
    ],
    ids=["greeting 554", "greeting 421", "MAIL 550", "MAIL 452", "closed before DATA"],
)
async def test_not_handed_over(
    bench: Callable[..., object], script: Script, state: MessageState, reason: Reason
) -> None:
    """A failure before the final dot is rejected after a 5xx, otherwise deferred, and never watched for."""
    async with bench(script) as made:
        result = await made.runner.run(made.probe)
        assert result.verdict.reason is reason
        message = await made.only_message()
        assert (message.state, message.reason) == (state, str(reason))
        assert made.mailbox.logins == []


@pytest.mark.parametrize(
    ("reply", "state"),
    [(b"554 5.6.0 not this", MessageState.REJECTED), (b"451 4.7.0 later", MessageState.DEFERRED)],
)
async def test_refused_after_the_dot(bench: Callable[..., object], reply: bytes, state: MessageState) -> None:
    """A refusal of the message itself keeps the server's codes."""
    holder: list[Bench] = []
    async with bench(_taking(lambda: FakeMailbox(InstantClock()), reply)) as made:
        holder.append(made)
        await made.runner.run(made.probe)
        message = await made.only_message()
        assert message.state is state
        assert message.enhanced_status_code == reply.split()[1].decode()


async def test_bounced_by_a_report_that_returns_nothing(bench: Callable[..., object]) -> None:
    """A server with DSN gets an envelope id, and a report with only this id bounces the message."""
    holder: list[Bench] = []

    async def script(peer: Peer) -> None:
        await dialogue(b"220 ready", (b"EHLO .*", b"250-mail.example.test\r\n250 DSN"))(peer)
        envelope_id = (await peer.expect(rb"MAIL FROM:<canary@example\.test> ENVID=.*")).partition(b"ENVID=")[
            2
        ]
        await peer.send(b"250 2.1.0 ok")
        await dialogue((b"RCPT .*", b"250 2.1.5 ok"), (b"DATA", b"354 go"))(peer)
        while await peer.expect(b".*") != b".":
            pass
        report = octets("bounces", "postfix-without-our-message").replace(ENVELOPE_ID.encode(), envelope_id)
        mailbox = holder[0].mailbox
        mailbox.stored.append(Stored("report", report, mailbox.clock.now))
        await peer.send(b"250 2.0.0 queued")
        await dialogue((b"QUIT", b"221 bye"))(peer)

    async with bench(script) as made:
        holder.append(made)
        result = await made.runner.run(made.probe)
        assert result.verdict.reason is Reason.BOUNCE_NO_MAILBOX
        assert (await made.only_message()).state is MessageState.BOUNCED
        assert made.mailbox.deleted == ["report"]


async def test_ambiguous_message_that_arrives_is_delivered(bench: Callable[..., object]) -> None:
    """If the connection breaks between the final dot and the 250, an arrival means delivered."""
    holder: list[Bench] = []
    async with bench(_taking(lambda: holder[0].mailbox, None)) as made:
        holder.append(made)
        result = await made.runner.run(made.probe)
        assert result.verdict.reason is Reason.NONE
        message = await made.only_message()
        assert message.state is MessageState.DELIVERED
        assert made.ledger.counters.entered("trip", "out", MessageState.AMBIGUOUS) == 1


async def test_ambiguous_message_that_never_arrives(bench: Callable[..., object]) -> None:
    """If it does not arrive, the run fails as ambiguous, and the message is lost."""
    async with bench(_taking(lambda: FakeMailbox(InstantClock()), None)) as made:
        result = await made.runner.run(made.probe)
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.FAILED, Reason.MESSAGE_AMBIGUOUS)
        assert (await made.only_message()).state is MessageState.LOST


async def test_lost(bench: Callable[..., object]) -> None:
    """An accepted message that never arrives is lost, and the run says after how long."""
    async with bench(_taking(lambda: FakeMailbox(InstantClock()), b"250 ok")) as made:
        result = await made.runner.run(made.probe)
        assert result.verdict.reason is Reason.MESSAGE_LOST
        assert result.verdict.detail == "not in the mailbox 30 s after it was sent"
        assert (await made.only_message()).state is MessageState.LOST


async def test_unreadable_mailbox_leaves_the_message_in_flight(
    bench: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no poll succeeds, the run has the mailbox's reason, and the message is not lost."""
    monkeypatch.setattr("probes.roundtrip.POLL_GRACE", 0.0)
    async with bench(_taking(lambda: FakeMailbox(InstantClock()), b"250 ok"), deadline="1s") as made:
        made.mailbox.login_fault = ProbeFault(Reason.POP3_SYS_PERM, "mailbox is broken")
        result = await made.runner.run(made.probe)
        assert result.verdict.reason is Reason.POP3_SYS_PERM
        assert result.verdict.detail == "mailbox cannot be read: mailbox is broken"
        assert (await made.only_message()).state is MessageState.SENT


async def test_a_run_that_ends_before_the_deadline_blames_nobody(
    bench: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If our own ledger used up a run's time, the message may still come in time: the run is unknown."""
    monkeypatch.setattr("probes.roundtrip.POLL_GRACE", 0.0)
    async with bench(_taking(lambda: FakeMailbox(InstantClock()), b"250 ok"), deadline="10s") as made:
        ledger, clock = made.probe.context.ledger, made.probe.context.clock
        intend = ledger.intend

        async def intend_late(message: Message) -> None:
            await clock.sleep(10.5)
            await intend(message)

        monkeypatch.setattr(ledger, "intend", intend_late)
        result = await made.runner.run(made.probe)
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.UNKNOWN, Reason.LOCAL_RESOURCES)
        assert (await made.only_message()).state is MessageState.SENT


@pytest.mark.parametrize(
    ("steps", "state"),
    [(OPENING[:1], MessageState.DEFERRED), (UP_TO_DATA, MessageState.AMBIGUOUS)],
    ids=["before the dot", "after the dot"],
)
async def test_stopped_in_the_middle(
    bench: Callable[..., object], steps: tuple[object, ...], state: MessageState
) -> None:
    """If the agent's stop ends a run, the message's known state is recorded, with the reason."""
    reached = asyncio.Event()

    async def script(peer: Peer) -> None:
        await dialogue(*steps)(peer)
        while await peer.expect(b".*") != (b"." if state is MessageState.AMBIGUOUS else b"EHLO [127.0.0.1]"):
            pass
        reached.set()

    async with bench(script) as made:
        task = asyncio.create_task(made.runner.run(made.probe))
        await reached.wait()
        task.cancel()
        await asyncio.wait([task])
        message = await made.only_message()
        assert (message.state, message.reason) == (state, str(Reason.INTERRUPTED))


async def test_nothing_is_sent_when_the_intent_cannot_be_recorded(bench: Callable[..., object]) -> None:
    """Without a durable intent, there is not even a connection, and the run is unknown."""
    async with bench(dialogue(b"220 ready")) as made:
        made.probe.context.ledger.full_for.add("intend")
        result = await made.runner.run(made.probe)
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.UNKNOWN, Reason.LEDGER_UNAVAILABLE)
        assert made.smtp.connections == 0


async def test_nothing_is_sent_while_few_descriptors_are_left(
    bench: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that could not be watched for is neither recorded nor sent; the run is unknown."""
    async with bench(dialogue(b"220 ready")) as made:
        os.close(lowest := os.dup(1))
        limit = lowest * 3 // 2  # a third is free: sending needs half, connecting a quarter
        with monkeypatch.context() as patched:
            patched.setattr("probes.core.descriptors.resource.getrlimit", lambda _: (limit, limit))
            result = await made.runner.run(made.probe)
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.UNKNOWN, Reason.LOCAL_RESOURCES)
        assert result.verdict.detail.startswith("no message is sent while fewer than ")
        assert made.smtp.connections == 0
        assert made.probe.context.ledger.seen == {}


async def test_what_could_not_be_recorded_is_recorded_before_the_next_intent(
    bench: Callable[..., object],
) -> None:
    """If an acceptance could not be recorded, the message becomes ambiguous when the ledger works again."""
    async with bench(_taking(lambda: FakeMailbox(InstantClock()), b"250 ok")) as made:
        ledger = made.probe.context.ledger
        ledger.full_for.add("advance")
        result = await made.runner.run(made.probe)
        assert result.verdict.reason is Reason.LEDGER_UNAVAILABLE
        (first,) = ledger.seen
        ledger.full_for.clear()
        await made.runner.run(made.probe)
        recorded = await made.ledger.find(first)
        assert recorded is not None
        assert (recorded.state, recorded.reason) == (MessageState.AMBIGUOUS, "ledger_unavailable")
        assert await made.ledger.discrepancies() == []


def _in_turn(*scripts: Script) -> Script:
    """Return a script that handles each connection with the next of ``scripts``."""
    left = list(scripts)

    async def script(peer: Peer) -> None:
        await left.pop(0)(peer)

    return script


GREYLISTED = dialogue(*OPENING, (b"MAIL .*", b"250 ok"), (b"RCPT .*", b"450 4.7.1 greylisted, come again"))


async def test_greylisted_message_is_tried_again_and_told_with_its_delay(
    bench: Callable[..., object],
) -> None:
    """A message refused temporarily is sent once, later, and its delay is reported separately."""
    holder: list[Bench] = []
    taking = _taking(lambda: holder[0].mailbox, b"250 2.6.0 queued")
    async with bench(_in_turn(GREYLISTED, GREYLISTED, taking), deadline="10m", retry="60s") as made:
        holder.append(made)
        result = await made.runner.run(made.probe)
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.OK, Reason.GREYLISTED)
        message = await made.only_message()
        assert message.state is MessageState.DELIVERED
        # 60 s, then twice that.
        assert message.greylisted_seconds == pytest.approx(180.0, abs=1.0)
        assert result.verdict.message is not None
        assert (result.verdict.message.delivery_seconds or 0.0) >= 180.0
        assert made.smtp.connections == 3


async def test_trying_again_ends_before_the_deadline(bench: Callable[..., object]) -> None:
    """If the server keeps refusing, the message is deferred, and there is no try after the deadline."""
    async with bench(_in_turn(*[GREYLISTED] * 9), deadline="10m", retry="60s") as made:
        begun = made.mailbox.clock.now
        result = await made.runner.run(made.probe)
        assert result.verdict.reason is Reason.SMTP_DEFERRED
        assert (await made.only_message()).state is MessageState.DEFERRED
        assert made.mailbox.clock.now - begun < 600.0
        assert made.smtp.connections == 4  # at 0, 1, 3 and 7 minutes


async def test_content_refused_for_now_is_not_sent_again(bench: Callable[..., object]) -> None:
    """Once the content was sent, it is not sent again, even after a temporary refusal."""
    async with bench(_taking(lambda: FakeMailbox(InstantClock()), b"451 4.7.0 later"), retry="1s") as made:
        await made.runner.run(made.probe)
        assert (await made.only_message()).state is MessageState.DEFERRED
        assert made.smtp.connections == 1


async def test_stop_while_waiting_for_the_next_try(bench: Callable[..., object]) -> None:
    """If a run is stopped while it waits for the next try, the message is deferred."""
    async with bench(GREYLISTED, deadline="10m", retry="60s") as made:
        asleep = asyncio.Event()

        async def sleep(seconds: float) -> None:
            asleep.set()
            await asyncio.get_running_loop().create_future()

        made.mailbox.clock.sleep = sleep
        task = asyncio.create_task(made.runner.run(made.probe))
        await asleep.wait()
        await made.runner.stop(grace=60.0)
        assert task.done()
        message = await made.only_message()
        assert (message.state, message.reason) == (MessageState.DEFERRED, str(Reason.INTERRUPTED))


async def test_a_folder_that_is_not_there_is_told_at_once(bench: Callable[..., object]) -> None:
    """A missing configured folder ends the run long before its deadline; the message stays open."""
    taken: list[Bench] = []
    async with bench(_taking(lambda: taken[0].mailbox, b"250 ok"), deadline="50s") as made:
        taken.append(made)
        detail = 'the mailbox\'s folder "Nowhere": no such folder'
        made.mailbox.login_fault = ProbeFault(Reason.IMAP_NO_FOLDER, detail)
        began = made.mailbox.clock.now
        verdict = (await made.runner.run(made.probe)).verdict
        assert (verdict.reason, verdict.message.state) == (Reason.IMAP_NO_FOLDER, MessageState.SENT)
        assert detail in verdict.detail
        assert made.mailbox.clock.now - began < 10.0


async def test_no_message_is_made_before_it_may_be_sent(
    bench: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that gets no connection leaves no message behind, and its wait is no part of a latency."""
    holder: list[Bench] = []
    limits = ConnectionLimits()
    monkeypatch.setattr(connection_limits, "system", limits)
    async with bench(_taking(lambda: holder[0].mailbox, b"250 2.6.0 queued")) as made:
        holder.append(made)
        place = "127.0.0.1", made.smtp.port
        limits.configure(None, {place: 1})
        clock = made.probe.context.clock
        held = await limits.take(*place, PhaseTimer(clock))
        result = await made.runner.run(made.probe, limit=0.05)
        assert result.verdict.reason is Reason.LOCAL_RESOURCES
        assert made.probe.context.ledger.seen == {}
        waiting = asyncio.create_task(made.runner.run(made.probe))
        await asyncio.sleep(0)
        await clock.sleep(7.0)
        held.release()
        assert (await waiting).verdict.reason is Reason.NONE
        message = await made.only_message()
        assert message.delivery_seconds is not None
        assert message.delivery_seconds < 7.0


async def test_a_run_that_waits_for_its_turn_stops_at_once(
    bench: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that stops does not wait for a run that has sent nothing."""
    limits = ConnectionLimits()
    monkeypatch.setattr(connection_limits, "system", limits)
    async with bench(dialogue()) as made:
        place = "127.0.0.1", made.smtp.port
        limits.configure(None, {place: 1})
        held = await limits.take(*place, PhaseTimer(made.probe.context.clock))
        waiting = asyncio.create_task(made.runner.run(made.probe))
        await asyncio.sleep(0)
        async with asyncio.timeout(4):  # less than a wait for a turn
            await made.runner.stop(grace=60)
        assert waiting.cancelled()
        held.release()
