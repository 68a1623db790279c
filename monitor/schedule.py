"""When each probe runs: staggered starts, jitter, and an exact count of skipped runs."""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import random
import zlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from monitor.state import AgentState
from probes.core.clock import Clock
from probes.core.probe import Probe
from probes.core.settings import ProbeSettings

SPREAD_PER_PROBE = 0.1
"""Seconds that each probe adds to start-up: a few probes start soon, thousands over their interval."""

JITTER = 0.02
"""Maximum random shift of a run, as a share of its interval, so that agents do not run in step."""

TIMER_STEP = 0.001
"""Resolution of the event loop's timers, in seconds: libuv rounds to the nearest millisecond."""

STEP = 0.5
"""Seconds of difference to elapsed time that mean that the wall clock was set: drift is smaller."""

_log = logging.getLogger("mailsonde.schedule")


@dataclass(slots=True)
class _Scheduled:
    """A probe with its next run, in seconds since the machine's boot, and its number of runs in progress."""

    probe: Probe
    due: float
    running: int = 0

    def __lt__(self, other: _Scheduled) -> bool:
        return self.due < other.due


class Schedule:
    """Starts ``run`` for each probe at its interval, and counts lag and skipped runs in ``state``.

    A run is skipped as ``overrun`` if too many earlier runs are still in progress. Runs that the agent
    could not start in time (on a suspended machine) count as ``missed``. Intervals are real time, including
    time in which the machine is suspended: setting the wall clock moves no run.
    """

    def __init__(self, run: Callable[[Probe], Awaitable[None]], state: AgentState, clock: Clock) -> None:
        self._run = run
        self._state = state
        self._clock = clock
        self._planned: list[_Scheduled] = []  # a heap
        self._runs: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._offset = 0.0  # of the wall clock to the time since boot

    def start(self, probes: Iterable[Probe]) -> None:
        """Schedule all probes, with their first runs staggered from now on."""
        probes = list(probes)
        now = self._clock.since_boot()
        self._offset = self._clock.time() - now
        self._planned = [
            _Scheduled(probe, now + start_offset(probe.settings, len(probes))) for probe in probes
        ]
        heapq.heapify(self._planned)
        self.start_due()

    def start_due(self) -> None:
        """Start the runs that are due, and set a timer for the next one."""
        now = self._clock.since_boot()
        self._look_at_clock(now)
        while self._planned and self._planned[0].due <= now:
            self._start(self._planned[0], now)
            heapq.heapreplace(self._planned, self._planned[0])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._planned:
            # A timer must not end just before a run is due, only for another one to follow.
            wait = max(0.0, self._planned[0].due - now) + TIMER_STEP
            self._timer = asyncio.get_running_loop().call_later(wait, self.start_due)

    def _start(self, scheduled: _Scheduled, now: float) -> None:
        """Start a run that is due, unless too many are in progress, and plan the next."""
        settings = scheduled.probe.settings
        missed = int((now - scheduled.due) // settings.interval)  # they are merged into this run
        self._state.skipped[settings.name, "missed"] += missed
        due = scheduled.due + missed * settings.interval
        if scheduled.running < most_at_once(settings):
            self._state.schedule_lag.observe(now - due)
            scheduled.running += 1
            task = asyncio.get_running_loop().create_task(self._run_once(scheduled))
            self._runs.add(task)
            task.add_done_callback(self._runs.discard)
        else:
            self._state.skipped[settings.name, "overrun"] += 1
            _log.warning("probe %s: a run is skipped, for earlier ones have not ended", settings.name)
        scheduled.due = due + settings.interval * (1.0 + random.uniform(0.0, JITTER))  # noqa: S311

    async def _run_once(self, scheduled: _Scheduled) -> None:
        try:
            await self._run(scheduled.probe)
        except Exception:
            _log.exception("defect in a run of probe %s", scheduled.probe.settings.name)
        finally:
            scheduled.running -= 1

    def _look_at_clock(self, now: float) -> None:
        """Count and log steps of the wall clock."""
        offset = self._clock.time() - now
        step, self._offset = offset - self._offset, offset
        if abs(step) > STEP:
            self._state.clock_steps += 1
            direction = "forward" if step > 0 else "back"
            _log.warning("the clock was set %s by %.1f s; probes keep their intervals", direction, abs(step))

    def stop(self) -> None:
        """Start no more runs; the runner ends those in progress."""
        self._planned.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def start_offset(settings: ProbeSettings, probes: int) -> float:
    """Return the delay of a probe's first run after the agent's start, in seconds; its name determines it."""
    window = min(settings.interval, SPREAD_PER_PROBE * probes)
    return window * zlib.crc32(settings.name.encode()) / 2**32


def most_at_once(settings: ProbeSettings) -> int:
    """Return how many runs of a probe may overlap: one, or as many as fit into a waiting run's limit."""
    return math.ceil(settings.run_limit / settings.interval) if settings.runs_overlap else 1
