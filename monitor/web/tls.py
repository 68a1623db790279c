"""The TLS handshake of a connection, before HTTP begins."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

HANDSHAKE_SECONDS = 10.0
"""Seconds until a client must have finished its handshake."""

Contexts = Callable[[], ssl.SSLContext]
"""Returns the context of a new connection: certificates and settings may change."""


class Handshake(asyncio.Protocol):
    """Starts TLS on a connection, with the newest context, and then passes the connection to ``inner``.

    asyncio could listen with TLS by itself, but only with one context, and it limits no connections that
    begin no handshake. ``pending`` has all those in their handshake, oldest first. If they are more than
    ``most``, the oldest is dropped.
    """

    def __init__(
        self, inner: asyncio.Protocol, contexts: Contexts, pending: dict[Handshake, None], most: int
    ) -> None:
        self._inner = inner
        self._contexts = contexts
        self._pending = pending
        self._most = most
        self._socket: socket.socket | None = None
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # of TCP
        """Take the connection out of ``transport``, which has read nothing yet, and start the handshake.

        With `loop.start_tls`, uvloop may read the client's first message before TLS does, and lose it.
        """
        try:
            self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except OSError:  # no descriptor is left; the client has to come again
            return
        finally:
            transport.abort()  # closes its own descriptor only
        self._socket.setblocking(False)
        self._pending[self] = None
        if len(self._pending) > self._most:
            next(iter(self._pending)).abort()
        self._handshake = asyncio.create_task(self._start_tls(self._socket), name="TLS handshake")

    async def _start_tls(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            with suppress(OSError):  # of which ssl.SSLError and a lost connection are kinds: nothing to serve
                await loop.connect_accepted_socket(
                    lambda: self._inner,
                    connection,
                    ssl=self._contexts(),
                    ssl_handshake_timeout=HANDSHAKE_SECONDS,
                )
        finally:
            self._pending.pop(self, None)

    def abort(self) -> None:
        """Drop the connection."""
        self._pending.pop(self, None)
        if self._socket is not None:
            with suppress(OSError):  # it has ended
                self._socket.shutdown(socket.SHUT_RDWR)
        if self._handshake is not None:
            self._handshake.cancel()
