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


@dataclass(frozen=True, slots=True)
class Counters:
    """A consistent snapshot of the ledger's counts, by probe and target.

    Snapshots share what did not change, because there may be many routes.
    """

    routes: Mapping[tuple[str, str], Mapping[MessageState, Total]] = field(default_factory=dict)

    def updated(self, totals: Iterable[Total]) -> Counters:
        """Return a snapshot in which ``totals`` replace those of the same probe, target and state."""
        changed: dict[tuple[str, str], dict[MessageState, Total]] = {}
        for total in totals:
            route = total.probe, total.target
            changed.setdefault(route, {**self.routes.get(route, {})})[total.state] = total
        return Counters({**self.routes, **changed}) if changed else self

    def entered(self, probe: str, target: str, state: MessageState) -> int:
        """Return how many messages ever entered ``state``; the count continues across restarts."""
        total = self.routes.get((probe, target), {}).get(state)
        return total.entered if total is not None else 0

    def flight(self, probe: str, target: str) -> Flight:
        """Return what a route has in flight."""
        totals, messages, oldest = self.routes.get((probe, target)), 0, 0.0
        if totals is None:
            return Flight()
        for state in IN_FLIGHT:
            total = totals.get(state)
            if total is not None and total.oldest is not None:
                messages += total.held
                oldest = min(oldest, total.oldest) if oldest else total.oldest
        intents = totals.get(MessageState.INTENT)
        if intents is None or intents.oldest is None:
            return Flight(messages, oldest)
        return Flight(messages, oldest, intents.held, intents.oldest)
