"""Threads for calls that block and cannot be stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class TooManyThreads(Exception):  # noqa: N818 # a state of the threads, not an error of the code
    """Every thread is still in an earlier call."""


class DaemonThreads:
    """Makes calls on threads of their own, at most ``limit`` at a time, which never delay the process's end.

    Python's executors would wait for them at exit, and calls that hang would take the threads of others.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._threads: set[threading.Thread] = set()

    async def call(self, function: Callable[[], T], name: str) -> T:
        """Return what ``function`` returns, or raise what it raises; ``name`` is that of its thread.

        A cancelled call goes on unseen. Raises `TooManyThreads` at once if ``limit`` calls are in progress.
        """
        if len(self._threads) >= self._limit:
            raise TooManyThreads
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[T] = loop.create_future()

        def tell(result: T | None, error: Exception | None) -> None:
            if ended.done():  # nobody is waiting
                return
            if error is not None:
                ended.set_exception(error)
            else:
                ended.set_result(result)  # type: ignore[arg-type] # T may include None

        def run() -> None:
            result, raised = None, None
            try:
                result = function()
            except Exception as error:
                raised = error
            self._threads.discard(threading.current_thread())
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell, result, raised)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.add(thread)
        thread.start()
        return await ended
