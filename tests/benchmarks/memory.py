"""The agent's memory by route and by mailbox: after its start, an hour of runs, scrapes, and a week.

``python -m tests.benchmarks memory [--routes 100,500] [--runs 60]``

Agents of different sizes run in processes of their own, so that what every agent needs drops out of the
difference. Mail goes through the fake site, with TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import httpx
import yaml

from monitor.agent import Agent, running_agent
from monitor.commands.event_loop import run_on_loop
from monitor.config.load import load
from monitor.config.models import Configuration
from monitor.ledger.last_week import DAY_HOURS, WEEK_HOURS, Ends
from probes.core.verdict import MessageState
from tests.benchmarks.mail_load import Load, configuration
from tests.benchmarks.processes import workplace
from tests.fakes.mail_site.process import MailSite, mail_site

GOAL = 20.0
"""KiB a route after scrapes, without its mailbox."""

ROUTES = 100, 500
RUNS = 60
"""Runs of each route: those of an hour, at one a minute."""

TRACED, TRACED_MAILBOXES = (20, 60), 10
"""Routes where Python's own allocations are traced, which is exact and slow."""

AT_ONCE = 40
"""Runs in progress at a time."""

SCRAPES = 5
SHOWN = 12
"""Number of files to show."""

STAGES = {
    "start": "started",
    "runs": "after an hour",
    "scrapes": f"after {SCRAPES} scrapes",
    "week": "after a week",
}
_PRIVATE = re.compile(r"^Private_(?:Clean|Dirty): +(\d+) kB", re.MULTILINE)
_PLACE = re.compile(r".*/(?:site-packages|lib/python[\d.]+|(?=(?:monitor|probes|tests)/))/?")

_Stages = dict[str, dict[str, int]]
"""Bytes by stage and file, or under one name for all of the process."""


@dataclass(frozen=True)
class _Size:
    """How large an agent is, and whether to trace its allocations."""

    routes: int
    mailboxes: int
    runs: int
    traced: bool = False


def _bytes() -> dict[str, int]:
    """Return the memory that this process shares with no other, or what Python has allocated by file."""
    gc.collect()
    if not tracemalloc.is_tracing():
        rollup = Path("/proc/self/smaps_rollup").read_text()
        return {"": 1024 * sum(map(int, _PRIVATE.findall(rollup)))}
    by_file = Counter[str]()
    for each in tracemalloc.take_snapshot().statistics("filename"):
        by_file[_PLACE.sub("", each.traceback[0].filename)] += each.size
    return by_file


async def _stages(settings: Configuration, runs: int) -> _Stages:
    async with running_agent(settings) as agent:
        stages = {"start": _bytes()}
        await _run(agent, runs)
        stages["runs"] = _bytes()
        await _scrape(agent)
        stages["scrapes"] = _bytes()
        _live_a_week(agent)
        stages["week"] = _bytes()
    return stages


async def _run(agent: Agent, count: int) -> None:
    """Run every probe so many times, `AT_ONCE` at a time."""
    probes = list(agent.runtime.assembly.probes.values())
    due = (probe for _ in range(count) for probe in probes)

    async def work() -> None:
        for probe in due:
            await agent.run(probe)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    counters = agent.runtime.ledger.counters
    delivered = sum(counters.entered(*route, MessageState.DELIVERED) for route in counters.routes)
    if delivered < 0.99 * count * len(probes):
        raise SystemExit(f"only {delivered} of {count * len(probes)} messages were delivered")


async def _scrape(agent: Agent) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=120) as client:
        for _ in range(SCRAPES):
            async with client.stream("GET", f"{agent.address}/metrics") as answer:
                async for _ in answer.aiter_raw(65536):
                    pass
            await asyncio.sleep(1.1)  # until the next one is rendered afresh


