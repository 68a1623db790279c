"""Round trips that our own limits, our ledger or the mailbox kept from sending or from an answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.verdict import MessageState, PhaseTimer
from probes.delivery.message_life import Message
from probes.delivery.service_level import SloSettings
from probes.protocols import connection_limits
from probes.protocols.connection_limits import ConnectionLimits
from tests.fakes.clock import InstantClock
from tests.fakes.mailbox import FakeMailbox
from tests.fakes.scripted_server import dialogue
from tests.unit.probes.conftest import Bench, taking


async def test_unreadable_mailbox_leaves_the_message_in_flight(
    bench: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no poll succeeds, the run has the mailbox's reason, and the message is not lost."""
    monkeypatch.setattr("probes.roundtrip.POLL_GRACE", 0.0)
    async with bench(taking(lambda: FakeMailbox(InstantClock()), b"250 ok"), deadline="1s") as made:
        made.mailbox.login_fault = ProbeFault(Reason.POP3_SYS_PERM, "mailbox is broken")
        result = await made.runner.run(made.probe)
        assert result.verdict.reason is Reason.POP3_SYS_PERM
        assert result.verdict.detail == "mailbox cannot be read: mailbox is broken"
        assert (await made.only_message()).state is MessageState.SENT


async def test_a_dead_mailbox_is_not_filled(
    bench: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once several messages wait in a mailbox that cannot be read, no more follow until it can.

    The runs go on reporting why. So neither the agent nor the mailbox fills up.
    """
    monkeypatch.setattr("probes.roundtrip.POLL_GRACE", 0.0)
    monkeypatch.setattr("probes.delivery.awaited.MOST_OVERDUE", 3)
    async with bench(taking(lambda: FakeMailbox(InstantClock()), b"250 ok"), deadline="1s") as made:
        broken = ProbeFault(Reason.POP3_SYS_PERM, "mailbox is broken", remedy="Mend it.")
        made.mailbox.login_fault = broken
        for _ in range(6):
            verdict = (await made.runner.run(made.probe)).verdict
            assert (verdict.reason, verdict.remedy) == (Reason.POP3_SYS_PERM, "Mend it.")
            made.mailbox.clock.now += 60.0  # past the deadline, and until the next run
        assert verdict.detail.startswith("nothing is sent while several messages wait in the mailbox")
        assert len(made.probe.context.ledger.seen) == 3
        made.mailbox.login_fault = None
        await made.probe._watcher.poll_now()
        await made.runner.run(made.probe)
        assert len(made.probe.context.ledger.seen) == 4


async def test_a_run_that_ends_before_the_deadline_blames_nobody(
    bench: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If our own ledger used up a run's time, the message may still come in time: the run is unknown."""
    monkeypatch.setattr("probes.roundtrip.POLL_GRACE", 0.0)
    async with bench(taking(lambda: FakeMailbox(InstantClock()), b"250 ok"), deadline="10s") as made:
        ledger, clock = made.probe.context.ledger, made.probe.context.clock
        intend = ledger.intend

        async def intend_late(message: Message) -> None:
            await clock.sleep(10.5)
            await intend(message)

        monkeypatch.setattr(ledger, "intend", intend_late)
        result = await made.runner.run(made.probe)
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.UNKNOWN, Reason.LOCAL_RESOURCES)
        assert result.verdict.message is not None
        assert result.verdict.message.state is MessageState.SENT


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
    async with bench(taking(lambda: FakeMailbox(InstantClock()), b"250 ok")) as made:
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


async def test_a_folder_that_is_not_there_is_told_at_once(bench: Callable[..., object]) -> None:
    """A missing configured folder ends the run long before its deadline; the message stays open."""
    taken: list[Bench] = []
    async with bench(taking(lambda: taken[0].mailbox, b"250 ok"), deadline="50s") as made:
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
    async with bench(taking(lambda: holder[0].mailbox, b"250 2.6.0 queued")) as made:
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
        async with asyncio.timeout(15):  # less than a wait for a turn
            await made.runner.stop(grace=60)
        assert waiting.cancelled()
        held.release()


async def test_a_server_that_only_seems_silent_is_not_blamed(
    bench: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an overloaded agent took a server for silent, and gives it no connection, the run is unknown."""
    limits = ConnectionLimits(most=2)
    monkeypatch.setattr(connection_limits, "system", limits)
    monkeypatch.setattr(connection_limits, "TOTAL_WAIT", 0.01)
    async with bench(dialogue(b"220 ready")) as made:
        phases = PhaseTimer(made.probe.context.clock)
        (await limits.take("127.0.0.1", made.smtp.port, phases)).release(timed_out=True)
        held = await limits.take("silent.example", 25, phases)
        verdict = (await made.runner.run(made.probe)).verdict
        held.release()
        assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, Reason.LOCAL_RESOURCES)
        assert verdict.detail.endswith("1 connections to servers that have not answered are open")
        assert SloSettings.model_validate({"objective": "99%", "within": "5s"}).is_good(verdict) is None
        assert made.smtp.connections == 0
        assert made.probe.context.ledger.seen == {}
