"""The listening socket and the HTTP server for the application."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import inf
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from monitor.slices import in_slices
from monitor.web.tls import Contexts, Handshake
from probes.core.descriptors import kept

MOST_CONNECTIONS = 100
"""Maximum concurrent connections, which leaves resources for the probes. Browsers and scrapers need fewer."""

MOST_UNREAD = 100_000_000
"""Maximum octets of answers that clients are still reading, counting each answer once: many pages."""

LARGEST_AT_ONCE = 4
"""Number of answers as large as the largest that may be read at a time, even if they exceed `MOST_UNREAD`.

The metrics of thousands of probes are that large. Scrapers that come at the same time share one answer.
"""

PATIENCE = 30.0
"""Seconds without progress after which a client that does not read its answer is dropped."""

PIECE = 64 * 1024
"""Octets of an answer that are handed to the network at a time."""


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
    answer = b""
    """What is being sent, if it is more than one piece. Only the next piece is in the transport's buffer."""
    _impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base
        super().connection_made(transport)
        self.app = self._in_pieces(self.app)
        self.made_at = self.loop.time()
        if len(self.connections) > min(MOST_CONNECTIONS, kept() * 3 // 4):
            others = [each for each in self.connections if isinstance(each, _Connection) and each.waits]
            min(others, key=lambda each: each.made_at, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._caught_up()

    def _in_pieces(self, app: ASGIApp) -> ASGIApp:
        """Return ``app``, which then sends each piece of an answer after the client has read the one before.

        Otherwise every unread answer would be in the buffer of its connection.
        """

        async def in_pieces(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_pieces(message: Message) -> None:
                body, more = message.get("body", b""), message.get("more_body", False)
                if len(body) <= PIECE:
                    await send(message)
                    return
                self._hold(body)
                async for begin in in_slices(range(0, len(body), PIECE)):
                    end = begin + PIECE
                    is_last = end >= len(body)
                    await send({**message, "body": body[begin:end], "more_body": more or not is_last})
                self.answer = b""

            try:
                await app(scope, receive, send_pieces)
            finally:
                self.answer = b""

        return in_pieces

    def _hold(self, answer: bytes) -> None:
        """Start sending a large answer; if too much is unread overall, drop the slowest other clients."""
        self.answer = answer
        others = [each for each in self.connections if isinstance(each, _Connection) and each.answer]
        most = max(MOST_UNREAD, LARGEST_AT_ONCE * max((len(each.answer) for each in others), default=0))
        for each in sorted(others, key=lambda each: each.unread_since):
            if sum({id(one.answer): len(one.answer) for one in others}.values()) <= most:
                break
            if each is not self:
                each.transport.abort()
                each.answer = b""

    def pause_writing(self) -> None:
        """Wait for a client that reads slowly, but only for `PATIENCE`."""
        super().pause_writing()
        self.unread_since = self.loop.time()
        self._impatience = self.loop.call_later(PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        """Continue sending: the client has caught up."""
        super().resume_writing()
        self._caught_up()

    def _caught_up(self) -> None:
        self.unread_since = inf
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

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
async def served(app: ASGIApp, bound: socket.socket, contexts: Contexts | None = None) -> AsyncIterator[None]:
    """Serve ``app`` on ``bound`` while the block runs; with TLS if there are ``contexts``."""
    handshakes: dict[Handshake, None] = {}

    def connection(**settings: Any) -> asyncio.Protocol:
        plain = _Connection(**settings)
        most = min(MOST_CONNECTIONS, kept() // 5)  # beside the connections' three quarters
        return plain if contexts is None else Handshake(plain, contexts, handshakes, most)

    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="error",  # a flood of refused connections must not flood the log
        access_log=False,
        lifespan="off",
        ws="none",  # else an installed websockets would take connections out of `_Connection`'s hands
        http=connection,  # type: ignore[arg-type] # uvicorn only calls the class, as it calls this
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
        for handshake in list(handshakes):
            handshake.abort()
        await asyncio.wait([serving], timeout=3)
