"""When runs start, and how runs that do not start are counted."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise

import pytest
from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_SUBMITTED, JobSubmissionEvent

from monitor.schedule import Schedule, most_at_once, start_offset
from monitor.state import AgentState
from probes.core.context import Context
from probes.core.settings import ProbeSettings, ServerSettings, Site
from probes.roundtrip import RoundtripSettings
from probes.smtp import Smtp, SmtpSettings
from tests.fakes.clock import InstantClock

SERVER = ServerSettings(protocol="smtp", host="mail.example.test", tls="implicit")


def _settings(name: str, interval: str = "60s") -> ProbeSettings:
    return ProbeSettings(name=name, kind="smtp", interval=interval)


def test_few_probes_start_at_once() -> None:
    """With three probes, there are results within a second."""
    assert all(start_offset(_settings(name), 3) < 0.31 for name in "abc")


def test_thousands_of_probes_spread_over_their_interval() -> None:
    """The starts of many probes are spread evenly over their interval, and not beyond it."""
    offsets = sorted(start_offset(_settings(f"probe-{n}"), 6000) for n in range(6000))
    assert offsets[-1] < 60.0
    for quarter in range(4):
        share = sum(quarter * 15 <= offset < (quarter + 1) * 15 for offset in offsets)
        assert 1200 < share < 1800


def test_round_trips_overlap_and_others_do_not() -> None:
    """Round trips may overlap, so that a slow message delays no other; other probes run once at a time."""
    trip = RoundtripSettings.model_validate(
        {
            "name": "t",
            "kind": "roundtrip",
            "interval": "60s",
            "deadline": "5m",
            "from": "a@b.c",
            "send_via": "s",
            "to": "m",
        }
    )
    assert most_at_once(trip) == 6
    assert most_at_once(_settings("x")) == 1


@pytest.fixture
def schedule() -> tuple[Schedule, AgentState]:
    async def run(_: object) -> None:
        raise AssertionError

    state = AgentState()
    made = Schedule(run, state, InstantClock())
    made._intervals["p"] = 60.0
    return made, state


def _event(code: int, seconds: float) -> JobSubmissionEvent:
    at = datetime.fromtimestamp(1_700_000_000.0, UTC) + timedelta(seconds=seconds)
    return JobSubmissionEvent(code, "p", "default", [at])


def test_runs_that_were_joined_are_counted_as_missed(schedule: tuple[Schedule, AgentState]) -> None:
    """After a machine resumes from suspension, each run in that time is counted once."""
    made, state = schedule
    made._started(_event(EVENT_JOB_SUBMITTED, 0.0))
    made._started(_event(EVENT_JOB_SUBMITTED, 61.0))
    made._started(_event(EVENT_JOB_SUBMITTED, 361.0))
    assert state.skipped["p"]["missed"] == 4
    assert state.skipped["p"]["overrun"] == 0


def test_run_that_is_still_going_is_counted_as_overrun(schedule: tuple[Schedule, AgentState]) -> None:
    """A start skipped because the previous run is in progress counts as overrun, not as missed."""
    made, state = schedule
    made._started(_event(EVENT_JOB_SUBMITTED, 0.0))
    made._overrun(_event(EVENT_JOB_MAX_INSTANCES, 60.0))
    made._started(_event(EVENT_JOB_SUBMITTED, 120.0))
    assert state.skipped["p"]["overrun"] == 1
    assert state.skipped["p"]["missed"] == 0


class Ran:
    """A schedule of one probe every 60 s on the test's clock, and the times of its runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = InstantClock()
        self.at: list[float] = []
        self.state = AgentState()

        class WallClock(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:
                return datetime.fromtimestamp(self.clock.time(), tz)

        async def run(_: object) -> None:
            self.at.append(self.clock.now)

        monkeypatch.setattr("apscheduler.schedulers.base.datetime", WallClock)
        monkeypatch.setattr("monitor.schedule.JITTER", 0.0)
        self.schedule = Schedule(run, self.state, self.clock)
        site = Site("here", {"out": SERVER}, {})
        self.schedule.start(
            [Smtp(SmtpSettings(name="p", kind="smtp", server="out"), Context(self.clock, site))]
        )

    async def runs_in(self, seconds: int) -> int:
        """Let time pass second by second; return how many runs began."""
        before = len(self.at)
        for _ in range(seconds):
            self.clock.now += 1.0
            self.schedule._scheduler._process_jobs()
            await asyncio.sleep(0)
        return len(self.at) - before


@pytest.mark.parametrize("step", [-3600.0, -90.0, 90.0, 3600.0, 30 * 86400.0])
async def test_intervals_hold_when_the_clock_is_set(
    step: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Setting the wall clock moves no run, counts none as missed, and is logged."""
    ran = Ran(monkeypatch)
    assert await ran.runs_in(300) == 5
    ran.clock.wall_offset += step
    assert await ran.runs_in(300) == 5
    assert max(later - earlier for earlier, later in pairwise(ran.at)) <= 61.0
    assert ran.state.skipped["p"]["missed"] == 0
    assert ran.state.schedule_lag.sum < 10 * 1.1
    assert ran.state.clock_steps == 1
    assert f"{abs(step):.1f} s" in caplog.text
    ran.schedule.stop()


async def test_drift_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock slewed by time synchronization does not count as set."""
    ran = Ran(monkeypatch)
    for _ in range(60):
        ran.clock.wall_offset += 0.0005
        await ran.runs_in(1)
    assert ran.state.clock_steps == 0
    ran.schedule.stop()


def test_lag_is_observed(schedule: tuple[Schedule, AgentState]) -> None:
    """The delay of each start is in the histogram of schedule lag."""
    made, state = schedule
    made._started(_event(EVENT_JOB_SUBMITTED, -0.3))
    assert state.schedule_lag.sum == pytest.approx(0.3)
