"""A scrape of 10,000 busy round trips: what it costs, and how long it keeps the event loop.

prometheus_client's own text of the same metrics is made beside it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import zlib
from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest

from monitor.agent import SWITCH_INTERVAL
from monitor.collector import AgentCollector
from monitor.exposition import exposition
from monitor.ledger.counters import Counters
from monitor.state import AgentState
from monitor.web.metrics import COMPRESSION, rendered
from tests.fakes.agent_state import busy_route

ROUTES = 10_000
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
GOAL_SAMPLES, GOAL_SECONDS, GOAL_STALL = 45, 0.3, 0.02


def main() -> bool:
    """Print the figures; return whether the goals are met."""
    agent = AgentState(["canary"], "fra1")
    counters = Counters().updated(
        total for n in range(ROUTES) for total in busy_route(agent, f"customer-{n}-trip")
    )
    collector = AgentCollector(agent, lambda: counters, lambda *_: 75.0)
    seconds = min(_processor_time(lambda: _text(collector)) for _ in range(3))
    text = b"".join(_text(collector))
    samples = sum(not line.startswith(b"#") for line in text.splitlines()) / ROUTES
    stall = min(asyncio.run(_longest_stall(lambda: rendered(collector, PLAIN, True))) for _ in range(3))
    print(f"a scrape of {ROUTES:,} busy round trips:")
    print(f"  samples a route    {samples:8.1f}        goal: at most {GOAL_SAMPLES}")
    print(f"  octets             {len(text) / 1e6:8.1f} MB     {len(text) / ROUTES:.0f} a route")
    print(f"  processor time     {seconds:8.3f} s      goal: at most {GOAL_SECONDS} s")
    print(f"  longest stall      {1000 * stall:8.1f} ms     goal: at most {1000 * GOAL_STALL:.0f} ms")
    for level in sorted({1, COMPRESSION, 5}):
        size, took = _compressed(text, level)
        print(f"  gzip, level {level}      {size / 1e6:8.2f} MB     {took:.3f} s")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    theirs = _processor_time(lambda: generate_latest(registry))
    print(f"  prometheus_client  {theirs:8.3f} s      {theirs / seconds:.1f} times as long")
    return samples <= GOAL_SAMPLES and seconds <= GOAL_SECONDS and stall <= GOAL_STALL


def _text(collector: AgentCollector) -> list[bytes]:
    return list(exposition(collector.families(), openmetrics=False))


def _processor_time(work: Callable[[], object]) -> float:
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def _compressed(text: bytes, level: int) -> tuple[int, float]:
    made = zlib.compressobj(level, wbits=31)
    begun = time.thread_time()
    size = len(made.compress(text)) + len(made.flush())
    return size, time.thread_time() - begun


async def _longest_stall(work: Callable[[], object]) -> float:
    """Return the longest time in seconds that the event loop could not run during ``work`` on a thread."""
    before, longest = sys.getswitchinterval(), 0.0
    sys.setswitchinterval(SWITCH_INTERVAL)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        seen = time.perf_counter()
        while thread.is_alive():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, seen = max(longest, now - seen - 0.001), now
    finally:
        sys.setswitchinterval(before)
    return longest
