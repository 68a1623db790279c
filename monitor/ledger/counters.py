"""The ledger's counts, kept in memory for the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from probes.core.verdict import MessageState
from probes.delivery.message_life import IN_FLIGHT


@dataclass(frozen=True, slots=True)
class Total:
    """The counts of one probe, target and state, from the ``totals`` table."""

    probe: str
    target: str
    state: MessageState
    entered: int
    held: int
    oldest: float | None  # unix seconds: the earliest created_at of the messages in this state
    excused: int = 0  # how many of ``entered`` ended in maintenance
    oldest_counted: float | None = None  # as ``oldest``, of those created after maintenance, if there was one


class Flight(NamedTuple):
    """A route's messages in flight; instants in unix seconds, 0 if there is no such message."""

    messages: int = 0
    oldest_at: float = 0.0
    intents: int = 0  # how many of them no server has accepted yet
    oldest_intent_at: float = 0.0


@dataclass(slots=True)
class RouteCounts:
    """The counts of a probe and target, with what the metrics show of them, which is made once.

    ``entered`` is how many messages ever entered each state, ``counted`` the same without those that ended in
    maintenance, and ``excused`` how many these are.
    """

    totals: Mapping[MessageState, Total]
    entered: dict[MessageState, int] = field(init=False, compare=False)
    counted: dict[MessageState, int] = field(init=False, compare=False)
    excused: int = field(init=False, compare=False)
    flight: Flight = field(init=False, compare=False)

    def __post_init__(self) -> None:
        self.entered = {state: total.entered for state, total in self.totals.items()}
        self.counted = {state: total.entered - total.excused for state, total in self.totals.items()}
        self.excused = sum(total.excused for total in self.totals.values())
        self.flight = _flight({state: (total.held, total.oldest) for state, total in self.totals.items()})

    def flight_since(self, since: float) -> Flight:
        """Return what is in flight, with the oldest of the messages created after maintenance.

        ``since`` (unix seconds) is when the last maintenance of the route ended, or `math.inf` during one.
        """
        held = {}
        for state, total in self.totals.items():
            # Totals read at the start, or before a reload added a window, do not know what counts.
            oldest = total.oldest if total.oldest_counted is None else total.oldest_counted
            held[state] = total.held, oldest if oldest is not None and oldest >= since else 0.0
        return _flight(held)


def _flight(held: Mapping[MessageState, tuple[int, float | None]]) -> Flight:
    """Return the flight of a route that holds so many messages by state, with the oldest of each."""
    messages, oldest = 0, 0.0
    for state in IN_FLIGHT:
        count, its_oldest = held.get(state, _NONE_HELD)
        if its_oldest is not None:
            messages += count
            oldest = min(oldest or its_oldest, its_oldest or oldest)
    count, its_oldest = held.get(MessageState.INTENT, _NONE_HELD)
    if its_oldest is None:
        return Flight(messages, oldest)
    return Flight(messages, oldest, count, its_oldest)


_NONE_HELD = 0, None


_NO_MESSAGES = RouteCounts({})


@dataclass(frozen=True, slots=True)
class Counters:
    """A consistent snapshot of the ledger's counts, by probe and target.

    Snapshots share what did not change, because there may be many routes.
    """

    routes: Mapping[tuple[str, str], RouteCounts] = field(default_factory=dict)

    def updated(self, totals: Iterable[Total]) -> Counters:
        """Return a snapshot in which ``totals`` replace those of the same probe, target and state."""
        changed: dict[tuple[str, str], dict[MessageState, Total]] = {}
        for total in totals:
            route = total.probe, total.target
            changed.setdefault(route, {**self.of(route).totals})[total.state] = total
        if not changed:
            return self
        return Counters({**self.routes, **{route: RouteCounts(now) for route, now in changed.items()}})

    def of(self, route: tuple[str, str]) -> RouteCounts:
        """Return the counts of a probe and target."""
        return self.routes.get(route, _NO_MESSAGES)

    def entered(self, probe: str, target: str, state: MessageState) -> int:
        """Return how many messages ever entered ``state``; the count continues across restarts."""
        return self.of((probe, target)).entered.get(state, 0)

    def flight(self, probe: str, target: str) -> Flight:
        """Return what a route has in flight."""
        return self.of((probe, target)).flight
