"""How the messages of the last seven days ended, by route and hour, in memory."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock

from sqlalchemy import Connection, and_, bindparam, case, func, null, or_, select

from monitor.ledger.history import ROUTES_KEPT
from monitor.ledger.schema import messages
from probes.core.reasons import Outcome, Reason
from probes.core.verdict import MessageState
from probes.delivery.message_life import Message

HOUR = 3600.0
DAY_HOURS, WEEK_HOURS = 24, 168

_S = MessageState
ENDS = frozenset({_S.DELIVERED, _S.LATE, _S.LOST, _S.BOUNCED, _S.REJECTED, _S.DEFERRED})
"""States in which a message counts. One that is `lost` first and `late` afterwards counts once."""

_NOT_MAILS_FAULT = frozenset(str(reason) for reason in Reason if reason.outcome is Outcome.UNKNOWN)
"""A message that is not delivered for one of these reasons says nothing about the mail system."""

_STEPS = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)
BOUNDS = tuple(round(step * 10.0**power, 5) for power in range(-2, 6) for step in _STEPS)
"""Latencies, in seconds, up to which deliveries are counted: ten a decade (ISO 3, R10), to over a week."""

LAST_BOUND = len(BOUNDS) - 1


@dataclass(frozen=True, slots=True)
class Share:
    """How many messages ended, and how many of them were delivered by their deadline."""

    ended: int = 0
    delivered: int = 0


@dataclass(frozen=True, slots=True)
class Ends:
    """A number of messages of a route that were created in the same hour and ended alike."""

    probe: str
    target: str
    hour: int  # since the epoch
    is_delivered: bool
    bound: int | None  # where the latency is in `BOUNDS`, if it is known well enough
    count: int


@dataclass(slots=True)
class _Hour:
    ended: int = 0
    delivered: int = 0
    latencies: dict[int, int] | None = field(default_factory=dict)  # by position in `BOUNDS`; for a day


class RouteWeek:
    """The last seven days of one route; any thread may read it."""

    def __init__(self) -> None:
        self.newest = 0
        """The latest hour that a message was created in, since the epoch."""
        self._hours: dict[int, _Hour] = {}

    def add(self, ends: Ends) -> None:
        """Count these messages. The time that it takes does not depend on how many were counted before."""
        hour = self._hours.get(ends.hour)
        if hour is None:
            hour = self._hours[ends.hour] = _Hour()
            self.forget_before(ends.hour)
            self.newest = max(self.newest, ends.hour)
        hour.ended += ends.count
        if ends.is_delivered:
            hour.delivered += ends.count
            if ends.bound is not None and hour.latencies is not None:
                hour.latencies[ends.bound] = hour.latencies.get(ends.bound, 0) + ends.count

    def forget_before(self, now: int) -> bool:
        """Forget what is too old at hour ``now``; return whether nothing is left."""
        for number, hour in list(self._hours.items()):
            if number <= now - WEEK_HOURS:
                del self._hours[number]
            elif number <= now - DAY_HOURS:
                hour.latencies = None
        return not self._hours

    def share(self, now: float, hours: int) -> Share:
        """Return how the messages ended that were created in so many last hours, the current one included."""
        current, ended, delivered = int(now // HOUR), 0, 0
        for number, hour in list(self._hours.items()):
            if 0 <= current - number < hours:
                ended += hour.ended
                delivered += hour.delivered
        return Share(ended, delivered)

    def by_hour(self, now: float) -> list[Share]:
        """Return each hour of the last seven days, oldest first, the current one included."""
        current = int(now // HOUR)
        hours = (self._hours.get(number) for number in range(current - WEEK_HOURS + 1, current + 1))
        return [Share() if hour is None else Share(hour.ended, hour.delivered) for hour in hours]

    def within(self, now: float, parts: Iterable[float]) -> dict[float, float] | None:
        """Return, for each part of the last day's deliveries, the seconds in which so many arrived.

        They are the next of `BOUNDS` above the true quantile. ``None`` if no latency is known.
        """
        current, counts = int(now // HOUR), Counter[int]()
        for number, hour in list(self._hours.items()):
            latencies = hour.latencies
            if 0 <= current - number < DAY_HOURS and latencies is not None:
                counts.update(latencies.copy())
        return {part: _bound(counts, part) for part in parts} if counts else None


def _bound(counts: Counter[int], part: float) -> float:
    needed, so_far = math.ceil(part * counts.total()), 0
    for position in sorted(counts):
        so_far += counts[position]
        if so_far >= needed:
            break
    return BOUNDS[position]


class LastWeek:
    """The last seven days of every route, as far as this process saw or `ends_since` told it.

    Of each probe, the `ROUTES_KEPT` most recent routes are kept: MX hosts come and go. Any thread may use it.
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
        """Forget what is older than seven days at ``now`` (unix seconds), and routes without any rest."""
        with self._changing:
            for probe, targets in list(self._probes.items()):
                for target, week in list(targets.items()):
                    if week.forget_before(int(now // HOUR)):
                        del targets[target]
                if not targets:
                    del self._probes[probe]


def ends_of(message: Message) -> Ends | None:
    """Return how ``message`` counts now that it ended; ``None`` if it says nothing about the mail system."""
    is_delivered = message.state is _S.DELIVERED
    if not is_delivered and message.reason in _NOT_MAILS_FAULT:
        return None
    measured = is_delivered and message.report().is_measured and message.delivery_seconds is not None
    bound = bisect_left(BOUNDS, message.delivery_seconds or 0.0, hi=LAST_BOUND) if measured else None
    return Ends(message.probe, message.target, int(message.created_at // HOUR), is_delivered, bound, 1)


def ends_since(
    connection: Connection, location: str, route: tuple[str, str], now: float, before: float
) -> list[Ends]:
    """Return how the messages of a route ended that were created in the seven days up to ``now``.

    Only those whose state last changed before ``before``; both are in unix seconds.
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
_IS_MEASURED = and_(  # as `MessageReport.is_measured` has it
    messages.c.state == _S.DELIVERED,
    messages.c.created_at >= bindparam("day_ago"),
    or_(_uncertainty <= 1.0, _uncertainty <= _seconds / 2),
)
_BOUND = case(
    *((_seconds <= bound, position) for position, bound in enumerate(BOUNDS[:LAST_BOUND])), else_=LAST_BOUND
)
_ENDS = (
    select(
        # Not FLOOR, which some builds of SQLite lack; a cast to an integer rounds in PostgreSQL.
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
        or_(messages.c.state == _S.DELIVERED, messages.c.reason.not_in(_NOT_MAILS_FAULT)),
    )
    .group_by("hour", "is_delivered", "bound")
)
