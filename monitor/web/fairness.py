"""Keeps pages from delaying probes: long work runs in short slices, and few requests run at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

SLICE = 0.005
"""Seconds of work before other tasks get a turn."""

MOST_WAITING = 20
"""Maximum waiting requests: as many as there may be open pages, which all reload at the same event."""

Item = TypeVar("Item")
Endpoint = Callable[[Request], Awaitable[Response]]


async def in_slices(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Yield the items, and let other tasks run whenever a slice of time is used up.

    The objects behind later items may be gone by then, because a reload can happen in between.
    """
    begun = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - begun > SLICE:
            await asyncio.sleep(0)
            begun = time.perf_counter()


class RequestLimit:
    """Admits ``at_once`` users of ``async with`` at a time; the next `MOST_WAITING` wait.

    Raises HTTPException 503 with Retry-After for all others.
    """

    def __init__(self, at_once: int) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._waiting = 0

    async def __aenter__(self) -> None:
        if self._waiting >= MOST_WAITING:
            busy = "the agent is busy with other requests; try again"
            raise HTTPException(503, busy, {"retry-after": "1"})
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._places.release()

    def before(self, endpoint: Endpoint) -> Endpoint:
        """Return ``endpoint`` under this limit, which covers preparing answers but not sending them."""

        async def answer(request: Request) -> Response:
            async with self:
                return await endpoint(request)

        return answer
