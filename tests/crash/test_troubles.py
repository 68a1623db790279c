"""A process that is stopped, and a ledger that is locked or taken away, are no trouble of the mail system."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from monitor.ledger.packing import unpacked
from probes.core.reasons import Reason
from tests.crash.agent_process import PATIENCE, ROUTES, AgentProcess, Forker
from tests.crash.audit import Books
from tests.crash.killing import settled
from tests.crash.mail_server import DEADLINE, RecordingServer

UNAVAILABLE, BUSY = "unknown/ledger_unavailable", "unknown/local_resources"
IS_LONG = "MAILSONDE_CRASH_LONG" in os.environ
STOPPED = 60.0 if IS_LONG else DEADLINE + 2.0
"""Seconds that the agent is stopped."""
LOCKED = 30.0 if IS_LONG else 12.0
"""Seconds that another process locks the ledger: longer than the agent waits for it, twice in a row."""


class Running:
    """An agent at work, in front of a server without fault."""

    def __init__(self, directory: Path, forker: Forker) -> None:
        self.server = RecordingServer(Random(1), lambda _: None)  # noqa: S311 # no secret
        self.server.transit = 0.5  # so that some messages are always under way
        self.agent = AgentProcess(directory, forker)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once ``condition()`` is true."""
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, f"{what}: {self.log()[-3000:]}"
            await asyncio.sleep(0.05)

    def log(self) -> str:
        return self.agent.log.read_text()

    def troubles(self) -> Counter[str]:
        """Return outcome and reason of each run that was not ok, from the log: a locked ledger drops runs."""
        return Counter(re.findall(r'"event": "[^ ]+: ((?:failed|unknown)/\w+)', self.log()))

    def delivered(self) -> set[str]:
        """Return the ids of delivered messages."""
        return {id_ for id_, row in Books.of(self.agent.ledger).rows.items() if row["state"] == "delivered"}

    async def deliveries(self, more: int = 20) -> None:
        """Return once the server has accepted some more messages."""
        before = len(self.server.log)
        await self.until(lambda: len(self.server.log) >= before + more, "messages")

    async def end(self) -> tuple[Books, dict[str, dict[str, Any]]]:
        """End the agent, and settle everything by another; return the books, and the runs of the first."""
        self.agent.send(signal.SIGTERM)
        assert await self.agent.ended() == 0
        with closing(sqlite3.connect(self.agent.ledger)) as database:
            found = database.execute("SELECT run, document FROM runs")
            runs = {run: json.loads(unpacked(document)) for run, document in found}
        return await settled(self.agent, self.server), runs


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with Forker.running() as forker:
        running = Running(tmp_path, forker)
        async with running.server.running():
            running.agent.configure(running.server.ports)
            await running.agent.start()
            await running.agent.ready()
            await running.deliveries()
            yield running


async def test_a_stopped_process_is_no_outage(running: Running) -> None:
    """What arrives while the agent is stopped is neither lost nor a latency: its run is unknown."""
    running.agent.send(signal.SIGSTOP)
    stopped = time.monotonic()
    await asyncio.sleep(STOPPED)
    continued = time.monotonic()
    running.agent.send(signal.SIGCONT)
    await running.deliveries()
    arrivals = {id_: entry.arrived_at for id_, entry in running.server.log.items()}
    meanwhile = {id_ for id_, at in arrivals.items() if at is not None and stopped < at < continued}
    await running.until(lambda: meanwhile <= running.delivered(), "what arrived meanwhile is delivered")
    troubles = running.troubles()
    books, runs = await running.end()
    assert books.faults == []
    assert meanwhile
    assert {runs[id_]["reason"] for id_ in meanwhile} == {Reason.LOCAL_RESOURCES}
    assert troubles.keys() == {BUSY}


async def test_a_locked_ledger_is_no_outage(running: Running) -> None:
    """While another process locks the ledger, runs are unknown; nothing is lost, or sent twice."""
    with closing(sqlite3.connect(running.agent.ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(LOCKED)
    await running.deliveries()
    troubles = running.troubles()
    books, _ = await running.end()
    assert books.faults == []
    assert UNAVAILABLE in troubles
    assert troubles.keys() <= {UNAVAILABLE, BUSY}


async def test_nothing_is_sent_without_the_ledger_file(running: Running) -> None:
    """If its file is moved away, the agent says so and sends nothing; moved back, it goes on where it was."""
    ledger = running.agent.ledger
    aside = ledger.with_name("aside.db")
    ledger.rename(aside)
    await running.until(lambda: running.troubles()[UNAVAILABLE] >= ROUTES, "runs without a ledger")
    await asyncio.sleep(1.0)  # for dialogues that had begun
    accepted, unavailable = len(running.server.log), running.troubles()[UNAVAILABLE]
    await running.until(lambda: running.troubles()[UNAVAILABLE] >= unavailable + 2 * ROUTES, "more such runs")
    assert len(running.server.log) == accepted
    assert f"ledger {ledger}: its file was deleted or moved away while mailsonde was running" in running.log()
    assert not ledger.exists()
    aside.rename(ledger)
    await running.deliveries()
    books, _ = await running.end()
    assert books.faults == []
