"""A line transport for text protocols: every wait timed, every read capped, no injected bytes believed."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from probes.faults import ProbeFault, fault_of
from probes.reasons import Reason
from probes.tls import certificate_not_after
from probes.verdict import PhaseTimer

BUFFER_LIMIT = 64 * 1024
"""Most octets that wait unread, beyond one chunk from the network; a faster server has to wait."""


async def connect_tcp(host: str, port: int, phases: PhaseTimer, timeout: float) -> socket.socket:  # noqa: ASYNC109 # one budget for all addresses
    """Return a connected non-blocking socket; phases ``resolve`` and ``connect``.

    The addresses are tried in the resolver's order, within ``timeout`` seconds altogether.
    Raises `ProbeFault` with the last address's reason.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            if _is_literal(host):
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                addresses: list[tuple[socket.AddressFamily, tuple[object, ...]]] = [(family, (host, port))]
            else:
                with phases.phase("resolve"), translated():
                    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                addresses = [(entry[0], entry[4][:2]) for entry in found]
            with phases.phase("connect"):
                return await _connect_first(loop, addresses)
    except TimeoutError as error:
        slow_resolver = phases.current == "resolve"
        raise ProbeFault(
            Reason.DNS_TIMEOUT if slow_resolver else Reason.CONNECT_TIMEOUT,
            f"{host}:{port} after {timeout:g} s",
        ) from error


async def _connect_first(
    loop: asyncio.AbstractEventLoop, addresses: Sequence[tuple[socket.AddressFamily, tuple[object, ...]]]
) -> socket.socket:
    fault = ProbeFault(Reason.DNS_NO_ADDRESS)
    for family, address in addresses:
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with translated():
                await loop.sock_connect(connection, address)
        except ProbeFault as error:
            connection.close()
            fault = ProbeFault(error.reason, f"{address[0]} port {address[1]}: {error.detail}")
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise fault


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@contextmanager
def translated() -> Iterator[None]:
    """Turn what sockets and TLS raise into a `ProbeFault`; anything else passes."""
    try:
        yield
    except (OSError, EOFError, ssl.SSLError) as error:
        if isinstance(error, TimeoutError) and error.errno is None:
            raise  # asyncio's own: the caller knows which wait it was
        fault = fault_of(error)
        if fault is None:
            raise
        raise fault from error


class _Receiver(asyncio.Protocol):
    """Keeps what arrives until it is read, and stops the network while too much waits."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.ended: Exception | None = None
        self._arrival = asyncio.Event()
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._arrival.set()
        if len(self.buffer) > BUFFER_LIMIT and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def eof_received(self) -> None:
        self._end(EOFError("the server closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or EOFError("the server closed the connection"))

    def _end(self, reason: Exception) -> None:
        self.ended = self.ended or reason
        self._arrival.set()

    async def more(self) -> None:
        """Wait for more octets; raises what ended the connection when none will come."""
        if self._paused and len(self.buffer) <= BUFFER_LIMIT and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        if self.ended is not None:
            raise self.ended
        self._arrival.clear()
        await self._arrival.wait()


class LineTransport:
    """A connection that is read and written in lines that end in CRLF.

    ``timeout`` is the longest wait in seconds for what one call needs. Every method raises
    `ProbeFault`; a fault or a cancellation closes the connection at once.
    """

    def __init__(self, receiver: _Receiver, timeout: float) -> None:
        self._receiver = receiver
        self._timeout = timeout
        self.certificate_not_after: float | None = None

    @classmethod
    async def attach(cls, connection: socket.socket, timeout: float) -> LineTransport:  # noqa: ASYNC109 # kept for every later wait
        """Take over a connected socket."""
        receiver = _Receiver()
        with translated():
            await asyncio.get_running_loop().create_connection(lambda: receiver, sock=connection)
        return cls(receiver, timeout)

    async def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """Encrypt the connection; octets that already wait were injected before it (RFC 2595 section 2.1)."""
        if self._receiver.buffer:
            injected = bytes(self._receiver.buffer[:200])
            self.abort()
            raise ProbeFault(Reason.TLS_INJECTION, injected)
        with self._closing_on_failure(Reason.TLS_HANDSHAKE):
            async with asyncio.timeout(self._timeout):
                upgraded = await asyncio.get_running_loop().start_tls(
                    self._live(), self._receiver, context, server_hostname=server_name
                )
            if upgraded is None:
                raise ConnectionResetError("the connection closed during the TLS handshake")
            self._receiver.transport = upgraded
            self.certificate_not_after = certificate_not_after(upgraded.get_extra_info("ssl_object"))

    async def read_line(self, limit: int) -> bytes:
        """Return the next line without its line end; more than ``limit`` octets are `LINE_TOO_LONG`."""
        buffer = self._receiver.buffer
        searched = 0
        with self._closing_on_failure(Reason.COMMAND_TIMEOUT):
            async with asyncio.timeout(self._timeout):
                while (end := buffer.find(b"\n", searched)) < 0 and len(buffer) <= limit:
                    searched = len(buffer)
                    await self._receiver.more()
            if end < 0 or end > limit:
                raise ProbeFault(Reason.LINE_TOO_LONG, bytes(buffer[:100]))
        line = bytes(buffer[:end]).removesuffix(b"\r")
        del buffer[: end + 1]
        return line

    def write_line(self, *words: bytes) -> None:
        """Send one line; ValueError for words with CR, LF or NUL, which could smuggle in another command."""
        line = b" ".join(words)
        if any(octet in line for octet in (b"\r", b"\n", b"\0")):
            raise ValueError("a command line cannot hold CR, LF or NUL")
        with self._closing_on_failure(Reason.CONNECTION_LOST):
            self._live().write(line + b"\r\n")

    def _live(self) -> asyncio.Transport:
        if self._receiver.transport is None or self._receiver.transport.is_closing():
            raise self._receiver.ended or ConnectionResetError("the connection is closed")
        return self._receiver.transport

    @contextmanager
    def _closing_on_failure(self, when_slow: Reason) -> Iterator[None]:
        try:
            with translated():
                yield
        except TimeoutError as error:
            self.abort()
            raise ProbeFault(when_slow, f"no answer after {self._timeout:g} s") from error
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Close the connection at once, whatever is under way; may be called again."""
        if self._receiver.transport is not None:
            self._receiver.transport.abort()
