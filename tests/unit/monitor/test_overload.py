"""An agent with twice the work that it can do, in front of servers that keep their own log."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Self

from tests.benchmarks.mail_load import Load, Metrics, Running, running
from tests.real_servers.process import wait_until

ROUTES = 60
WITHIN = 1.0
"""Seconds within which the objective wants mail delivered."""

PERIOD = 0.05
"""Seconds in which the agent runs and stops once."""

LOOKS = 10
"""Seconds that the agent has to find out that it is short of processor time, a look each."""

LEAST_CORES = 0.05
"""Cores with which every agent is overloaded."""

IN_OVERLOAD = 8.0
"""Seconds for which the agent remains overloaded."""


class Throttle:
    """Lets a process have at most ``cores`` of a processor during a block; they may be changed meanwhile."""

    def __init__(self, pid: int, cores: float) -> None:
        self._pid, self.cores = pid, cores
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._alternate)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _alternate(self) -> None:
        while not self._over.is_set():
            cores = self.cores
            os.kill(self._pid, signal.SIGSTOP)
            time.sleep(PERIOD * (1.0 - cores))
            os.kill(self._pid, signal.SIGCONT)
            time.sleep(PERIOD * cores)


def _needed(at_work: Running, seconds: float) -> float:
    """Return how many cores the agent uses now."""
    began, used = time.monotonic(), at_work.cpu()[0]
    time.sleep(seconds)
    return (at_work.cpu()[0] - used) / (time.monotonic() - began)


def _starve(at_work: Running, throttle: Throttle) -> None:
    """Take ever more processor time from the agent until it says that it is overloaded.

    What the agent uses while it starts says little of what it needs, so no share is short at every machine.
    """
    while throttle.cores > LEAST_CORES:
        for _ in range(LOOKS):
            if at_work.metrics().total("mailsonde_agent_overloaded", shortage="machine") == 1.0:
                return
            time.sleep(1.0)
        throttle.cores *= 0.6
    raise AssertionError(f"with {throttle.cores:.2f} cores the agent is not overloaded yet")


def _finished(metrics: Metrics) -> float:
    return metrics.total("mailsonde_probe_runs_total")


def test_overload_is_told_and_never_published() -> None:
    """With less processor time than it needs, an agent holds back messages, and says so.

    No published latency is wrong by more than its uncertainty, no run fails, and no objective loses anything
    but by mail that the servers delivered late, which a busy machine makes them do.
    """
    load = Load(ROUTES, interval=1.0, delay=0.05, deadline=20.0, within=WITHIN)
    with running(load, pinned=False) as at_work:
        wait_until(lambda: _finished(at_work.metrics()) >= ROUTES, "all routes have run", seconds=60.0)
        with Throttle(at_work.pid, 0.5 * min(1.0, _needed(at_work, 3.0))) as throttle:
            _starve(at_work, throttle)
            finished = _finished(at_work.metrics())
            time.sleep(IN_OVERLOAD)
            wait_until(lambda: _finished(at_work.metrics()) > finished, "more runs have ended", seconds=60.0)
            metrics = at_work.metrics()
        at_work.agent.stop()
        published = at_work.published()
    assert metrics.total("mailsonde_schedule_skipped_total", reason="overload") > 0
    assert metrics.total("mailsonde_agent_overloaded", shortage="machine") == 1.0
    assert [each for each in published if not each.is_within] == []
    assert len(published) >= ROUTES
    late = sum(each.latency > WITHIN for each in published)
    assert metrics.total("mailsonde_slo_runs_total", result="bad") <= late
    assert metrics.total("mailsonde_probe_runs_total", outcome="failed") == 0
    assert metrics.total("mailsonde_messages_total", state="lost") == 0
