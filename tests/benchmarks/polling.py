"""How well adaptive polling spends its polls, beside a fixed interval with as many: a seeded simulation.

Nothing runs on a clock: delays are drawn, polls are counted. A poll takes 5 ms, shows the mailbox of some
moment within them, and proves absence for its beginning and presence for its end. The first look at a fixed
interval comes anywhere within one interval of the final dot.
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
    """A message that took ``delay`` seconds, and what ``polls`` polls say of it."""

    delay: float
    polls: int
    earliest: float
    latest: float

    @property
    def error(self) -> float:
        """Seconds between the estimate, the interval's middle, and the truth."""
        return abs((self.earliest + self.latest) / 2 - self.delay)

    @property
    def error_of_goal(self) -> float:
        """The error as a multiple of what is aimed at: 10 ms, or 5 % of the delay if that is more."""
        return self.error / max(0.01, 0.05 * self.delay)


def look_for(delay: float, first: float, gap: Callable[[float], float], chance: random.Random) -> Found:
    """Look at age ``first``, and after each ``gap``, until a message of that ``delay`` is found."""
    age, earliest, polls = first, 0.0, 1
    while delay > age + chance.random() * POLL_SECONDS:
        earliest = age
        age += POLL_SECONDS
        age += gap(age)
        polls += 1
    return Found(delay, polls, earliest, age + POLL_SECONDS)


def adaptive(delays: Iterable[float], polls: float, shortest_gap: float = 0.02) -> list[Found]:
    """Return what a route finds that learns from each message when to look for the next."""
    model, chance = ArrivalModel(polls, shortest_gap, LONGEST_GAP), random.Random("polls")  # noqa: S311
    found = []
    for delay in delays:
        found.append(look_for(delay, model.gap(0.0), model.gap, chance))
        model.learn(found[-1].earliest, found[-1].latest)
    return found


def fixed(delays: list[float], polls: float) -> list[Found]:
    """Return what polls at a fixed interval find that spend about ``polls`` polls a message."""
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
    """Return a draw of delays whose logarithm is normal with standard deviation ``sigma``."""
    return lambda _, chance: median * math.exp(chance.gauss(0.0, sigma))


def greylisted(_: float, chance: random.Random) -> float:
    """Return 1 s, or one time in ten 300 s, give or take."""
    return (300.0 if chance.random() < 0.1 else 1.0) * math.exp(chance.gauss(0.0, 0.2))


def drifting(done: float, chance: random.Random) -> float:
    """Return a delay whose median moves from 1 s to 10 s and back."""
    return 10.0 ** (1.0 - abs(1.0 - 2.0 * done)) * math.exp(chance.gauss(0.0, 0.2))


def stepping(done: float, chance: random.Random) -> float:
    """Return a delay whose median jumps between 1 s and 10 s, four times in all."""
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
    """Return the delays in seconds of messages one after the other, the same each time."""
    chance = random.Random(name)  # noqa: S311
    return [DISTRIBUTIONS[name](n / messages, chance) for n in range(messages)]


def compare(name: str, polls: float, shortest_gap: float = 0.02) -> tuple[list[Found], list[Found]]:
    """Return what adaptive polling finds once it has learnt, and a fixed interval with as many polls."""
    ours = adaptive(delays_of(name), polls, shortest_gap)[LEARNING:]
    return ours, fixed([found.delay for found in ours], statistics.mean(found.polls for found in ours))


def main() -> None:
    """Print a table: polls a message, errors of both, and how much of the fixed interval's error is left."""
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
