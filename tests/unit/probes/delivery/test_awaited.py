"""When the next poll for awaited messages is due, and that an outage does not make polls more expensive."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest

from probes.core.verdict import MessageState
from probes.delivery.arrivals import Settled
from probes.delivery.awaited import LONGEST_GAP, SEARCH_GAP, AwaitedMessages
from probes.delivery.message_life import Message
from probes.delivery.polling import ArrivalModel
from tests.fakes.clock import InstantClock
from tests.fakes.message import intent
from tests.unit.probes.delivery.conftest import Bench

RETENTION = 7 * 86400.0


@pytest.fixture
def clock() -> InstantClock:
    return InstantClock()


def awaited_messages(clock: InstantClock) -> AwaitedMessages:
    return AwaitedMessages(clock, polls=6.0, shortest_gap=0.02, retention=RETENTION)


def sent(clock: InstantClock, *, age: float = 0.0, deadline: float = 300.0, probe: str = "trip") -> Message:
    """Return a message that was handed over ``age`` seconds ago."""
    sent_at = clock.now - age
    times = {"connected_mono": sent_at, "dot_mono": sent_at, "accepted_mono": sent_at}
    return intent(clock, age=age, probe=probe, state=MessageState.SENT, deadline_seconds=deadline, **times)


def delivered(message: Message, seconds: float) -> Settled:
    return Settled(
        replace(
            message, state=MessageState.DELIVERED, delivery_seconds=seconds, uncertainty_seconds=seconds / 20
        )
    )


async def test_the_most_impatient_message_decides(clock: InstantClock) -> None:
    """The next poll is due when the first message needs it, whatever was polled and learnt before."""
    chance = random.Random("order")  # noqa: S311 # a test that is the same each time
    awaited = awaited_messages(clock)
    open_messages: dict[str, Message] = {}
    for _ in range(400):
        match chance.randrange(4):
            case 0:
                message = sent(clock, deadline=chance.uniform(1, 400), probe=f"trip-{chance.randrange(3)}")
                open_messages[message.id] = message
                awaited.add(message)
            case 1 if open_messages:
                message = open_messages.pop(chance.choice(list(open_messages)))
                awaited.settle(delivered(message, max(0.01, clock.now - message.created_mono)))
            case _:
                clock.now += chance.choice([0.01, 0.3, 7.0])
                awaited.polled(searched=chance.random() < 0.2)
        wanted = [awaited._due(each) for each in awaited._messages.values()]
        assert awaited.next_poll() == min(wanted, default=float("inf"))


async def test_a_deadline_counts_from_connecting(clock: InstantClock) -> None:
    """A message that our own ledger held up before it could be submitted is not overdue for that."""
    held_up = replace(sent(clock, deadline=30.0), created_mono=clock.now - 25.0)
    awaited = awaited_messages(clock)
    awaited.add(held_up)
    clock.now += 29.0
    assert not awaited.is_overdue()
    clock.now += 2.0
    assert awaited.is_overdue()


@pytest.mark.parametrize("count", [10, 5000])
async def test_open_messages_do_not_slow_down_polls(
    clock: InstantClock, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Planning a poll visits only the messages that need one, not every open message."""
    awaited = awaited_messages(clock)
    for _ in range(count):
        lost = sent(clock, age=1000.0)
        awaited.settle(Settled(replace(lost, state=MessageState.LOST)))
        awaited.add(sent(clock, age=20_000.0, deadline=86400.0))
    awaited.polled(searched=False)
    awaited.next_poll()
    awaited.add(sent(clock))
    planned: Counter[str] = Counter()
    gap = ArrivalModel.gap

    def counted(model: ArrivalModel, age: float) -> float:
        planned["gaps"] += 1
        return gap(model, age)

    monkeypatch.setattr(ArrivalModel, "gap", counted)
    for _ in range(20):
        clock.now = awaited.next_poll()
        assert not awaited.is_overdue()
        assert awaited.overdue(clock.now) == []
        awaited.polled(searched=False)
    assert planned["gaps"] <= 60


