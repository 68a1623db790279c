"""The cost of planning the next poll with many open messages, compared with few."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import replace

from probes.core.verdict import MessageState
from probes.delivery.arrivals import Settled
from probes.delivery.awaited import AwaitedMessages
from probes.delivery.message_life import Message
from tests.fakes.clock import InstantClock
from tests.fakes.message import intent

GOAL = 1.5
COUNTS = (10, 10_000, 200_000)
ROUNDS = 7
WAKES = 40
"""Polls for a new message, within a few seconds; messages in flight for hours need one every five minutes."""


def _sent(clock: InstantClock, age: float, deadline: float) -> Message:
    sent = {"state": MessageState.SENT, "dot_mono": clock.now - age}
    return intent(clock, age=age, deadline_seconds=deadline, **sent)


def _mailbox_with(clock: InstantClock, count: int) -> AwaitedMessages:
    """Return a mailbox after an outage: half of the messages are lost, half are in flight for hours."""
    awaited = AwaitedMessages(clock, polls=200.0, shortest_gap=0.01, retention=7 * 86400.0)
    for _ in range(count // 2):
        awaited.settle(Settled(replace(_sent(clock, 1000.0, 300.0), state=MessageState.LOST)))
        awaited.add(_sent(clock, 20_000.0, 86400.0))
    awaited.polled(searched=False)
    awaited.next_poll()
    return awaited


def _microseconds_a_wake(clock: InstantClock, awaited: AwaitedMessages) -> float:
    """Return the cost of planning the polls for one new message."""
    awaited.add(message := _sent(clock, 0.0, 300.0))
    began = time.process_time()
    for _ in range(WAKES):
        clock.now = awaited.next_poll()
        awaited.is_overdue()
        awaited.overdue(clock.now)
        awaited.polled(searched=False)
    used = time.process_time() - began
    awaited.settle(Settled(replace(message, state=MessageState.DELIVERED)))
    return used / WAKES * 1e6


async def _measured() -> dict[int, float]:
    clocks = {count: InstantClock() for count in COUNTS}
    mailboxes = {count: _mailbox_with(clocks[count], count) for count in COUNTS}
    figures: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(ROUNDS):
        for count in COUNTS:
            figures[count].append(_microseconds_a_wake(clocks[count], mailboxes[count]))
    return {count: statistics.median(figures[count]) for count in COUNTS}


def main() -> None:
    """Print microseconds of processor time per poll by open messages, and the ratio of most to fewest."""
    figures = asyncio.run(_measured())
    print("processor time to plan one poll, by open messages in the mailbox:")
    for count, microseconds in figures.items():
        print(f"  {count:9,} open {microseconds:10.1f} µs")
    print(f"  ratio {figures[COUNTS[-1]] / figures[COUNTS[0]]:26.2f}   goal: at most {GOAL:.2f}")


if __name__ == "__main__":
    main()
