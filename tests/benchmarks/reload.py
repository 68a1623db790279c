"""Reloads of a busy agent: how long they take, how long they keep its event loop, and what is lost.

The agent is in this process, in front of servers in another one.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monitor.agent import Agent, running_agent
from monitor.commands.event_loop import run_on_loop
from monitor.config.load import load
from monitor.config.sources import Sources
from monitor.reloading import Source
from probes.core.verdict import MessageState
from tests.benchmarks.mail_load import SITE_ON, Load, configuration
from tests.benchmarks.processes import workplace
from tests.fakes.mail_site.process import mail_site

PROBES, CHANGED = 10_000, 100
RELOADS, ROUTES = 1000, 50
GOAL_STALL = 0.02
FILES_MORE = 15
"""How many connections may come and go with the messages between two counts."""

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def main(arguments: Sequence[str] = ()) -> bool:
    """Print the figures; return whether the goals are met."""
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks reload")
    options.add_argument("--probes", type=int, default=PROBES, help="0: leave this part out")
    options.add_argument("--reloads", type=int, default=RELOADS, help="0: leave this part out")
    told = options.parse_args(arguments)
    large = not told.probes or run_on_loop(_large(told.probes))
    return (not told.reloads or run_on_loop(_many(told.reloads))) and large


@asynccontextmanager
async def _at_work(wanted: Load) -> AsyncIterator[tuple[Agent, dict[str, Any], Path]]:
    """Run an agent with this load; yield it, its configuration as written, and the file of that."""
    with workplace() as (directory, tls), mail_site(wanted.pace, tls, SITE_ON) as site:
        site.set(delay=wanted.delay)
        (directory / "password").write_text("secret")
        path, files = directory / "mailsonde.yaml", Sources()
        written = configuration(wanted, site, tls.authority, directory, 0)
        path.write_text(yaml.dump(written, Dumper=_DUMPER))
        async with running_agent(load(path, sources=files), source=Source(path, files)) as agent:
            yield agent, written, path


async def _large(probes: int) -> bool:
    """One probe in a hundred changes among many: the time, the longest stall, and what is lost."""
    async with _at_work(Load(probes, interval=600.0, deadline=300.0, delay=5.0)) as (agent, written, path):
        await asyncio.sleep(20)
        quiet = await _longest_stall(asyncio.create_task(asyncio.sleep(10)))
        routes, planned = set(agent.runtime.state.probes), _planned(agent)
        seconds, stalls = [], []
        for number in range(3):
            for probe in written["probes"][:CHANGED]:
                probe["interval"] = f"{590 - number}s"
            path.write_text(yaml.dump(written, Dumper=_DUMPER))
            begun = time.monotonic()
            stalls.append(await _longest_stall(reloading := asyncio.create_task(_reload(agent))))
            seconds.append(time.monotonic() - begun)
            told = reloading.result()
        unchanged = {f"trip-{n}" for n in range(CHANGED, probes)}
        later = _planned(agent)
        moved = sum(later[name] != planned[name] and later[name] - planned[name] < 500 for name in unchanged)
        dropped = len(routes - set(agent.runtime.state.probes))
        lost = await _lost(agent)
    print(f"a reload of {told}, with {probes / 600:.0f} messages a second:")
    print(f"  until it is in use {min(seconds):8.2f} s")
    print(f"  longest stall      {min(stalls)}     goal: at most {1000 * GOAL_STALL:g} ms")
    print(f"    of each reload   {'; '.join(map(str, stalls))}")
    print(f"    in 10 s before   {quiet}")
    print(f"  series dropped     {dropped:8d}        goal: 0")
    print(f"  runs moved         {moved:8d}        goal: 0, of unchanged probes")
    print(f"  messages lost      {lost:8d}        goal: 0", flush=True)
    return min(stalls).seconds <= GOAL_STALL and not dropped and not moved and not lost


async def _many(reloads: int) -> bool:
    """Reload again and again under load: memory, descriptors, and what is lost."""
    async with _at_work(Load(ROUTES, interval=5.0, deadline=60.0, delay=0.5)) as (agent, written, path):
        await asyncio.sleep(10)
        marks = []
        for number in range(reloads + 1):
            if number in {reloads // 10, reloads}:
                marks.append((number, _resident(), _descriptors()))
            for probe in written["probes"][number % 20 : number % 20 + 10]:
                probe["labels"] = {"reload": str(number)}
            written["mailboxes"]["box-0"]["polls_per_message"] = 100 + number % 7
            path.write_text(yaml.dump(written, Dumper=_DUMPER))
            await _reload(agent)
        sent = sum(
            agent.runtime.ledger.counters.entered(f"trip-{n}", "smtp", MessageState.SENT)
            for n in range(ROUTES)
        )
        lost = await _lost(agent)
        discrepancies = await agent.runtime.ledger.discrepancies()
    (early, memory, files), (late, memory_then, files_then) = marks
    print(f"{reloads} reloads of {ROUTES} routes, {ROUTES / 5:.0f} messages a second, {sent} in all:")
    print(f"  memory after {early:<6}{memory:10.1f} MB    goal: at most a tenth more later")
    print(f"    after {late:<12} {memory_then:8.1f} MB")
    print(f"  descriptors after {early:<6}{files:4d}        goal: at most {FILES_MORE} more later")
    print(f"    after {late:<12} {files_then:8d}")
    print(f"  messages lost      {lost:8d}        goal: 0")
    print(f"  discrepancies      {len(discrepancies):8d}        goal: 0", flush=True)
    is_level = memory_then <= 1.1 * memory and files_then <= files + FILES_MORE
    return not lost and not discrepancies and is_level


async def _reload(agent: Agent) -> str:
    assert agent.reloader is not None
    outcome = await agent.reloader.reload()
    assert outcome.is_applied, outcome.told
    return outcome.told[0]


@dataclass(frozen=True, slots=True, order=True)
class _Stall:
    """The longest time for which the event loop could not run, and the longest without what others computed.

    Both in seconds. The second is processor time of this process, which a busy machine hardly changes.
    """

    seconds: float = 0.0
    computing: float = 0.0

    def __str__(self) -> str:
        return f"{1000 * self.seconds:.1f} ms, computing {1000 * self.computing:.1f} ms"


async def _longest_stall(until: asyncio.Task[Any]) -> _Stall:
    """Return the longest stall during a task."""
    longest, seen, computed = _Stall(), time.perf_counter(), time.process_time()
    while not until.done():
        await asyncio.sleep(0.001)
        now, computed_now = time.perf_counter(), time.process_time()
        longest = _Stall(
            max(longest.seconds, now - seen - 0.001), max(longest.computing, computed_now - computed)
        )
        seen, computed = now, computed_now
    return longest


def _planned(agent: Agent) -> dict[str, float]:
    """Return when the next run of each probe is planned, in unix seconds."""
    found = {name: agent.schedule.next_run(name) for name in agent.runtime.assembly.probes}
    return {name: planned.timestamp() for name, planned in found.items() if planned is not None}


async def _lost(agent: Agent) -> int:
    """Return how many messages were lost, once those in flight have had time to arrive."""
    await asyncio.sleep(15)
    counters = agent.runtime.ledger.counters
    return sum(counters.entered(*key, MessageState.LOST) for key in agent.runtime.state.deliveries)


def _resident() -> float:
    """Return the resident memory of this process in MB."""
    told = re.search(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert told is not None
    return float(told[1]) / 1024


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
