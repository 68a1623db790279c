"""Server-sent events: what changed on the pages, at most once a second per client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Set

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from monitor.recent import RouteKey
from monitor.slices import in_slices
from monitor.web.standings import Listing, Selection, Standings
from monitor.web.views import Views

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

    def __init__(self, views: Views, standings: Standings, render_row: Callable[[RouteKey], str]) -> None:
        self._views = views
        self._standings = standings
        self._render_row = render_row
        self._streams = 0
        self._watching: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``/events?since=VERSION`` with ``&probe=NAME``, or with the filters of the overview.

        A stream that reconnects says where it stopped.
        """
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
            self._watching = asyncio.create_task(self._standings.keep_looking(PAUSE), name="flights")
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
        selection, shown = Selection.of(request.query_params), None
        yield "retry: 3000\n\n"
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE):
                    await recent.beyond(version)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            await asyncio.sleep(PAUSE)
            if probe is None:
                listing = await self._standings.listing(selection, version + 1)
                changed = set(recent.changed_since(version))  # up to the listing's version, at least
                told = await self._news(listing, shown, changed)
                version, shown = listing.version, listing
            else:
                changed = set(recent.changed_since(version))
                version = recent.version
                told = {"rows": await self._drawn(key for key in changed if key[0] == probe)}
            if any(told.values()):
                yield f"id: {version}\ndata: {json.dumps(told)}\n\n"

    async def _news(
        self, listing: Listing, shown: Listing | None, changed: Set[RouteKey]
    ) -> dict[str, object]:
        """Return what is new on a page of the overview that so far has ``shown``; nothing for no news."""
        if shown is None:  # the client has loaded the page just before
            known, is_news = set(listing.routes), True
        else:
            known, is_news = (
                set(shown.routes),
                shown.routes != listing.routes or shown.counts != listing.counts,
            )
        rows = await self._drawn(key for key in listing.routes if key in changed or key not in known)
        if not rows and not is_news:
            return {}
        return {"rows": rows, "routes": list(map(" ".join, listing.routes)), "counts": listing.counts}

    async def _drawn(self, keys: Iterable[RouteKey]) -> dict[str, str]:
        """Return the rows of these routes by their key on the page, without routes that no longer exist."""
        rows = {}
        async for key in in_slices(keys):
            if self._views.has(key):
                route = self._views.recent.route(key)
                route.row = route.row or self._render_row(key)  # once for all streams
                rows[" ".join(key)] = route.row
        return rows
