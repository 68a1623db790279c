"""When runs start, and how runs that do not start are counted."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from monitor.schedule import Schedule, most_at_once, start_offset
from monitor.state import AgentState
from probes.core.clock import SystemClock
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


class Ran:
    """A schedule of one probe every 60 s on the test's clock, and the times of its runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, ends: bool = True) -> None:
        self.clock = InstantClock()
        self.at: list[float] = []
        self.state = AgentState()
        self.may_end = asyncio.Event()
        if ends:
            self.may_end.set()

        async def run(_: object) -> None:
            self.at.append(self.clock.now)
            await self.may_end.wait()

        monkeypatch.setattr("monitor.schedule.JITTER", 0.0)
        self.schedule = Schedule(run, self.state, self.clock)
        site = Site("here", {"out": SERVER}, {})
        self.schedule.start(
            [Smtp(SmtpSettings(name="p", kind="smtp", server="out"), Context(self.clock, site))]
        )

    async def runs_in(self, seconds: float, step: float = 1.0) -> int:
        """Let time pass step by step; return how many runs began."""
        before, until = len(self.at), self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now += step
            self.schedule.start_due()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return len(self.at) - before


async def test_runs_that_were_joined_are_counted_as_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a machine resumes from suspension, one run begins, and each other one in that time is counted."""
    ran = Ran(monkeypatch)
    assert await ran.runs_in(120) == 2
    assert await ran.runs_in(300, step=300) == 1
    assert ran.state.skipped["p", "missed"] == 4
    assert ran.state.skipped["p", "overrun"] == 0
    assert await ran.runs_in(120) == 2
    assert ran.state.skipped["p", "missed"] == 4
    ran.schedule.stop()


async def test_run_that_is_still_going_is_counted_as_overrun(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A start skipped because the previous run is in progress counts as overrun, not as missed."""
    ran = Ran(monkeypatch, ends=False)
    assert await ran.runs_in(90) == 1
    assert ran.state.skipped["p", "overrun"] == 1
    assert "p" in caplog.text
    ran.may_end.set()
    assert await ran.runs_in(60) == 1
    assert ran.state.skipped["p", "overrun"] == 1
    assert ran.state.skipped["p", "missed"] == 0
    ran.schedule.stop()


async def test_a_defect_ends_no_schedule(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in a run is logged with its probe, and the next run begins on time."""
    ran = Ran(monkeypatch)
    monkeypatch.setattr(ran.may_end, "wait", None)  # calling it raises
    assert await ran.runs_in(120) == 2
    assert "defect in a run of probe p" in caplog.text
    ran.schedule.stop()


async def test_the_timer_starts_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs begin without anybody's help, within milliseconds of their time, and stop with the schedule."""
    began: list[float] = []
    two = asyncio.Event()

    async def run(_: object) -> None:
        began.append(clock.since_boot())
        if len(began) == 2:
            two.set()

    clock, state = SystemClock(), AgentState()
    schedule = Schedule(run, state, clock)
    site = Site("here", {"out": SERVER}, {})
    settings = SmtpSettings(name="p", kind="smtp", server="out", interval="1s")
    schedule.start([Smtp(settings, Context(clock, site))])
    await asyncio.wait_for(two.wait(), 10)
    schedule.stop()
    assert began[1] - began[0] >= 0.9
    assert schedule._timer is None


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
    assert ran.state.skipped["p", "missed"] == 0
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


async def test_lag_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delay of each start is in the histogram of schedule lag."""
    ran = Ran(monkeypatch)
    await ran.runs_in(1)
    ran.state.schedule_lag.sum = 0.0
    ran.clock.now = ran.at[0] - (ran.at[0] - 1000.0 - start_offset(_settings("p"), 1)) + 60.0
    await ran.runs_in(0.3, step=0.3)
    assert ran.state.schedule_lag.sum == pytest.approx(0.3)
    ran.schedule.stop()
