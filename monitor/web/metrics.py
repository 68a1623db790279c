"""The answer to /metrics: the text of all metrics, which scrapers that come at the same time share."""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import Iterator
from typing import Protocol

from prometheus_client.exposition import choose_encoder, gzip_accepted
from starlette.requests import Request
from starlette.responses import Response

from monitor.exposition import Family, exposition
from monitor.web.fairness import RequestLimit

SHARED_FOR = 1.0
"""Minimum seconds, from the start of a rendering of the metrics, for which all clients share it."""

COMPRESSION = 1
"""Level of compression: more would cost the probes more time than it saves the network."""

MEMORY = 4
"""zlib's `memLevel`: tables that fit the processor's first cache. Lines of metrics repeat soon after."""


class Families(Protocol):
    """What names the metrics."""

    def families(self) -> Iterator[Family]:
        """Yield all families of metrics, from any thread."""


class Metrics:
    """The metrics as text, in at most two formats at a time: rendering takes much work and memory."""

    def __init__(self, collector: Families) -> None:
        self._collector = collector
        self._limit = RequestLimit(at_once=2)
        self._texts: dict[tuple[str, bool], asyncio.Task[bytes]] = {}  # by content type and compression

    async def answer(self, request: Request) -> Response:
        """Answer in the requested format, or in Prometheus' text format 0.0.4, compressed if accepted."""
        try:
            _, content_type = choose_encoder(request.headers.get("accept", ""))
        except TypeError:  # the version is not a number
            _, content_type = choose_encoder("")
        compressed = gzip_accepted(request.headers.get("accept-encoding", ""))
        form = content_type, compressed
        if form not in self._texts:
            self._texts[form] = asyncio.create_task(self._text(form), name="metrics")
        # Shielded because other clients share it.
        text = await asyncio.shield(self._texts[form])
        headers = {"content-type": content_type, "vary": "accept, accept-encoding"}
        return Response(text, headers={**headers, **({"content-encoding": "gzip"} if compressed else {})})

    async def _text(self, form: tuple[str, bool]) -> bytes:
        loop = asyncio.get_running_loop()
        shared_until = loop.time() + SHARED_FOR
        try:
            async with self._limit:
                # On another thread: with thousands of probes, rendering takes longer than a probe can wait.
                return await asyncio.to_thread(rendered, self._collector, *form)
        finally:
            loop.call_at(shared_until, self._texts.pop, form)


def rendered(collector: Families, content_type: str, compressed: bool) -> bytes:  # a form
    """Return the metrics as text.

    The text is made, compressed and put together piece by piece, so that other threads get their turns.
    """
    is_openmetrics = content_type.startswith("application/openmetrics-text")
    pieces = exposition(collector.families(), openmetrics=is_openmetrics)
    text = io.BytesIO()
    if compressed:
        gzip = zlib.compressobj(COMPRESSION, wbits=31, memLevel=MEMORY)  # 31: gzip, and the largest window
        for piece in pieces:
            text.write(gzip.compress(piece))
        text.write(gzip.flush())
    else:
        text.writelines(pieces)
    return text.getvalue()
