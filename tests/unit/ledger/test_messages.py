from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import pytest

from monitor.ledger.counters import Counters, Total
from monitor.ledger.schema import messages
from probes.core.verdict import MessageState
from probes.delivery.message_life import SUCCESSORS, LedgerError, Message
from tests.unit.ledger.conftest import START, NewMessage, OpenLedger, StandingClock, entered

S = MessageState
WAYS = {
    S.INTENT: [],
    S.SENT: [S.SENT],
    S.DELIVERED: [S.SENT, S.DELIVERED],
    S.LATE: [S.SENT, S.LATE],
    S.LOST: [S.SENT, S.LOST],
    S.BOUNCED: [S.SENT, S.BOUNCED],
    S.REJECTED: [S.REJECTED],
    S.DEFERRED: [S.DEFERRED],
    S.AMBIGUOUS: [S.AMBIGUOUS],
}


def test_every_field_of_a_message_has_its_column() -> None:
    """A field of Message without a column would be lost at a restart."""
    further = {"location", "changed_at"}
    assert {field.name for field in fields(Message)} | further == set(messages.c.keys())


async def test_a_message_is_found_as_it_was_recorded(opened: OpenLedger, new_message: NewMessage) -> None:
    """All fields are read back, even after a restart."""
    message = new_message(
        connected_mono=1.5, detail="ünïcode ✉", reply_code=250, enhanced_status_code="2.0.0"
    )
    async with opened() as ledger:
        await ledger.intend(message)
        assert await ledger.find(message.id) == message
        assert await ledger.find("0" * 32) is None
    async with opened() as ledger:
        assert await ledger.find(message.id) == message


@pytest.mark.parametrize(("origin", "goal"), list(product(MessageState, MessageState)))
async def test_moves_follow_the_rule(
    opened: OpenLedger, new_message: NewMessage, origin: MessageState, goal: MessageState
) -> None:
    """A move in SUCCESSORS returns the changed message; any other returns None and changes nothing."""
    async with opened() as ledger:
        message = new_message()
        await ledger.intend(message)
        for state in WAYS[origin]:
            assert await ledger.advance(message.id, state)
        before = await ledger.find(message.id)
        moved = await ledger.advance(message.id, goal, detail="new", delivery_seconds=1.25)
        if goal in SUCCESSORS[origin]:
            assert moved == replace(message, state=goal, detail="new", delivery_seconds=1.25)
            assert await ledger.find(message.id) == moved
        else:
            assert moved is None
            assert await ledger.find(message.id) == before
        assert await ledger.discrepancies() == []


async def test_an_unknown_message_cannot_move(opened: OpenLedger) -> None:
    """A token from a lost ledger changes nothing and is not an error."""
    async with opened() as ledger:
        assert await ledger.advance("0" * 32, S.SENT) is None


async def test_what_a_message_is_cannot_be_changed(opened: OpenLedger, new_message: NewMessage) -> None:
    """A message's id, probe, target and send time never change."""
    async with opened() as ledger:
        await ledger.intend(message := new_message())
        with pytest.raises(TypeError, match="not to be changed with a message's state: created_at, probe"):
            await ledger.advance(message.id, S.SENT, probe="other", created_at=1.0)
        with pytest.raises(ValueError, match="a message begins as intent, not as sent"):
            await ledger.intend(new_message(state=S.SENT))


async def test_one_bad_request_leaves_its_neighbours_alone(
    opened: OpenLedger, new_message: NewMessage
) -> None:
    """Invalid requests in a shared transaction fail alone, such as a duplicate id or an invalid value."""
    async with opened() as ledger:
        first, second, third, broken = (new_message() for _ in range(4))
        answers = await asyncio.gather(
            ledger.intend(first),
            ledger.intend(second),
            ledger.intend(first),
            ledger.intend(replace(broken, created_mono=float("nan"))),  # SQLite stores it as NULL
            ledger.advance(second.id, S.SENT, detail=["no", "text"]),
            ledger.advance(second.id, S.SENT, detail="\ud800"),
            ledger.intend(third),
            ledger.advance(first.id, S.SENT),
            return_exceptions=True,
        )
        assert [type(answer) for answer in answers] == [
            *(type(None), type(None), LedgerError, LedgerError, LedgerError, LedgerError, type(None), Message)
        ]
        assert str(answers[2]) == f"message {first.id} is in the ledger already"
        assert await ledger.find(second.id) == second
        assert await ledger.find(third.id) == third
        assert await ledger.find(broken.id) is None
        assert entered(ledger.counters) == {
            ("hq", "submission", S.INTENT): 3,
            ("hq", "submission", S.SENT): 1,
        }
        assert await ledger.discrepancies() == []


