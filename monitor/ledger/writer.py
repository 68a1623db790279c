"""The only thread that writes to the ledger. All operations queued during a commit share the next one."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic, sleep
from typing import Any, Generic, TypeVar

from monitor.ledger.database import FullError
from probes.core.histogram import LAG_BUCKETS, Histogram
from probes.delivery.message_life import LedgerError

GROUP_LIMIT = 500
"""Maximum number of operations in one transaction."""

PACE = 0.02
"""Seconds from the beginning of a transaction to that of the next one, if operations queued up meanwhile.

On a fast disk, a busy agent would otherwise use half as much processor time again, for many small
transactions. This is far below `monitor.load.LEDGER_WAIT`.
"""

OperationT = TypeVar("OperationT")
_Request = tuple[OperationT, "asyncio.Future[Any]"]


class Writer(Generic[OperationT]):
    """Passes groups of operations to ``commit`` on its own thread, first come, first served.

    An operation is passed on at once unless others are. While they queue up, groups begin `PACE` apart.

    ``commit`` makes a group of operations durable in one transaction and returns an answer for each. If an
    answer is an exception, only its caller gets it. If ``commit`` raises LedgerError, the database has
    failed, and all callers of the group get the error. If it raises FullError or anything else, an operation
    is too large or at fault, and each is tried alone.

    All methods must be called on the event loop on which the writer was made.
    """

    def __init__(self, commit: Callable[[Sequence[OperationT]], Sequence[object]], name: str) -> None:
        self._commit = commit
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Request[OperationT] | None] = queue.SimpleQueue()
        self._submitted: deque[float] = deque()  # when those that wait were (monotonic), oldest first
        self.commits = Histogram(LAG_BUCKETS)
        """How long operations waited until they were durable, or had failed."""
        self._closed = False
        self._abandoned = False
        self._ended = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: OperationT) -> asyncio.Future[Any]:
        """Queue an operation; the future gets its answer once the operation is durable.

        Cancelling the future does not cancel the operation.
        """
        if self._closed:
            raise LedgerError(f"{self._name} is closed; nothing was recorded")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._submitted.append(monotonic())
        self._queue.put((operation, future))
        return future

    @property
    def wait(self) -> float:
        """How many seconds the oldest operation that is not durable yet has waited."""
        return monotonic() - self._submitted[0] if self._submitted else 0.0

    async def close(self, seconds: float) -> None:
        """Write queued operations and end the thread; after ``seconds``, the rest get LedgerError."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), seconds)
        except TimeoutError:
            self._abandoned = True

    def _run(self) -> None:
        open_for_more = True
        while open_for_more:
            group, open_for_more = self._next_group()
            begun = monotonic()
            answers = self._answers([operation for operation, _ in group])
            self._on_loop(self._settle, [future for _, future in group], answers)
            if not self._queue.empty():
                sleep(max(0.0, begun + PACE - monotonic()))
        self._on_loop(_settle, [self._ended], [None])

    def _settle(self, futures: Sequence[asyncio.Future[Any]], answers: Sequence[object]) -> None:
        now = monotonic()
        for _ in futures:
            self.commits.observe(now - self._submitted.popleft())
        _settle(futures, answers)

    def _next_group(self) -> tuple[list[_Request[OperationT]], bool]:
        """Wait for an operation; return it with all others queued, and whether more may come."""
        request = self._queue.get()
        group: list[_Request[OperationT]] = []
        with suppress(queue.Empty):
            while request is not None:
                group.append(request)
                if len(group) == GROUP_LIMIT:
                    break
                request = self._queue.get_nowait()
        return group, request is not None

    def _answers(self, operations: Sequence[OperationT]) -> Sequence[object]:
        if not operations:
            return []
        try:
            if self._abandoned:
                raise LedgerError(f"{self._name} was closed before this was recorded")  # noqa: TRY301 # handled like any other
            return self._commit(operations)
        except Exception as error:
            together = isinstance(error, LedgerError) and not isinstance(error, FullError)
            if len(operations) > 1 and not together:
                return [answer for operation in operations for answer in self._answers([operation])]
            if isinstance(error, LedgerError):
                return [LedgerError(str(error)) for _ in operations]
            refusal = LedgerError(f"{self._name} cannot record this: {type(error).__name__}: {error}")
            refusal.__cause__ = error
            return [refusal]

    def _on_loop(self, callback: Callable[..., object], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody is waiting
            self._loop.call_soon_threadsafe(callback, *args)


def _settle(futures: Sequence[asyncio.Future[Any]], answers: Sequence[object]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
