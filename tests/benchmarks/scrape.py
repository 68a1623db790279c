"""A scrape of 10,000 busy round trips: what it costs, how long it keeps the event loop, what two get at once.

prometheus_client's own text of the same metrics is made beside it. At the end, two scrape beside a client
that reads an octet a second.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path

import httpx
from prometheus_client import CollectorRegistry, generate_latest

from monitor.agent import SWITCH_INTERVAL
from monitor.collector import AgentCollector
from monitor.exposition import exposition
from monitor.ledger.counters import Counters
from monitor.state import AgentState
from monitor.web.metrics import SHARED_FOR, rendered
from monitor.web.serving import PATIENCE
from tests.benchmarks.many_routes import many_routes
from tests.benchmarks.processes import cpu_seconds
from tests.fakes.agent_state import busy_route

ROUTES = 10_000
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
GOAL_SAMPLES, GOAL_SECONDS, GOAL_STALL = 45, 0.3, 0.02

GOAL_KEPT = 1.0
"""KiB a route that scrapes may leave behind."""

SCRAPES = 5

_INFO = b"\nmailsonde_probe_info{"
_PRIVATE = re.compile(r"^Private_(?:Clean|Dirty): +(\d+) kB", re.MULTILINE)


def main() -> bool:
    """Print the figures; return whether the goals are met."""
    made, served = _made(), _served()
    return made and served


def _made() -> bool:
    agent = AgentState(["canary"], "fra1")
    counters = Counters().updated(
        total for n in range(ROUTES) for total in busy_route(agent, f"customer-{n}-trip")
    )
    collector = AgentCollector(agent, lambda: counters, lambda *_: 75.0)
    seconds, whole = (
        min(_processor_time(partial(rendered, collector, PLAIN, packed)) for _ in range(5))
        for packed in (False, True)
    )
    text = b"".join(exposition(collector.families(), openmetrics=False))
    samples = sum(b'probe="' in line for line in text.splitlines()) / ROUTES
    stall = min(asyncio.run(_longest_stall(lambda: rendered(collector, PLAIN, True))) for _ in range(3))
    print(f"a scrape of {ROUTES:,} busy round trips:")
    print(f"  samples a route    {samples:8.1f}        goal: at most {GOAL_SAMPLES}")
    print(f"  octets             {len(text) / 1e6:8.1f} MB     {len(text) / ROUTES:.0f} a route")
    print(f"  processor time     {seconds:8.3f} s      goal: at most {GOAL_SECONDS} s")
    print(f"    with compression {whole:8.3f} s      {len(rendered(collector, PLAIN, True)) / 1e6:.2f} MB")
    print(f"  longest stall      {1000 * stall:8.1f} ms     goal: at most {1000 * GOAL_STALL:.0f} ms")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    theirs = _processor_time(lambda: generate_latest(registry))
    print(f"  prometheus_client  {theirs:8.3f} s      {theirs / seconds:.1f} times as long", flush=True)
    return samples <= GOAL_SAMPLES and seconds <= GOAL_SECONDS and stall <= GOAL_STALL


def _served() -> bool:
    """Print what scrapes of a running agent cost it, and whether two at once get everything."""
    with many_routes(ROUTES) as (address, pid), ThreadPoolExecutor(3) as threads:

        def scrape(packed: bool) -> int:
            """Return how many routes an answer has, or 0 if it is not whole."""
            headers = {"accept-encoding": "gzip" if packed else "identity"}
            with httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=120) as client:
                body = client.get("/metrics", headers=headers).content
            return body.count(_INFO) if b"\nmailsonde_build_info{" in body else 0

        print("an agent with as many routes, a tenth each of them SMTP and MX, with a run a minute each:")
        scrape(True)
        kept, whole = _private(pid), True
        for pair in ((True, True), (False, False), (True, False)):
            time.sleep(SHARED_FOR)
            used, begun = cpu_seconds(pid), time.monotonic()
            found = list(threads.map(scrape, pair))
            elapsed, used = time.monotonic() - begun, cpu_seconds(pid) - used
            whole &= found == [ROUTES, ROUTES]
            told = " and ".join("compressed" if packed else "plain" for packed in pair)
            print(
                f"  two at once, {told + ':':26}{found[0]:7,} and {found[1]:,} routes, "
                f"{used:.2f} s of processor time, {elapsed:.1f} s"
            )
        for _ in range(SCRAPES):
            time.sleep(SHARED_FOR)
            scrape(False)
        time.sleep(2 * SHARED_FOR)
        kept = (_private(pid) - kept) / 1024 / ROUTES
        print(f"  memory kept        {kept:8.1f} KiB    a route, goal: at most {GOAL_KEPT:g}")
        before = _private(pid)
        slow = threads.submit(_is_dropped, address)
        found = list(threads.map(scrape, (True, True)))
        held, is_dropped = _private(pid) - before, slow.result()
        left = _private(pid) - before
        print(
            f"  beside a client that reads an octet a second: {found[0]:,} and {found[1]:,} routes; "
            f"the agent holds {held / 1e6:.0f} MB more meanwhile, {left / 1e6:.0f} MB after {PATIENCE:.0f} s"
        )
    return whole and found == [ROUTES, ROUTES] and is_dropped and kept <= GOAL_KEPT


def _is_dropped(address: str) -> bool:
    """Read an octet of the metrics a second for longer than `PATIENCE`; return whether the rest is lost."""
    with closing(HTTPConnection(address)) as connection:
        connection.request("GET", "/metrics")
        answer, until = connection.getresponse(), time.monotonic() + PATIENCE + 3
        while time.monotonic() < until:
            answer.read(1)
            time.sleep(1)
        try:
            answer.read()
        except (IncompleteRead, ConnectionError):
            return True
    return False


def _private(pid: int) -> float:
    """Return the octets of memory that a process shares with no other."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024.0 * sum(map(int, _PRIVATE.findall(rollup)))


def _processor_time(work: Callable[[], object]) -> float:
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


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
