"""The last seven days of a route: what counts, what is forgotten, and the effect of restarts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monitor.ledger.last_week import DAY_HOURS, HOUR, WEEK_HOURS, LastWeek, RouteWeek, Share, ends_of
from monitor.ledger.store import SqlLedger
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.message_life import Message
from tests.unit.ledger.conftest import START, NewMessage, OpenLedger, StandingClock

S = MessageState
HALF_PAST = START - START % HOUR + HOUR / 2


async def _end(ledger: SqlLedger, message: Message, *states: MessageState, **changes: object) -> None:
    await ledger.intend(message)
    for state in states:
        assert await ledger.advance(message.id, state, **changes)


def _week(ledger: SqlLedger) -> RouteWeek:
    return ledger.last_week.route("hq", "submission")


async def test_every_end_counts_once(opened: OpenLedger, new_message: NewMessage) -> None:
    """Each outcome counts once, even lost and then late. Open messages and our own faults do not count."""
    async with opened() as ledger:
        await _end(ledger, new_message(), S.SENT, S.DELIVERED)
        await _end(ledger, new_message(), S.SENT, S.LATE)
        await _end(ledger, new_message(), S.SENT, S.LOST, S.LATE)
        await _end(ledger, new_message(), S.SENT, S.BOUNCED)
        await _end(ledger, new_message(), S.REJECTED)
        await _end(ledger, new_message(), S.DEFERRED, reason=str(Reason.SMTP_DEFERRED))
        await _end(ledger, new_message(), S.DEFERRED, reason=str(Reason.LOCAL_RESOURCES))
        await _end(ledger, new_message(), S.DEFERRED, reason="imap_throttled")  # by an earlier version
        await _end(ledger, new_message(), S.AMBIGUOUS, reason=str(Reason.INTERRUPTED))
        await _end(ledger, new_message(), S.AMBIGUOUS, S.DELIVERED, reason=str(Reason.INTERRUPTED))
        await _end(ledger, new_message(), S.SENT)
        await ledger.intend(new_message())
        assert _week(ledger).share(START, DAY_HOURS) == Share(ended=7, delivered=2)
        assert ledger.last_week.route("hq", "another").share(START, DAY_HOURS) == Share()


async def test_a_restart_changes_nothing(
    opened: OpenLedger, new_message: NewMessage, clock: StandingClock
) -> None:
    """A new agent reads from the ledger what the previous agent had counted, hour by hour."""
    clock.now = HALF_PAST
    async with opened() as ledger:
        for hours_ago in (0, 1, 5, 23, 25, 100, 167):
            at = HALF_PAST - hours_ago * HOUR
            for seconds in (0.004, 0.01, 1.1, 3.2, 70.0, 5000.0):
                message = new_message(created_at=at)
                measured = {"delivery_seconds": seconds, "uncertainty_seconds": 0.01}
                await _end(ledger, message, S.SENT, S.DELIVERED, **measured)
            await _end(ledger, new_message(created_at=at), S.SENT, S.LOST)
            await _end(ledger, new_message(created_at=at), S.DEFERRED, reason=str(Reason.LOCAL_RESOURCES))
            await _end(ledger, new_message(created_at=at), S.DEFERRED, reason="imap_throttled")
        vague = {"delivery_seconds": 60.0, "uncertainty_seconds": 50.0}
        await _end(ledger, new_message(), S.SENT, S.DELIVERED, **vague)
        await _end(ledger, new_message(created_at=HALF_PAST - 200 * HOUR), S.SENT, S.DELIVERED)
        before = _week(ledger)
    async with opened() as ledger:
        assert _week(ledger).share(HALF_PAST, WEEK_HOURS) == Share()
        await ledger.recall_last_week(HALF_PAST + 1)
        after = _week(ledger)
    assert after.share(HALF_PAST, WEEK_HOURS) == Share(ended=50, delivered=43)
    assert after.share(HALF_PAST, DAY_HOURS) == Share(ended=29, delivered=25)
    assert after.by_hour(HALF_PAST) == before.by_hour(HALF_PAST)
    assert after.by_hour(HALF_PAST)[0] == Share(ended=7, delivered=6)
    parts = [number / 100 for number in range(1, 101)]
    assert after.within(HALF_PAST, parts) == before.within(HALF_PAST, parts)
    assert after.within(HALF_PAST, [0.3, 0.5, 1.0]) == {0.3: 0.01, 0.5: 1.25, 1.0: 5000.0}


async def test_what_ends_while_an_agent_recalls_counts_once(
    opened: OpenLedger, new_message: NewMessage, clock: StandingClock
) -> None:
    """Messages that end between the start and the reading of the ledger are counted once."""
    async with opened() as ledger:
        await _end(ledger, new_message(), S.SENT, S.DELIVERED)
    async with opened() as ledger:
        clock.now += 10
        await _end(ledger, new_message(), S.SENT, S.LOST)
        await ledger.recall_last_week(START + 10)
        assert _week(ledger).share(clock.now, DAY_HOURS) == Share(ended=2, delivered=1)


def _delivered(new_message: NewMessage, created_at: float, seconds: float) -> Message:
    measured = {"delivery_seconds": seconds, "uncertainty_seconds": 0.01}
    return new_message(state=S.DELIVERED, created_at=created_at, **measured)


def _counted(week: LastWeek, *messages: Message) -> RouteWeek:
    for message in messages:
        ends = ends_of(message)
        assert ends is not None
        week.add([ends])
    return week.route("hq", "submission")


@pytest.mark.parametrize(
    ("part", "seconds"), [(0.5, 2.5), (0.9, 2.5), (0.95, 20.0), (0.99, 20.0), (1.0, 20.0)]
)
def test_so_many_deliveries_arrived_within(new_message: NewMessage, part: float, seconds: float) -> None:
    """A quantile is a time within which that share arrived, at most 28 % too high."""
    latencies = [2.1] * 90 + [17.0] * 10
    route = _counted(LastWeek(), *(_delivered(new_message, START, latency) for latency in latencies))
    assert route.within(START, [part]) == {part: seconds}


def _hours(new_message: NewMessage, *longest: float) -> RouteWeek:
    """Return a week with four deliveries an hour, the longest of which took so many seconds; newest first."""
    created = [(HALF_PAST - number * HOUR, seconds) for number, seconds in enumerate(longest)]
    some = [_delivered(new_message, at, seconds) for at, seconds in created]
    return _counted(LastWeek(), *some, *(_delivered(new_message, at, 0.5) for at, _ in created * 3))


@pytest.mark.parametrize(
    ("longest", "usual"),
    [
        ([2.0] * 24, 2.0),
        ([250.0] * 6 + [2.0] * 18, 2.0),  # an outage of six hours
        ([250.0] * 7 + [2.0] * 17, 250.0),
        ([2.0] * 18 + [40.0] * 8, 2.0),  # two of these hours are over a day ago
        ([2.0] * 14 + [40.0] * 10, 40.0),  # busy hours, every day
        ([2.0] * 6, 2.0),
        ([2.0] * 5, None),
    ],
)
def test_what_is_usual(longest: list[float], usual: float | None, new_message: NewMessage) -> None:
    """An outage of a few hours does not make long latencies usual, and a few hours do not tell what is."""
    assert _hours(new_message, *longest).usual(HALF_PAST) == usual


def test_what_is_usual_follows_the_latencies(new_message: NewMessage) -> None:
    """What is usual follows slower messages and the passing of hours, however often it was asked for."""
    week = LastWeek()
    for number in range(24):
        route = _counted(week, *[_delivered(new_message, HALF_PAST - number * HOUR, 2.0)] * 2)
    assert route.usual(HALF_PAST) == route.usual(HALF_PAST) == 2.0
    _counted(week, *(_delivered(new_message, HALF_PAST - number * HOUR, 39.0) for number in range(10)))
    assert route.usual(HALF_PAST) == 40.0
    assert route.usual(HALF_PAST + 20 * HOUR) is None


def test_what_is_usual_takes_enough_messages(new_message: NewMessage) -> None:
    """Few deliveries do not tell what is usual, and neither do those that were late."""
    week = LastWeek()
    messages = [_delivered(new_message, HALF_PAST - number % 10 * HOUR, 2.0) for number in range(19)]
    for some in (messages[:5], messages[5:]):
        assert _counted(week, *some).usual(HALF_PAST) is None
    late = replace(_delivered(new_message, HALF_PAST, 2.0), state=S.LATE)
    assert _counted(week, late).usual(HALF_PAST) is None
    another = _delivered(new_message, HALF_PAST, 2.0)
    assert _counted(week, another).usual(HALF_PAST) == 2.0


async def test_what_is_usual_survives_a_restart(
    opened: OpenLedger, new_message: NewMessage, clock: StandingClock
) -> None:
    """A new agent knows from its ledger what was usual for a route."""
    clock.now = HALF_PAST
    async with opened() as ledger:
        for number in range(24):
            message = new_message(created_at=HALF_PAST - number * HOUR)
            measured = {"delivery_seconds": 3.0 + number, "uncertainty_seconds": 0.01}
            await _end(ledger, message, S.SENT, S.DELIVERED, **measured)
        before = _week(ledger).usual(HALF_PAST)
    async with opened() as ledger:
        await ledger.recall_last_week(HALF_PAST + 1)
        assert _week(ledger).usual(HALF_PAST) == before == 20.0


def test_what_is_kept_is_bounded(new_message: NewMessage) -> None:
    """A route keeps 168 hours and 24 hours of latencies, and is removed after its last message."""
    week = LastWeek()
    for hour in range(400):
        route = _counted(week, _delivered(new_message, HALF_PAST + hour * HOUR, 1.0))
    now = HALF_PAST + 399 * HOUR
    assert len(route._ends) == WEEK_HOURS
    assert len(route._latencies) == DAY_HOURS
    assert route.share(now, 1000) == Share(WEEK_HOURS, WEEK_HOURS)
    week.forget_before(now + (WEEK_HOURS - 1) * HOUR)
    assert route.share(now, 1000) == Share(1, 1)
    week.forget_before(now + WEEK_HOURS * HOUR)
    assert week._probes == {}


def test_mx_hosts_that_come_and_go_are_forgotten(new_message: NewMessage) -> None:
    """For each probe, the 50 routes with the latest messages are kept."""
    week = LastWeek()
    for number in range(200):
        ends = ends_of(new_message(state=S.LOST, target=f"mx{number}", created_at=START + number * HOUR))
        assert ends is not None
        week.add([ends])
    kept = [n for n in range(200) if week.route("hq", f"mx{n}").share(START + n * HOUR, 1) == Share(1, 0)]
    assert kept == list(range(150, 200))


def test_a_clock_that_was_wrong_for_a_while_costs_no_later_hour(new_message: NewMessage) -> None:
    """After a message dated next year, today's messages count again, and that one does not show."""
    route = _counted(
        LastWeek(),
        _delivered(new_message, START + 365 * 86400.0, 1.0),
        *(_delivered(new_message, START + seconds, 1.0) for seconds in range(3)),
    )
    assert sum(share.ended for share in route.by_hour(START)) == 3
    assert route.share(START, WEEK_HOURS) == Share(3, 3)
