"""When to poll for a message: plans polls from the latencies that a route has shown.

The plan minimizes the expected error for a given number of polls. Let r(t) be the rate of polls and h(t) the
hazard: the rate of arrival of a message that has not arrived yet. The expected width of the interval is the
mean of 1 / r(t), and the expected number of polls is the mean of the integral of r up to the arrival. For a
given number of polls, the width is smallest if r is proportional to sqrt(h(t)); the width relative to the
delay is smallest for sqrt(h(t) / t). We use sqrt(h(t) / t^(1/3)), in between, for the sake of routes where
some messages are quick and others slow. In bins of equal width in log t, a bin with probability p of arrival
then gets polls in proportion to sqrt(p / S * t^(2/3)), where S is the share still in flight.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import add, mul

SHORTEST = 0.01
"""Lower end of the first bin, in seconds after the final dot; younger messages count as this old."""

PER_OCTAVE = 8
"""Number of bins between an age and its double; each is 9 % wide."""

BINS = 192
"""Total number of bins, up to about 168,000 s."""

_KEPT = 0.96  # share of earlier arrivals' weight that remains after a new one: about the last 25 count
_KEPT_SURPRISED = 0.7  # the same after an arrival that the plan did not expect, because latencies may change
_WIDE = 4.0  # an arrival was not expected if its interval ends at more than this times its beginning
_UNSEEN = 0.1  # number of arrivals, spread over all bins, that represent latencies never seen
_BLUR = 1.0  # number of bins by which an arrival is widened on both sides, because the next will differ
_BESIDES = 0.8  # polls per message beyond the plan: half of the last one, and those at unexpected times
_LATE = 0.02  # a message counts as later than usual once this share is still in flight
_LATE_HAZARD = 0.02  # minimum hazard of a bin for late messages
_LATE_POLLS = 0.5  # minimum polls in such a bin, which limits gaps to a fifth of the age
_LATE_SHARE = 0.05  # maximum share of the budget in such a bin, because a lost message must not cost too much
_ROUNDS = 5  # iterations until the plan nearly uses the budget
_NEWS = 0.15  # share of the weight that expected arrivals may add before there is another plan

_EDGES = [SHORTEST * 2.0 ** (index / PER_OCTAVE) for index in range(BINS)]
_WIDTHS = [edge * (2.0 ** (1 / PER_OCTAVE) - 1.0) for edge in _EDGES]
_FACTORS = [edge ** (1 / 3) for edge in _EDGES]  # sqrt(t^(2/3))
_Bounds = tuple[float, float, float]
"""A bin's share of the polls, and its minimum and maximum number of polls."""

_UNKNOWN: list[_Bounds] = [(0.0, polls, polls) for polls in (0.4 if edge < 2.0 else 1.0 for edge in _EDGES)]
"""The bounds of all bins before the first arrival."""


def _position(age: float) -> float:
    """Return the position of an age on the axis of bins."""
    return min(max(0.0, math.log2(max(age, 1e-9) / SHORTEST) * PER_OCTAVE), float(BINS))


@dataclass(frozen=True, slots=True)
class _Plan:
    """How many polls each bin gets. Few are ever asked for beyond the ``known`` bins."""

    known: array[float]
    scale: float
    beyond: list[_Bounds]

    def polls_in(self, index: int) -> float:
        """Return the number of polls in a bin."""
        return self.known[index] if index < len(self.known) else _scaled(self.scale, self.beyond[index])


