"""A line transport for text protocols: with a limit on every wait and read, and safe from injected bytes."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from probes.core.descriptors import require_descriptor
from probes.core.faults import ProbeFault, fault_of
from probes.core.reasons import Outcome, Reason
from probes.core.setting_types import AddressFamily, is_ip_address
from probes.core.transcript import REPLY, Transcript
from probes.core.verdict import RESOLVE, PhaseTimer
from probes.protocols import connection_limits, name_resolution
from probes.protocols.connection_limits import Slot
from probes.protocols.receiver import Receiver
from probes.protocols.tls import CertificateExpiry, certificate_expiry, description, keep_session

MOST_ADDRESSES = 20
"""Most addresses of one name to try: with thousands, no server's share of the time would be enough."""

LINES_AT_ONCE = 100
"""Number of waiting lines to read before other tasks get a turn, so that a flood cannot delay them."""

_NO_TLS_RECORD = "WRONG_VERSION_NUMBER"
"""OpenSSL's names for data that is not a TLS record, such as text."""

_TIMEOUTS = frozenset({Reason.CONNECT_TIMEOUT, Reason.DNS_TIMEOUT})

_GIVEN_UP = (TimeoutError, asyncio.CancelledError)  # by the wait's own timeout, or by that of the run

_NOT_IN_A_LINE = re.compile(rb"[\r\n\0]")

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)

Resolve = Callable[[str, int, float], Awaitable[list[tuple[str, int]]]]
"""Returns the addresses and ports to try for a host and port, within seconds; raises `ProbeFault`."""


async def connect_tcp(
    make_protocol: Callable[[], ProtocolT],
    host: str,
    port: int,
    phases: PhaseTimer,
    timeout: float,  # noqa: ASYNC109 # for the name, and again for all addresses
    resolve: Resolve | None = None,
    family: AddressFamily = "any",
) -> ProtocolT:
    """Return a connected protocol; phases ``resolve`` (not for an IP literal) and ``connect``.

    The name is resolved to addresses of ``family`` within ``timeout`` seconds. Up to `MOST_ADDRESSES` of them
    are then tried in the resolver's order (RFC 6724), each with an equal share of another ``timeout``
    seconds. If none answers, raises `ProbeFault` with the first fault of the server, or else the first of our
    own. ``resolve`` replaces the system's resolver, even for IP literals.
    """
    loop = asyncio.get_running_loop()
    places = [(host, port)]
    if resolve is not None or not is_ip_address(host):
        with phases.phase(RESOLVE):
            if resolve is not None:
                places = await resolve(host, port, timeout)
            else:
                places = await name_resolution.system.resolve(host, port, timeout, family)
    places = places[:MOST_ADDRESSES]
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
    except OSError as error:  # includes TimeoutError
        silent = isinstance(error, TimeoutError) and error.errno is None
        said = ProbeFault(Reason.CONNECT_TIMEOUT, "no answer in time") if silent else fault_of(error)
        # If this machine is the cause, for example without IPv6, it is not the server's fault.
        said = said or ProbeFault(Reason.NETWORK_UNREACHABLE, error.strerror or str(error))
        raise ProbeFault(said.reason, f"{address} port {port}: {said.detail}") from error
    return protocol


def _in_clear() -> ProbeFault:
    return ProbeFault(Reason.TLS_HANDSHAKE, "the server speaks in clear on this port")


class _ClosingOnFailure(AbstractContextManager[None]):
    """Closes a transport on any exception in the block, and raises the corresponding fault.

    A class, because every wait uses it and a generator would cost more.
    """

    __slots__ = ("_receiver", "_timeout", "_when_slow")

    def __init__(self, receiver: Receiver, timeout: float, when_slow: Reason) -> None:
        self._receiver, self._timeout, self._when_slow = receiver, timeout, when_slow

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        self._receiver.timed_out = isinstance(error, _GIVEN_UP)
        self._receiver.abort()
        if isinstance(error, TimeoutError) and error.errno is None:
            raise ProbeFault(self._when_slow, f"no answer after {self._timeout:g} s") from error
        if isinstance(error, Exception) and (fault := fault_of(error)) is not None:
            raise fault from error


