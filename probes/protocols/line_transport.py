"""A line transport for text protocols: every wait timed, every read capped, no injected bytes believed."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TypeVar, cast

from probes.core.descriptors import require_descriptor
from probes.core.faults import ProbeFault, fault_of
from probes.core.reasons import Outcome, Reason
from probes.core.setting_types import AddressFamily, is_ip_address
from probes.core.transcript import REPLY, Transcript
from probes.core.verdict import RESOLVE, PhaseTimer
from probes.protocols import name_resolution
from probes.protocols.tls import CertificateExpiry, certificate_expiry, description

BUFFER_LIMIT = 64 * 1024
"""Most octets that wait unread, beyond one chunk from the network; a faster server has to wait."""

LINES_AT_ONCE = 100
"""Waiting lines that are read before other tasks run, so that a flood does not hold them up."""

_NO_TLS_RECORD = "WRONG_VERSION_NUMBER"
"""How OpenSSL calls what does not begin as a TLS record, such as text."""

_NOT_IN_A_LINE = re.compile(rb"[\r\n\0]")

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)

Resolve = Callable[[str, int, float], Awaitable[list[tuple[str, int]]]]
"""Returns the addresses and ports to try for a host and port, within seconds; raises `ProbeFault`."""


async def connect_tcp(
    make_protocol: Callable[[], ProtocolT],
    host: str,
    port: int,
    phases: PhaseTimer,
    timeout: float,  # noqa: ASYNC109 # one budget for the name, and one for all addresses
    resolve: Resolve | None = None,
    family: AddressFamily = "any",
) -> ProtocolT:
    """Return a connected protocol; phases ``resolve`` (not for an IP literal) and ``connect``.

    The name is resolved within ``timeout`` seconds. Its addresses are then tried in the resolver's
    order (RFC 6724) within as many seconds altogether, each with an equal share of the time that is
    left, so that slow DNS never reads as a slow server. If none answers, raises `ProbeFault` with the
    first fault that is the server's, else the first that is ours. The name's addresses are those of
    ``family``. ``resolve`` replaces the system's resolver, also for IP literals.
    """
    loop = asyncio.get_running_loop()
    places = [(host, port)]
    if resolve is not None or not is_ip_address(host):
        with phases.phase(RESOLVE):
            if resolve is not None:
                places = await resolve(host, port, timeout)
            else:
                places = await name_resolution.system.resolve(host, port, timeout, family)
    ends = loop.time() + timeout
    faults = []
    with phases.phase("connect"):
        for position, (address, its_port) in enumerate(places):
            share = (ends - loop.time()) / (len(places) - position)
            try:
                protocol = await _connect(make_protocol, address, its_port, share)
            except ProbeFault as fault:
                phases.transcript.note(fault.detail)
                faults.append(fault)
            else:
                phases.transcript.note(f"connected to {address} port {its_port}")
                return protocol
        raise next((fault for fault in faults if fault.reason.outcome is Outcome.FAILED), faults[0])


async def _connect(
    make_protocol: Callable[[], ProtocolT], address: str, port: int, seconds: float
) -> ProtocolT:
    require_descriptor()
    try:
        async with asyncio.timeout(seconds):
            _, protocol = await asyncio.get_running_loop().create_connection(make_protocol, address, port)
    except OSError as error:  # a timeout is one too
        silent = isinstance(error, TimeoutError) and error.errno is None
        said = ProbeFault(Reason.CONNECT_TIMEOUT, "no answer in time") if silent else fault_of(error)
        # What the kernel refuses for a cause of its own, such as a missing IPv6, is no server's fault.
        said = said or ProbeFault(Reason.NETWORK_UNREACHABLE, error.strerror or str(error))
        raise ProbeFault(said.reason, f"{address} port {port}: {said.detail}") from error
    return protocol


class _Receiver(asyncio.Protocol):
    """Keeps what arrives until it is read, and stops the network while too much waits."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.ended: Exception | None = None
        self.is_congested = False
        """Whether more is written already than the network takes."""
        self._waiters: set[asyncio.Future[None]] = set()
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._wake()
        if len(self.buffer) > BUFFER_LIMIT and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        self.is_congested = True

    def resume_writing(self) -> None:
        self.is_congested = False
        self._wake()

    def eof_received(self) -> None:
        self._end(EOFError("the server closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or EOFError("the server closed the connection"))

    def _end(self, reason: Exception) -> None:
        self.ended = self.ended or reason
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def news(self, until: float | None = None) -> None:
        """Wait for octets, for room to write, or for the end; where that is past, raise what the end was.

        Raises `TimeoutError` at the loop's time ``until``. A timer of its own is a fifth of the cost of
        `asyncio.timeout`, and a session waits a dozen times.
        """
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        if self.ended is not None:
            raise self.ended
        loop = asyncio.get_running_loop()
        if until is not None and loop.time() >= until:  # a server that drips is always quicker than a timer
            raise TimeoutError
        waiter = loop.create_future()
        self._waiters.add(waiter)
        timer = loop.call_at(until, _expire, waiter) if until is not None else None
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()


def _in_clear() -> ProbeFault:
    return ProbeFault(Reason.TLS_HANDSHAKE, "the server speaks in clear on this port")


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


class _ClosingOnFailure(AbstractContextManager[None]):
    """Closes a transport for whatever breaks off the block, and turns that into the fault that it stands for.

    A class, because each wait enters it and generators cost more.
    """

    __slots__ = ("_receiver", "_timeout", "_when_slow")

    def __init__(self, receiver: _Receiver, timeout: float, when_slow: Reason) -> None:
        self._receiver, self._timeout, self._when_slow = receiver, timeout, when_slow

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        self._receiver.abort()
        if isinstance(error, TimeoutError) and error.errno is None:
            raise ProbeFault(self._when_slow, f"no answer after {self._timeout:g} s") from error
        if isinstance(error, Exception) and (fault := fault_of(error)) is not None:
            raise fault from error


class LineTransport:
    """A connection that is read and written in lines that end in CRLF.

    ``timeout`` is the longest wait in seconds for what one call needs. Every method raises
    `ProbeFault`; a fault or a cancellation closes the connection at once, but for `readable`.
    """

    def __init__(self, receiver: _Receiver, timeout: float, transcript: Transcript) -> None:
        self._receiver = receiver
        self._timeout = timeout
        self._transcript = transcript
        self._loop = asyncio.get_running_loop()
        self._closing_on_failure = _ClosingOnFailure(receiver, timeout, Reason.COMMAND_TIMEOUT)
        self._lines_at_once = 0  # read since another task last had its chance
        self._has_written = False
        self.certificate_expiry: CertificateExpiry | None = None
        """The earliest end of a certificate in the server's chain; ``None`` without TLS."""

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        phases: PhaseTimer,
        timeout: float,  # noqa: ASYNC109 # kept for every later wait
        resolve: Resolve | None = None,
        family: AddressFamily = "any",
    ) -> LineTransport:
        """Connect as `connect_tcp` does."""
        receiver = await connect_tcp(_Receiver, host, port, phases, timeout, resolve, family)
        return cls(receiver, timeout, phases.transcript)

    async def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """Encrypt the connection.

        After a command, octets that already wait were injected (RFC 2595 section 2.1): `TLS_INJECTION`.
        Where TLS comes first, they are the greeting of a server that speaks in clear: `TLS_HANDSHAKE`, as
        when that arrives later.
        """
        if self.unread:
            self.abort()
            raise ProbeFault(Reason.TLS_INJECTION, self.unread) if self._has_written else _in_clear()
        with _ClosingOnFailure(self._receiver, self._timeout, Reason.TLS_HANDSHAKE):
            try:
                async with asyncio.timeout(self._timeout):
                    upgraded = await self._loop.start_tls(
                        self._live(),
                        self._receiver,
                        context,
                        server_hostname=server_name,
                        ssl_handshake_timeout=self._timeout + 1,  # the loop's own, which must not come first
                    )
            except ssl.SSLError as error:
                if error.reason == _NO_TLS_RECORD and not self._has_written:
                    raise _in_clear() from error
                raise
            if upgraded is None:
                raise ConnectionResetError("the connection closed during the TLS handshake")
            self._receiver.transport = upgraded
            encrypted = upgraded.get_extra_info("ssl_object")
            self._transcript.note(description(encrypted))
            self.certificate_expiry = certificate_expiry(encrypted)

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed the connection, as far as is known here."""
        transport = self._receiver.transport
        return transport is not None and not transport.is_closing() and self._receiver.ended is None

    @property
    def unread(self) -> bytes:
        """The beginning of what arrived and was not read yet: more than a transcript keeps of it."""
        return bytes(self._receiver.buffer[: 2 * REPLY])

    @property
    def local_address(self) -> str | None:
        """The IP address of this end; ``None`` once the connection is closed."""
        name = self._receiver.transport and self._receiver.transport.get_extra_info("sockname")
        return str(name[0]) if name else None

    async def read_line(self, limit: int, *, is_mail: bool = False) -> bytes:
        """Return the next line without its line end; more than ``limit`` octets are `LINE_TOO_LONG`.

        The transcript and the fault show the beginning of a line that is too long, unless it ``is_mail``.
        """
        buffer = self._receiver.buffer
        end = buffer.find(b"\n")
        if end < 0:  # else nothing to wait for, and no timer to set up for each line of a long listing
            until = self._loop.time() + self._timeout
            with self._closing_on_failure:
                while end < 0 and len(buffer) <= limit:
                    searched = len(buffer)
                    await self._receiver.news(until)
                    end = buffer.find(b"\n", searched)
        if not 0 <= end <= limit:
            raise self._too_long(limit, None if is_mail else bytes(buffer[:end] if end >= 0 else buffer))
        line = bytes(buffer[:end]).removesuffix(b"\r")
        del buffer[: end + 1]
        self._lines_at_once += 1
        if self._lines_at_once == LINES_AT_ONCE:
            self._lines_at_once = 0
            await asyncio.sleep(0)
        return line

    async def read_answer(
        self, whole: re.Pattern[bytes], *, line_limit: int, limit: int, seconds: float | None = None
    ) -> bytes:
        """Return the lines that ``whole`` matches, with LF between them, and put them into the transcript.

        What ``whole`` does not match yet is tried again from its last whole line when more came.
        They have to come within ``seconds``, by default the timeout. A line of more than ``line_limit``
        octets, or more than ``limit`` in all, are `LINE_TOO_LONG`.
        """
        until = self._loop.time() + (self._timeout if seconds is None else seconds)
        buffer = self._receiver.buffer
        match = whole.match(buffer)
        try:
            with self._closing_on_failure:
                while match is None and len(buffer) <= limit:
                    begin = buffer.rfind(b"\n", 0, max(0, buffer.rfind(b"\n"))) + 1
                    await self._receiver.news(until)
                    match = whole.match(buffer, begin)
        except ProbeFault:
            if buffer:
                self._transcript.received(bytes(buffer).rstrip(b"\r\n"), cut=True)
            raise
        end = match.end() if match else len(buffer)
        said = bytes(buffer[:end]).replace(b"\r\n", b"\n").removesuffix(b"\n")
        has_long_line = end > line_limit and max(map(len, said.split(b"\n"))) > line_limit
        if end > limit or has_long_line:
            # Which limit is named must not depend on how much came at once.
            raise self._too_long(limit if end > limit and not has_long_line else line_limit, said)
        del buffer[:end]
        self._transcript.received(said)
        return said

    def _too_long(self, limit: int, said: bytes | None) -> ProbeFault:
        """Close the connection, and return the fault of an answer that is too long."""
        self.abort()
        shown = "" if said is None else f": {self._transcript.quoted(said, cut=True)}"
        return ProbeFault(Reason.LINE_TOO_LONG, f"more than {limit} octets{shown}")

    async def read_exactly(self, count: int) -> bytes:
        """Return the next ``count`` octets, whatever they are; the caller bounds how many it asks for."""
        buffer = self._receiver.buffer
        if len(buffer) < count:
            until = self._loop.time() + self._timeout
            with self._closing_on_failure:
                while len(buffer) < count:
                    await self._receiver.news(until)
        octets = bytes(buffer[:count])
        del buffer[:count]
        return octets

    async def read_some(self, limit: int) -> bytes:
        """Wait for octets and return at most ``limit`` of them, or none at the end of the stream."""
        buffer, until = self._receiver.buffer, self._loop.time() + self._timeout
        with self._closing_on_failure:
            while not buffer:
                if isinstance(self._receiver.ended, EOFError):
                    return b""
                await self._receiver.news(until)
        octets = bytes(buffer[:limit])
        del buffer[:limit]
        return octets

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will arrive."""
        return self._receiver.ended is not None

    async def readable(self) -> None:
        """Return once something unread waits or the connection has ended, however long that takes.

        Unlike every other wait, one that is cancelled leaves the connection as it is.
        """
        if not self._receiver.buffer and self._receiver.ended is None:
            await self._receiver.news()

    def write_line(self, *words: bytes, public: str | None = None) -> None:
        """Send one line; ValueError for words with CR, LF or NUL, which could smuggle in another command.

        Of a line with credentials the transcript shows only its beginning ``public``, which may be empty.
        """
        line = b" ".join(words)
        if _NOT_IN_A_LINE.search(line):
            raise ValueError("a command line cannot hold CR, LF or NUL")
        with self._closing_on_failure:
            self._live().write(line + b"\r\n")
        self._has_written = True
        self._transcript.sent(line, public)

    async def write_octets(self, octets: bytes) -> None:
        """Send octets as they are; the transcript does not show them.

        Returns once the network takes more, or once something arrived that may be about them.
        """
        until = self._loop.time() + self._timeout
        with self._closing_on_failure:
            self._live().write(octets)
            while self._receiver.is_congested and not self._receiver.buffer:
                await self._receiver.news(until)

    def _live(self) -> asyncio.Transport:
        if self._receiver.transport is None or self._receiver.transport.is_closing():
            raise self._receiver.ended or ConnectionResetError("the connection is closed")
        return self._receiver.transport

    def abort(self) -> None:
        """Close the connection at once, whatever is under way; may be called again."""
        self._receiver.abort()
