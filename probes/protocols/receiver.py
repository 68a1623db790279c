"""The receiving end of a line transport: octets from the network, decrypted, until they are read."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import cast

from probes.core.verdict import PhaseTimer
from probes.protocols.connection_limits import Slot
from probes.protocols.tls_connection import TlsConnection

BUFFER_LIMIT = 64 * 1024
"""Maximum unread octets, beyond one chunk from the network; a faster server must wait."""


class Receiver(asyncio.Protocol):
    """One end of a connection, encrypted from `start_tls` on.

    It buffers arriving octets until they are read, and pauses the connection if there are too many.
    """

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.ended: Exception | None = None
        self.is_congested = False
        """Whether the network cannot take more octets now."""
        self.slot: Slot | None = None
        self.timed_out = False
        """Whether a wait for the server ended without an answer."""
        self.phases: PhaseTimer | None = None
        """Where to record how long the event loop takes to continue a wait that is over."""
        self._tls: TlsConnection | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._woken_at = 0.0  # monotonic
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 # as in asyncio
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:  # noqa: D102 # as in asyncio
        if self._tls is None:
            self.buffer += data
        else:
            self._tls.received(data)
            if self._tls.is_established:
                self._decrypt()
        self._wake()
        if len(self.buffer) > BUFFER_LIMIT and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def pause_writing(self) -> None:  # noqa: D102 # as in asyncio
        self.is_congested = True

    def resume_writing(self) -> None:  # noqa: D102 # as in asyncio
        self.is_congested = False
        self._wake()

    def eof_received(self) -> None:  # noqa: D102 # as in asyncio
        self._end(EOFError("the server closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102 # as in asyncio
        self._end(exc or EOFError("the server closed the connection"))
        self._release()

    def _end(self, reason: Exception) -> None:
        self.ended = self.ended or reason
        self._wake()

    def _wake(self) -> None:
        self._woken_at = time.monotonic()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def abort(self) -> None:
        """Close the connection at once, in any state; may be called repeatedly."""
        if self.transport is not None:
            self.transport.abort()
        self._release()

    def _release(self) -> None:
        if self.slot is not None:
            self.slot.release(timed_out=self.timed_out)

    @property
    def encrypted(self) -> ssl.SSLObject | None:
        """OpenSSL's side of the connection; ``None`` without TLS."""
        return None if self._tls is None else self._tls.openssl

    async def start_tls(self, context: ssl.SSLContext, server_name: str, until: float) -> ssl.SSLObject:
        """Encrypt the connection, after a handshake that may last until the loop's time ``until``.

        Raises ssl.SSLError if the handshake fails, TimeoutError, and what ends a connection.
        """
        self._tls = tls = TlsConnection(context, server_name, self._live())
        try:
            while not tls.handshake():
                await self.news(until)
        except EOFError as error:
            raise ConnectionResetError("the connection closed during the TLS handshake") from error
        self._decrypt()  # the server may have spoken at once
        return tls.openssl

    def _decrypt(self) -> None:
        assert self._tls is not None  # noqa: S101 # by the callers
        try:
            has_ended = self._tls.decrypt(self.buffer)
        except ssl.SSLError as error:
            self._end(error)
            self.abort()
            return
        if has_ended and self.transport is not None:
            self._end(EOFError("the server closed the connection"))
            self.transport.close()

    def write(self, octets: bytes) -> None:
        """Send ``octets``; if the connection has ended, raise the cause."""
        transport = self._live()
        if self._tls is None:
            transport.write(octets)
        else:
            self._tls.encrypt(octets)

    def _live(self) -> asyncio.Transport:
        if self.transport is None or self.transport.is_closing():
            raise self.ended or ConnectionResetError("the connection is closed")
        return self.transport

    async def news(self, until: float | None = None) -> None:
        """Wait for octets, for room to write, or for the end; if it has already ended, raise the cause.

        Raises `TimeoutError` at the loop's time ``until``. Its own timer costs a fifth of `asyncio.timeout`.
        """
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        if self.ended is not None:
            raise self.ended
        if self._tls is not None:
            self._tls.send_records()
        loop = asyncio.get_running_loop()
        if until is not None and loop.time() >= until:  # a dripping server would beat the timer
            raise TimeoutError
        waiter = loop.create_future()
        self._waiters.add(waiter)
        timer = loop.call_at(until, _expire, waiter) if until is not None else None
        try:
            await waiter
            if self.phases is not None:
                self.phases.held_up += time.monotonic() - self._woken_at
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
