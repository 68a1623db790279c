"""Kills an agent at chosen points again and again, lets the last one settle all, and checks the books."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.crash.agent_process import PATIENCE, AgentProcess, Forker
from tests.crash.audit import Books
from tests.crash.mail_server import LATEST, RecordingServer

NOT_REACHED = "not reached"
"""What a kill counts as if its point was not reached within `POINT_PATIENCE`."""

POINT_PATIENCE = 8.0

_AT_THE_SERVER = {
    "connected": 0.0,  # the intent is durable
    "MAIL": 0.0,
    "content": 0.0,
    "final dot": 0.0,  # the server has the message, and has not said so
    "reply": 0.008,  # between the 250 and its record
    "sendMail": 0.0,
    "accepted by Graph": 0.0,  # Graph has the message, and has not said so
    "202": 0.008,  # around the answer, and its record
    "listing": 0.0,
    "reading": 0.008,  # while arrivals are recorded
    "deleting": 0.0,  # between the record of an arrival and its deletion
    "expunging": 0.0,
    "deleted": 0.0,
}
"""Points of a dialogue, with the longest delay of the kill behind them, in seconds."""

POINTS = ("starting", "running", "committing", "stopping", *_AT_THE_SERVER)
"""All points at which an agent is killed."""


@dataclass
class _Aim:
    point: str
    passes: int
    delay: float


class Killer:
    """Runs agents on one ledger in front of one recording server, and kills each; ``seed`` decides where."""

    def __init__(self, directory: Path, forker: Forker, seed: str) -> None:
        self.kills: Counter[str] = Counter()
        """How many agents were killed, by point."""
        self.at_last_kill = Books()
        self._defects: list[str] = []
        self._chance = Random(f"kills {seed}")  # noqa: S311 # no secret
        self._server = RecordingServer(Random(f"server {seed}"), self._reached)  # noqa: S311 # no secret
        self._agent = AgentProcess(directory, forker)
        self._aim: _Aim | None = None
        self._killed = asyncio.Event()
        self._start_seconds = 0.5

    async def round(self, kills: int, progress: Callable[[], None] = lambda: None) -> Books:
        """Kill so many agents, one after the other; return the books once the last one has settled them."""
        async with self._server.running():
            self._agent.configure(self._server.ports)
            for point in self._points():
                await self._agent.start()
                killed_at = await self._kill_at(point)
                status = await self._agent.ended()
                if status == -signal.SIGKILL:  # else it was quicker to stop
                    self.kills[killed_at] += 1
                    self.at_last_kill = Books.after_kill(self._agent.ledger)
                    self._defects += self.at_last_kill.defects
                    progress()
                if self.kills.total() == kills:
                    break
            return await self._settled()

    def _points(self) -> Iterator[str]:
        while True:
            yield from self._chance.sample(POINTS, len(POINTS))

    async def _kill_at(self, point: str) -> str:
        """Kill the agent, which is starting; return the point at which it was."""
        self._killed.clear()
        if point == "starting":
            await asyncio.sleep(self._chance.uniform(0.0, 1.2 * self._start_seconds))
            self._kill()
            return point
        begun = time.monotonic()
        await self._agent.ready()
        self._start_seconds = time.monotonic() - begun
        if point in _AT_THE_SERVER:
            delay = self._chance.uniform(0.0, _AT_THE_SERVER[point])
            self._aim = _Aim(point, self._chance.randrange(6), delay)
        else:
            await asyncio.sleep(self._chance.uniform(0.0, 1.5))
            if point == "committing":
                await self._agent.commits()
            if point == "stopping":
                self._agent.send(signal.SIGTERM)
                await asyncio.sleep(self._chance.uniform(0.0, 0.1))
            self._kill()
        try:
            async with asyncio.timeout(POINT_PATIENCE):
                await self._killed.wait()
        except TimeoutError:
            self._kill()
            return NOT_REACHED
        return point

    def _reached(self, point: str) -> None:
        """Take in that a dialogue has reached a point; ConnectionError where that was the agent's last."""
        aim = self._aim
        if aim is None or aim.point != point:
            return
        if aim.passes:
            aim.passes -= 1
            return
        self._aim = None
        if aim.delay:
            asyncio.get_running_loop().call_later(aim.delay, self._kill)
            return
        self._kill()
        raise ConnectionError(point)

    def _kill(self) -> None:
        self._aim = None
        self._agent.send(signal.SIGKILL)
        self._killed.set()

    async def _settled(self) -> Books:
        books = await settled(self._agent, self._server)
        books.defects += self._defects
        return books


async def settled(agent: AgentProcess, server: RecordingServer) -> Books:
    """Let a new process of the agent settle what is open while nothing is accepted; return the books then."""

    def books() -> Books:
        books = Books.of(agent.ledger)
        books.compare(server)
        books.defects += [line for line in agent.log.read_text().splitlines() if "Traceback" in line]
        return books

    server.is_closing = True
    agent.configure(server.ports, interval="1h")
    await agent.start()
    await agent.ready()
    await asyncio.sleep(LATEST)
    until = time.monotonic() + PATIENCE
    while books().is_open and time.monotonic() < until:  # noqa: ASYNC110 # a file tells of no event
        await asyncio.sleep(0.1)
    agent.send(signal.SIGTERM)
    status = await agent.ended()
    assert status == 0, status
    return books()
