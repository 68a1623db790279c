"""What the agent says of its own process, and that this is what the system says."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from pathlib import Path

import pytest

from monitor.collector import AgentCollector
from monitor.labels import Labels
from monitor.ledger.counters import Counters
from monitor.ledger.store import open_ledger
from monitor.runner import Runner
from monitor.self_watch import SelfWatch, memory_limit, open_descriptors, resident_memory
from monitor.state import AgentState
from probes.core.clock import SystemClock
from probes.core.histogram import LAG_BUCKETS, Histogram

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _watch(limit: int | None = None) -> SelfWatch:
    return SelfWatch(Histogram(), Histogram(), lambda: 0.5, lambda: 3, lambda: limit)


def test_only_an_agent_shows_its_process() -> None:
    """The metrics of the process are an agent's; one-shot commands and `/probe` have none of them."""
    own = {family.name for family in _watch().families(Labels({}))}
    assert {"process_open_fds", "mailsonde_event_loop_lag_seconds"} <= own
    shown = AgentCollector(AgentState(), Counters, self_watch=_watch())
    assert own <= {family.name for family in shown.families()}
    assert not own & {family.name for family in AgentCollector(AgentState(), Counters).families()}


def test_every_figure_is_one_series_of_the_agent() -> None:
    """Each family has the labels of the agent alone, however many probes there are."""
    agent = Labels({"location": "fra1"})
    families = [family.metric() for family in _watch(limit=2**30).families(agent)]
    assert {
        family.name: [s.labels for s in family.samples if "le" not in s.labels] for family in families
    } == {
        family.name: [{"location": "fra1"}] * (2 if family.type == "histogram" else 1) for family in families
    }
    values = {family.name: family.samples[0].value for family in families}
    assert values["mailsonde_ledger_oldest_wait_seconds"] == 0.5
    assert values["mailsonde_ledger_runs_dropped"] == 3
    assert values["mailsonde_memory_limit_bytes"] == 2**30


def test_without_a_limit_there_is_no_series_of_it() -> None:
    """A limit that is not there has no series, so that no rule compares with it."""
    (limit,) = [one for one in _watch().families(Labels({})) if one.name == "mailsonde_memory_limit_bytes"]
    assert limit.metric().samples == []


def test_descriptors_and_memory_are_the_systems() -> None:
    """An open file counts; memory that is used counts."""
    before = open_descriptors()
    with open(os.devnull) as opened:  # noqa: PTH123 # a descriptor is all that is wanted
        assert opened.fileno() >= 0
        assert open_descriptors() == before + 1
    memory = resident_memory()
    used = bytearray(b"x" * 50_000_000)
    assert resident_memory() - memory > len(used) / 2
    assert resident_memory() / 1024 <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.1


@pytest.mark.parametrize(
    ("ours", "limits", "limit"),
    [
        ("0::/a.slice/mailsonde.service\n", {"a.slice/mailsonde.service": "max"}, MACHINE),
        ("0::/a.slice/mailsonde.service\n", {"a.slice/mailsonde.service": "1000", "a.slice": "max"}, 1000),
        ("0::/a.slice/mailsonde.service\n", {"a.slice/mailsonde.service": "1000", "a.slice": "900"}, 900),
        ("0::/\n", {".": "2000"}, 2000),  # a container
        ("5:memory:/a\n0::/a\n", {"a": "7"}, 7),
        ("5:memory:/a\n", {}, MACHINE),  # cgroup v1
        (None, {}, MACHINE),
    ],
)
def test_the_lowest_limit_of_memory_counts(
    tmp_path: Path, ours: str | None, limits: dict[str, str], limit: int
) -> None:
    """The limit is the lowest of the service's cgroup, those above it, and the machine's memory."""
    if ours is not None:
        (tmp_path / "cgroup").write_text(ours)
    for group, text in limits.items():
        (tmp_path / "groups" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / group / "memory.max").write_text(f"{text}\n")
    assert memory_limit(tmp_path, tmp_path / "groups") == limit


async def test_the_writer_counts_how_long_changes_waited(tmp_path: Path) -> None:
    """Each change counts, with the time that it waited for the writer."""
    async with open_ledger(f"sqlite:{tmp_path}/ledger.db", SystemClock(), "a", "fra1") as ledger:
        before = ledger.commits.cumulative()[-1]
        begun = time.monotonic()
        await ledger.adopt()
        assert ledger.commits.cumulative()[-1] == before + 1
        assert 0 < ledger.commits.sum <= time.monotonic() - begun


async def test_a_blocked_event_loop_is_late() -> None:
    """What blocks the loop during a run shows in the histogram, as in the load."""
    runner = Runner(SystemClock(), "fra1")
    runner._running[asyncio.current_task()] = object()  # a run in progress is all that is needed
    runner._beat()
    await asyncio.sleep(0)
    time.sleep(0.4)  # noqa: ASYNC251 # to block the event loop is the point
    await asyncio.sleep(0)  # the beat that was due comes first
    await asyncio.sleep(0)
    runner._running.clear()
    late = runner.loop_lag.cumulative()[LAG_BUCKETS.index(0.25)]
    assert (late, runner.loop_lag.cumulative()[-1]) == (0, 1)
    assert runner.blocked() >= runner.loop_lag.sum >= 0.25