class ArrivalModel:
    """The latencies that a route has shown, and the resulting plan of polls.

    ``polls`` is the budget: the average number of polls per message once the route is known. Gaps are from
    ``shortest_gap`` to ``longest_gap`` seconds, so part of the budget may remain unused.
    """

    def __init__(self, polls: float, shortest_gap: float, longest_gap: float = 300.0) -> None:
        self._polls = polls
        self._shortest_gap = shortest_gap
        self._longest_gap = longest_gap
        self._weights = array("f")  # of the bins up to the latest arrival
        self._later = _late_bounds(polls, shortest_gap)
        self._plan: _Plan | None = None
        self._news = 0  # number of arrivals that the plan does not include

    def learn(self, earliest: float, latest: float) -> bool:
        """Learn from an arrival between two ages, in seconds since the final dot; 0 <= earliest <= latest.

        Returns whether the plan changes: a few arrivals that the plan expected do not change it.
        """
        low = max(0.0, _position(earliest) - _BLUR)
        high = min(float(BINS), _position(latest) + _BLUR)
        first, end = int(low), math.ceil(high)
        weights = [*self._weights, *[0.0] * (end - len(self._weights))]
        total = max(sum(weights), 1.0)
        parts = [  # half spread evenly over the interval, half by where others arrived
            (min(high, index + 1.0) - max(low, index)) * (1 / (high - low) + weights[index] / total)
            for index in range(first, end)
        ]
        whole = sum(parts)
        surprising = latest > _WIDE * (earliest + self._shortest_gap)
        kept = _KEPT_SURPRISED if surprising else _KEPT
        weights = [kept * weight for weight in weights]
        for index, part in enumerate(parts, first):
            weights[index] += part / whole
        while weights[-1] < _UNSEEN / BINS:  # counts as much as if nothing ever arrived there
            weights.pop()
        self._weights = array("f", weights)
        self._news += 1
        if surprising or self._news > _NEWS * total:
            self._plan = None
        return self._plan is None

    def gap(self, age: float) -> float:
        """Return the seconds from a poll at ``age`` that did not show the message to the next poll."""
        if self._plan is None:
            self._plan, self._news = self._planned(), 0
        at, left = _position(age), 1.0
        for index in range(int(at), BINS):
            polls = self._plan.polls_in(index)
            room = polls * (index + 1.0 - at)
            if room >= left:
                until = SHORTEST * math.exp2((at + left / polls) / PER_OCTAVE)
                return min(max(until - age, self._shortest_gap), self._longest_gap)
            at, left = index + 1.0, left - room
        return self._longest_gap

    def _planned(self) -> _Plan:
        weights = self._weights
        if not weights:
            return _Plan(weights, 1.0, _UNKNOWN)
        total = sum(weights)
        bounds = self._bounds(weights, total)
        budget = max(self._polls - _BESIDES, 0.5) * total
        next_scale, used = 1.0, 0.0
        for _ in range(_ROUNDS):
            scale = next_scale
            polls = [_scaled(scale, each) for each in bounds]
            plan = list(accumulate(polls, initial=0.0))
            before, used = used, sum(map(mul, weights, map(add, plan, plan[1:]))) / 2.0
            if used == before:  # every bin is at its minimum or maximum
                break
            next_scale = scale * budget / used
        return _Plan(array("f", polls), scale, self._later)

    def _bounds(self, weights: array[float], total: float) -> list[_Bounds]:
        """Return the bounds of the bins in which messages have arrived."""
        bounds, after = [], 0.0
        for index in range(len(weights) - 1, -1, -1):
            weight = weights[index]
            later_share, later_fewest, later_most = self._later[index]
            hazard = (weight + _UNSEEN / BINS) / (after + weight / 2 + _UNSEEN)
            after += weight
            if after < _LATE * total:
                share = math.sqrt(hazard) * _FACTORS[index] if hazard > _LATE_HAZARD else later_share
                bounds.append((share, later_fewest, later_most))
            else:
                bounds.append((math.sqrt(hazard) * _FACTORS[index], 0.0, _WIDTHS[index] / self._shortest_gap))
        bounds.reverse()
        return bounds


@lru_cache(maxsize=64)
def _late_bounds(polls: float, shortest_gap: float) -> list[_Bounds]:
    """Return the bounds of each bin if no message has ever arrived there or later; shared by all routes."""
    late_polls = max(_LATE_POLLS, _LATE_SHARE * polls)
    mosts = [min(width / shortest_gap, late_polls) for width in _WIDTHS]
    return [
        (math.sqrt(_LATE_HAZARD) * factor, min(_LATE_POLLS, most), most)
        for factor, most in zip(_FACTORS, mosts, strict=True)
    ]


def _scaled(scale: float, bounds: _Bounds) -> float:
    share, fewest, most = bounds
    return min(max(scale * share, fewest), most)
