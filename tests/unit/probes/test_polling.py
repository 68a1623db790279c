"""What spending looks by what a route learnt guarantees, and what it is worth against a fixed interval."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.polling import ArrivalModel

LONGEST = 300.0
DAY = 86400.0
AGES = st.floats(0.0, DAY)


def delays_of(kind: str, count: int) -> list[float]:
    """Return delays, in seconds, of messages one after the other; seeded."""
    chance = random.Random(kind)  # noqa: S311 # a simulation
    spread = lambda median, sigma: median * math.exp(chance.gauss(0.0, sigma))  # noqa: E731 # local
    draws: dict[str, Callable[[int], float]] = {
        "quick": lambda n: spread(0.05, 0.2),
        "a second": lambda n: spread(1.0, 0.3),
        "steady minute": lambda n: spread(60.0, 0.1),
        "wide minute": lambda n: spread(60.0, 0.5),
        "greylisted": lambda n: spread(300.0 if chance.random() < 0.1 else 1.0, 0.2),
        "drifting": lambda n: spread(10 ** (n / count), 0.2),
        "stepping up": lambda n: spread(1.0 if n < count / 2 else 10.0, 0.2),
        "stepping down": lambda n: spread(10.0 if n < count / 2 else 1.0, 0.2),
    }
    return [draws[kind](n) for n in range(count)]


def looked_for(delay: float, begin: float, gap: Callable[[float], float]) -> tuple[int, float, float]:
    """Return the logins until a message is found, and its interval; a session takes 5 ms."""
    session = 0.005
    looks, earliest, age = 1, 0.0, begin
    while delay > age + session / 2:
        looks, earliest = looks + 1, age
        age += session + gap(age + session)
    return looks, earliest, age + session


def learning(delays: list[float], looks: float) -> Iterator[tuple[float, int, float, float]]:
    """Yield delay, logins and interval of each message of a route that learns."""
    model = ArrivalModel(looks, 0.01, LONGEST)
    for delay in delays:
        count, earliest, latest = looked_for(delay, model.gap(0.0), model.gap)
        model.learn(earliest, latest)
        yield delay, count, earliest, latest


def fixed(delays: list[float], logins: float) -> list[float]:
    """Return the errors of polling at the fixed interval that spends ``logins`` a message on these delays."""
    low, high = 1e-3, 1e4
    for _ in range(40):
        interval = math.sqrt(low * high)
        chance = random.Random(1)  # noqa: S311 # a simulation
        found = [looked_for(delay, chance.random() * interval, lambda _: interval) for delay in delays]  # noqa: B023 # used at once
        low, high = (interval, high) if statistics.mean(f[0] for f in found) > logins else (low, interval)
    return [abs((early + late) / 2 - delay) for delay, (_, early, late) in zip(delays, found, strict=True)]


@pytest.mark.parametrize(
    ("kind", "better"),
    [
        ("quick", 0.8),
        ("a second", 0.7),
        ("steady minute", 0.35),
        ("wide minute", 0.95),
        ("greylisted", 0.1),
        ("drifting", 0.5),
        ("stepping up", 0.4),
        ("stepping down", 0.4),
    ],
)
def test_error_is_small_for_the_logins_spent(kind: str, better: float) -> None:
    """Known routes cost about 6 logins a message, err by 5 % or 10 ms, and less than at a fixed interval."""
    seen = list(learning(delays_of(kind, 330), looks=6.0))[30:]
    logins = statistics.mean(count for _, count, _, _ in seen)
    errors = [abs((early + late) / 2 - delay) for delay, _, early, late in seen]
    assert logins <= (6.2 if kind not in {"drifting", "stepping up"} else 8.0)
    assert statistics.median(
        error / max(0.01, 0.05 * delay) for error, (delay, *_) in zip(errors, seen, strict=True)
    ) <= (1.0)
    assert statistics.median(errors) <= better * statistics.median(fixed([s[0] for s in seen], logins))


@pytest.mark.parametrize("kind", ["a second", "greylisted", "stepping up", "stepping down"])
def test_truth_is_in_the_interval(kind: str) -> None:
    """However far off the expectation was, the arrival lies within the interval that is published."""
    for delay, _, early, late in learning(delays_of(kind, 200), looks=6.0):
        assert early <= delay <= late


def test_cheap_looks_make_the_error_tiny() -> None:
    """With 200 NOOPs a message instead of 6 logins, a second's delay is known to some milliseconds."""
    seen = list(learning(delays_of("a second", 130), looks=200.0))[30:]
    assert statistics.median(abs((early + late) / 2 - delay) for delay, _, early, late in seen) <= 0.005


def test_unknown_route_is_looked_for_at_growing_gaps() -> None:
    """Before anything is learnt, any delay up to a day is found with some 10 % error and a log of looks."""
    for delay in (0.2, 3.0, 100.0, 2000.0):
        model = ArrivalModel(6.0, 0.05, LONGEST)
        looks, early, late = looked_for(delay, model.gap(0.0), model.gap)
        assert looks <= 5 * math.log2(delay / 0.01)
        assert (late - early) / 2 <= max(0.05, 0.11 * delay)


def test_message_later_than_ever_is_still_looked_for_often() -> None:
    """A message that is ten times later than any before is found with an error of some 10 %."""
    model = ArrivalModel(6.0, 0.05, LONGEST)
    for _ in range(50):
        model.learn(0.9, 1.1)
    _, early, late = looked_for(10.0, model.gap(0.0), model.gap)
    assert (late - early) / 2 <= 1.2


@given(st.lists(st.tuples(AGES, AGES), max_size=20), st.lists(AGES, min_size=1), st.floats(2.0, 10000.0))
def test_gaps_keep_to_their_bounds(
    arrivals: list[tuple[float, float]], ages: list[float], looks: float
) -> None:
    """Whatever was learnt, and at whatever age, a gap is from the shortest to the longest."""
    model = ArrivalModel(looks, 0.05, LONGEST)
    for one, other in arrivals:
        model.learn(min(one, other), max(one, other))
    for age in ages:
        assert 0.05 <= model.gap(age) <= LONGEST


@given(st.lists(st.tuples(AGES, AGES), max_size=20))
def test_no_history_makes_looks_pile_up(arrivals: list[tuple[float, float]]) -> None:
    """A message that never comes costs a bounded number of looks, whatever the route learnt before."""
    model = ArrivalModel(6.0, 0.05, LONGEST)
    for one, other in arrivals:
        model.learn(min(one, other), max(one, other))
    looks, age = 0, 0.0
    while age < 3600.0:
        age += model.gap(age)
        looks += 1
    assert looks <= 400
