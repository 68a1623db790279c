"""Server-sent events: what changed on the pages, at most once a second for each who watches."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from monitor.recent import RouteKey
from monitor.web.turns import in_turns
from monitor.web.views import FROM_BAD_TO_GOOD, Views

MOST_STREAMS = 20
"""Streams at once; who comes after them is told to try again, and has the page without updates."""

PAUSE = 1.0
"""Seconds between two events of a stream: a busy agent's changes are told together."""

KEEP_ALIVE = 15.0
"""Seconds after which a silent stream says that it still lives."""


class Events:
    """The application at ``/events``: tells every open stream which rows changed.

    ``render_row`` gives a route's row as HTML.
    """

    def __init__(self, views: Views, render_row: Callable[[RouteKey], str]) -> None:
        self._views = views
        self._render_row = render_row
        self._rows: dict[RouteKey, tuple[int, str]] = {}  # a row is drawn once for all streams
        self._words: dict[RouteKey, tuple[int, str]] = {}
        self._flights: dict[RouteKey, tuple[int, float, bool]] = {}
        self._streams = 0
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``/events?since=VERSION&probe=NAME``; a stream that reconnects says where it was."""
        answer: Response
        if scope["method"] == "HEAD":  # which a route that takes GET takes too
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
        version = int(since) if since.isdecimal() and len(since) < 20 else recent.version
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
        """Return the rows of these routes, as far as they still exist, by the key that the page knows."""
        rows = {}
        async for key in in_turns(keys):
            if not self._views.has(key):
                continue
            version = self._views.recent.routes[key].version
            drawn = self._rows.get(key)
            if drawn is None or drawn[0] != version:
                drawn = self._rows[key] = version, self._render_row(key)
            rows[" ".join(key)] = drawn[1]
        return rows

    async def _counts(self) -> dict[str, int]:
        """Return how many routes are in each state, the worst state first."""
        routes = self._views.recent.routes
        words: dict[RouteKey, tuple[int, str]] = {}
        async for key in in_turns(self._views.routes()):
            version = routes[key].version if key in routes else 0
            known = self._words.get(key)
            if known is not None and known[0] == version:
                words[key] = known
            elif self._views.has(key):
                words[key] = version, self._views.word(key)
        self._words = words
        counts = Counter(word for _, word in words.values())
        return {word: counts[word] for word in FROM_BAD_TO_GOOD if counts[word]}

    async def _watch_flights(self) -> None:
        """While somebody watches, count a route as changed when messages set out, arrive, or become late."""
        while True:
            async for key in in_turns(self._views.routes()):
                flight = self._views.flight_of(key)
                if self._flights.get(key) != flight:
                    self._flights[key] = flight
                    self._views.recent.touch(key)
            await asyncio.sleep(PAUSE)
