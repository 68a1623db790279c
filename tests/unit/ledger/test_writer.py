"""The ledger's writer: which changes share a transaction."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from monitor.ledger.writer import PACE, Writer


async def test_changes_that_queue_up_share_the_next_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """While changes queue up, transactions begin at the pace, and each takes all that came until then.

    A change that comes while nothing else happens is committed at once.
    """
    committed: list[Sequence[str]] = []
    pauses: list[float] = []
    begun, may_end, may_go_on = threading.Event(), threading.Event(), threading.Event()

    def commit(changes: Sequence[str]) -> Sequence[str]:
        begun.set()
        may_end.wait(10)
        committed.append(changes)
        return changes

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        may_go_on.wait(10)

    monkeypatch.setattr("monitor.ledger.writer.sleep", sleep)
    writer = Writer(commit, "ledger")
    first = writer.submit("first")
    await asyncio.to_thread(begun.wait, 10)
    second = writer.submit("second")
    may_end.set()
    assert await first == "first"
    third = writer.submit("third")
    may_go_on.set()
    assert await asyncio.gather(second, third) == ["second", "third"]
    assert committed == [["first"], ["second", "third"]]
    assert len(pauses) == 1
    assert 0.0 <= pauses[0] <= PACE
    await writer.close(10)
