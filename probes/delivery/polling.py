"""When to look for a message: what a route learnt of its latency, turned into the time of the next poll.

Polls are spent so that the error is expected to be smallest for their number. Let r(t) be the rate of polls
and h(t) the hazard: the rate at which arrives what has not arrived yet. The expected width of the interval is
the mean of 1 / r(t), the expected number of polls that of the integral of r up to the arrival; the rate that
minimises the one for a given other is proportional to sqrt(h(t)). For the width relative to the delay it is
sqrt(h(t) / t). We stand between the two, for the sake of routes with a quick and a slow way, at
sqrt(h(t) / t^(1/3)): over bins of equal width in log t, a bin with probability p of arrival, while S are
still under way, then gets polls proportional to sqrt(p / S * t^(2/3)).
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from itertools import accumulate
from operator import add, mul

SHORTEST = 0.01
"""Lower end of the first bin, in seconds after the final dot; what is younger counts as this old."""

PER_OCTAVE = 8
"""Bins between an age and its double: each is 9 % wide."""

BINS = 192
"""Bins in all, up to some 168,000 s."""

_KEPT = 0.96  # of the weight of earlier arrivals, with each new one: about the last 25 count
_KEPT_SURPRISED = 0.7  # with one that was hardly looked for: what was learnt may hold no more
_WIDE = 4.0  # times its beginning, the end of an interval that was hardly looked for
_UNSEEN = 0.1  # arrivals, spread over all bins, that stand for what was never seen
_BLUR = 1.0  # bins that an arrival is spread to either side: the next one will be a little different
_BESIDES = 0.8  # polls a message that the plan does not count: half the last, and where it expects wrongly
_LATE = 0.02  # share still under way from which on a message counts as later than usual
_LATE_HAZARD = 0.02  # a bin, there
_LATE_POLLS = 0.5  # a bin, there, at least: a gap is then at most a fifth of the age
_LATE_SHARE = 0.05  # of the budget, a bin, there, at most: a lost message must not cost looks for ever
_ROUNDS = 5  # until the plan spends the budget, nearly

_EDGES = [SHORTEST * 2.0 ** (index / PER_OCTAVE) for index in range(BINS)]
_WIDTHS = [edge * (2.0 ** (1 / PER_OCTAVE) - 1.0) for edge in _EDGES]
_FACTORS = [edge ** (1 / 3) for edge in _EDGES]  # sqrt(t^(2/3))
_UNKNOWN = [0.4 if edge < 2.0 else 1.0 for edge in _EDGES]  # polls before anything is learnt


def _position(age: float) -> float:
    """Return where an age lies on the axis of bins."""
    return min(max(0.0, math.log2(max(age, 1e-9) / SHORTEST) * PER_OCTAVE), float(BINS))


class ArrivalModel:
    """What a route learnt about how long its messages take, and when to poll next.

    ``polls`` is the budget of polls a message, on average, once the route is known; gaps are from
    ``shortest_gap`` to ``longest_gap`` seconds, which may cost some of the budget its use.
    """

    def __init__(self, polls: float, shortest_gap: float, longest_gap: float = 300.0) -> None:
        self._polls = polls
        self._shortest_gap = shortest_gap
        self._longest_gap = longest_gap
        self._weights = array("d", bytes(8 * BINS))
        self._plan: array[float] | None = None

    def learn(self, earliest: float, latest: float) -> None:
        """Take in an arrival between two ages, in seconds since the final dot; 0 <= earliest <= latest."""
        low = max(0.0, _position(earliest) - _BLUR)
        high = min(float(BINS), _position(latest) + _BLUR)
        total = max(sum(self._weights), 1.0)
        parts = {  # a wide interval counts where others arrived as much as where nothing is known
            index: (min(high, index + 1.0) - max(low, index))
            * (1 / (high - low) + self._weights[index] / total)
            for index in range(int(low), math.ceil(high))
        }
        whole = sum(parts.values())
        surprising = latest > _WIDE * (earliest + self._shortest_gap)
        kept = _KEPT_SURPRISED if surprising else _KEPT
        self._weights = array("d", [kept * weight for weight in self._weights])
        for index, part in parts.items():
            self._weights[index] += part / whole
        self._plan = None

    def gap(self, age: float) -> float:
        """Return the seconds from a look at ``age``, which did not show the message, to the next one."""
        if self._plan is None:
            self._plan = self._planned()
        plan, at = self._plan, _position(age)
        index = min(int(at), BINS - 1)
        target = plan[index] + (plan[index + 1] - plan[index]) * (at - index) + 1.0
        if target >= plan[-1]:
            return self._longest_gap
        index = bisect_right(plan, target) - 1
        at = index + (target - plan[index]) / (plan[index + 1] - plan[index])
        until = SHORTEST * math.exp2(at / PER_OCTAVE)
        return min(max(until - age, self._shortest_gap), self._longest_gap)

    def _planned(self) -> array[float]:
        """Return how many polls are done by each edge between bins."""
        total = sum(self._weights)
        if total == 0.0:
            return array("d", accumulate(_UNKNOWN, initial=0.0))
        bounds = self._bounds(total)
        budget = max(self._polls - _BESIDES, 0.5) * total
        scale = 1.0
        for _ in range(_ROUNDS):
            polls = [min(max(scale * share, fewest), most) for share, fewest, most in bounds]
            plan = array("d", accumulate(polls, initial=0.0))
            scale *= budget / sum(map(mul, self._weights, map(add, plan, plan[1:]))) * 2.0
        return plan

    def _bounds(self, total: float) -> list[tuple[float, float, float]]:
        """Return of each bin its share of the polls, and the fewest and the most that it gets."""
        late_polls = max(_LATE_POLLS, _LATE_SHARE * self._polls)
        bounds, after = [], 0.0
        for weight, width, factor in zip(*map(reversed, (self._weights, _WIDTHS, _FACTORS)), strict=True):
            hazard = (weight + _UNSEEN / BINS) / (after + weight / 2 + _UNSEEN)
            fewest, most = 0.0, width / self._shortest_gap
            after += weight
            if after < _LATE * total:
                hazard = max(hazard, _LATE_HAZARD)
                most = min(most, late_polls)
                fewest = min(_LATE_POLLS, most)
            bounds.append((math.sqrt(hazard) * factor, fewest, most))
        bounds.reverse()
        return bounds
