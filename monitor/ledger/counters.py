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


class Flight(NamedTuple):
    """A route's messages in flight; instants in unix seconds, 0 if there is no such message."""

    messages: int = 0
    oldest_at: float = 0.0
    intents: int = 0  # how many of them no server has accepted yet
    oldest_intent_at: float = 0.0


@dataclass(slots=True)
class RouteCounts:
    """The counts of a probe and target, with what the metrics show of them, which is made once.

    ``entered`` is how many messages ever entered each state.
    """

    totals: Mapping[MessageState, Total]
    entered: dict[MessageState, int] = field(init=False, compare=False)
    flight: Flight = field(init=False, compare=False)

    def __post_init__(self) -> None:
        self.entered = {state: total.entered for state, total in self.totals.items()}
        self.flight = _flight(self.totals)


def _flight(totals: Mapping[MessageState, Total]) -> Flight:
    messages, oldest = 0, 0.0
    for state in IN_FLIGHT:
        total = totals.get(state)
        if total is not None and total.oldest is not None:
            messages += total.held
            oldest = min(oldest, total.oldest) if oldest else total.oldest
    intents = totals.get(MessageState.INTENT)
    if intents is None or intents.oldest is None:
        return Flight(messages, oldest)
    return Flight(messages, oldest, intents.held, intents.oldest)


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
