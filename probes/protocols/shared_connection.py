"""One HTTP connection that several runs use in turn, such as those of one server's virtual directories."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from probes.core.faults import ProbeFault
from probes.core.verdict import QUEUE, RESOLVE, TURN, PhaseTimer
from probes.protocols.https import HttpClient

_OF_THE_CONNECTION = frozenset({RESOLVE, "connect", "tls"})


class SharedConnection:
    """Opens a connection for the first of several concurrent runs, and closes it after the last one.

    A run gets an equal share of the time that is left, so that one request without an answer leaves enough to
    the others. It costs the connection, which the next run opens again. If there is no connection to be had,
    all runs that wait for it end with the same fault.
    """

    def __init__(self, make: Callable[[PhaseTimer], HttpClient]) -> None:
        """``make`` returns a client, given the phases of the first run."""
        self._make = make
        self._turn = asyncio.Lock()
        self._users = 0
        self._client: HttpClient | None = None
        self._fault: ProbeFault | None = None
        self.connections = 0
        """How many connections were tried so far."""
        self.round = 0
        """The number of the latest group of concurrent runs."""

    @asynccontextmanager
    async def turn(self, phases: PhaseTimer, until: float) -> AsyncIterator[tuple[HttpClient, float]]:
        """Yield the client, and the seconds that its requests may take; ``until`` is the loop's time.

        Waiting is phase ``queue``. Raises `ProbeFault`.
        """
        self.round += not self._users
        self._users += 1
        try:
            with phases.phase(QUEUE):
                await asyncio.sleep(0)  # until all runs that start now are counted
                await self._turn.acquire()
            try:
                yield await self._open(phases), self._share(until)
            except BaseException as error:
                await self._close()
                if isinstance(error, ProbeFault) and _is_of_the_connection(phases):
                    self._fault = error
                raise
            finally:
                self._turn.release()
        finally:
            self._users -= 1
            if not self._users:
                self._fault = None
                await self._close()

    def _share(self, until: float) -> float:
        return max(0.0, until - asyncio.get_running_loop().time()) / self._users

    async def _open(self, phases: PhaseTimer) -> HttpClient:
        if self._fault is not None:
            with phases.phase("connect"):
                raise ProbeFault(self._fault.reason, self._fault.detail)
        if self._client is None:
            self._client = self._make(phases)
        self._client.count_towards(phases)
        return self._client

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            self.connections += client.connections
            await client.__aexit__()


def _is_of_the_connection(phases: PhaseTimer) -> bool:
    """Whether the fault of a run is that of the connection, which had the run's whole share of the time."""
    return phases.current in _OF_THE_CONNECTION and TURN not in phases.seconds
