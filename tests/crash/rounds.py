"""A round of kills: agents side by side, each with a ledger and a server of its own."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.agent_process import Forker
from tests.crash.audit import Books
from tests.crash.killing import Killer

AGENTS = 2
"""Agents side by side."""


@dataclass
class Outcome:
    """What came of the kills so far: how many at which point, and the books."""

    kills: Counter[str] = field(default_factory=Counter)
    at_last_kill: Books = field(default_factory=Books)
    settled: Books = field(default_factory=Books)

    def __iadd__(self, other: Outcome) -> Outcome:
        self.kills += other.kills
        self.at_last_kill += other.at_last_kill
        self.settled += other.settled
        return self

    def __str__(self) -> str:
        points = ", ".join(f"{count} {point}" for point, count in sorted(self.kills.items()))
        return "\n".join(
            [
                f"{self.kills.total()} kills: {points}",
                f"after the last kill of each ledger: {self.at_last_kill.equation}",
                f"settled: {self.settled}",
            ]
        )


async def kill_agents(seed: int, kills: int, progress: Callable[[], None] = lambda: None) -> Outcome:
    """Kill so many agents, or one more where they are odd; ``progress`` is called after each."""
    outcome = Outcome()

    async def kill_some(number: int) -> None:
        with tempfile.TemporaryDirectory(prefix="mailsonde-crash-") as directory:
            killer = Killer(Path(directory), forker, f"{seed}/{number}")
            settled = await killer.round(math.ceil(kills / AGENTS), progress)
        nonlocal outcome
        outcome += Outcome(killer.kills, killer.at_last_kill, settled)

    async with Forker.running() as forker, asyncio.TaskGroup() as agents:
        for number in range(AGENTS):
            agents.create_task(kill_some(number))
    return outcome
