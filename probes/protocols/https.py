"""HTTP/1.1 for probes and the agent: verified, bounded and timed, without cookies or decompression.

httpx reads URLs and builds requests, and httpcore, its lower layer, frames them. Only this file uses
them, so that their successors can replace them here. Connections are `LineTransport`s, as for mail:
addresses, TLS, limits and reasons work the same way in all protocols.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Self
from urllib.request import getproxies_environment, proxy_bypass

import httpcore
import httpx
from pydantic import TypeAdapter

from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.setting_types import AddressFamily, HostName
from probes.core.verdict import RESOLVE, PhaseTimer
from probes.protocols.connection_limits import Slot
from probes.protocols.line_transport import LineTransport, Resolve
from probes.protocols.tls import client_context

BODY_LIMIT = 256 * 1024
"""Maximum octets to keep of a body, unless a request sets another limit."""

HEAD_LIMIT = 64 * 1024
"""Most octets to read before a body begins, interim answers (RFC 9110 section 15.2) included."""

_HEAD_PIECE = 4096  # octets of it to parse at once: a flood of interim answers must not hold up other tasks

_REDIRECTS = frozenset({301, 302, 303, 307, 308})  # RFC 9110 section 15.4
_DEFAULTS = MappingProxyType(
    {"accept": "*/*", "accept-encoding": "identity", "user-agent": f"mailsonde/{version('mailsonde')}"}
)
_FOR_ANYONE = frozenset({"accept", "content-type"})  # header fields that are also sent to another origin
_WHEN_SLOW = MappingProxyType(
    {RESOLVE: Reason.DNS_TIMEOUT, "connect": Reason.CONNECT_TIMEOUT, "tls": Reason.TLS_HANDSHAKE}
)
_HOST_NAME = TypeAdapter(HostName)


def http_context(ca: Path | None, *, with_system: bool = False) -> ssl.SSLContext:
    """Return the TLS context for HTTP, as `client_context` does. Mail clients never share it."""
    return client_context(ca, ("http/1.1",), with_system=with_system)


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a URL (RFC 9110 section 4.3.1). ``host`` is a name in A-labels or an IP address."""

    scheme: str
    host: str
    port: int


def origin_of(url: str) -> Origin:
    """Return the origin of an ``http`` or ``https`` URL.

    Raises ValueError, with a text that says what to write, for any other URL, for one with credentials,
    and for one with an impossible host or port.
    """
    return _origin(_parsed(url))


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        parsed = httpx.URL()
    if parsed.scheme not in {"http", "https"} or not parsed.raw_host or parsed.userinfo:
        raise ValueError(
            "must be a URL such as https://collector.example.com/v1/metrics, without credentials"
        )
    _origin(parsed)
    return parsed


def _origin(url: httpx.URL) -> Origin:
    """Return the origin, or raise ValueError for an impossible host or port, which httpx does not check."""
    port = url.port if url.port is not None else {"http": 80, "https": 443}[url.scheme]
    try:
        host = _HOST_NAME.validate_python(url.raw_host.decode("ascii"))
        is_sound = bool(url.host) and 0 < port <= 65535  # ``host`` decodes A-labels
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ValueError("its host must be a host name or IP address, and its port from 1 to 65535")
    return Origin(url.scheme, host, port)


def proxy_origin(url: str) -> Origin:
    """Return the origin of an HTTP proxy's URL, such as ``http://proxy.example:3128``.

    Raises ValueError, with a text that says what to write, for anything else.
    """
    origin = origin_of(url)
    if origin.scheme != "http" or _parsed(url).raw_path != b"/":
        raise ValueError("must be the URL of an HTTP proxy, such as http://proxy.example:3128")
    return origin


def proxy_for(url: str, configured: str | None = None) -> str | None:
    """Return the proxy to use for ``url``: ``configured``, or that of the environment, or none.

    The environment's are `HTTPS_PROXY` and `HTTP_PROXY`, in either case, except for hosts in `NO_PROXY`. As
    with other programs, they may lack ``http://``. Raises `ProbeFault` with `LOCAL_RESOURCES` if one is no
    URL of an HTTP proxy; its value may have a password, and is not shown.
    """
    if configured is not None:
        return configured
    origin = origin_of(url)
    if proxy_bypass(origin.host):
        return None
    proxy = getproxies_environment().get(origin.scheme)
    if proxy is None:
        return None
    found = proxy if "://" in proxy else f"http://{proxy}"
    try:
        proxy_origin(str(httpx.URL(found).copy_with(userinfo=b"")))
    except (httpx.InvalidURL, ValueError):
        name = f"{origin.scheme.upper()}_PROXY"
        told = f"{name} must be the URL of an HTTP proxy, such as http://proxy.example:3128"
        raise ProbeFault(Reason.LOCAL_RESOURCES, told) from None
    return found


