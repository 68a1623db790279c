"""Server-sent events: what changed on the pages, at most once a second per client."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from monitor.recent import RouteKey
from monitor.web.fairness import in_slices
from monitor.web.views import FROM_BAD_TO_GOOD, Views

MOST_STREAMS = 20
"""Maximum concurrent streams. Further clients get the page without updates and retry later."""

PAUSE = 1.0
"""Seconds between two events of a stream; changes in between are sent together."""

KEEP_ALIVE = 15.0
"""Seconds after which an idle stream sends a keep-alive."""


class Events:
    """The application at ``/events``, which sends changed rows to every open stream.

    ``render_row`` returns a route's row as HTML.
    """

    def __init__(self, views: Views, render_row: Callable[[RouteKey], str]) -> None:
        self._views = views
        self._render_row = render_row
        self._streams = 0
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``/events?since=VERSION&probe=NAME``; a stream that reconnects says where it stopped."""
        answer: Response
        if scope["method"] == "HEAD":  # a GET route also accepts HEAD
            answer = Response(status_code=405, headers={"allow": "GET"})
            await answer(scope, receive, send)
            return
        if self._streams >= MOST_STREAMS:
            headers = {"retry-after": "30", "connection": "close"}
            answer = PlainTextResponse(f"{MOST_STREAMS} pages watch already\n", 503, headers)
            await answer(scope, receive, send)
            return
        self._streams += 1
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch_flights(), name="flights")
        try:
            answer = StreamingResponse(
                self._stream(Request(scope)),
                media_type="text/event-stream",
                headers={"cache-control": "no-store"},
            )
            await answer(scope, receive, send)
        finally:
            self._streams -= 1
            if not self._streams and self._watching is not None:
                self._watching.cancel()
                self._watching = None

    async def _stream(self, request: Request) -> AsyncIterator[str]:
        probe, recent = request.query_params.get("probe"), self._views.recent
        since = request.headers.get("last-event-id") or request.query_params.get("since", "")
        version = int(since) if since.isascii() and since.isdecimal() and len(since) < 20 else recent.version
        yield "retry: 3000\n\n"
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE):
                    await recent.beyond(version)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            await asyncio.sleep(PAUSE)
            changed, version = recent.changed_since(version), recent.version
            rows = await self._drawn([key for key in changed if probe is None or key[0] == probe])
            if rows:
                told = {"rows": rows} if probe else {"rows": rows, "counts": await self._counts()}
                yield f"id: {version}\ndata: {json.dumps(told)}\n\n"

    async def _drawn(self, keys: list[RouteKey]) -> dict[str, str]:
        """Return the rows of these routes by their key on the page, without routes that no longer exist."""
        rows = {}
        async for key in in_slices(keys):
            if self._views.has(key):
                route = self._views.recent.route(key)
                route.row = route.row or self._render_row(key)  # once for all streams
                rows[" ".join(key)] = route.row
        return rows

    async def _counts(self) -> dict[str, int]:
        """Return the number of routes in each state, the worst state first."""
        counts = Counter[str]()
        async for key in in_slices(self._views.routes()):
            if self._views.has(key):
                route = self._views.recent.route(key)
                route.word = route.word or self._views.word(key)
                counts[route.word] += 1
        return {word: counts[word] for word in FROM_BAD_TO_GOOD if counts[word]}

    async def _watch_flights(self) -> None:
        """While a page is open, mark a route as changed when messages are sent, arrive, or become late."""
        while True:
            async for key in in_slices(self._views.routes()):
                if not self._views.has(key):
                    continue
                route, flight = self._views.recent.route(key), self._views.flight_of(key)
                if route.flight != flight:
                    route.flight = flight
                    self._views.recent.touch(key)
            await asyncio.sleep(PAUSE)
