"""Listening: the socket and the HTTP server that the application runs on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette

MOST_CONNECTIONS = 100
"""Connections served at once; more are answered 503, so that no flood holds up the probes."""


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
        log_level="error",  # a flood of refused connections is no flood of log lines
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
