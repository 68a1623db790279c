from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from monitor.ledger.limits import ROUTES_KEPT, RUNS_KEPT
from monitor.ledger.store import open_ledger
from probes.core.verdict import MessageState
from tests.unit.ledger.conftest import RUN, START, NewMessage, OpenLedger, StandingClock, entered

S = MessageState


async def test_locations_do_not_see_each_other(
    opened: OpenLedger, new_message: NewMessage, clock: StandingClock
) -> None:
    """Two agents with the same probes can share a database without sharing messages, counts or runs."""
    async with opened("agent-1", "fra1") as fra, opened("agent-2", "ams1") as ams:
        await fra.intend(of_both := new_message())
        later = replace(of_both, created_at=START + 10)  # even with the same id
        await ams.intend(later)
        await fra.intend(of_fra := new_message())
        assert await fra.advance(of_both.id, S.REJECTED)
        assert await ams.find(of_both.id) == later
        assert fra.counters.flight("hq", "submission").oldest_at == START
        assert ams.counters.flight("hq", "submission").oldest_at == START + 10
        assert await ams.find(of_fra.id) is None
        assert await ams.advance(of_fra.id, S.SENT) is None
        assert [message.id for message in await fra.open_messages()] == [of_fra.id]
        assert [message.id for message in await ams.open_messages()] == [of_both.id]
        assert entered(fra.counters) == {
            ("hq", "submission", S.INTENT): 2,
            ("hq", "submission", S.REJECTED): 1,
        }
        assert entered(ams.counters) == {("hq", "submission", S.INTENT): 1}
        clock.now += 3600
        assert await ams.forget(clock.now) == 0
        assert await fra.forget(clock.now) == 1
        assert await fra.discrepancies() == await ams.discrepancies() == []
        fra.record_run(RUN)
        ams.record_run(RUN | {"detail": "of ams1"})
        assert await fra.recent_runs("hq", "mail") == [RUN]
        assert await ams.find_run("hq", "0" * 32) == RUN | {"detail": "of ams1"}
        assert await ams.newest_runs({"hq"}, 40, 1000) == [RUN | {"detail": "of ams1"}]
    async with opened("agent-3", "ams1") as ams:
        assert entered(ams.counters) == {("hq", "submission", S.INTENT): 1}


async def test_the_runs_of_another_location_do_not_push_out_ours(opened: OpenLedger) -> None:
    """A location's history is limited only by its own runs and routes."""
    async with opened("agent-1", "fra1") as fra, opened("agent-2", "ams1") as ams:
        ours = {target: RUN | {"target": target} for target in ("mail", "mx0", "of-fra")}
        for run in ours.values():
            fra.record_run(run)
        await fra.recent_runs("hq", "mail")
        for number in range(2 * ROUTES_KEPT):
            for target in ("mail", f"mx{number}"):
                for _ in range(2):
                    ams.record_run(RUN | {"target": target, "outcome": "failed"})
        await ams.forget(0.0)
        await fra.forget(0.0)
        assert len(await ams.recent_runs("hq", "mail", limit=1000)) == RUNS_KEPT
        assert await ams.recent_runs("hq", "mx0") == []
        for target, run in ours.items():
            assert await fra.recent_runs("hq", target) == [run]


async def test_messages_of_an_earlier_location_are_told(
    path: Path, opened: OpenLedger, new_message: NewMessage, caplog: pytest.LogCaptureFixture
) -> None:
    """After a change of location, the log names the open messages, and changing back resumes them."""
    async with opened("agent-1", "fra1") as fra:
        for state in (S.SENT, S.AMBIGUOUS, S.LOST, S.REJECTED):
            await fra.intend(message := new_message())
            if state is S.LOST:
                await fra.advance(message.id, S.SENT)
            await fra.advance(message.id, state)
    async with opened("agent-2", "ams1") as ams:
        assert await ams.adopt() == []
    assert caplog.messages == [
        f"ledger {path}: 2 messages of location fra1 are not settled, and this agent is at ams1: "
        "run an agent with location fra1 on this ledger until they are"
    ]
    caplog.clear()
    async with opened("agent-3", "fra1") as fra:
        assert {message.state for message in await fra.adopt()} == {S.SENT, S.AMBIGUOUS, S.LOST}
    assert caplog.messages == []


async def test_living_agents_of_other_locations_are_no_trouble(
    path: Path,
    opened: OpenLedger,
    new_message: NewMessage,
    clock: StandingClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Messages of another location's running agent are that agent's business and not logged."""
    async with opened("agent-1", "fra1") as fra:
        await fra.intend(new_message(instance="agent-1"))
        async with open_ledger(f"sqlite://{path}", clock, "agent-2", "ams1") as ams:
            await ams.intend(own := replace(new_message(), instance="gone"))
            assert [message.id for message in await ams.adopt()] == [own.id]
            assert len(await fra.open_messages()) == 1
    assert caplog.messages == []
