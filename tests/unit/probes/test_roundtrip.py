"""Round trips: the ledger and the verdict for every outcome of a submission."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from probes.core.reasons import Outcome, Reason
from probes.core.remedies import GENERAL
from probes.core.verdict import MessageState
from tests.corpus.files import ENVELOPE_ID, octets
from tests.fakes.clock import InstantClock
from tests.fakes.mailbox import FakeMailbox, Stored
from tests.fakes.scripted_server import Peer, Script, dialogue
from tests.unit.probes.conftest import OPENING, UP_TO_DATA, Bench, taking


async def test_delivered(bench: Callable[..., object]) -> None:
    """An accepted message that arrives is delivered, with all its latencies."""
    holder: list[Bench] = []
    async with bench(taking(lambda: holder[0].mailbox, b"250 2.6.0 queued")) as made:
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
    async with bench(taking(lambda: FakeMailbox(InstantClock()), reply)) as made:
        holder.append(made)
        await made.runner.run(made.probe)
        message = await made.only_message()
        assert message.state is state
        assert message.enhanced_status_code == reply.split()[1].decode()


@pytest.mark.parametrize(
    ("code", "reason", "remedy"),
    [
        (b"5.1.1", Reason.BOUNCE_NO_MAILBOX, GENERAL[Reason.BOUNCE_NO_MAILBOX]),
        (b"5.7.68", Reason.BOUNCE_POLICY, GENERAL[Reason.DIRECT_SEND_REFUSED]),
    ],
)
async def test_bounced_by_a_report_that_returns_nothing(
    bench: Callable[..., object], code: bytes, reason: Reason, remedy: str
) -> None:
    """A server with DSN gets an envelope id, and a report with only this id bounces the message.

    The run says why, and what to do.
    """
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
        report = report.replace(b"5.1.1", code)
        mailbox = holder[0].mailbox
        mailbox.stored.append(Stored("report", report, mailbox.clock.now))
        await peer.send(b"250 2.0.0 queued")
        await dialogue((b"QUIT", b"221 bye"))(peer)

    async with bench(script) as made:
        holder.append(made)
        result = await made.runner.run(made.probe)
        assert (result.verdict.reason, result.verdict.remedy) == (reason, remedy)
        assert (await made.only_message()).state is MessageState.BOUNCED
        assert made.mailbox.deleted == ["report"]


async def test_ambiguous_message_that_arrives_is_delivered(bench: Callable[..., object]) -> None:
    """If the connection breaks between the final dot and the 250, an arrival means delivered."""
    holder: list[Bench] = []
    async with bench(taking(lambda: holder[0].mailbox, None)) as made:
        holder.append(made)
        result = await made.runner.run(made.probe)
        assert result.verdict.reason is Reason.NONE
        message = await made.only_message()
        assert message.state is MessageState.DELIVERED
        assert made.ledger.counters.entered("trip", "out", MessageState.AMBIGUOUS) == 1


async def test_ambiguous_message_that_never_arrives(bench: Callable[..., object]) -> None:
    """If it does not arrive, the run fails as ambiguous, and the message is lost."""
    async with bench(taking(lambda: FakeMailbox(InstantClock()), None)) as made:
        result = await made.runner.run(made.probe)
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.FAILED, Reason.MESSAGE_AMBIGUOUS)
        assert (await made.only_message()).state is MessageState.LOST


async def test_lost(bench: Callable[..., object]) -> None:
    """An accepted message that never arrives is lost, and the run says after how long."""
    async with bench(taking(lambda: FakeMailbox(InstantClock()), b"250 ok")) as made:
        result = await made.runner.run(made.probe)
        assert result.verdict.reason is Reason.MESSAGE_LOST
        assert result.verdict.detail == "not in the mailbox 30 s after it was sent"
        assert (await made.only_message()).state is MessageState.LOST


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
    accepting = taking(lambda: holder[0].mailbox, b"250 2.6.0 queued")
    async with bench(_in_turn(GREYLISTED, GREYLISTED, accepting), deadline="10m", retry="60s") as made:
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


async def test_a_pause_that_the_server_asks_for_delays_the_next_try(bench: Callable[..., object]) -> None:
    """A try after a temporary refusal waits at least as long as the server says."""
    holder: list[Bench] = []
    busy = dialogue(b"450 4.7.0 Request is throttled. Suggested Backoff Time: 150000 milliseconds")
    accepting = taking(lambda: holder[0].mailbox, b"250 2.6.0 queued")
    async with bench(_in_turn(busy, accepting), deadline="10m", retry="60s") as made:
        holder.append(made)
        result = await made.runner.run(made.probe)
        assert (await made.only_message()).greylisted_seconds == pytest.approx(150.0, abs=1.0)
        assert result.verdict.throttled == 1


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
    async with bench(taking(lambda: FakeMailbox(InstantClock()), b"451 4.7.0 later"), retry="1s") as made:
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
