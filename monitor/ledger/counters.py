"""The ledger's counts, kept in memory for the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class Counters:
    """A consistent snapshot of the ledger's counts, by probe and target. Each commit makes a new one.

    Snapshots share what did not change, because commits are frequent and there may be many routes.
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

    def in_flight(self, probe: str, target: str) -> int:
        """Return how many messages are in flight."""
        return sum(total.held for total in self._in_flight(probe, target))

    def oldest_in_flight(self, probe: str, target: str) -> float:
        """Return when the oldest message in flight was created, in unix seconds; 0 if there is none."""
        instants = [total.oldest for total in self._in_flight(probe, target) if total.oldest is not None]
        return min(instants, default=0.0)

    def intents(self, probe: str, target: str) -> int:
        """Return how many messages wait for a server to accept or refuse them."""
        total = self._intents(probe, target)
        return total.held if total is not None else 0

    def oldest_intent(self, probe: str, target: str) -> float:
        """Return when the oldest such message was created, in unix seconds; 0 if there is none."""
        total = self._intents(probe, target)
        return total.oldest or 0.0 if total is not None else 0.0

    def _intents(self, probe: str, target: str) -> Total | None:
        return self.routes.get((probe, target), {}).get(MessageState.INTENT)

    def _in_flight(self, probe: str, target: str) -> list[Total]:
        totals = self.routes.get((probe, target), {})
        return [totals[state] for state in IN_FLIGHT if state in totals]