class LineTransport:
    """A connection for reading and writing lines that end in CRLF.

    ``timeout`` limits each call, in seconds. Every method raises `ProbeFault`. A fault or a cancellation
    closes the connection at once, except in `readable`.
    """

    def __init__(self, receiver: Receiver, timeout: float, transcript: Transcript) -> None:
        self._receiver = receiver
        self._transcript = transcript
        self._loop = asyncio.get_running_loop()
        self.limit_waits(timeout)
        self._lines_at_once = 0  # read since other tasks last had a turn
        self._has_written = False
        self.certificate_expiry: CertificateExpiry | None = None
        """The earliest expiry in the server's certificate chain; ``None`` without TLS."""

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        phases: PhaseTimer,
        timeout: float,  # noqa: ASYNC109 # also for every later call
        resolve: Resolve | None = None,
        family: AddressFamily = "any",
        slot: Slot | None = None,
    ) -> LineTransport:
        """Connect as `connect_tcp` does, using ``slot``. Without one, wait for it; see `ConnectionLimits`."""
        slot = slot or await connection_limits.system.take(host, port, phases)
        try:
            receiver = await connect_tcp(Receiver, host, port, phases, timeout, resolve, family)
        except BaseException as error:
            timed_out = isinstance(error, ProbeFault) and error.reason in _TIMEOUTS
            slot.release(timed_out=timed_out or isinstance(error, _GIVEN_UP))
            raise
        receiver.slot, receiver.phases = slot, phases
        return cls(receiver, timeout, phases.transcript)

    def limit_waits(self, timeout: float) -> None:
        """Replace the time limit of each later call, in seconds."""
        self._timeout = timeout
        self._closing_on_failure = _ClosingOnFailure(self._receiver, timeout, Reason.COMMAND_TIMEOUT)

    def count_towards(self, phases: PhaseTimer) -> None:
        """Count later waits towards ``phases``, of another run, and write to its transcript."""
        self._receiver.phases, self._transcript = phases, phases.transcript

    def answered(self) -> None:
        """Record an answer in time, and keep the TLS session; see `Slot.answered` and `keep_session`."""
        if self._receiver.slot is not None:
            self._receiver.slot.answered()
        keep_session(self._receiver.encrypted)

    async def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """Encrypt the connection.

        After a command, octets that are already there were injected (RFC 2595 section 2.1): `TLS_INJECTION`.
        With implicit TLS they are an unencrypted greeting: `TLS_HANDSHAKE`, as if they arrived later.
        """
        if self.unread:
            self.abort()
            raise ProbeFault(Reason.TLS_INJECTION, self.unread) if self._has_written else _in_clear()
        with _ClosingOnFailure(self._receiver, self._timeout, Reason.TLS_HANDSHAKE):
            try:
                encrypted = await self._receiver.start_tls(
                    context, server_name, self._loop.time() + self._timeout
                )
            except ssl.SSLError as error:
                if error.reason == _NO_TLS_RECORD and not self._has_written:
                    raise _in_clear() from error
                raise
            self._transcript.note(description(encrypted))
            self.certificate_expiry = certificate_expiry(encrypted)

    @property
    def certificate(self) -> bytes | None:
        """The server's certificate in DER; ``None`` without TLS."""
        encrypted = self._receiver.encrypted
        return encrypted.getpeercert(binary_form=True) if encrypted is not None else None

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as is known here."""
        transport = self._receiver.transport
        return transport is not None and not transport.is_closing() and self._receiver.ended is None

    @property
    def unread(self) -> bytes:
        """The beginning of the unread octets: more than a transcript keeps."""
        return bytes(self._receiver.buffer[: 2 * REPLY])

    @property
    def local_address(self) -> str | None:
        """The IP address of this end; ``None`` once the connection is closed."""
        name = self._receiver.transport and self._receiver.transport.get_extra_info("sockname")
        return str(name[0]) if name else None

    def limit_of_waits(self) -> float:
        """Return the loop's time at which a wait that begins now must end, for several calls in a row."""
        return self._loop.time() + self._timeout

    async def read_line(self, limit: int, *, is_mail: bool = False, until: float | None = None) -> bytes:
        """Return the next line without its line end; more than ``limit`` octets are `LINE_TOO_LONG`.

        If a line is too long, the transcript and the fault show its beginning, unless it ``is_mail``.
        ``until`` replaces the time limit of this call; see `limit_of_waits`.
        """
        buffer = self._receiver.buffer
        end = buffer.find(b"\n")
        if end < 0:  # otherwise there is no need to wait or to set a timer
            until = self.limit_of_waits() if until is None else until
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
        """Return the lines that ``whole`` matches, with LF between them, and add them to the transcript.

        If ``whole`` does not match yet, it is tried again, from the last complete line, when more arrives.
        The lines must arrive within ``seconds``, by default the timeout. A line of more than ``line_limit``
        octets, or more than ``limit`` octets in total, are `LINE_TOO_LONG`.
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
            # The limit in the fault must not depend on how the octets were split on arrival.
            raise self._too_long(limit if end > limit and not has_long_line else line_limit, said)
        del buffer[:end]
        self._transcript.received(said)
        return said

    def _too_long(self, limit: int, said: bytes | None) -> ProbeFault:
        """Close the connection, and return the fault for an answer that is too long."""
        self.abort()
        shown = "" if said is None else f": {self._transcript.quoted(said, cut=True)}"
        return ProbeFault(Reason.LINE_TOO_LONG, f"more than {limit} octets{shown}")

    async def read_exactly(self, count: int, *, until: float | None = None) -> bytes:
        """Return the next ``count`` octets, ``until`` as in `read_line`; the caller must limit ``count``."""
        buffer = self._receiver.buffer
        if len(buffer) < count:
            until = self.limit_of_waits() if until is None else until
            with self._closing_on_failure:
                while len(buffer) < count:
                    await self._receiver.news(until)
        octets = bytes(buffer[:count])
        del buffer[:count]
        return octets

    async def read_some(self, limit: int) -> bytes:
        """Wait for octets, and return at most ``limit`` of them; empty at the end of the stream."""
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
        """Return once there are unread octets or the connection has ended; there is no time limit.

        Unlike in other methods, a cancellation does not close the connection.
        """
        if not self._receiver.buffer and self._receiver.ended is None:
            await self._receiver.news()

    def write_line(self, *words: bytes, public: str | None = None) -> None:
        """Send one line. Raises ValueError for words with CR, LF or NUL, which could inject a command.

        If the line has credentials, the transcript shows only its beginning ``public``, which may be empty.
        """
        line = b" ".join(words)
        if _NOT_IN_A_LINE.search(line):
            raise ValueError("a command line cannot hold CR, LF or NUL")
        with self._closing_on_failure:
            self._receiver.write(line + b"\r\n")
        self._has_written = True
        self._transcript.sent(line, public)

    async def write_octets(self, octets: bytes) -> None:
        """Send octets as they are, without showing them in the transcript.

        Returns once the network can take more, or when something arrives, which may be a reply to them.
        """
        until = self._loop.time() + self._timeout
        with self._closing_on_failure:
            self._receiver.write(octets)
            while self._receiver.is_congested and not self._receiver.buffer:
                await self._receiver.news(until)

    def abort(self) -> None:
        """Close the connection at once, in any state; may be called repeatedly."""
        self._receiver.abort()
