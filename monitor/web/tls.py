"""The TLS handshake of a connection, before HTTP begins."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress

HANDSHAKE_SECONDS = 10.0
"""Seconds until a client must have finished its handshake."""

EARLY_LIMIT = 64 * 1024
"""Maximum octets from a client that are kept until HTTP begins, after the handshake."""

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
        self._early = bytearray()
        self._transport: asyncio.Transport | None = None
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # of TCP
        """Start the handshake."""
        self._transport = transport
        transport.pause_reading()  # until TLS reads
        self._pending[self] = None
        if len(self._pending) > self._most:
            next(iter(self._pending)).abort()
        self._handshake = asyncio.create_task(self._start_tls(transport), name="TLS handshake")

    async def _start_tls(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):  # of which ssl.SSLError and a lost connection are kinds: nothing to serve
            encrypted = await loop.start_tls(
                transport,
                self,
                self._contexts(),
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
            if encrypted is not None and not encrypted.is_closing():
                self._hand_over(encrypted)
                return
        self.abort()

    def _hand_over(self, encrypted: asyncio.Transport) -> None:
        self._pending.pop(self, None)
        encrypted.set_protocol(self._inner)
        self._inner.connection_made(encrypted)
        if self._early:
            self._inner.data_received(bytes(self._early))

    def data_received(self, data: bytes) -> None:
        """Keep what comes together with the end of the handshake."""
        self._early += data
        if len(self._early) > EARLY_LIMIT:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 # asyncio's signature
        """Forget the connection."""
        self.abort()

    def abort(self) -> None:
        """Drop the connection."""
        self._pending.pop(self, None)
        if self._transport is not None:
            self._transport.abort()
