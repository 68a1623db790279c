"""When to look for a message: what a route learnt of its latency, turned into the time of the next look.

Looks are spent so that the error is expected to be smallest for their number. Let r(t) be the rate of
looks and h(t) the hazard: the rate at which arrives what has not arrived yet. The expected width
of the interval is the mean of 1 / r(t), the expected number of looks that of the integral of r up to the
arrival; the rate that minimises the one for a given other is proportional to sqrt(h(t)). For the width
relative to the delay it is sqrt(h(t) / t). We stand between the two, at sqrt(h(t) / sqrt(t)): over bins of
equal width in log t, a bin with probability p of arrival, while S are still under way, then
gets looks proportional to sqrt(p / S * sqrt(t)).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate

SHORTEST = 0.01
"""Lower end of the first bin, in seconds after the final dot."""

PER_OCTAVE = 8
"""Bins between an age and its double: each is 9 % wide."""

BINS = 190
"""Bins in all, up to some 140,000 s."""

_KEPT = 0.95  # of the weight of earlier arrivals, with each new one: about the last twenty count
_PRIOR = 0.1  # arrivals, spread over all bins, that stand for what was never seen
_BLUR = 1.0  # bins that an arrival is spread to either side: the next one will be a little different
_TAIL = 0.02  # share still under way from which on a message counts as later than usual
_TAIL_LOOKS = 0.5  # a bin, there and before anything is learnt: each gap is then a fifth of the age
_FIRST = 0.5  # looks' worth of arrivals that the first look may miss; their intervals reach back to 0
_BESIDES = 1.2  # looks a message that the plan does not count: the first, the last and those in the tail
_FEWEST = 1e-6  # looks in a bin, so that the plan always rises


def _position(age: float) -> float:
    """Return where an age lies on the axis of bins."""
    return min(max(0.0, math.log2(max(age, 1e-9) / SHORTEST) * PER_OCTAVE), float(BINS))


class ArrivalModel:
    """What one route learnt about how long its messages take, and when to look next.

    ``looks`` is the budget of looks a message, on average, once the route is known; gaps are from
    ``shortest_gap`` to ``longest_gap`` seconds.
    """

    def __init__(self, looks: float, shortest_gap: float, longest_gap: float) -> None:
        self._looks = looks
        self._shortest_gap = shortest_gap
        self._longest_gap = longest_gap
        self._weights = [0.0] * BINS
        self._plan: list[float] | None = None

    def learn(self, earliest: float, latest: float) -> None:
        """Take in an arrival between two ages, in seconds since the final dot; 0 <= earliest <= latest."""
        low = max(0.0, _position(earliest) - _BLUR)
        high = min(float(BINS), _position(latest) + _BLUR)
        self._weights = [_KEPT * weight for weight in self._weights]
        for index in range(int(low), math.ceil(high)):
            covered = min(high, index + 1.0) - max(low, float(index))
            self._weights[index] += covered / (high - low)
        self._plan = None

    def gap(self, age: float) -> float:
        """Return the seconds from a look at ``age``, which did not show the message, to the next one."""
        if self._plan is None:
            self._plan = self._planned()
        plan, at = self._plan, _position(age)
        index = min(int(at), BINS - 1)
        done = plan[index] + (plan[index + 1] - plan[index]) * (at - index)
        target = _FIRST if done < _FIRST else done + 1.0
        if target >= plan[-1]:
            return self._longest_gap
        index = bisect_right(plan, target) - 1
        at = index + (target - plan[index]) / (plan[index + 1] - plan[index])
        until = SHORTEST * math.exp2(at / PER_OCTAVE)
        return min(max(until - age, self._shortest_gap), self._longest_gap)

    def _planned(self) -> list[float]:
        """Return how many looks are done by each edge between bins."""
        total = sum(self._weights)
        if total == 0.0:
            return [0.0, *accumulate([_TAIL_LOOKS] * BINS)]
        shares, looks, spent, under_way = [], 0.0, 0.0, total
        for index, weight in enumerate(self._weights):
            hazard = (weight + _PRIOR / BINS) / (max(under_way - weight / 2, 0.0) + _PRIOR)
            share = math.sqrt(hazard * 2.0 ** (index / PER_OCTAVE / 2))
            spent += weight * (looks + share / 2)
            looks += share
            under_way -= weight
            shares.append(share)
        scale = max(self._looks - _BESIDES, 0.5) * total / spent
        plan, under_way = [0.0], total
        for weight, share in zip(self._weights, shares, strict=True):
            late = under_way < _TAIL * total
            plan.append(plan[-1] + (_TAIL_LOOKS if late else max(scale * share, _FEWEST)))
            under_way -= weight
        return plan