async def test_lost_messages_are_looked_for_until_their_retention_ends(clock: InstantClock) -> None:
    """Polls for a lost message become rare, and end with its retention or its arrival."""
    awaited = awaited_messages(clock)
    late, never = sent(clock), sent(clock)
    for message in (late, never):
        clock.now += 300.0
        awaited.settle(Settled(replace(message, state=MessageState.LOST)))
    clock.now += 1000.0
    awaited.polled(searched=False)
    assert clock.now + 100.0 < awaited.next_poll() <= clock.now + LONGEST_GAP
    awaited.settle(Settled(replace(late, state=MessageState.LATE)))
    assert awaited
    clock.now += RETENTION
    assert not awaited

    awaited.add_lost(replace(never, state=MessageState.LOST, created_at=clock.time()))
    assert awaited
    awaited.settle(Settled(replace(never, state=MessageState.LATE)))
    assert not awaited
    assert awaited.next_poll() == float("inf")


async def test_one_search_a_second_tells_of_all_that_is_overdue(clock: InstantClock) -> None:
    """The whole mailbox is searched at most once a second, however many messages are overdue."""
    awaited = awaited_messages(clock)
    for number in range(300):
        awaited.add(sent(clock, deadline=1.0 + number / 100))
    searches: list[float] = []
    given_up = 0
    while given_up < 300:
        clock.now = max(clock.now, awaited.next_poll())
        began = clock.now
        if is_search := awaited.is_overdue():
            searches.append(began)
            for message in awaited.overdue(began):
                awaited.settle(Settled(replace(message, state=MessageState.LOST)))
                assert began - message.created_mono <= message.deadline_seconds + SEARCH_GAP + 0.1
                given_up += 1
        awaited.polled(searched=is_search)
    assert len(searches) <= 5


async def test_a_report_is_looked_for_until_its_message_is_settled(clock: InstantClock) -> None:
    """Polls for reports come every 10 seconds, however often messages are sent, until they are settled."""
    awaited = awaited_messages(clock)
    others = awaited_messages(clock)
    awaited.polled(searched=False)
    polled_at, arrivals = clock.now, []
    for _ in range(9):
        message = sent(clock)
        arrivals.append((message, others.add(message)))
        awaited.add_report(*arrivals[-1])
        assert awaited.next_poll() == pytest.approx(polled_at + 10.0)
        clock.now += 1.0
    for message, arrival in arrivals:
        others.settle(delivered(message, 1.0))
        assert arrival.done()
    await asyncio.sleep(0)  # it is told on the loop's next turn
    assert not awaited


async def test_many_messages_are_given_up_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that one search finds lost are recorded in a few transactions."""
    messages = await asyncio.gather(*(bench.sent(deadline=5.0) for _ in range(200)))
    arrivals = [bench.watcher.await_arrival(message) for message in messages]
    commits: Counter[str] = Counter()
    write = bench.ledger._database.write

    def counted(work: object) -> object:
        commits["all"] += 1
        return write(work)  # type: ignore[arg-type] # it is passed on as it is

    monkeypatch.setattr(bench.ledger._database, "write", counted)
    states = Counter([(await arrival).message.state for arrival in arrivals])
    assert states == {MessageState.LOST: 200}
    assert commits["all"] < 50


async def test_awaited_messages_are_known(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is not asked for a message that is awaited: each question takes another thread's turn."""
    message, asked = await bench.sent(), list[str]()
    find = bench.ledger.find

    async def counted(message_id: str) -> Message | None:
        asked.append(message_id)
        return await find(message_id)

    monkeypatch.setattr(bench.ledger, "find", counted)
    bench.arrives(message, 0.5)
    assert (await bench.watcher.await_arrival(message)).message.state is MessageState.DELIVERED
    assert not asked


async def test_restart_with_many_lost_messages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost messages of earlier processes cost nothing: a new message gets its true latency at once."""
    asked: list[str] = []
    find = bench.ledger.find

    async def counted(message_id: str) -> Message | None:
        asked.append(message_id)
        return await find(message_id)

    monkeypatch.setattr(bench.ledger, "find", counted)
    message = await bench.sent()
    for _ in range(5000):
        lost = sent(bench.clock, age=1000.0)
        bench.watcher.watch_on(replace(lost, state=MessageState.LOST))
    bench.arrives(message, 0.5)
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.delivery_seconds == pytest.approx(0.5, abs=0.1)
    assert set(asked) <= {message.id}