def _live_a_week(agent: Agent) -> None:
    """Count messages of every hour of the last seven days, with five different latencies an hour."""
    now = int(agent.runtime.clock.time() // 3600)
    agent.runtime.ledger.last_week.add(
        Ends(probe, target, now - hours, True, bound if hours < DAY_HOURS else None, 12)
        for probe, target in agent.runtime.state.deliveries
        for hours in reversed(range(WEEK_HOURS))
        for bound in range(8, 13)
    )


class _Bench:
    """The site, and a directory for agents."""

    def __init__(self, site: MailSite, authority: Path, directory: Path) -> None:
        self._site = site
        self._authority = authority
        self._directory = directory
        (directory / "password").write_text("secret")

    def stages(self, size: _Size) -> _Stages:
        """Return what an agent of this size takes, in a process of its own."""
        place = f"{size.routes}-{size.mailboxes}-{size.traced}"
        of_size = Load(size.routes, interval=3600.0, routes_a_mailbox=size.routes // size.mailboxes)
        document = configuration(of_size, self._site, self._authority, self._directory, 0)
        document["agent"]["ledger"] = f"sqlite:{self._directory}/{place}.db"
        config = self._directory / f"{place}.yaml"
        config.write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", __name__, str(config), str(size.runs), "traced" * size.traced]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        stages: _Stages = json.loads(done.stdout)
        return stages


def _kib(more: Mapping[str, int], less: Mapping[str, int], count: int) -> dict[str, float]:
    """Return by how much the bytes of each name grow with ``count``, in KiB, the largest first."""
    grown = Counter({name: more.get(name, 0) - less.get(name, 0) for name in {*more, *less}})
    return {name: size / count / 1024 for name, size in grown.most_common()}


def _print_sizes(bench: _Bench, few: int, many: int, runs: int) -> None:
    shared, own = few // 10, few // 2
    base = bench.stages(_Size(few, shared, runs))
    routes = bench.stages(_Size(many, shared, runs))
    mailboxes = bench.stages(_Size(few, own, runs))
    print(f"memory that grows with routes and with IMAP mailboxes, {runs} runs of each route:")
    print(f"{'':18}{'KiB a route':>12}{'KiB a mailbox':>15}{'MiB in all':>12}")
    for stage, told in STAGES.items():
        route = _kib(routes[stage], base[stage], many - few)[""]
        mailbox = _kib(mailboxes[stage], base[stage], own - shared)[""]
        goal = f"   goal: at most {GOAL:.0f} KiB a route" if stage == "scrapes" else ""
        print(f"  {told:16}{route:12.1f}{mailbox:15.1f}{routes[stage][''] / 2**20:12.0f}{goal}", flush=True)


def _print_files(bench: _Bench, runs: int) -> None:
    few, many = (bench.stages(_Size(routes, TRACED_MAILBOXES, runs, traced=True)) for routes in TRACED)
    for stage, told in STAGES.items():
        files = _kib(many[stage], few[stage], TRACED[1] - TRACED[0])
        print(f"allocated by Python, {told}: {sum(files.values()):.1f} KiB a route, of it in")
        for name, size in islice(files.items(), SHOWN):
            print(f"  {name:48}{size:8.2f}")


def main(arguments: Sequence[str] = ()) -> None:
    """Print KiB a route and a mailbox at each stage, and the files that allocate most of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks memory")
    parser.add_argument("--routes", default=",".join(map(str, ROUTES)), help="of the two agents")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each route")
    parser.add_argument("--only", choices=("sizes", "files"), help="print only this half")
    options = parser.parse_args(arguments)
    few, many = map(int, options.routes.split(","))
    with workplace() as (directory, tls), mail_site(tls=tls) as site:
        bench = _Bench(site, tls.authority, directory)
        if options.only != "files":
            _print_sizes(bench, few, many, options.runs)
        if options.only != "sizes":
            _print_files(bench, options.runs)


if __name__ == "__main__":
    config_path, run_count, traced = sys.argv[1:]
    logging.disable(logging.WARNING)  # the agent has more to do than it could measure
    if traced:
        tracemalloc.start()
    print(json.dumps(run_on_loop(_stages(load(Path(config_path)), int(run_count)))))
