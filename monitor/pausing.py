"""Pauses as people set them: begun, ended and listed in the ledger, whether or not the agent is running."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from monitor.config.models import Configuration
from monitor.ledger.backend import user_of
from monitor.ledger.pauses import Pause
from monitor.ledger.store import SqlLedger, open_ledger
from probes.core.clock import Clock


@dataclass(frozen=True, slots=True)
class Pausing:
    """The pauses in the ledger of a configuration's location."""

    _ledger: SqlLedger
    _clock: Clock

    async def begin(self, selections: Sequence[str], until: float, comment: str, by: str) -> bool:
        """Pause what ``selections`` choose, from now ``until`` (unix seconds); return whether an agent runs.

        A pause of the same selection is replaced. Raises LedgerError.
        """
        now = self._clock.time()
        await self._ledger.begin_pauses([Pause(each, now, until, comment, by) for each in selections])
        return await self._ledger.agent_is_running()

    async def end(self, selections: Sequence[str]) -> list[str]:
        """End the pauses of these selections now; return those that have none. Raises LedgerError."""
        now = self._clock.time()
        return [each for each in selections if not await self._ledger.end_pause(each, now)]

    async def current(self) -> list[Pause]:
        """Return the pauses that have not ended. Raises LedgerError."""
        return list(await self._ledger.pauses(self._clock.time()))


def selections_of(patterns: Sequence[str], labels: Mapping[str, str]) -> list[str]:
    """Return the selections for these names and patterns, of probes with all of these labels."""
    return Pause.selections(patterns, labels)


@asynccontextmanager
async def pausing(configuration: Configuration, clock: Clock) -> AsyncIterator[Pausing]:
    """Open the configuration's ledger for the block. Raises LedgerError.

    Root acts as the agent's user from then on: the agent cannot use files that root makes.
    """
    agent = configuration.agent
    if os.geteuid() == 0:
        owner = user_of(agent.ledger)
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
    instance = f"pause-{secrets.token_hex(8)}"
    async with open_ledger(agent.ledger, clock, instance, agent.location, agent.runs_kept) as ledger:
        yield Pausing(ledger, clock)