@dataclass(frozen=True, slots=True)
class Response:
    """A server's answer.

    ``url`` is the URL that it came from, after any redirects. ``body`` is never decoded. ``is_cut``
    means that the body is longer than the limit. ``certificate_not_after`` is in unix seconds, and
    ``None`` without TLS.
    """

    url: str
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    is_cut: bool
    certificate_not_after: float | None

    @property
    def host(self) -> str:
        """The host that answered, in A-labels, or its IP address."""
        return origin_of(self.url).host

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def is_redirect(self) -> bool:
        """Whether the server redirects the client."""
        return self.status in _REDIRECTS and bool(self.header("location"))

    @property
    def retry_after(self) -> float | None:
        """The seconds of a ``Retry-After`` (RFC 9110 section 10.2.3); ``None`` for a date, or without one."""
        value = self.header("retry-after")
        return float(value) if value.isascii() and value.isdecimal() and len(value) < 6 else None

    @property
    def is_encoded(self) -> bool:
        """Whether the body has a content coding, although the client asked for none."""
        return self.header("content-encoding", "identity").lower() != "identity"

    def header(self, name: str, default: str = "") -> str:
        """Return a header field's value. Repeated fields are joined by commas (RFC 9110 section 5.2)."""
        return ", ".join(self.header_lines(name)) or default

    def header_lines(self, name: str) -> list[str]:
        """Return the values of a header field, one for each time that it occurs."""
        return [value for found, value in self.headers if found.lower() == name.lower()]


class HttpClient(AbstractAsyncContextManager["HttpClient"]):
    """Sends requests, one at a time, and keeps the connection between them.

    ``seconds`` limits a request as a whole, including its redirects. ``ca`` is a PEM file to trust
    instead of the system's authorities or, with ``with_system``, in addition to them. ``resolve``
    chooses the address and port to connect to; Host header and SNI still name the URL's host.
    ``tls_name`` is the name to expect in the certificate if it is not the URL's host. Only addresses of
    ``family`` are used. The first connection uses ``slot``.

    Phases: ``resolve`` (not for an IP literal), ``connect`` and ``tls`` for a new connection,
    ``first_byte`` until the header section has arrived, and ``body``. Cookies are ignored. Requests go
    through ``proxy`` if it is the URL of one, and https stays encrypted from end to end. A fault or a
    cancellation closes the connection at once.
    """

    def __init__(
        self,
        phases: PhaseTimer,
        *,
        seconds: float,
        ca: Path | None = None,
        with_system: bool = False,
        resolve: Resolve | None = None,
        tls_name: str | None = None,
        proxy: str | None = None,
        family: AddressFamily = "any",
        slot: Slot | None = None,
    ) -> None:
        self._phases = phases
        self._seconds = seconds
        self._network = _Network(
            phases,
            partial(LineTransport.connect, phases=phases, timeout=seconds, resolve=resolve, family=family),
            lambda: http_context(ca, with_system=with_system),
            tls_name,
            slot,
        )
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.SSLContext(
                ssl.PROTOCOL_TLS_CLIENT
            ),  # trusts nobody and is not used; see `_Stream.start_tls`
            max_connections=1,
            network_backend=self._network,
            proxy=_proxy(proxy, phases) if proxy is not None else None,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        content: bytes | None = None,
        limit: int = BODY_LIMIT,
        redirects: int = 0,
        before_content: Callable[[], None] = lambda: None,
    ) -> Response:
        """Send a request and return the answer, with at most ``limit`` octets of its body.

        ``before_content`` is called right before ``content`` is sent, when a connection is open.

        Follows at most ``redirects`` redirects, only to https, and repeats method and content. Another
        origin gets none of ``headers`` except Accept and Content-Type. A redirect that is not followed
        is returned like any other answer. Raises `ProbeFault`, and ValueError as `origin_of` does.
        """
        parsed = _parsed(url)
        self._network.before_content = before_content
        fields = {**_DEFAULTS, **{name.lower(): value for name, value in headers.items()}}
        try:
            async with asyncio.timeout(self._seconds):
                for _ in range(redirects + 1):
                    response = await self._exchange(method, parsed, fields, content, limit)
                    if not redirects or not response.is_redirect:
                        return response
                    parsed, before = _next_url(parsed, response.header("location")), parsed
                    if _origin(parsed) != _origin(before):
                        fields = {**_DEFAULTS, **{name: fields[name] for name in _FOR_ANYONE & fields.keys()}}
        except TimeoutError as error:
            reason = _WHEN_SLOW.get(self._phases.current or "", Reason.COMMAND_TIMEOUT)
            raise ProbeFault(reason, f"no answer within {self._seconds:g} s") from error
        raise ProbeFault(Reason.PROTOCOL_ERROR, f"more than {redirects} redirects")

    async def _exchange(
        self, method: str, url: httpx.URL, fields: Mapping[str, str], content: bytes | None, limit: int
    ) -> Response:
        made = httpx.Request(method, url, headers=fields, content=content)
        request = httpcore.Request(
            method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=made.headers.raw,
            content=content,
        )
        network = self._network
        network.phase, network.head_octets = "first_byte", 0
        network.request_line = f"{method} {url.path} HTTP/1.1"  # the query may hold a token
        try:
            answer = await self._pool.handle_async_request(request)
            try:
                self._phases.transcript.received(_status_line(answer))
                network.phase = "body"
                with self._phases.phase("body"):
                    pass  # so that the phase exists even if the body came with the header section
                body, is_cut = await _read(answer, limit)
            finally:
                await answer.aclose()
        except httpcore.ProxyError as error:
            with self._phases.phase("connect"):  # redacts the proxy's text, which may repeat its password
                raise ProbeFault(Reason.PROTOCOL_ERROR, f"the proxy answered: {error}") from None
        except httpcore.RemoteProtocolError as error:
            reason = Reason.CONNECTION_LOST if network.is_at_end else Reason.PROTOCOL_ERROR
            with self._phases.phase(network.phase):  # names the phase, and redacts the server's text
                raise ProbeFault(reason, str(error)) from error
        found = httpx.Headers(answer.headers)
        return Response(
            str(url),
            answer.status,
            tuple(found.multi_items()),
            body,
            is_cut,
            network.certificate_not_after,
        )


