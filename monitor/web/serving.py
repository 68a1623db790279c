"""The listening socket and the HTTP server for the application."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import inf

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from probes.core.descriptors import kept

MOST_CONNECTIONS = 100
"""Maximum concurrent connections, which leaves resources for the probes. Browsers and scrapers need fewer."""

MOST_UNREAD = 100_000_000
"""Maximum octets of unread answers over all connections: several scrapes of thousands of probes."""


class _Server(uvicorn.Server):
    """Leaves signals to the agent."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(H11Protocol):
    """A connection that is dropped if it keeps the agent waiting while others need its place or memory.

    So clients that hold idle connections cannot lock Prometheus out.
    """

    unread_since = inf  # on the loop's clock

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base
        super().connection_made(transport)
        self.made_at = self.loop.time()
        if len(self.connections) > min(MOST_CONNECTIONS, kept() * 3 // 4):
            others = [each for each in self.connections if isinstance(each, _Connection) and each.waits]
            min(others, key=lambda each: each.made_at, default=self).transport.abort()

    def pause_writing(self) -> None:
        """Note that the client reads slowly; if too much is unread overall, drop the slowest clients."""
        super().pause_writing()
        self.unread_since = self.loop.time()
        others = [each for each in self.connections if isinstance(each, _Connection)]
        unread = sum(each.transport.get_write_buffer_size() for each in others)
        for each in sorted(others, key=lambda each: each.unread_since):
            if unread <= MOST_UNREAD or each is self:
                break
            unread -= each.transport.get_write_buffer_size()
            each.transport.abort()

    def resume_writing(self) -> None:
        """Note that the client has caught up."""
        super().resume_writing()
        self.unread_since = inf

    @property
    def waits(self) -> bool:
        """Whether the connection waits for its client, either for a request or for it to read an answer."""
        return (
            self.cycle is None or self.cycle.response_complete or self.transport.get_write_buffer_size() > 0
        )


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on ``host`` and ``port`` (0 for any free port); raises OSError.

    Clients that connect before it is served wait until then.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(MOST_CONNECTIONS)
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
        log_level="error",  # a flood of refused connections must not flood the log
        access_log=False,
        lifespan="off",
        http=_Connection,
        backlog=MOST_CONNECTIONS,
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
