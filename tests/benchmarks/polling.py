"""Adaptive polling compared with a fixed interval with as many polls: a seeded simulation.

There is no clock: delays are drawn, and polls are counted. A poll takes 5 ms and shows the mailbox at some
moment within them; it proves absence at its beginning, and presence at its end. The first poll at a fixed
interval is at a random time within one interval of the final dot.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from probes.delivery.polling import ArrivalModel

POLL_SECONDS = 0.005
LEARNING = 30
"""Messages that a route learns from before its figures count."""

MESSAGES = 1000
"""Messages whose figures count."""

LONGEST_GAP = 300.0


@dataclass(frozen=True, slots=True)
class Found:
    """A message that took ``delay`` seconds, and the result of ``polls`` polls."""

    delay: float
    polls: int
    earliest: float
    latest: float

    @property
    def error(self) -> float:
        """Seconds between the estimate, which is the interval's middle, and the truth."""
        return abs((self.earliest + self.latest) / 2 - self.delay)

    @property
    def error_of_goal(self) -> float:
        """The error as a multiple of the goal: 10 ms, or 5 % of the delay if that is more."""
        return self.error / max(0.01, 0.05 * self.delay)


def look_for(delay: float, first: float, gap: Callable[[float], float], chance: random.Random) -> Found:
    """Poll at age ``first``, and after each ``gap``, until a message with this ``delay`` is found."""
    age, earliest, polls = first, 0.0, 1
    while delay > age + chance.random() * POLL_SECONDS:
        earliest = age
        age += POLL_SECONDS
        age += gap(age)
        polls += 1
    return Found(delay, polls, earliest, age + POLL_SECONDS)


def adaptive(delays: Iterable[float], polls: float, shortest_gap: float = 0.02) -> list[Found]:
    """Return the results of a route that learns from each message when to poll for the next."""
    model, chance = ArrivalModel(polls, shortest_gap, LONGEST_GAP), random.Random("polls")  # noqa: S311
    found = []
    for delay in delays:
        found.append(look_for(delay, model.gap(0.0), model.gap, chance))
        model.learn(found[-1].earliest, found[-1].latest)
    return found


def fixed(delays: list[float], polls: float) -> list[Found]:
    """Return the results of polls at a fixed interval with about ``polls`` polls per message."""
    low, high = 1e-3, 1e5
    for _ in range(18):
        interval, chance = math.sqrt(low * high), random.Random("polls")  # noqa: S311
        if sum(delays) > interval * len(delays) * polls:
            low = interval
            continue
        found = [look_for(delay, chance.random() * interval, lambda _: interval, chance) for delay in delays]  # noqa: B023
        low, high = (interval, high) if statistics.mean(f.polls for f in found) > polls else (low, interval)
    return found


def log_normal(median: float, sigma: float) -> Callable[[float, random.Random], float]:
    """Return a distribution of delays: log-normal with standard deviation ``sigma``."""
    return lambda _, chance: median * math.exp(chance.gauss(0.0, sigma))


def greylisted(_: float, chance: random.Random) -> float:
    """Return about 1 s, or one time in ten about 300 s."""
    return (300.0 if chance.random() < 0.1 else 1.0) * math.exp(chance.gauss(0.0, 0.2))


def drifting(done: float, chance: random.Random) -> float:
    """Return a delay with a median that moves from 1 s to 10 s and back."""
    return 10.0 ** (1.0 - abs(1.0 - 2.0 * done)) * math.exp(chance.gauss(0.0, 0.2))


def stepping(done: float, chance: random.Random) -> float:
    """Return a delay with a median that jumps between 1 s and 10 s, four times in total."""
    return (10.0 if int(done * 5) % 2 else 1.0) * math.exp(chance.gauss(0.0, 0.2))


DISTRIBUTIONS: dict[str, Callable[[float, random.Random], float]] = {
    **{
        f"log-normal, {median:g} s, sigma {sigma:g}": log_normal(median, sigma)
        for median in (0.05, 0.3, 1.0, 10.0, 60.0)
        for sigma in (0.05, 0.1, 0.2, 0.3, 0.5)
    },
    "greylisted: 90 % 1 s, 10 % 300 s": greylisted,
    "drifting from 1 s to 10 s and back": drifting,
    "stepping between 1 s and 10 s": stepping,
}


def delays_of(name: str, messages: int = LEARNING + MESSAGES) -> list[float]:
    """Return the delays of successive messages in seconds, the same in each run."""
    chance = random.Random(name)  # noqa: S311
    return [DISTRIBUTIONS[name](n / messages, chance) for n in range(messages)]


def compare(name: str, polls: float, shortest_gap: float = 0.02) -> tuple[list[Found], list[Found]]:
    """Return the results of adaptive polling after learning, and of a fixed interval with as many polls."""
    ours = adaptive(delays_of(name), polls, shortest_gap)[LEARNING:]
    return ours, fixed([found.delay for found in ours], statistics.mean(found.polls for found in ours))


def main() -> None:
    """Print a table: polls per message, both errors, and the ratio of the errors."""
    for polls, shortest_gap in ((6.0, 0.02), (200.0, 0.01)):
        print(f"budget of {polls:g} polls a message, at least {shortest_gap * 1000:g} ms apart")
        print(f"{'':36}{'polls':>7}{'median error, s':>20}{'':>7}{'mean error, s':>20}{'':>7}{'of goal':>9}")
        print(f"{'':43}{'ours':>10}{'fixed':>10}{'ratio':>7}{'ours':>10}{'fixed':>10}{'ratio':>7}")
        for name in DISTRIBUTIONS:
            ours, interval = compare(name, polls, shortest_gap)
            cells = f"{statistics.mean(found.polls for found in ours):7.2f}"
            for average in (statistics.median, statistics.mean):
                our, theirs = average(f.error for f in ours), average(f.error for f in interval)
                cells += f"{our:10.3g}{theirs:10.3g}{our / theirs:7.2f}"
            print(f"{name:36}{cells}{statistics.median(f.error_of_goal for f in ours):9.2f}", flush=True)


if __name__ == "__main__":
    main()
