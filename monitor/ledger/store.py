"""The ledger's interface to the rest of mailsonde."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from math import inf
from threading import Lock
from typing import Any, TypeVar, cast

from sqlalchemy import Connection

from monitor.ledger import history, schema, transaction
from monitor.ledger.backend import connected
from monitor.ledger.counters import Counters, Total
from monitor.ledger.database import Database, Locks
from monitor.ledger.last_week import Ends, LastWeek, ends_since
from monitor.ledger.limits import RUNS_KEPT
from monitor.ledger.pauses import PAUSES_KEPT, Pause, begin, end, forget, pauses_since
from monitor.ledger.recorded_run import RunReader
from monitor.ledger.run_recorder import RunRecorder
from monitor.ledger.transaction import Transaction
from monitor.ledger.writer import Writer
from probes.core.clock import Clock
from probes.core.histogram import Histogram
from probes.core.verdict import MessageState
from probes.delivery.message_life import LedgerError, Message

CLOSE_SECONDS = 2.0
"""How long closing the ledger waits for runs to be written, and then for other changes."""

PURGE_STEP = 200
"""Maximum number of messages purged in one transaction, so that other changes need not wait long."""

_log = logging.getLogger(__name__)

AGENT = "agent"
"""What the names of agents begin with, among the processes that use a ledger."""

T = TypeVar("T")
_Operation = Message | Callable[[Transaction], object]
"""A new message, inserted together with those next to it in the queue, or any other change."""


class SqlLedger:
    """The ledger of one location: see `probes.delivery.message_life.Ledger`. `open_ledger` makes it.

    It reads and writes only the messages, totals and runs of its own location. Coroutines raise LedgerError
    if the database fails; the next call tries again. Cancelling a call does not cancel its change.
    """

    def __init__(
        self,
        database: Database,
        locks: Locks,
        clock: Clock,
        location: str,
        token_key: bytes,
        counters: Counters,
        runs_kept: int,
    ) -> None:
        self.token_key = token_key
        self.last_week = LastWeek()
        self.counts_from: Callable[[str, float], float] = lambda *_: -inf
        """Returns when a probe's last maintenance ended, for now (unix seconds): `inf` during one.

        Messages that are created, or end, while it is later than their creation are excused: their ends do
        not count.
        """
        self._location = location
        self._runs = RunReader(database.name)
        self._database = database
        self._locks = locks
        self._clock = clock
        self._counters = counters
        self._changed: dict[tuple[str, str, MessageState], Total] = {}  # since `_counters` was made
        self._counting = Lock()
        self._reader = ThreadPoolExecutor(1, "ledger-reader")
        self._writer: Writer[_Operation] = Writer(self._commit, database.name)
        self._recorder = RunRecorder(self._writer.submit, location, runs_kept)

    @property
    def counters(self) -> Counters:
        """The counts after this process's last commit, from memory; any thread may read them.

        Another process's changes to a probe and target appear with this one's next change to the same.
        Making it takes longer the more routes there are, so this waits until somebody reads.
        """
        with self._counting:
            if self._changed:
                self._counters = self._counters.updated(self._changed.values())
                self._changed.clear()
            return self._counters

    @property
    def wait(self) -> float:
        """How many seconds the oldest change that is not durable yet has waited."""
        return self._writer.wait

    @property
    def commits(self) -> Histogram:
        """How long changes waited until they were durable, or had failed."""
        return self._writer.commits

    @property
    def runs_dropped(self) -> int:
        """How many finished runs could not be recorded."""
        return self._recorder.dropped

    def lock_for_agent(self) -> None:
        """Reserve the ledger for this agent until `close`; raises LedgerError if another agent has it."""
        self._locks.lock_for_agent()

    async def leave(self, text: str) -> None:
        """Leave a text for other processes; see `monitor.ledger.backend.agent_process`."""
        await asyncio.to_thread(self._locks.leave, text)

    async def intend(self, message: Message) -> None:
        """Record a new message in state ``intent``; raises LedgerError if its id is taken."""
        if message.state is not MessageState.INTENT:
            raise ValueError(f"a message begins as intent, not as {message.state}")
        await self._writer.submit(message)

    async def advance(self, message_id: str, state: MessageState, **changes: object) -> Message | None:
        """Move a message to ``state``; if that is not allowed, change nothing and return ``None``.

        ``changes`` are fields of `Message`. Raises TypeError for a field that must not change.
        """
        if unfit := changes.keys() - transaction.CHANGEABLE:
            raise TypeError(f"not to be changed with a message's state: {', '.join(sorted(unfit))}")
        return await self._write(lambda work: work.advance(message_id, state, changes))

    async def note_trace(self, message_id: str, looks: int, trace: str) -> None:
        """Set what a message trace said about a message; an unknown message is ignored."""
        await self._write(lambda work: work.note_trace(message_id, looks, trace))

    async def find(self, message_id: str) -> Message | None:
        """Return the message with this id.

        Returns ``None`` if there is none, or if a newer version left it in a state unknown to this one.
        """
        return await self._read(lambda connection: transaction.find(connection, self._location, message_id))

    async def is_others(self, message: Message) -> bool:
        """Return whether another running process is responsible for the message."""
        if message.instance == self._locks.instance:
            return False
        living = await self._in_background(self._locks.living)
        return message.instance in living

    async def open_messages(self, since: float = 0.0) -> list[Message]:
        """Return, oldest first, the messages of all processes that are in flight or may still arrive.

        Only messages created at ``since`` (unix seconds) or later are included.
        """
        return await self._read(
            lambda connection: transaction.open_messages(connection, self._location, since)
        )

    async def adopt(self) -> list[Message]:
        """Take over the open messages of processes that are gone, and return them.

        Messages in ``intent`` become ``ambiguous`` with reason ``interrupted``. Messages of other locations,
        and those in states that this version does not know, stay as they are; the log says how many.
        """
        # `living` is called inside the transaction: a process registers before it writes its first message.
        adopted = await self._write(lambda work: work.adopt(self._locks.instance, self._locks.living()))
        for sentence in await self._read(
            lambda connection: transaction.left_alone(connection, self._location, self._locks.living())
        ):
            _log.warning("%s: %s", self._database.name, sentence)
        return adopted

    async def forget(self, before: float) -> int:
        """Remove messages that ended, and were due, before ``before`` (unix seconds); return how many.

        Totals do not change. The runs of routes beyond the latest `ROUTES_KEPT` of a probe are removed too.
        """
        self.last_week.forget_before(self._clock.time())
        await self._recorder.flush(grown_by=1)  # so that no count remains for a route that is gone
        # The reader looks for what to remove: messages wait only for the writer.
        here = self._location
        for route in await self._read(lambda connection: history.gone_routes(connection, here)):
            await self._forget_route(route)
        until = self._clock.time() - PAUSES_KEPT
        await self._write(lambda work: forget(work.connection, here, until))
        groups = deque(await self._read(lambda connection: transaction.aged_groups(connection, here, before)))
        removed = 0
        while groups:
            ids = await self._read(partial(transaction.aged, here, groups, before, PURGE_STEP))
            removed += await self._write(partial(Transaction.forget, ids=ids, before=before))
        return removed

    async def _forget_route(self, route: history.Route) -> None:
        while await self._write(lambda work: history.forget_some(work.connection, self._location, route)):
            pass

    async def agent_is_running(self) -> bool:
        """Return whether an agent has this ledger."""
        living = await self._in_background(self._locks.living)
        return any(instance.startswith(AGENT) for instance in living)

    async def pauses(self, since: float) -> tuple[Pause, ...]:
        """Return the pauses that have not ended by ``since`` (unix seconds), oldest first."""
        return await self._read(lambda connection: pauses_since(connection, self._location, since))

    async def begin_pauses(self, new: Sequence[Pause]) -> None:
        """Record pauses, each in place of one of the same selection that has not ended."""
        await self._write(lambda work: begin(work.connection, self._location, new))

    async def end_pause(self, selection: str, at: float) -> bool:
        """End the pauses with this selection at ``at`` (unix seconds); return whether there were any."""
        return await self._write(lambda work: end(work.connection, self._location, selection, at))

    async def recall_last_week(self, before: float) -> None:
        """Add the messages that ended before ``before`` (unix seconds) to ``last_week``."""
        now = self._clock.time()
        for route in list(self.counters.routes):  # one by one, so that other readers need not wait long
            await self._read(partial(self._recall_route, route, now, before))

    def _recall_route(
        self, route: tuple[str, str], now: float, before: float, connection: Connection
    ) -> None:
        self.last_week.add(ends_since(connection, self._location, route, now, before))

    async def check(self) -> None:
        """Read a little; LedgerError if the ledger cannot be used now."""
        await self._read(schema.version)

    async def discrepancies(self) -> list[str]:
        """Return a sentence for each count that does not add up. Any sentence means a defect."""
        return await self._read(lambda connection: transaction.discrepancies(connection, self._location))

    def record_run(self, run: Mapping[str, object]) -> None:
        """Queue a finished run, with at least ``run``, ``probe``, ``target`` and ``outcome``.

        The caller must not change ``run`` afterwards: runs are written together every few seconds, so that a
        busy agent does not need a transaction for each. Must be called on the event loop.
        """
        self._recorder.record(run)

    async def recent_runs(
        self, probe: str, target: str, limit: int = 100, *, failures: bool = False
    ) -> list[dict[str, Any]]:
        """Return up to ``limit`` runs or failed runs of a route, newest first, without transcripts."""
        return await self._read_runs(
            lambda connection: history.recent_runs(
                connection, self._location, (probe, target), limit, failures=failures
            )
        )

    async def find_run(self, probe: str, run: str) -> dict[str, Any] | None:
        """Return the run of a probe with this id and its transcript; ``None`` if there is none."""
        found = await self._read_runs(
            lambda connection: history.find_run(connection, self._location, probe, run)
        )
        return found[0] if found else None

    async def newest_runs(self, probes: Collection[str], each: int, most: int) -> list[dict[str, Any]]:
        """Return the newest runs of every route of these probes, oldest first within a route.

        There are up to ``each`` runs of a route. If that would be more than ``most`` in total, there are
        fewer, but at least one. They do not include transcripts.
        """
        return await self._read_runs(
            lambda connection: history.newest_runs(connection, self._location, probes, each, most)
        )

    async def _read_runs(
        self, query: Callable[[Connection], list[history.Documents]]
    ) -> list[dict[str, Any]]:
        """Write the pending runs, then return the runs that ``query`` finds, without broken ones."""
        await self._recorder.flush()
        return await self._read(lambda connection: self._runs.read(query(connection)))

    async def close(self) -> None:
        """Write queued runs and changes, each within `CLOSE_SECONDS`, and release the ledger."""
        await self._recorder.close(CLOSE_SECONDS)
        await self._writer.close(CLOSE_SECONDS)
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        self._reader.shutdown()
        self._database.dispose()
        self._locks.release()

    async def _write(self, operation: Callable[[Transaction], T]) -> T:
        return cast("T", await self._writer.submit(operation))

    async def _read(self, query: Callable[[Connection], T]) -> T:
        return await self._in_background(lambda: self._database.read(query))

    async def _in_background(self, work: Callable[[], T]) -> T:
        try:
            reading = asyncio.get_running_loop().run_in_executor(self._reader, work)
        except RuntimeError:  # the executor is shut down
            raise LedgerError(f"{self._database.name} is closed") from None
        return await reading

    def _commit(self, operations: Sequence[_Operation]) -> Sequence[object]:
        """Make the operations durable in one transaction, on the writer's thread."""

        def work(connection: Connection) -> tuple[list[object], list[Total], list[Ends]]:
            answers: list[object] = []
            transaction = Transaction(connection, self._location, self._clock.time(), self.counts_from)
            for kind, batch in groupby(operations, type):
                if kind is Message:
                    answers += transaction.intend(cast("list[Message]", list(batch)))
                else:
                    answers += [operation(transaction) for operation in batch if callable(operation)]
            return answers, transaction.update_totals(), transaction.ends

        answers, changed, ended = self._database.write(work)
        with self._counting:
            self._changed.update(((total.probe, total.target, total.state), total) for total in changed)
        self.last_week.add(ended)
        return answers


@asynccontextmanager
async def open_ledger(
    url: str, clock: Clock, instance: str, location: str, runs_kept: int = RUNS_KEPT
) -> AsyncIterator[SqlLedger]:
    """Open the ledger of ``location`` at ``url`` for the block; make it if it does not exist.

    ``runs_kept`` is how many of the latest runs, and of the latest failed runs, are kept for each route.

    ``instance`` is the name of this process, unique among those that use the ledger: 1 to 64 letters,
    digits, dots, dashes and underscores. Rows that an older mailsonde wrote without a location are given the
    first ``location`` that opens the ledger. Raises ValueError as `monitor.ledger.backend.ledger_path` does,
    and LedgerError, which says what to do, if the ledger cannot be used.
    """
    database, locks, token_key, counters = await asyncio.to_thread(_open, url, instance, location)
    ledger = SqlLedger(database, locks, clock, location, token_key, counters, runs_kept)
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
