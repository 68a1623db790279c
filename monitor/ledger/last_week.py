"""How the messages of the last seven days ended, by route and hour, in memory; except in maintenance."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Lock

from sqlalchemy import Connection, and_, bindparam, case, false, func, null, or_, select

from monitor.ledger.limits import ROUTES_KEPT
from monitor.ledger.schema import messages
from probes.core.reasons import FORMER_NAMES, Outcome, Reason
from probes.core.verdict import MessageState
from probes.delivery.message_life import Message

HOUR = 3600.0
DAY_HOURS, WEEK_HOURS = 24, 168

_S = MessageState
ENDS = frozenset({_S.DELIVERED, _S.LATE, _S.LOST, _S.BOUNCED, _S.REJECTED, _S.DEFERRED})
"""States in which a message counts. A message that is `lost` and later `late` counts once."""

_BY_NAME = {**FORMER_NAMES, **{str(reason): reason for reason in Reason}}
_NOT_MAILS_FAULT = frozenset(name for name, reason in _BY_NAME.items() if reason.outcome is Outcome.UNKNOWN)
"""If a message is not delivered for one of these reasons, that says nothing about the mail system."""

_STEPS = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)
BOUNDS = tuple(round(step * 10.0**power, 5) for power in range(-2, 6) for step in _STEPS)
"""Upper bounds, in seconds, by which latencies are counted: ten per decade (ISO 3, R10), to over a week."""

LAST_BOUND = len(BOUNDS) - 1

LAST_PLACE = 2**32 - 1

HOURS_KNOWN, MESSAGES_KNOWN = 6, 20
"""Minimum numbers of hours and of messages that show what is usual for a route."""

_USUAL_HOURS = 0.75


@dataclass(frozen=True, slots=True)
class Share:
    """How many messages ended, and how many of these were delivered by their deadline."""

    ended: int = 0
    delivered: int = 0


@dataclass(frozen=True, slots=True)
class Ends:
    """How many messages of a route were created in the same hour and ended in the same way."""

    probe: str
    target: str
    hour: int  # since the epoch
    is_delivered: bool
    bound: int | None  # position of the latency in `BOUNDS`, if it is known precisely enough
    count: int


class _Tally:
    """Counts by place, in ascending order: a dict would take ten times the memory.

    One thread at a time changes it. Others may read it meanwhile, because places are never moved within an
    array that they may hold.
    """

    __slots__ = ("_pair",)

    def __init__(self) -> None:
        self._pair = array("I"), array("I")  # places, and the count at each

    def __len__(self) -> int:
        return len(self._pair[0])

    @property
    def places(self) -> array[int]:
        """All places; another array as soon as there is one more or less."""
        return self._pair[0]

    def add(self, place: int, count: int) -> None:
        """Count at ``place``, from 0 to `LAST_PLACE`."""
        places, counts = self._pair
        index = bisect_left(places, place)
        if index < len(places) and places[index] == place:
            counts[index] += count
        else:
            new = array("I", (place,)), array("I", (count,))
            self._pair = places[:index] + new[0] + places[index:], counts[:index] + new[1] + counts[index:]

    def forget_before(self, place: int) -> None:
        """Forget the counts of all lower places."""
        places, counts = self._pair
        if index := bisect_left(places, place):
            self._pair = places[index:], counts[index:]

    def between(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Return each place from ``first`` up to, but not including, ``end`` with its count."""
        places, counts = self._pair
        begin, stop = bisect_left(places, first), bisect_left(places, end)
        return zip(places[begin:stop], counts[begin:stop], strict=True)


