"""The messages awaited in one mailbox, and when the next poll for them is due.

Planning a poll costs the same for any number of messages. They are ordered by their due times. A due time is
computed again only when it comes up, because a poll before that can only postpone it. Lost messages are not
kept here: if one arrives late, its token leads to its record in the ledger.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice

from probes.core.clock import Clock
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Settled, shift_of
from probes.delivery.message_life import AWAITED, Message
from probes.delivery.polling import ArrivalModel

LONGEST_GAP = 300.0
"""Maximum seconds between polls for a message that is long overdue."""

SLOW_GAP = 10.0
"""Minimum seconds between polls only for lost messages and delivery reports."""

SEARCH_GAP = 1.0
"""Minimum seconds between searches of the whole mailbox for overdue messages."""

REPLANNED = 50
"""How many of a route's youngest messages get a new due time after the route has learnt from an arrival."""

MOST_OVERDUE = 10
"""Number of overdue messages of a route from which on no more are sent into a mailbox that cannot be read."""

_AFTER = 0.001  # seconds from a deadline to the poll that may prove a loss
_COMPACT = 64  # minimum number of entries before settled ones are removed

Route = tuple[str, str]
"""Probe and target."""


@dataclass(slots=True, eq=False)
class Awaited:
    """A message that is not settled yet. Times are monotonic seconds."""

    message: Message
    since: float  # the message cannot arrive before this
    overdue_at: float  # a complete poll that begins after this and does not show it proves a loss
    settled: asyncio.Future[Settled]
    due: float = float("-inf")  # when it needs a poll, as last computed


