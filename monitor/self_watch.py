"""What the agent measures of its own process: event loop, ledger, file descriptors and memory.

No figure here costs more with more probes. prometheus_client's ProcessCollector shows nothing without
/proc/stat, which a unit with ProcSubset=pid hides. So its usual metrics are read here.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from monitor.exposition import Counter, Family, Gauge, Histogram
from monitor.labels import Labels
from probes.core.descriptors import for_sending
from probes.core.histogram import LAG_BUCKETS
from probes.core.histogram import Histogram as Observations

_OURS = Path("/proc/self")
_CGROUPS = Path("/sys/fs/cgroup")


def memory_limit(ours: Path = _OURS, cgroups: Path = _CGROUPS) -> int | None:
    """Return how much memory, in octets, this process may have, if the system says so.

    This is the lowest limit of its cgroup and those above it, such as systemd's MemoryMax or a container's
    (cgroup v2, memory.max), or all that the machine has.
    """
    pages = os.sysconf("SC_PHYS_PAGES")
    limits = [pages * resource.getpagesize()] if pages > 0 else []
    with suppress(OSError):
        (path,) = [
            line[3:] for line in (ours / "cgroup").read_text().splitlines() if line.startswith("0::")
        ] or [""]
        inside = Path(path.lstrip("/"))
        for group in (inside, *inside.parents):
            with suppress(OSError, ValueError):  # the root has no limit; "max" is none
                limits.append(int((cgroups / group / "memory.max").read_text()))
    return min(limits, default=None)


def resident_memory(ours: Path = _OURS) -> int | None:
    """Return how many octets of memory the process has, if the system says so (proc(5), statm)."""
    with suppress(OSError):
        return int((ours / "statm").read_text().split()[1]) * resource.getpagesize()
    return None


def open_descriptors(ours: Path = _OURS) -> int | None:
    """Return how many file descriptors are open, if the system says so."""
    with suppress(OSError):
        return len(os.listdir(ours / "fd"))  # noqa: PTH208 # paths of thousands would be made for nothing
    return None


@dataclass(frozen=True)
class SelfWatch:
    """Makes these metrics, from any thread."""

    loop_lag: Observations
    ledger_commits: Observations
    ledger_wait: Callable[[], float]
    runs_dropped: Callable[[], int]
    memory_limit: Callable[[], int | None] = memory_limit

    def families(self, agent: Labels) -> Iterator[Family]:
        """Yield the families, with the labels ``agent``."""
        yield Histogram(
            "mailsonde_event_loop_lag_seconds",
            "How late the event loop was, at ten looks a second while runs are in progress.",
            [(agent, self.loop_lag)],
            LAG_BUCKETS,
        )
        yield from self._ledger(agent)
        yield from self._process(agent)

    def _ledger(self, agent: Labels) -> Iterator[Family]:
        yield Histogram(
            "mailsonde_ledger_commit_seconds",
            "How long changes waited until the ledger had made them durable, or had failed to.",
            [(agent, self.ledger_commits)],
            LAG_BUCKETS,
        )
        yield Gauge(
            "mailsonde_ledger_oldest_wait_seconds",
            "How long the oldest change that is not durable yet has waited; 0 if there is none.",
            [(agent, self.ledger_wait())],
        )
        yield Counter(
            "mailsonde_ledger_runs_dropped",
            "Finished runs that could not be recorded in the history. They count in all other metrics.",
            [(agent, self.runs_dropped())],
        )

    def _process(self, agent: Labels) -> Iterator[Family]:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        gauges = (
            ("process_open_fds", "Open file descriptors, such as sockets.", open_descriptors()),
            (
                "process_max_fds",
                "Maximum number of open file descriptors.",
                None if limit == resource.RLIM_INFINITY else limit,
            ),
            (
                "mailsonde_descriptors_for_sending",
                "Number of open file descriptors from which on no message is sent, so that polls can go on.",
                for_sending(),
            ),
            ("process_resident_memory_bytes", "Memory of the process.", resident_memory()),
            (
                "mailsonde_memory_limit_bytes",
                "Memory that the process may have: the limit of systemd or the container (cgroup v2), or all "
                "that the machine has.",
                self.memory_limit(),
            ),
        )
        for name, meaning, value in gauges:
            yield Gauge(name, meaning, [] if value is None else [(agent, value)])
        yield Counter(
            "process_cpu_seconds",
            "Processor time of the process, of all threads together.",
            [(agent, time.process_time())],
        )
