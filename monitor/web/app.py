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


def web_app(
    collector: Collector, ready: Callable[[], bool], pages: Pages, endpoint: ProbeEndpoint
) -> Starlette:
    """Return the application; ``ready`` says whether probes are being run."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        # On another thread: with thousands of probes the text takes longer than a probe can wait.
        body = await asyncio.to_thread(encode, registry)
        return Response(body, headers={"content-type": content_type})

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("mailsonde is alive\n")

    async def is_ready(_: Request) -> Response:
        if ready():
            return PlainTextResponse("mailsonde is ready\n")
        return PlainTextResponse("mailsonde is starting or stopping\n", status_code=503)

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/-/healthy", healthy),
            Route("/-/ready", is_ready),
            *endpoint.routes(),
            *pages.routes(),
        ],
        exception_handlers={HTTPException: pages.refuse},
    )
