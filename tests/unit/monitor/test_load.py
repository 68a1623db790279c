"""When new messages are held back, which ones, and what the site is told."""

from __future__ import annotations

import logging
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from monitor.load import (
    BLOCKED_SHARE,
    LOGIN_WAIT,
    LOGINS_SHORT_FOR,
    LOOKS_SHORT,
    MOST_HELD_BACK,
    Load,
    Shortage,
)
from monitor.state import AgentState
from probes.core.probe import Probe
from probes.core.verdict import Run, Verdict
from probes.delivery.message_probe import MessageProbe, MessageProbeSettings
from tests.fakes.clock import InstantClock


class Sending(MessageProbe):
    """A probe that sends messages into a mailbox whose poll has been waiting for a login."""

    settings_model = MessageProbeSettings
    login_wait = 0.0
    target = "out"

    def __init__(self, name: str) -> None:
        self.settings: Any = SimpleNamespace(name=name)

    async def run(self, run: Run) -> Verdict:
        raise NotImplementedError


class Looking(Probe):
    """A probe that sends none."""

    target = "out"

    def __init__(self) -> None:
        self.settings: Any = SimpleNamespace(name="looking")

    async def run(self, run: Run) -> Verdict:
        raise NotImplementedError


class Bench:
    """A load, and what the agent has too little of."""

    def __init__(self) -> None:
        self.clock = InstantClock()
        self.state = AgentState()
        self.blocked = self.ledger_wait = 0.0
        self.load = Load(self.state, self.clock, lambda: self.blocked, lambda: self.ledger_wait)

    def looks(self, count: int, blocked_share: float = 0.0) -> None:
        """Let so many seconds pass, in each of which the event loop is blocked for a share of the time."""
        for _ in range(count):
            self.clock.now += 1.0
            self.blocked += blocked_share
            self.load.look()


@pytest.fixture
def bench() -> Bench:
    return Bench()


PROBES = [Sending(f"trip-{number}") for number in range(50)]


def _admitted(bench: Bench, rounds: int) -> Counter[str]:
    """Return how many of so many runs of each probe may begin."""
    return Counter({p.settings.name: sum(bench.load.admits(p) for _ in range(rounds)) for p in PROBES})


def test_everything_is_sent_while_the_agent_keeps_up(bench: Bench) -> None:
    """A busy agent that keeps up holds nothing back, even after a stall of seconds."""
    bench.looks(100, 0.9 * BLOCKED_SHARE)
    bench.looks(LOOKS_SHORT - 1, 1.0)
    bench.looks(10, 0.9 * BLOCKED_SHARE)
    assert set(_admitted(bench, 10).values()) == {10}
    assert not bench.state.shortage


def test_one_long_stall_is_no_overload(bench: Bench) -> None:
    """A machine that stood still for a minute is not overloaded."""
    bench.clock.now += 60.0
    bench.blocked += 60.0
    bench.load.look()
    assert set(_admitted(bench, 10).values()) == {10}


def test_every_route_is_held_back_by_the_same_share(bench: Bench) -> None:
    """No route starves: of the runs of each, the same share begins, and each that does not is counted."""
    bench.looks(LOOKS_SHORT + 7, 0.5)
    admitted = _admitted(bench, 100)
    assert max(admitted.values()) - min(admitted.values()) <= 1
    assert 20 < min(admitted.values()) < 80
    for probe in PROBES:
        name = probe.settings.name
        assert admitted[name] + bench.state.skipped[name]["overload"] == 100


def test_routes_take_turns(bench: Bench) -> None:
    """Routes are not all held back in the same round."""
    bench.looks(LOOKS_SHORT + 7, 0.5)
    rounds = [sum(bench.load.admits(probe) for probe in PROBES) for _ in range(10)]
    assert all(10 < admitted < 40 for admitted in rounds)


