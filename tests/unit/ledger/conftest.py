"""Ledgers in a temporary directory, on a clock that stands still until a test moves it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from itertools import count
from pathlib import Path

import pytest

from monitor.ledger.counters import Counters
from monitor.ledger.store import SqlLedger, open_ledger
from probes.core.verdict import MessageState
from probes.delivery.message_life import Message

START = 1_800_000_000.0

RUN = {
    "run": "0" * 32,
    "probe": "hq",
    "kind": "smtp",
    "target": "mail",
    "location": "fra1",
    "outcome": "ok",
    "reason": "none",
    "detail": "",
    "started_at": "2027-01-15T08:00:00.000000+00:00",
    "duration_seconds": 0.25,
    "phases": {"connect": 0.25},
    "values": {"offered": ["STARTTLS"]},
}
"""A finished run, with every member that runs of all kinds have."""


class StandingClock:
    boot = "boot"

    def __init__(self) -> None:
        self.now = START

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def since_boot(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def entered(counters: Counters) -> dict[tuple[str, str, MessageState], int]:
    """Return how often each state was entered, over all routes in the ledger."""
    return {
        (*route, state): counters.entered(*route, state)
        for route in counters.routes
        for state in counters.of(route).totals
    }


OpenLedger = Callable[..., AbstractAsyncContextManager[SqlLedger]]
NewMessage = Callable[..., Message]


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def opened(path: Path, clock: StandingClock) -> OpenLedger:
    """Open the ledger of this test, by default as instance ``agent-1`` at location ``fra1``."""
    return lambda instance="agent-1", location="fra1": open_ledger(
        f"sqlite://{path}", clock, instance, location
    )


@pytest.fixture
def new_message(clock: StandingClock) -> NewMessage:
    """Make messages with unique ids."""
    numbers = count(1)

    def make(probe: str = "hq", target: str = "submission", **fields: object) -> Message:
        defaults: dict[str, object] = {
            "id": f"{next(numbers):032x}",
            "probe": probe,
            "target": target,
            "mailbox": "canary",
            "state": MessageState.INTENT,
            "created_at": clock.now,
            "deadline_seconds": 300.0,
            "instance": "agent-1",
            "boot": clock.boot,
            "created_mono": clock.now,
        }
        return Message(**{**defaults, **fields})  # type: ignore[arg-type] # a test names only what matters to it

    return make