class _Order:
    """Messages ordered by a time, the earliest first; settled messages are skipped."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Awaited]] = []
        self._numbers = count()
        self._compact_at = _COMPACT

    def put(self, at: float, awaited: Awaited) -> None:
        """Add an entry for a message; it may have several."""
        if len(self._heap) >= self._compact_at:
            self._heap = [entry for entry in self._heap if not entry[2].settled.done()]
            heapq.heapify(self._heap)
            self._compact_at = 2 * len(self._heap) + _COMPACT
        heapq.heappush(self._heap, (at, next(self._numbers), awaited))

    def first(self) -> tuple[float, Awaited] | None:
        """Return the earliest time and its message, if there is one."""
        while self._heap:
            at, _, awaited = self._heap[0]
            if not awaited.settled.done():
                return at, awaited
            heapq.heappop(self._heap)
        return None

    def drop_first(self) -> None:
        """Remove what `first` returned."""
        heapq.heappop(self._heap)

    def before(self, limit: float) -> Iterator[Awaited]:
        """Yield the messages with a time before ``limit``, in no order, without visiting the rest."""
        places = [0]
        while places:
            place = places.pop()
            if place < len(self._heap) and self._heap[place][0] < limit:
                if not self._heap[place][2].settled.done():
                    yield self._heap[place][2]
                places += (2 * place + 1, 2 * place + 2)


@dataclass(slots=True)
class _Lost:
    """Lost messages that may still arrive: how many, and how long to look for them."""

    count: int = 0
    since: float = float("-inf")  # monotonic: when the youngest was sent
    until: float = float("-inf")  # unix seconds: when the youngest's retention ends

    def add(self, since: float, until: float) -> None:
        self.count += 1
        self.since, self.until = max(self.since, since), max(self.until, until)


@dataclass(slots=True)
class _Route:
    """The latency that a route has learnt, and its unsettled messages, oldest first."""

    model: ArrivalModel
    messages: dict[str, Awaited] = field(default_factory=dict)


class AwaitedMessages:
    """Messages and delivery reports awaited in one mailbox.

    See `ArrivalModel` for ``polls`` and ``shortest_gap``. Lost messages are looked for until they are
    ``retention`` seconds old.
    """

    def __init__(self, clock: Clock, *, polls: float, shortest_gap: float, retention: float) -> None:
        self._clock = clock
        self._polls = polls
        self._shortest_gap = shortest_gap
        self._retention = retention
        self._messages: dict[str, Awaited] = {}
        self._routes: dict[Route, _Route] = {}
        self._replan: set[Route] = set()  # those that have learnt since the last call of `next_poll`
        self._by_due = _Order()
        self._by_deadline = _Order()
        self._lost = _Lost()
        # When each was sent. A dict would search for its first entry.
        self._reports: OrderedDict[str, tuple[float, asyncio.Future[Settled]]] = OrderedDict()
        self._polled_at = float("-inf")
        self._searched_at = float("-inf")

    def __bool__(self) -> bool:
        return bool(self._messages or self._reports or self._has_lost())

    def add(self, message: Message) -> asyncio.Future[Settled]:
        """Add ``message``, which is ``sent`` or ``ambiguous``; the future gets its outcome."""
        since, deadline = self._times(message)
        settled: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        # An earlier poll may have seen a copy but could not count it yet.
        self._put(Awaited(message, since, max(deadline, self._clock.monotonic()), settled))
        return settled

    def _times(self, message: Message) -> tuple[float, float]:
        """Return when a message was sent and its deadline, on this boot's monotonic clock."""
        shift = shift_of(message, self._clock)
        created = message.created_mono + shift
        since = message.dot_mono + shift if message.dot_mono is not None else created
        return since, message.due_mono + shift

    def _put(self, awaited: Awaited) -> None:
        awaited.due = float("-inf")
        self._messages[awaited.message.id] = awaited
        self._route(awaited.message).messages[awaited.message.id] = awaited
        self._by_due.put(awaited.due, awaited)
        self._by_deadline.put(awaited.overdue_at, awaited)

    def add_lost(self, message: Message) -> None:
        """Look for ``message``, which is lost, until its retention ends."""
        self._lost.add(self._times(message)[0], message.created_at + self._retention)

    def add_report(self, message: Message, settled: asyncio.Future[Settled]) -> None:
        """Look for a delivery report about ``message`` until it is ``settled``."""
        if not settled.done():
            self._put_report(message.id, self._times(message)[0], settled)

    def _put_report(self, message_id: str, since: float, settled: asyncio.Future[Settled]) -> None:
        self._reports[message_id] = since, settled
        settled.add_done_callback(lambda _: self._reports.pop(message_id, None))

    def take_over(self, earlier: AwaitedMessages) -> None:
        """Take over everything that ``earlier`` awaits, and the latencies that it has learnt."""
        for route, known in earlier._routes.items():
            self._route_of(route).model = known.model
        for awaited in earlier._messages.values():
            self._put(awaited)
        for message_id, (since, settled) in earlier._reports.items():
            self._put_report(message_id, since, settled)
        if earlier._has_lost():
            self._lost = earlier._lost

    def polled(self, *, searched: bool) -> None:
        """Record that a poll has just ended, and whether it searched the whole mailbox."""
        self._polled_at = self._clock.monotonic()
        if searched:
            self._searched_at = self._polled_at

    def next_poll(self) -> float:
        """Return when the next poll is due, on the monotonic clock."""
        for route in self._replan:
            for awaited in islice(reversed(self._routes[route].messages.values()), REPLANNED):
                self._plan(awaited)
        self._replan.clear()
        return min(self._first_due(), self._slow_due())

    def _first_due(self) -> float:
        while (first := self._by_due.first()) is not None:
            at, awaited = first
            if at != awaited.due:
                self._by_due.drop_first()
            elif self._plan(awaited) <= at:
                return at
        return float("inf")

    def _plan(self, awaited: Awaited) -> float:
        due = self._due(awaited)
        if due != awaited.due:
            awaited.due = due
            self._by_due.put(due, awaited)
        return due

    def _due(self, awaited: Awaited) -> float:
        latest = max(self._polled_at, awaited.since)
        model = self._route(awaited.message).model
        # Report a loss as early as possible, but let one search serve many messages.
        may_be_lost = max(
            latest + self._shortest_gap, awaited.overdue_at + _AFTER, self._searched_at + SEARCH_GAP
        )
        return min(latest + model.gap(latest - awaited.since), may_be_lost)

    def _slow_due(self) -> float:
        """Return when a poll for lost messages and delivery reports is due."""
        dues = []
        if self._has_lost():
            dues.append(self._polled_at + _slow_gap(self._polled_at - self._lost.since))
        if self._reports:
            oldest, _ = next(iter(self._reports.values()))
            youngest, _ = next(reversed(self._reports.values()))
            dues.append(max(self._polled_at, oldest) + _slow_gap(self._polled_at - youngest))
        return min(dues, default=float("inf"))

    def _has_lost(self) -> bool:
        if self._lost.count and self._clock.time() > self._lost.until:
            self._lost = _Lost()
        return self._lost.count > 0

    def is_overdue(self) -> bool:
        """Whether a poll now may find a message lost, so that it must search the whole mailbox again."""
        now = self._clock.monotonic()
        first = self._by_deadline.first()
        return first is not None and first[0] < now and now >= self._searched_at + SEARCH_GAP

    def overdue(self, complete_at: float) -> list[Message]:
        """Return the messages that a complete poll, begun at ``complete_at``, proves missing."""
        overdue = sorted(self._by_deadline.before(complete_at), key=lambda awaited: awaited.overdue_at)
        return [awaited.message for awaited in overdue]

    def has_many_overdue(self, route: Route) -> bool:
        """Whether `MOST_OVERDUE` messages of a route are overdue, because no poll could settle them."""
        messages = self._routes[route].messages.values() if route in self._routes else ()
        youngest = next(islice(messages, MOST_OVERDUE - 1, None), None)
        return youngest is not None and youngest.overdue_at < self._clock.monotonic()

    def record(self, message_id: str) -> Message | None:
        """Return the record of a message that is awaited, as of when it was added."""
        awaited = self._messages.get(message_id)
        return awaited.message if awaited is not None else None

    def settle(self, settled: Settled) -> None:
        """Resolve the message's future; keep looking if the message may still arrive."""
        message = settled.message
        self._learn(message)
        awaited = self._messages.pop(message.id, None)
        if awaited is not None:
            del self._route(message).messages[message.id]
        if message.state in AWAITED:
            self.add_lost(message)
        elif awaited is None and message.state is MessageState.LATE:
            self._lost.count = max(0, self._lost.count - 1)
        if awaited is not None and not awaited.settled.done():
            awaited.settled.set_result(settled)

    def _learn(self, message: Message) -> None:
        """Teach the route's model when the message arrived, relative to its final dot."""
        if message.delivery_seconds is None or message.uncertainty_seconds is None:
            return
        connected = message.connected_mono if message.connected_mono is not None else message.created_mono
        dot = message.dot_mono if message.dot_mono is not None else connected
        middle = max(0.0, message.delivery_seconds - (dot - connected))
        earliest = max(0.0, middle - message.uncertainty_seconds)
        if self._route(message).model.learn(earliest, middle + message.uncertainty_seconds):
            self._replan.add((message.probe, message.target))

    def _route(self, message: Message) -> _Route:
        return self._route_of((message.probe, message.target))

    def _route_of(self, route: Route) -> _Route:
        if route not in self._routes:
            model = ArrivalModel(self._polls, self._shortest_gap, LONGEST_GAP)
            self._routes[route] = _Route(model)
        return self._routes[route]


def _slow_gap(age: float) -> float:
    return min(max(SLOW_GAP, age / 4), LONGEST_GAP)
