"""Keeps pages from delaying probes: few requests run at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MOST_WAITING = 20
"""Maximum waiting requests: as many as there may be open pages, which all reload at the same event."""

Endpoint = Callable[[Request], Awaitable[Response]]


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
