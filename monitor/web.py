"""What the agent serves over HTTP: its metrics and whether it lives and works."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

MOST_CONNECTIONS = 100
"""Connections served at once; more are answered 503, so that no flood holds up the probes."""


def web_app(collector: Collector, ready: Callable[[], bool]) -> Starlette:
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
        routes=[Route("/metrics", metrics), Route("/-/healthy", healthy), Route("/-/ready", is_ready)]
    )


class _Server(uvicorn.Server):
    """Leaves signals to the agent."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to ``host`` and ``port`` (0 takes a free one); raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


@asynccontextmanager
async def served(app: Starlette, bound: socket.socket) -> AsyncIterator[None]:
    """Serve ``app`` on ``bound`` while the block runs."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[bound]), name="web")
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([serving], timeout=3)
