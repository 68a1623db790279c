"""The ledger as the rest of mailsonde uses it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from typing import Any, TypeVar, cast

from sqlalchemy import Connection

from monitor.ledger import history, schema, transaction
from monitor.ledger.backend import connected
from monitor.ledger.counters import Counters, Total
from monitor.ledger.database import Database, Locks
from monitor.ledger.last_week import Ends, LastWeek, ends_since
from monitor.ledger.recorded_run import RunReader
from monitor.ledger.transaction import Transaction
from monitor.ledger.writer import Writer
from probes.core.clock import Clock
from probes.core.verdict import MessageState
from probes.delivery.message_life import LedgerError, Message

CLOSE_SECONDS = 2.0
"""Longest time that closing a ledger waits for what is still queued."""

RUNS_EVERY = 5.0
"""Seconds after which finished runs are written."""

FORGET_AFTER = 25
"""Runs of a route after which its old ones are removed: it may hold so many more for a while."""

PENDING_RUNS = 10_000
"""Most runs that wait to be recorded; more are dropped and counted."""

PURGE_STEP = 1000
"""Most messages forgotten in one transaction, so that others are not kept waiting."""

_log = logging.getLogger(__name__)

T = TypeVar("T")
_Operation = Message | Callable[[Connection, Transaction], object]
"""A message to intend, which goes in bulk with its neighbours, or anything else."""


class SqlLedger:
    """The ledger of one location: see `probes.delivery.message_life.Ledger`; made by `open_ledger`.

    It reads and writes the messages, totals and runs of its own location only. Coroutines raise
    LedgerError when the database is in trouble; the next call tries again. A cancelled caller's change
    is made all the same.
    """

    def __init__(
        self,
        database: Database,
        locks: Locks,
        clock: Clock,
        location: str,
        token_key: bytes,
        counters: Counters,
    ) -> None:
        self.token_key = token_key
        self.runs_dropped = 0
        self.last_week = LastWeek()
        self._location = location
        self._runs = RunReader(database.name)
        self._database = database
        self._locks = locks
        self._clock = clock
        self._counters = counters
        self._pending_runs: list[Mapping[str, object]] = []
        self._flush_timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._grown: Counter[tuple[str, str]] = Counter()  # runs of a route since its old ones were removed
        self._reader = ThreadPoolExecutor(1, "ledger-reader")
        self._writer: Writer[_Operation] = Writer(self._commit, database.name)

    @property
    def counters(self) -> Counters:
        """The counts as of the last commit of this process, from memory; any thread may read it.

        What another process did to the same probe and target shows with this one's next change to them.
        """
        return self._counters

    def lock_for_agent(self) -> None:
        """Make this process the ledger's one agent until it closes; LedgerError when another is."""
        self._locks.lock_for_agent()

    async def intend(self, message: Message) -> None:
        """Record a new message in state ``intent``; LedgerError when its id is taken."""
        if message.state is not MessageState.INTENT:
            raise ValueError(f"a message begins as intent, not as {message.state}")
        await self._writer.submit(message)

    async def advance(self, message_id: str, state: MessageState, **changes: object) -> Message | None:
        """Move a message to ``state``; ``None`` with nothing changed where that is not allowed.

        ``changes`` are fields of `Message`; TypeError for one that never changes.
        """
        if unfit := changes.keys() - transaction.CHANGEABLE:
            raise TypeError(f"not to be changed with a message's state: {', '.join(sorted(unfit))}")
        return await self._write(lambda _, work: work.advance(message_id, state, changes))

    async def find(self, message_id: str) -> Message | None:
        """Return the message with this id.

        ``None`` where there is none, or a newer version left it in a state that this one does not know.
        """
        return await self._read(lambda connection: transaction.find(connection, self._location, message_id))

    async def is_others(self, message: Message) -> bool:
        """Return whether another process that still lives answers for the message."""
        if message.instance == self._locks.instance:
            return False
        living = await self._in_background(self._locks.living)
        return message.instance in living

    async def open_messages(self, since: float = 0.0) -> list[Message]:
        """Return, oldest first, each message that is under way or may still arrive.

        Only those created at ``since`` (unix seconds) or later; other processes' are among them.
        """
        return await self._read(
            lambda connection: transaction.open_messages(connection, self._location, since)
        )

    async def adopt(self) -> list[Message]:
        """Answer from now on for the open messages of processes that are gone, and return them.

        One that was in ``intent`` becomes ``ambiguous`` with reason ``interrupted``. Messages of other
        locations, and those in states that this version does not know, stay as they are; the log tells
        how many.
        """
        # Asked inside the transaction: whoever wrote a message seen there has registered before.
        adopted = await self._write(lambda _, work: work.adopt(self._locks.instance, self._locks.living()))
        for sentence in await self._read(
            lambda connection: transaction.left_alone(connection, self._location, self._locks.living())
        ):
            _log.warning("%s: %s", self._database.name, sentence)
        return adopted

    async def forget(self, before: float) -> int:
        """Remove messages that ended, and were due, before ``before`` (unix seconds); return how many.

        Totals stay as they are. The runs of routes that are gone go too, by number and not by age.
        """
        self.last_week.forget_before(self._clock.time())
        self._write_runs(grown_by=1)  # so that no count is kept of a route that is gone
        await self._write(lambda connection, _: history.forget_gone_routes(connection, self._location))
        removed = 0
        while step := await self._write(lambda _, work: work.forget(before, PURGE_STEP)):
            removed += step
        return removed

    async def recall_last_week(self, before: float) -> None:
        """Add to ``last_week`` the messages of the ledger that ended before ``before`` (unix seconds)."""
        now = self._clock.time()
        for route in list(self._counters.routes):  # one by one, so that no other reader waits for long
            await self._read(partial(self._recall_route, route, now, before))

    def _recall_route(
        self, route: tuple[str, str], now: float, before: float, connection: Connection
    ) -> None:
        self.last_week.add(ends_since(connection, self._location, route, now, before))

    async def discrepancies(self) -> list[str]:
        """Return a sentence for each count that does not add up: none, unless there is a defect."""
        return await self._read(lambda connection: transaction.discrepancies(connection, self._location))

    def record_run(self, run: Mapping[str, object]) -> None:
        """Keep a finished run, with at least ``run``, ``probe``, ``target`` and ``outcome``; returns at once.

        ``run`` is not to be changed any more: runs are written together every `RUNS_EVERY` seconds,
        so that a busy agent does not pay for a transaction with each. What cannot be recorded is
        counted in ``runs_dropped``. Called on the event loop.
        """
        if self._closing or len(self._pending_runs) >= PENDING_RUNS:
            self.runs_dropped += 1
            return
        self._pending_runs.append(run)
        if self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(RUNS_EVERY, self._write_runs)

    def _write_runs(self, grown_by: int = FORGET_AFTER) -> asyncio.Future[Any] | None:
        """Queue the pending runs, and the removal of old ones where ``grown_by`` runs came since the last.

        The future tells when it is done; ``None`` where nothing is to do.
        """
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        finished, self._pending_runs = self._pending_runs, []
        self._grown.update((str(run["probe"]), str(run["target"])) for run in finished)
        full = [route for route, count in self._grown.items() if count >= grown_by]
        for route in full:
            del self._grown[route]
        if not finished and not full:
            return None

        def write(connection: Connection, _: Transaction) -> None:
            if finished:
                history.add_runs(connection, self._location, finished)
            if full:
                history.forget_old_runs(connection, self._location, full)

        future = self._writer.submit(write)
        future.add_done_callback(lambda done: self._runs_written(done, len(finished)))
        return future

    def _runs_written(self, future: asyncio.Future[Any], count: int) -> None:
        if future.cancelled() or future.exception() is not None:
            self.runs_dropped += count

    async def recent_runs(
        self, probe: str, target: str, limit: int = 100, *, failures: bool = False
    ) -> list[dict[str, Any]]:
        """Return up to ``limit`` runs of a route, newest first, and only what failed if asked.

        They come without their transcripts.
        """
        return await self._read_runs(
            lambda connection: history.recent_runs(
                connection, self._location, (probe, target), limit, failures=failures
            )
        )

    async def find_run(self, probe: str, run: str) -> dict[str, Any] | None:
        """Return the run of a probe that has this id, with its transcript, or ``None``."""
        found = await self._read_runs(
            lambda connection: history.find_run(connection, self._location, probe, run)
        )
        return found[0] if found else None

    async def newest_runs(self, probes: Collection[str], each: int, most: int) -> list[dict[str, Any]]:
        """Return the newest runs of every route of these probes, oldest first within a route.

        Up to ``each`` of a route; fewer, but at least one, where those would be more than ``most`` together.
        They come without their transcripts.
        """
        return await self._read_runs(
            lambda connection: history.newest_runs(connection, self._location, probes, each, most)
        )

    async def _read_runs(
        self, query: Callable[[Connection], list[history.Documents]]
    ) -> list[dict[str, Any]]:
        """Return the runs that ``query`` finds and that are not broken, once those that wait are written."""
        if (writing := self._write_runs()) is not None:
            await asyncio.wait([writing])
        return await self._read(lambda connection: self._runs.read(query(connection)))

    async def close(self) -> None:
        """Write what is queued, within `CLOSE_SECONDS`, and release the ledger."""
        self._write_runs(grown_by=1)
        self._closing = True
        await self._writer.close(CLOSE_SECONDS)
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        self._reader.shutdown()
        self._database.dispose()
        self._locks.release()

    async def _write(self, operation: Callable[[Connection, Transaction], T]) -> T:
        return cast("T", await self._writer.submit(operation))

    async def _read(self, query: Callable[[Connection], T]) -> T:
        return await self._in_background(lambda: self._database.read(query))

    async def _in_background(self, work: Callable[[], T]) -> T:
        try:
            reading = asyncio.get_running_loop().run_in_executor(self._reader, work)
        except RuntimeError:  # shut down
            raise LedgerError(f"{self._database.name} is closed") from None
        return await reading

    def _commit(self, operations: Sequence[_Operation]) -> Sequence[object]:
        """Make the operations durable in one transaction, on the writer's thread."""

        def work(connection: Connection) -> tuple[list[object], list[Total], list[Ends]]:
            answers: list[object] = []
            transaction = Transaction(connection, self._location, self._clock.time())
            for kind, batch in groupby(operations, type):
                if kind is Message:
                    answers += transaction.intend(cast("list[Message]", list(batch)))
                else:
                    answers += [
                        operation(connection, transaction) for operation in batch if callable(operation)
                    ]
            return answers, transaction.balanced(), transaction.ends

        answers, changed, ended = self._database.write(work)
        self._counters = self._counters.updated(changed)
        self.last_week.add(ended)
        return answers


@asynccontextmanager
async def open_ledger(url: str, clock: Clock, instance: str, location: str) -> AsyncIterator[SqlLedger]:
    """Open the ledger of ``location`` that ``url`` names, made if it is not there; closed after the block.

    ``instance`` names this process among those that use the ledger: 1 to 64 letters, digits,
    dots, dashes and underscores. What an older mailsonde kept without a location becomes that of the
    first ``location`` that opens it. ValueError for a URL as in `monitor.ledger.backend.ledger_path`;
    LedgerError when the ledger cannot be used, with what to do.
    """
    database, locks, token_key, counters = await asyncio.to_thread(_open, url, instance, location)
    ledger = SqlLedger(database, locks, clock, location, token_key, counters)
    try:
        yield ledger
    finally:
        await ledger.close()


def _open(url: str, instance: str, location: str) -> tuple[Database, Locks, bytes, Counters]:
    database, locks = connected(url, instance)
    try:
        with locks.setting_up():
            token_key = database.write(lambda connection: schema.prepare(connection, database, location))
        totals = database.read(lambda connection: transaction.read_totals(connection, location))
    except BaseException:
        locks.release()
        database.dispose()
        raise
    return database, locks, token_key, Counters().updated(totals)
