"""An agent with twice the work that it can do, in front of servers that keep their own log."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.benchmarks.mail_load import Load, Metrics, Running, running
from tests.real_servers.process import wait_until

ROUTES = 60
PERIOD = 0.05
"""Seconds in which the agent runs and stops once."""

IN_OVERLOAD = 8.0
"""Seconds for which the agent remains overloaded."""


@contextmanager
def with_cores(pid: int, cores: float) -> Iterator[None]:
    """Let a process have at most this share of a processor during the block."""
    over = threading.Event()

    def alternate() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(PERIOD * (1.0 - cores))
            os.kill(pid, signal.SIGCONT)
            time.sleep(PERIOD * cores)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _needed(at_work: Running, seconds: float) -> float:
    """Return how many cores the agent needs for its work."""
    began, used = time.monotonic(), at_work.cpu()[0]
    time.sleep(seconds)
    return (at_work.cpu()[0] - used) / (time.monotonic() - began)


def _finished(metrics: Metrics) -> float:
    return metrics.total("mailsonde_probe_runs_total")


def test_overload_is_told_and_never_published() -> None:
    """With a third of the processor time that it needs, an agent holds back messages, and says so.

    No published latency is wrong by more than its uncertainty, no run fails, and no objective loses anything.
    """
    load = Load(ROUTES, interval=1.0, delay=0.05, deadline=20.0, within=1.0)
    with running(load, pinned=False) as at_work:
        wait_until(lambda: _finished(at_work.metrics()) >= ROUTES, "all routes have run", seconds=60.0)
        with with_cores(at_work.pid, 0.3 * min(1.0, _needed(at_work, 3.0))):
            wait_until(
                lambda: at_work.metrics().total("mailsonde_agent_overloaded", shortage="machine") == 1.0,
                "the agent is overloaded",
                seconds=60.0,
            )
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
    assert metrics.total("mailsonde_slo_runs_total", result="bad") == 0
    assert metrics.total("mailsonde_probe_runs_total", outcome="failed") == 0
    assert metrics.total("mailsonde_messages_total", state="lost") == 0
