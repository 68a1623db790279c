"""The ledger's counts as metrics need them, kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from probes.message_life import IN_FLIGHT, MessageState

TotalKey = tuple[str, str, MessageState]
"""Probe, target, state."""


@dataclass(frozen=True, slots=True)
class Total:
    """The counts of one probe, target and state, as the ``totals`` table has them."""

    probe: str
    target: str
    state: MessageState
    entered: int
    held: int
    oldest: float | None  # unix seconds: the earliest created_at among the messages in this state


@dataclass(frozen=True, slots=True)
class Tally:
    """One consistent picture of the ledger's counts; a commit replaces it with the next.

    ``entered`` says how many times messages came into each state: it continues over restarts.
    """

    entered: Mapping[TotalKey, int] = field(default_factory=lambda: MappingProxyType({}))
    _totals: Mapping[TotalKey, Total] = field(default_factory=lambda: MappingProxyType({}))

    def updated(self, totals: Iterable[Total]) -> Tally:
        """Return the tally in which ``totals`` replace those of the same probe, target and state."""
        changed = {(total.probe, total.target, total.state): total for total in totals}
        if not changed:
            return self
        return Tally(
            MappingProxyType({**self.entered, **{key: total.entered for key, total in changed.items()}}),
            MappingProxyType({**self._totals, **changed}),
        )

    def in_flight(self, probe: str, target: str) -> int:
        """Return how many messages are under way."""
        return sum(total.held for total in self._in_flight(probe, target))

    def oldest_in_flight(self, probe: str, target: str) -> float:
        """Return when the oldest message under way was created, in unix seconds; 0 when there is none."""
        instants = [total.oldest for total in self._in_flight(probe, target) if total.oldest is not None]
        return min(instants, default=0.0)

    def _in_flight(self, probe: str, target: str) -> list[Total]:
        keys = [(probe, target, state) for state in IN_FLIGHT]
        return [self._totals[key] for key in keys if key in self._totals]