class RouteWeek:
    """The last seven days of one route; any thread may read it."""

    __slots__ = ("_ends", "_latencies", "_usual", "newest")

    def __init__(self) -> None:
        self.newest = 0
        """The latest hour in which a message was created, in hours since the epoch."""
        self._ends = _Tally()  # at 2 * hour + 1 those that were delivered, at 2 * hour the others
        self._latencies = _Tally()  # of a day, at hour * len(BOUNDS) + bound
        self._usual: tuple[array[int], int, float | None] | None = None
        """The last result of `usual`, and for which places and hour it is valid: each scrape asks for it."""

    def add(self, ends: Ends) -> None:
        """Count these messages. This takes the same time however many were counted before."""
        if not 0 <= ends.hour < LAST_PLACE // len(BOUNDS):
            return  # no clock of ours has shown this
        if ends.hour > self.newest:
            self.newest = ends.hour
            self.forget_before(ends.hour)
        self._ends.add(2 * ends.hour + ends.is_delivered, ends.count)
        if ends.is_delivered and ends.bound is not None:
            self._latencies.add(ends.hour * len(BOUNDS) + ends.bound, ends.count)

    def forget_before(self, now: int) -> bool:
        """Forget what is too old at hour ``now``; return whether nothing is left."""
        self._ends.forget_before(2 * (now - WEEK_HOURS + 1))
        self._latencies.forget_before((now - DAY_HOURS + 1) * len(BOUNDS))
        return not self._ends

    def share(self, now: float, hours: int) -> Share:
        """Return how the messages of the last ``hours`` ended, by creation and including the current hour."""
        ended = delivered = 0
        for place, count in self._hours(now, hours):
            ended += count
            if place % 2:
                delivered += count
        return Share(ended, delivered)

    def by_hour(self, now: float) -> list[Share]:
        """Return each hour of the last seven days, oldest first, including the current one."""
        current, counts, none = int(now // HOUR), dict(self._hours(now, WEEK_HOURS)), Share()
        shares = []
        for hour in range(current - WEEK_HOURS + 1, current + 1):
            others, delivered = counts.get(2 * hour, 0), counts.get(2 * hour + 1, 0)
            shares.append(Share(others + delivered, delivered) if others or delivered else none)
        return shares

    def _hours(self, now: float, hours: int) -> Iterator[tuple[int, int]]:
        end = int(now // HOUR) + 1
        return self._ends.between(2 * (end - hours), 2 * end)

    def _last_day(self, now: float) -> Iterator[tuple[int, int, int]]:
        """Yield the latencies of the last day: hour, position in `BOUNDS` and number, in ascending order."""
        current = int(now // HOUR)
        first, end = (current - DAY_HOURS + 1) * len(BOUNDS), (current + 1) * len(BOUNDS)
        for place, count in self._latencies.between(first, end):
            yield *divmod(place, len(BOUNDS)), count

    def within(self, now: float, parts: Iterable[float]) -> dict[float, float] | None:
        """Return quantiles of the last day's latencies, in seconds, by the quantile (0 to 1).

        Each is rounded up to the next of `BOUNDS`. Returns ``None`` if no latency is known.
        """
        counts = Counter[int]()
        for _, bound, count in self._last_day(now):
            counts[bound] += count
        return {part: _bound(counts, part) for part in parts} if counts else None

    def usual(self, now: float) -> float | None:
        """Return the latency, in seconds, that no message exceeded in three of four hours of the last day.

        Hours without a delivery do not count, nor do late and lost messages, so an outage of a few hours
        changes little. Rounded up to the next of `BOUNDS`. Returns ``None`` if too few messages are known.
        """
        places, hour = self._latencies.places, int(now // HOUR)
        known = self._usual
        if known is not None and known[0] is places and known[1] == hour:
            return known[2]
        longest: dict[int, int] = {}
        messages_known = 0
        for number, bound, count in self._last_day(now):
            longest[number] = bound
            messages_known += count
        usual = None
        if len(longest) >= HOURS_KNOWN:
            if messages_known < MESSAGES_KNOWN:
                return None  # and not kept, because a further message may have the same place
            usual = BOUNDS[sorted(longest.values())[math.ceil(_USUAL_HOURS * len(longest)) - 1]]
        self._usual = places, hour, usual
        return usual


def _bound(counts: Counter[int], part: float) -> float:
    needed, so_far = math.ceil(part * counts.total()), 0
    for position in sorted(counts):
        so_far += counts[position]
        if so_far >= needed:
            break
    return BOUNDS[position]


class LastWeek:
    """The last seven days of every route: what this process has seen, and what `ends_since` found.

    MX hosts come and go, so only the `ROUTES_KEPT` most recent routes of each probe are kept. Any thread may
    use it.
    """

    def __init__(self) -> None:
        self._probes: dict[str, dict[str, RouteWeek]] = {}  # by target
        self._changing = Lock()

    def add(self, some: Iterable[Ends]) -> None:
        """Count these messages."""
        for ends in some:
            with self._changing:
                self._add(ends)

    def _add(self, ends: Ends) -> None:
        targets = self._probes.setdefault(ends.probe, {})
        week = targets.get(ends.target)
        if week is None:
            if len(targets) == ROUTES_KEPT:
                del targets[min(targets, key=lambda target: targets[target].newest)]
            week = targets[ends.target] = RouteWeek()
        week.add(ends)

    def route(self, probe: str, target: str) -> RouteWeek:
        """Return the week of a route, empty if none of its messages ended."""
        return self._probes.get(probe, {}).get(target) or RouteWeek()

    def forget_before(self, now: float) -> None:
        """Forget what is older than seven days at ``now`` (unix seconds), and routes with nothing left."""
        with self._changing:
            for probe, targets in list(self._probes.items()):
                for target, week in list(targets.items()):
                    if week.forget_before(int(now // HOUR)):
                        del targets[target]
                if not targets:
                    del self._probes[probe]


def ends_of(message: Message) -> Ends | None:
    """Return how an ended message counts; ``None`` if it says nothing about the mail system."""
    is_delivered = message.state is _S.DELIVERED
    if not is_delivered and message.reason in _NOT_MAILS_FAULT:
        return None
    measured = is_delivered and message.report().is_measured and message.delivery_seconds is not None
    bound = bisect_left(BOUNDS, message.delivery_seconds or 0.0, hi=LAST_BOUND) if measured else None
    return Ends(message.probe, message.target, int(message.created_at // HOUR), is_delivered, bound, 1)


def ends_since(
    connection: Connection, location: str, route: tuple[str, str], now: float, before: float
) -> list[Ends]:
    """Return how a route's messages ended, for those created in the seven days up to ``now``.

    Messages whose state changed at ``before`` or later are left out. Both times are in unix seconds.
    """
    values = {
        "of_location": location,
        "of_probe": route[0],
        "of_target": route[1],
        "before": before,
        "week_ago": now - WEEK_HOURS * HOUR,
        "day_ago": now - DAY_HOURS * HOUR,
    }
    rows = connection.execute(_ENDS, values)
    return [Ends(*route, int(row.hour), bool(row.is_delivered), row.bound, row.n) for row in rows]


_seconds, _uncertainty = messages.c.delivery_seconds, messages.c.uncertainty_seconds
_IS_DELIVERED = case((messages.c.state == _S.DELIVERED, 1), else_=0)
_IS_MEASURED = and_(  # the same rule as `MessageReport.is_measured`
    messages.c.state == _S.DELIVERED,
    messages.c.created_at >= bindparam("day_ago"),
    or_(_uncertainty <= 1.0, _uncertainty <= _seconds / 2),
)
_BOUND = case(
    *((_seconds <= bound, position) for position, bound in enumerate(BOUNDS[:LAST_BOUND])), else_=LAST_BOUND
)
_ENDS = (
    select(
        # Some builds of SQLite lack FLOOR, and PostgreSQL rounds when it casts to an integer.
        func.round(messages.c.created_at / HOUR - 0.5).label("hour"),
        _IS_DELIVERED.label("is_delivered"),
        case((_IS_MEASURED, _BOUND), else_=null()).label("bound"),
        func.count().label("n"),
    )
    .where(
        messages.c.location == bindparam("of_location"),
        messages.c.probe == bindparam("of_probe"),
        messages.c.target == bindparam("of_target"),
        messages.c.changed_at < bindparam("before"),
        messages.c.state.in_(ENDS),
        messages.c.created_at >= bindparam("week_ago"),
        messages.c.excused.is_(false()),
        or_(messages.c.state == _S.DELIVERED, messages.c.reason.not_in(_NOT_MAILS_FAULT)),
    )
    .group_by("hour", "is_delivered", "bound")
)