def test_a_lasting_overload_holds_more_and_more_back(bench: Bench) -> None:
    """While the agent cannot keep up, ever fewer messages are sent, but always some."""
    bench.looks(LOOKS_SHORT + 3, 1.0)
    first = _admitted(bench, 100).total()
    bench.looks(100, 1.0)
    assert 0 < _admitted(bench, 100).total() < first
    assert _admitted(bench, 100).total() == pytest.approx(100 * len(PROBES) * (1 - MOST_HELD_BACK), rel=0.2)


def test_a_loop_that_is_blocked_for_long_looks_rarely(bench: Bench) -> None:
    """If each look comes after seconds of a blocked event loop, a few of them hold most sends back."""
    for _ in range(LOOKS_SHORT + 2):
        bench.clock.now += 6.0
        bench.blocked += 5.5
        bench.load.look()
    assert _admitted(bench, 100).total() < 0.2 * 100 * len(PROBES)


def test_it_is_told_once_and_ends(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The log says once what is short and what to do, and once that it is over, with what was held back."""
    caplog.set_level(logging.INFO)
    bench.looks(100, 1.0)
    assert bench.state.shortage == Shortage.PROCESSOR
    assert bench.state.overload == {"logins": False, "machine": True}
    held_back = 10 * len(PROBES) - _admitted(bench, 10).total()
    bench.looks(5, 0.9 * BLOCKED_SHARE)  # between the limits, nothing changes
    assert bench.state.shortage
    bench.looks(100)
    assert not bench.state.shortage
    assert set(_admitted(bench, 10).values()) == {10}
    begun, ended = caplog.messages
    assert begun == f"the agent is overloaded and holds back new messages: {Shortage.PROCESSOR}"
    assert ended.startswith(f"the agent is no longer overloaded; it held back {held_back} runs in ")


def test_a_backlog_that_shrinks_holds_no_more_back(bench: Bench) -> None:
    """While the runs from before a cut are worked off, no more are held back: the agent stays busy."""
    bench.looks(LOOKS_SHORT + 3, 1.0)
    before = _admitted(bench, 100).total()
    for share in (0.9, 0.8, 0.7, 0.6, 0.5):
        bench.looks(1, share)
    assert _admitted(bench, 100).total() == pytest.approx(before, rel=0.02)


def test_another_shortage_that_follows(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The page shows what is short now; the log says each shortage once, however often they take turns."""
    for _ in range(3):
        bench.ledger_wait = 0.0
        bench.looks(LOOKS_SHORT + 1, 1.0)
        assert bench.state.shortage == Shortage.PROCESSOR
        bench.ledger_wait = 3.0
        bench.looks(LOOKS_SHORT + 1)
        assert bench.state.shortage == Shortage.LEDGER
    assert len(caplog.messages) == 2


def test_a_slow_ledger(bench: Bench) -> None:
    """A ledger whose changes wait is a shortage of its own."""
    bench.ledger_wait = 3.0
    bench.looks(LOOKS_SHORT)
    assert bench.state.shortage == Shortage.LEDGER
    assert _admitted(bench, 10).total() < 10 * len(PROBES)


def test_probes_that_send_nothing_go_on(bench: Bench) -> None:
    """Only messages leave a backlog: other probes are never held back."""
    bench.looks(100, 1.0)
    looking = Looking()
    assert all(bench.load.admits(looking) for _ in range(100))


def test_a_mailbox_whose_polls_wait_for_logins(bench: Bench) -> None:
    """Nothing more is sent into a mailbox that cannot be read now; other mailboxes are not concerned."""
    waiting = Sending("waiting")
    waiting.login_wait = LOGIN_WAIT + 1.0
    assert not bench.load.admits(waiting)
    assert bench.state.shortage == Shortage.LOGINS
    assert bench.state.overload == {"logins": True, "machine": False}
    assert bench.state.skipped["waiting"]["overload"] == 1
    assert set(_admitted(bench, 10).values()) == {10}
    waiting.login_wait = 0.0
    assert bench.load.admits(waiting)
    bench.looks(int(LOGINS_SHORT_FOR) - 1)
    assert bench.state.shortage
    bench.looks(3)
    assert not bench.state.shortage
    assert not any(bench.state.overload.values())
