"""When runs start, and what is counted when they do not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_SUBMITTED, JobSubmissionEvent

from monitor.schedule import Schedule, most_at_once, start_offset
from monitor.state import AgentState
from probes.core.settings import ProbeSettings
from probes.roundtrip import RoundtripSettings
from tests.fakes.clock import InstantClock


def _settings(name: str, interval: str = "60s") -> ProbeSettings:
    return ProbeSettings(name=name, kind="smtp", interval=interval)


def test_few_probes_start_at_once() -> None:
    """An administrator with three probes sees results within a second."""
    assert all(start_offset(_settings(name), 3) < 0.31 for name in "abc")


def test_thousands_of_probes_spread_over_their_interval() -> None:
    """The starts of many probes fill their interval evenly, and never reach past it."""
    offsets = sorted(start_offset(_settings(f"probe-{n}"), 6000) for n in range(6000))
    assert offsets[-1] < 60.0
    for quarter in range(4):
        share = sum(quarter * 15 <= offset < (quarter + 1) * 15 for offset in offsets)
        assert 1200 < share < 1800


def test_round_trips_overlap_and_others_do_not() -> None:
    """A slow message keeps no later one from being sent; a one-shot probe runs once at a time."""
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
    """After a suspended machine wakes, each run whose time passed is counted once."""
    made, state = schedule
    made._started(_event(EVENT_JOB_SUBMITTED, 0.0))
    made._started(_event(EVENT_JOB_SUBMITTED, 61.0))
    made._started(_event(EVENT_JOB_SUBMITTED, 361.0))
    assert state.skipped["p", "missed"] == 4
    assert state.skipped["p", "overrun"] == 0


def test_run_that_is_still_going_is_counted_as_overrun(schedule: tuple[Schedule, AgentState]) -> None:
    """A start that was skipped because the previous run goes on is an overrun, and not missed."""
    made, state = schedule
    made._started(_event(EVENT_JOB_SUBMITTED, 0.0))
    made._overrun(_event(EVENT_JOB_MAX_INSTANCES, 60.0))
    made._started(_event(EVENT_JOB_SUBMITTED, 120.0))
    assert state.skipped["p", "overrun"] == 1
    assert state.skipped["p", "missed"] == 0


def test_lag_is_observed(schedule: tuple[Schedule, AgentState]) -> None:
    """How late a run starts is in the histogram of the schedule's lag."""
    made, state = schedule
    made._started(_event(EVENT_JOB_SUBMITTED, -0.3))
    assert state.schedule_lag.sum == pytest.approx(0.3)