async def test_an_answer_comes_after_the_commit(
    path: Path, opened: OpenLedger, new_message: NewMessage
) -> None:
    """Another connection already sees the row when the caller continues."""
    async with opened() as ledger:
        with sqlite3.connect(path) as other:
            for _ in range(20):
                message = new_message()
                await ledger.intend(message)
                query = "SELECT state FROM messages WHERE id = ?"
                assert other.execute(query, (message.id,)).fetchone() == ("intent",)
                await ledger.advance(message.id, S.SENT)
                assert other.execute(query, (message.id,)).fetchone() == ("sent",)
        other.close()


async def test_a_cancelled_caller_loses_only_the_answer(opened: OpenLedger, new_message: NewMessage) -> None:
    """After a cancellation, the record is still made, and the other callers get their answers."""
    async with opened() as ledger:
        given_up, kept = new_message(), new_message()
        caller = asyncio.create_task(ledger.intend(given_up))
        neighbour = asyncio.create_task(ledger.intend(kept))
        await asyncio.sleep(0)
        caller.cancel()
        await neighbour
        with pytest.raises(asyncio.CancelledError):
            await caller
    async with opened() as ledger:
        assert await ledger.find(given_up.id) == given_up
        assert await ledger.find(kept.id) == kept


async def test_closing_writes_what_is_queued(opened: OpenLedger, new_message: NewMessage) -> None:
    """Closing writes all queued changes; later ones are refused with a clear error."""
    new = [new_message() for _ in range(1200)]
    async with opened() as ledger:
        tasks = [asyncio.create_task(ledger.intend(message)) for message in new]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    with pytest.raises(LedgerError, match="is closed; nothing was recorded"):
        await ledger.intend(new_message())
    with pytest.raises(LedgerError, match="is closed"):
        await ledger.find(new[0].id)
    async with opened() as ledger:
        assert [message.id for message in await ledger.open_messages()] == [message.id for message in new]


async def test_only_one_of_two_moves_wins(opened: OpenLedger, new_message: NewMessage) -> None:
    """If two ledgers on one file settle the same message at once, only one succeeds."""
    async with opened() as one, opened("check-1") as two:
        for _ in range(20):
            await one.intend(message := new_message())
            await two.advance(message.id, S.SENT)
            outcome = await asyncio.gather(
                one.advance(message.id, S.DELIVERED), two.advance(message.id, S.BOUNCED)
            )
            assert [moved is None for moved in outcome].count(True) == 1
        assert await one.discrepancies() == []


async def test_a_commit_leaves_the_earlier_picture_as_it_is(
    opened: OpenLedger, new_message: NewMessage
) -> None:
    """A reader keeps a consistent snapshot of the counters, and unchanged parts are shared."""
    async with opened() as ledger:
        await ledger.intend(first := new_message())
        await ledger.intend(new_message(probe="branch"))
        before = ledger.counters
        await ledger.advance(first.id, S.SENT)
        assert before.entered("hq", "submission", S.SENT) == 0
        assert ledger.counters.entered("hq", "submission", S.SENT) == 1
        assert ledger.counters.routes["branch", "submission"] is before.routes["branch", "submission"]


