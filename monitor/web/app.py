"""The application that the agent serves over HTTP: metrics, whether it lives and works, and the pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from monitor.web.pages import Pages
from monitor.web.probe_endpoint import ProbeEndpoint
from monitor.web.turns import Turnstile

SHARED_FOR = 1.0
"""Seconds that a text of the metrics is for all who ask, from when it is begun, or until it is made."""


class _Metrics:
    """The metrics as text, in at most two formats at once: a text takes much work and memory."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)
        self._turnstile = Turnstile(at_once=2)
        self._texts: dict[str, asyncio.Task[bytes]] = {}  # by content type

    async def answer(self, request: Request) -> Response:
        """Answer in the format that is asked for, or in Prometheus' text format 0.0.4."""
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except TypeError:  # a version that is no number
            encode, content_type = choose_encoder("")
        if content_type not in self._texts:
            self._texts[content_type] = asyncio.create_task(self._text(encode, content_type), name="metrics")
        # Shielded, for it is not this client's alone.
        text = await asyncio.shield(self._texts[content_type])
        return Response(text, headers={"content-type": content_type})

    async def _text(self, encode: Callable[[Collector], bytes], content_type: str) -> bytes:
        loop = asyncio.get_running_loop()
        shared_until = loop.time() + SHARED_FOR
        try:
            async with self._turnstile:
                # On another thread: with thousands of probes the text takes longer than a probe can wait.
                return await asyncio.to_thread(encode, self._registry)
        finally:
            loop.call_at(shared_until, self._texts.pop, content_type)


def web_app(
    collector: Collector, ready: Callable[[], bool], pages: Pages, endpoint: ProbeEndpoint
) -> Starlette:
    """Return the application; ``ready`` says whether probes are being run."""

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("mailsonde is alive\n")

    async def is_ready(_: Request) -> Response:
        if ready():
            return PlainTextResponse("mailsonde is ready\n")
        return PlainTextResponse("mailsonde is starting or stopping\n", status_code=503)

    return Starlette(
        routes=[
            Route("/metrics", _Metrics(collector).answer),
            Route("/-/healthy", healthy),
            Route("/-/ready", is_ready),
            *endpoint.routes(),
            *pages.routes(),
        ],
        exception_handlers={HTTPException: pages.refuse},
    )
