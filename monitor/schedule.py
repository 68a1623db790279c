"""When each probe runs: staggered starts, jitter, and an exact count of skipped runs."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_SUBMITTED, JobSubmissionEvent
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

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


class _Scheduler(AsyncIOScheduler):  # type: ignore[misc] # APScheduler 3 has no types
    """APScheduler's scheduler, with two differences.

    It never wakes up just before a run is due, only to wait again. And it keeps the intervals when the
    wall clock is set. APScheduler plans by that clock: setting it back by an hour would stop every probe
    for an hour, and setting it forward would start all of them at once.
    """

    def __init__(self, clock: Clock, stepped: Callable[[float], None]) -> None:
        super().__init__(timezone=UTC)
        self._clock = clock
        self._stepped = stepped
        self._offset = clock.time() - clock.since_boot()

    def _process_jobs(self) -> float | None:
        offset = self._clock.time() - self._clock.since_boot()
        step, self._offset = offset - self._offset, offset
        if abs(step) > STEP:
            self._shift(timedelta(seconds=step))
            self._stepped(step)
        seconds: float | None = super()._process_jobs()
        return seconds

    def _shift(self, step: timedelta) -> None:
        """Move every planned run by ``step``, so that it still starts on time."""
        with self._jobstores_lock:
            for store in self._jobstores.values():
                for job in store.get_all_jobs():
                    if job.next_run_time is not None:
                        job._modify(next_run_time=job.next_run_time + step)
                        store.update_job(job)

    def _start_timer(self, wait_seconds: float | None) -> None:
        super()._start_timer(None if wait_seconds is None else wait_seconds + TIMER_STEP)


class Schedule:
    """Starts ``run`` for each probe at its interval, and counts lag and skipped runs in ``state``.

    A run is skipped as ``overrun`` if too many earlier runs are still in progress. Runs that the agent
    could not start in time (on a suspended machine) count as ``missed``. Intervals are real time:
    setting the wall clock moves no run.
    """

    def __init__(self, run: Callable[[Probe], Awaitable[None]], state: AgentState, clock: Clock) -> None:
        self._run = run
        self._state = state
        self._clock = clock
        self._previous: dict[str, datetime] = {}
        self._intervals: dict[str, float] = {}
        self._scheduler = _Scheduler(clock, self._clock_stepped)
        self._scheduler.add_listener(self._started, EVENT_JOB_SUBMITTED)
        self._scheduler.add_listener(self._overrun, EVENT_JOB_MAX_INSTANCES)

    def start(self, probes: Iterable[Probe]) -> None:
        """Schedule all probes, with their first runs staggered from now on."""
        probes = list(probes)
        for probe in probes:
            self._add(probe, len(probes))
        self._scheduler.start()

    def replace(self, probe: Probe, among: int) -> None:
        """Schedule a new or changed probe, one of ``among``. If it keeps its interval, it keeps its times."""
        settings = probe.settings
        if self._intervals.get(settings.name) == settings.interval:
            job_id, most = settings.name, most_at_once(settings)
            self._scheduler.modify_job(job_id, args=[probe], max_instances=most)
        else:
            self.remove(settings.name)
            self._add(probe, among)

    def remove(self, name: str) -> None:
        """Start no more runs of a probe, if it is scheduled."""
        if self._intervals.pop(name, None) is not None:
            self._previous.pop(name, None)
            self._scheduler.remove_job(name)

    def next_run(self, name: str) -> datetime | None:
        """Return when the next run of a probe is planned; ``None`` if it is not scheduled."""
        job = self._scheduler.get_job(name)
        planned: datetime | None = None if job is None else job.next_run_time
        return planned

    def _add(self, probe: Probe, among: int) -> None:
        """Add a probe, one of ``among`` whose first runs are staggered from now on."""
        settings = probe.settings
        self._intervals[settings.name] = settings.interval
        begin = datetime.fromtimestamp(self._clock.time(), UTC)
        begin += timedelta(seconds=start_offset(settings, among))
        self._scheduler.add_job(
            self._run,
            IntervalTrigger(
                seconds=settings.interval,
                start_date=begin,
                jitter=settings.interval * JITTER,
                timezone=UTC,
            ),
            args=[probe],
            id=settings.name,
            next_run_time=begin,
            coalesce=True,
            max_instances=most_at_once(settings),
            misfire_grace_time=None,
        )

    def _clock_stepped(self, seconds: float) -> None:
        self._state.clock_steps += 1
        step = timedelta(seconds=seconds)
        self._previous = {name: scheduled + step for name, scheduled in self._previous.items()}
        direction = "forward" if seconds > 0 else "back"
        _log.warning("the clock was set %s by %.1f s; probes keep their intervals", direction, abs(seconds))

    def stop(self) -> None:
        """Start no more runs; the runner ends those in progress."""
        if self._scheduler.running:
            self._scheduler.remove_all_jobs()
            self._scheduler.pause()

    def _started(self, event: JobSubmissionEvent) -> None:
        scheduled = event.scheduled_run_times[-1]
        self._state.schedule_lag.observe(max(0.0, self._clock.time() - scheduled.timestamp()))
        self._count_missed(event.job_id, scheduled)

    def _overrun(self, event: JobSubmissionEvent) -> None:
        if event.job_id in self._intervals:
            self._state.skip(event.job_id, "overrun", 1, self._clock.time())
        self._count_missed(event.job_id, event.scheduled_run_times[-1])

    def _count_missed(self, name: str, scheduled: datetime) -> None:
        """Count the runs between the previous scheduled time and this one, which were merged into it."""
        if name not in self._intervals:
            return  # it has just been removed
        previous = self._previous.get(name)
        self._previous[name] = scheduled
        if previous is not None:
            passed = round((scheduled - previous).total_seconds() / self._intervals[name])
            self._state.skip(name, "missed", max(0, passed - 1), self._clock.time())


def start_offset(settings: ProbeSettings, probes: int) -> float:
    """Return the delay of a probe's first run after the agent's start, in seconds; its name determines it."""
    window = min(settings.interval, SPREAD_PER_PROBE * probes)
    return window * zlib.crc32(settings.name.encode()) / 2**32


def most_at_once(settings: ProbeSettings) -> int:
    """Return how many runs of a probe may overlap: one, or as many as fit into a waiting run's limit."""
    return math.ceil(settings.run_limit / settings.interval) if settings.runs_overlap else 1