async def test_a_commit_counts_only_what_it_changes(
    opened: OpenLedger, new_message: NewMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snapshots of all routes are made for readers, one after any number of commits."""
    made = 0
    updated = Counters.updated

    def counted(self: Counters, totals: Iterable[Total]) -> Counters:
        nonlocal made
        made += 1
        return updated(self, totals)

    async with opened() as ledger:
        monkeypatch.setattr(Counters, "updated", counted)
        for _ in range(3):
            await ledger.intend(message := new_message())
            await ledger.advance(message.id, S.SENT)
        assert made == 0
        assert ledger.counters.entered("hq", "submission", S.SENT) == 3
        assert ledger.counters is ledger.counters
        assert made == 1


async def test_the_counters_continue_over_restarts(
    opened: OpenLedger, new_message: NewMessage, clock: StandingClock
) -> None:
    """The counters continue after a restart, and show the oldest message in flight."""
    async with opened() as ledger:
        await ledger.intend(old := new_message())
        clock.now += 10
        await ledger.intend(young := new_message())
        await ledger.intend(other := new_message(probe="branch"))
        await ledger.advance(young.id, S.SENT)
        assert ledger.counters.flight("hq", "submission").messages == 2
        assert ledger.counters.flight("hq", "submission").oldest_at == START
        assert ledger.counters.flight("nobody", "submission").oldest_at == 0.0
        assert ledger.counters.flight("hq", "submission").intents == 1
        assert ledger.counters.flight("hq", "submission").oldest_intent_at == START
        await ledger.advance(old.id, S.REJECTED)
        assert ledger.counters.flight("hq", "submission").oldest_at == START + 10
        assert ledger.counters.flight("hq", "submission").intents == 0
        assert ledger.counters.flight("hq", "submission").oldest_intent_at == 0.0
        await ledger.advance(young.id, S.LOST)
        await ledger.advance(young.id, S.LATE)
        before = ledger.counters
    assert entered(before) == {
        ("hq", "submission", S.INTENT): 2,
        ("hq", "submission", S.SENT): 1,
        ("hq", "submission", S.REJECTED): 1,
        ("hq", "submission", S.LOST): 1,
        ("hq", "submission", S.LATE): 1,
        ("branch", "submission", S.INTENT): 1,
    }
    assert (before.flight("hq", "submission").messages, before.flight("hq", "submission").oldest_at) == (
        0,
        0.0,
    )
    async with opened() as ledger:
        assert ledger.counters == before
        assert ledger.counters.flight("branch", "submission").messages == 1
        assert ledger.counters.flight("branch", "submission").oldest_at == other.created_at


async def test_forgetting_keeps_the_totals(
    opened: OpenLedger, new_message: NewMessage, clock: StandingClock
) -> None:
    """Only messages that ended and were due long ago are purged, and the counts stay exact."""
    async with opened() as ledger:
        ended, lost, _under_way, not_due = new = [
            *(new_message() for _ in range(3)),
            new_message(deadline_seconds=86400.0),
        ]
        for message in new:
            await ledger.intend(message)
            await ledger.advance(message.id, S.SENT if message is not not_due else S.AMBIGUOUS)
        await ledger.advance(ended.id, S.DELIVERED)
        await ledger.advance(lost.id, S.LOST)
        clock.now += 3600
        await ledger.intend(recent := new_message())
        await ledger.advance(recent.id, S.REJECTED)
        before = ledger.counters
        assert await ledger.forget(clock.now - 1800) == 2
        assert [await ledger.find(message.id) is None for message in [*new, recent]] == [
            *(True, True, False, False, False)
        ]
        assert await ledger.discrepancies() == []
        assert entered(ledger.counters) == entered(before)
        assert ledger.counters.flight("hq", "submission").messages == 1
        assert await ledger.forget(clock.now - 1800) == 0


async def test_a_purge_lets_messages_through(
    opened: OpenLedger, new_message: NewMessage, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A purge is many small transactions over all routes and states, and other changes go in between."""
    monkeypatch.setattr("monitor.ledger.store.PURGE_STEP", 3)
    async with opened() as ledger:
        for n, state in enumerate((S.DELIVERED, S.LOST, S.REJECTED) * 10):
            await ledger.intend(message := new_message(probe=f"hq-{n % 4}"))
            for step in WAYS[state]:
                await ledger.advance(message.id, step)
        clock.now += 3600
        purge = asyncio.create_task(ledger.forget(clock.now - 1800))
        let_through = 0
        while not purge.done():
            await ledger.intend(new_message(probe="busy"))
            let_through += 1
        assert await purge == 30
        assert let_through >= 5
        assert await ledger.discrepancies() == []


async def test_counts_that_do_not_add_up_are_named(
    path: Path, opened: OpenLedger, new_message: NewMessage
) -> None:
    """The check of the counts finds a row added, removed or moved without its total."""
    async with opened() as ledger:
        await ledger.intend(new_message())
        await ledger.intend(new_message(probe="branch"))
        with sqlite3.connect(path) as other:
            other.execute("UPDATE messages SET state = 'lost' WHERE probe = 'hq'")
            other.execute("UPDATE totals SET held = 7, purged = 6 WHERE probe = 'branch'")
        other.close()
        assert sorted(await ledger.discrepancies()) == [
            "branch submission: +6 messages against intents",
            "hq submission intent: 0 rows + 0 purged != 1 held",
            "hq submission lost: 1 rows without a total",
        ]
