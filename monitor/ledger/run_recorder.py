"""Records finished runs in the background, in small transactions, so that no message waits long for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sqlalchemy import Connection

from monitor.ledger import history
from monitor.ledger.transaction import Transaction
from probes.delivery.message_life import LedgerError

RUNS_EVERY = 5.0
"""Seconds until a finished run is written, together with others."""

FORGET_AFTER = 25
"""How many new runs of a route are added before its old ones are removed."""

PENDING_RUNS = 10_000
"""Maximum number of runs waiting to be recorded; any more are dropped and counted."""

RUNS_A_STEP = 50
"""Maximum number of runs added or removed in one transaction, so that other changes need not wait long."""

Submit = Callable[[Callable[[Transaction], object]], "asyncio.Future[Any]"]


class RunRecorder:
    """Adds runs to the history of ``location``, and keeps the latest ``kept`` runs and failures of a route.

    ``submit`` queues a change and returns a future that ends when it is durable. All methods must be called
    on the event loop.
    """

    def __init__(self, submit: Submit, location: str, kept: int) -> None:
        self.dropped = 0
        self._submit = submit
        self._location = location
        self._kept = kept
        self._pending: list[Mapping[str, object]] = []
        self._being_written = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._grown: Counter[tuple[str, str]] = Counter()  # runs added since the last removal
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def record(self, run: Mapping[str, object]) -> None:
        """Queue a run. If it cannot be recorded, now or later, it is counted in ``dropped``."""
        if self._closed or len(self._pending) + self._being_written >= PENDING_RUNS:
            self.dropped += 1
            return
        self._pending.append(run)
        self._start_later()

    def _start_later(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(RUNS_EVERY, self._start_if_idle)

    def _start_if_idle(self) -> None:
        self._timer = None
        if self._one_at_a_time.locked():
            self._start_later()
        else:
            self._start()

    def _start(self, grown_by: int = FORGET_AFTER, step: int | None = None) -> asyncio.Task[None]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        task = asyncio.create_task(self._write(grown_by, step or RUNS_A_STEP), name="runs")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def flush(self, grown_by: int = FORGET_AFTER) -> None:
        """Write the queued runs, and remove old ones of routes with ``grown_by`` new runs.

        Cancelling this does not cancel the writing.
        """
        await asyncio.wait([self._start(grown_by)])

    async def close(self, seconds: float) -> None:
        """Write what is queued, within ``seconds``, and drop all later runs."""
        self._closed = True
        await asyncio.wait([self._start(grown_by=1, step=PENDING_RUNS)], timeout=seconds)
        for task in self._tasks:
            task.cancel()

    async def _write(self, grown_by: int, step: int) -> None:
        async with self._one_at_a_time:
            # Runs that finish meanwhile are for the next time: on a slow disk, this would never end.
            batch, self._pending = self._pending, []
            self._being_written = len(batch)
            if await self._add(batch, step):
                await self._forget_old(grown_by, step)
            self._being_written = 0
            if self._pending:
                self._start_later()

    async def _add(self, batch: list[Mapping[str, object]], step: int) -> bool:
        """Add runs; if some cannot be added, drop these, leave the others for later, and return ``False``."""
        for start in range(0, len(batch), step):
            finished = batch[start : start + step]
            if not await self._done(partial(history.add_runs, location=self._location, finished=finished)):
                self.dropped += len(finished)
                self._pending[:0] = batch[start + step :]
                return False
            self._grown.update((str(run["probe"]), str(run["target"])) for run in finished)
        return True

    async def _forget_old(self, grown_by: int, step: int) -> None:
        full = [route for route, count in self._grown.items() if count >= grown_by]
        for start in range(0, len(full), step // FORGET_AFTER):
            some = full[start : start + step // FORGET_AFTER]
            forget = partial(history.forget_old_runs, location=self._location, routes=some, kept=self._kept)
            if not await self._done(forget):
                return
            for route in some:
                del self._grown[route]

    async def _done(self, change: Callable[[Connection], None]) -> bool:
        """Make a change; return whether it could be made."""
        try:
            await self._submit(lambda work: change(work.connection))
        except LedgerError:
            return False
        return True
