"""Histograms of times that grow in constant time and memory, to be shown as metrics."""

from __future__ import annotations

from bisect import bisect_left

LAG_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds, in seconds, of histograms of the agent's own delays."""


class Histogram:
    """Counts of observations, in seconds, by upper bound."""

    __slots__ = ("_bounds", "_cumulative", "sum")

    def __init__(self, bounds: tuple[float, ...] = LAG_BUCKETS) -> None:
        self._bounds = bounds
        self._cumulative = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        for place in range(bisect_left(self._bounds, seconds), len(self._cumulative)):
            self._cumulative[place] += 1
        self.sum += seconds

    def cumulative(self) -> tuple[int, ...]:
        """Return the number of observations up to each upper bound, and then of all."""
        return tuple(self._cumulative)
