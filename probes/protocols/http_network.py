"""The connections of the HTTP client: `LineTransport`s in the form that httpcore expects."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping

import httpcore

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols.connection_limits import Slot
from probes.protocols.line_transport import LineTransport
from probes.protocols.tls import CertificateExpiry

HEAD_LIMIT = 64 * 1024
"""Most octets to read before a body begins, interim answers (RFC 9110 section 15.2) included."""

HEAD_LINES = 1000
"""Most lines to read before a body begins: each header field takes about 10 µs of processor time."""

MOST_SMALL_CHUNKS = 5000
"""Maximum number of small chunks of a body: each takes about 50 µs of processor time."""

_SMALL_CHUNK = 64  # octets
_CHUNKS_AT_ONCE = 100  # small ones, before other tasks get a turn
_HEAD_PIECE = 4096  # octets of it to parse at once: a flood of interim answers must not hold up other tasks


class Network(httpcore.AsyncNetworkBackend):
    """Opens a client's connections, and remembers the latest one."""

    phase = "first_byte"
    """The phase that the time spent reading counts towards."""

    is_head = True
    """Whether the header section of the current answer is still to be read."""

    head_octets = 0
    """How many octets of the current answer were read up to the first ones of its body."""

    head_lines = 0
    """How many lines of the current answer were read before its body: about, because of interim answers."""

    request_line: str | None = None
    """How the transcript shows the next request."""

    connections = 0
    """How many connections were tried."""

    is_at_end = False
    """Whether the latest read met the end of the stream."""

    def __init__(
        self,
        phases: PhaseTimer,
        connect: Callable[..., Awaitable[LineTransport]],
        context: Callable[[], ssl.SSLContext],
        tls_name: str | None,
        slot: Slot | None,
        addresses: Mapping[str, str],
    ) -> None:
        self.phases = phases
        self.context = context
        self.tls_name = tls_name
        self.before_content: Callable[[], None] = lambda: None
        """Called before the content of a request is sent."""
        self._connect = connect
        self._slot = slot
        self._addresses = addresses
        self._latest: LineTransport | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 # httpcore's signature
        local_address: str | None = None,  # noqa: ARG002 # httpcore's signature
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 # httpcore's signature
    ) -> httpcore.AsyncNetworkStream:
        """Open a connection, for httpcore."""
        slot, self._slot = self._slot, None
        self.connections += 1
        self._latest = await self._connect(
            self._addresses.get(host, host), port, phases=self.phases, slot=slot
        )
        return _Stream(self._latest, self)

    def count_towards(self, phases: PhaseTimer) -> None:
        """Time what follows in ``phases``, of another run."""
        self.phases = phases
        if self._latest is not None:
            self._latest.count_towards(phases)

    def begin(self, request: str, phase: str) -> None:
        """Prepare for a request, which the transcript shows as ``request``, and an answer in ``phase``."""
        self.request_line, self.phase = request, phase
        self.is_head, self.head_octets, self.head_lines = True, 0, 0

    def begin_body(self) -> None:
        """Count what is read from now on as the body. That of an answer in ``first_byte`` has its phase."""
        self.is_head = False
        if self.phase == "first_byte":
            self.phase = "body"

    @property
    def certificate(self) -> bytes | None:
        """The server's certificate in DER on the latest connection; ``None`` without TLS."""
        return self._latest.certificate if self._latest is not None else None

    @property
    def certificate_expiry(self) -> CertificateExpiry | None:
        """When the first certificate in the chain of the latest connection expires."""
        return self._latest.certificate_expiry if self._latest is not None else None


class _Stream(httpcore.AsyncNetworkStream):
    """A `LineTransport` in the form that httpcore expects. `HttpClient` limits the time instead."""

    def __init__(self, transport: LineTransport, network: Network) -> None:
        self._transport = transport
        self._network = network

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002, ASYNC109 # httpcore's signature
        network = self._network
        with network.phases.phase(network.phase):
            is_head = network.is_head
            if is_head and network.head_octets >= HEAD_LIMIT:
                raise ProbeFault(Reason.RESPONSE_TOO_LARGE, f"more than {HEAD_LIMIT} octets before a body")
            octets = await self._transport.read_some(_HEAD_PIECE if is_head else max_bytes)
            if is_head:
                network.head_octets += len(octets)
                network.head_lines += octets.partition(b"\r\n\r\n")[0].count(b"\n")
                if network.head_lines > HEAD_LINES:
                    raise ProbeFault(Reason.RESPONSE_TOO_LARGE, f"more than {HEAD_LINES} lines before a body")
            await asyncio.sleep(0)
        network.is_at_end = not octets
        return octets

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109 # httpcore's signature
        if buffer.startswith(b"CONNECT "):
            self._network.phases.transcript.sent(buffer.split(b"\r\n", 1)[0])
        elif self._network.request_line is not None:
            self._network.phases.transcript.sent(self._network.request_line.encode())
            self._network.request_line = None
        elif buffer:
            self._network.before_content()
        await self._transport.write_octets(buffer)

    async def aclose(self) -> None:
        self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,  # noqa: ARG002 # httpcore's signature
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 # httpcore's signature
    ) -> httpcore.AsyncNetworkStream:
        network = self._network
        with network.phases.phase("tls"):
            await self._transport.start_tls(network.context(), network.tls_name or server_hostname or "")
        return self

    def get_extra_info(self, info: str) -> object:
        if info == "is_readable":  # httpcore drops an idle connection if there is anything to read
            return bool(self._transport.unread) or self._transport.has_ended
        return None


async def read_body(chunks: AsyncIterable[bytes], limit: int) -> tuple[bytes, bool]:
    """Return at most ``limit`` octets of a body, and whether there are more."""
    body, small = bytearray(), 0
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            return bytes(body[:limit]), True
        if len(chunk) < _SMALL_CHUNK:
            small += 1
            if small > MOST_SMALL_CHUNKS:
                told = f"more than {MOST_SMALL_CHUNKS:,} chunks of fewer than {_SMALL_CHUNK} octets"
                raise ProbeFault(Reason.RESPONSE_TOO_LARGE, told)
            if small % _CHUNKS_AT_ONCE == 0:
                await asyncio.sleep(0)
    return bytes(body), False
