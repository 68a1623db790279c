"""Fairness between pages and probes: long work in short slices, and few requests at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

SLICE = 0.005
"""Seconds of work after which other tasks run."""

MOST_WAITING = 20
"""Requests that may wait; as many as pages may watch, which all reload at the same event."""

Item = TypeVar("Item")
Endpoint = Callable[[Request], Awaitable[Response]]


async def in_slices(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Yield the items, and give way whenever what is done with them has taken its slice of time.

    What the items stand for may be gone when they come: a reload can happen in between.
    """
    begun = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - begun > SLICE:
            await asyncio.sleep(0)
            begun = time.perf_counter()


class RequestLimit:
    """Lets ``at_once`` in at the same time, who say ``async with``; the next `MOST_WAITING` wait for them.

    Whoever comes after these is told to come again: HTTPException 503 with Retry-After.
    """

    def __init__(self, at_once: int) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._waiting = 0

    async def __aenter__(self) -> None:
        if self._waiting >= MOST_WAITING:
            busy = "the agent is busy with others' requests; try again"
            raise HTTPException(503, busy, {"retry-after": "1"})
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._places.release()

    def before(self, endpoint: Endpoint) -> Endpoint:
        """Return ``endpoint`` under this limit, for the making of answers, not their sending."""

        async def answer(request: Request) -> Response:
            async with self:
                return await endpoint(request)

        return answer
