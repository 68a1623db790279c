"""The agent's regular check that its ledger can be used."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from monitor.housekeeping import CHECK_LEDGER_EVERY, check_ledger
from tests.unit.ledger.conftest import OpenLedger


class Minutes:
    """A clock whose sleeps a test ends one by one."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._due = asyncio.Event()
        self._asleep = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._asleep.set()
        await self._due.wait()
        self._due.clear()

    async def pass_by(self) -> None:
        """Let one sleep end, and return at the next one."""
        await self._asleep.wait()
        self._asleep.clear()
        self._due.set()
        await self._asleep.wait()


async def test_a_ledger_that_goes_and_comes_back_is_told_once(
    path: Path, opened: OpenLedger, caplog: pytest.LogCaptureFixture
) -> None:
    """Within a minute the log says that the ledger's file is gone, and later that it is back, once each."""
    aside, clock = path.with_name("aside.db"), Minutes()
    async with opened() as ledger:
        checking = asyncio.create_task(check_ledger(SimpleNamespace(ledger=ledger), clock))
        await clock.pass_by()
        assert caplog.messages == []
        move(path, aside)
        await clock.pass_by()
        await clock.pass_by()
        assert [f"ledger {path}: its file was deleted or moved away" in said for said in caplog.messages] == [
            True
        ]
        move(aside, path)
        await clock.pass_by()
        await clock.pass_by()
        assert caplog.messages[1:] == ["the ledger can be used again"]
        checking.cancel()
    assert set(clock.slept) == {CHECK_LEDGER_EVERY}
    assert CHECK_LEDGER_EVERY < 60


def move(path: Path, to: Path) -> None:
    path.rename(to)