def _proxy(url: str, phases: PhaseTimer) -> httpcore.Proxy:
    parsed = httpx.URL(url)
    if parsed.password:
        phases.transcript.redaction.add(parsed.password)
    credentials = (parsed.username, parsed.password) if parsed.userinfo else None
    return httpcore.Proxy(str(parsed.copy_with(userinfo=b"")), auth=credentials)


async def _read(answer: httpcore.Response, limit: int) -> tuple[bytes, bool]:
    """Return at most ``limit`` octets of the body, and whether there are more."""
    body = bytearray()
    async for chunk in answer.aiter_stream():
        body += chunk
        if len(body) > limit:
            return bytes(body[:limit]), True
    return bytes(body), False


def _status_line(answer: httpcore.Response) -> bytes:
    said = answer.extensions
    return b"%s %d %s" % (said.get("http_version", b""), answer.status, said.get("reason_phrase", b""))


def _next_url(url: httpx.URL, location: str) -> httpx.URL:
    """Return the target of a redirect, or raise `ProbeFault` if it must not be followed."""
    try:
        found = url.join(location)
        shown = legible(str(found), 80)
        if found.scheme != "https":
            raise ProbeFault(Reason.PROTOCOL_ERROR, f"leads to {shown}, which is not https")
        return _parsed(str(found))
    except (httpx.InvalidURL, ValueError) as error:
        raise ProbeFault(Reason.PROTOCOL_ERROR, f"leads to {legible(location, 80)}: {error}") from error


class _Network(httpcore.AsyncNetworkBackend):
    """Opens a client's connections, and remembers the latest one."""

    phase = "first_byte"
    """The phase that the time spent reading counts towards."""

    head_octets = 0
    """How many octets of the current answer were read up to the first ones of its body."""

    request_line: str | None = None
    """How the transcript shows the next request."""

    is_at_end = False
    """Whether the latest read met the end of the stream."""

    def __init__(
        self,
        phases: PhaseTimer,
        connect: Callable[..., Awaitable[LineTransport]],
        context: Callable[[], ssl.SSLContext],
        tls_name: str | None,
        slot: Slot | None,
    ) -> None:
        self.phases = phases
        self.context = context
        self.tls_name = tls_name
        self.before_content: Callable[[], None] = lambda: None
        """Called before the content of a request is sent."""
        self._connect = connect
        self._slot = slot
        self._latest: LineTransport | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 # httpcore's signature
        local_address: str | None = None,  # noqa: ARG002 # httpcore's signature
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 # httpcore's signature
    ) -> httpcore.AsyncNetworkStream:
        slot, self._slot = self._slot, None
        self._latest = await self._connect(host, port, slot=slot)
        return _Stream(self._latest, self)

    @property
    def certificate_not_after(self) -> float | None:
        """When the first certificate in the chain of the latest connection expires."""
        expiry = self._latest.certificate_expiry if self._latest is not None else None
        return expiry and expiry.not_after


class _Stream(httpcore.AsyncNetworkStream):
    """A `LineTransport` in the form that httpcore expects. `HttpClient` limits the time instead."""

    def __init__(self, transport: LineTransport, network: _Network) -> None:
        self._transport = transport
        self._network = network

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002, ASYNC109 # httpcore's signature
        network = self._network
        with network.phases.phase(network.phase):
            is_head = network.phase == "first_byte"
            if is_head and network.head_octets >= HEAD_LIMIT:
                raise ProbeFault(Reason.RESPONSE_TOO_LARGE, f"more than {HEAD_LIMIT} octets before a body")
            octets = await self._transport.read_some(_HEAD_PIECE if is_head else max_bytes)
            await asyncio.sleep(0)
        network.head_octets += is_head * len(octets)
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
