"""HTTP/1.1 for probes and the agent: verified, bounded and timed, without cookies or decompression.

httpx reads URLs and builds requests, and httpcore, its lower layer, frames them. Only this file uses
them, so that their successors can replace them here. Connections are `LineTransport`s, as for mail:
addresses, TLS, limits and reasons work the same way in all protocols.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.request import getproxies_environment, proxy_bypass

import httpcore
import httpx
from pydantic import TypeAdapter

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.setting_types import AddressFamily, HostName
from probes.core.transcript import Transcript
from probes.core.verdict import RESOLVE, TICKET, TURN, PhaseTimer
from probes.protocols.connection_limits import Slot
from probes.protocols.http_login import Ask, HttpLogin, LoginAttempt
from probes.protocols.http_network import Network, read_body
from probes.protocols.http_shown import shown_error, shown_field, shown_url
from probes.protocols.line_transport import LineTransport, Resolve
from probes.protocols.tls import CertificateExpiry, client_context

BODY_LIMIT = 256 * 1024
"""Maximum octets to keep of a body, unless a request sets another limit."""

LOGIN_PAGE_LIMIT = 2 * 1024 * 1024
"""Maximum octets to read of a page that asks for a login, because NTLM goes on in the same connection."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})  # RFC 9110 section 15.4
_DEFAULTS = MappingProxyType(
    {"accept": "*/*", "accept-encoding": "identity", "user-agent": f"mailsonde/{version('mailsonde')}"}
)
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_BODY_SHOWN = 1000  # octets of a body in the transcript
_FOR_ANYONE = frozenset({"accept", "content-type"})  # header fields that are also sent to another origin
_WHEN_SLOW = MappingProxyType(
    {
        TURN: Reason.LOCAL_RESOURCES,
        RESOLVE: Reason.DNS_TIMEOUT,
        TICKET: Reason.TICKET_UNAVAILABLE,
        "connect": Reason.CONNECT_TIMEOUT,
        "tls": Reason.TLS_HANDSHAKE,
    }
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

    ``url`` is the URL that it came from, after the ``redirects``, each a URL. ``body`` is never decoded.
    ``is_cut`` means that the body is longer than the limit. ``certificate_expiry`` is ``None`` without TLS.
    ``login`` is the scheme of the login, such as ``NTLM``, if there was one.
    """

    url: str
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    is_cut: bool
    certificate_expiry: CertificateExpiry | None
    redirects: tuple[str, ...] = ()
    login: str = ""

    @property
    def certificate_not_after(self) -> float | None:
        """When the first certificate in the server's chain expires, in unix seconds."""
        return self.certificate_expiry and self.certificate_expiry.not_after

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

    @property
    def location(self) -> str:
        """The absolute URL that the server redirects to; empty if it does not redirect, or to no URL."""
        if not self.is_redirect:
            return ""
        try:
            return str(httpx.URL(self.url).join(self.header("location")))
        except (httpx.InvalidURL, ValueError):
            return ""

    def json_object(self) -> dict[str, Any]:
        """Return the JSON object in the body; raises `ProbeFault` if there is none."""
        if self.is_cut:
            raise ProbeFault(Reason.RESPONSE_TOO_LARGE, f"an answer of more than {len(self.body):,} octets")
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ProbeFault(Reason.PROTOCOL_ERROR, f"HTTP status {self.status}, without a JSON object")
        return found

    def record(self, transcript: Transcript) -> None:
        """Write the header section and the beginning of the body to a transcript, as `shown_field` does."""
        transcript.received("\n".join(f"{name}: {shown_field(name, value)}" for name, value in self.headers))
        if self.body:
            transcript.received(self.body[:_BODY_SHOWN], cut=len(self.body) > _BODY_SHOWN)

    def header_lines(self, name: str) -> list[str]:
        """Return the values of a header field, one for each time that it occurs."""
        return [value for found, value in self.headers if found.lower() == name.lower()]


def status_text(status: int) -> str:
    """Return a status with its standard phrase, such as ``503 Service Unavailable``."""
    return f"{status} {_PHRASES.get(status, '')}".rstrip()


class HttpClient(AbstractAsyncContextManager["HttpClient"]):
    """Sends requests, one at a time, and keeps the connection between them.

    ``seconds`` limits a request as a whole, including its redirects. ``ca`` is a PEM file to trust
    instead of the system's authorities or, with ``with_system``, in addition to them. ``resolve``
    chooses the address and port to connect to, and ``addresses`` has the address of a host in a URL that is
    not to be looked up under its name; Host header and SNI still name the URL's host.
    ``tls_name`` is the name to expect in the certificate if it is not the URL's host. Only addresses of
    ``family`` are used. The first connection uses ``slot``.

    Phases: ``resolve`` (not for an IP literal), ``connect`` and ``tls`` for a new connection,
    ``first_byte`` until the header section has arrived, and ``body``. If the server asks for it, the client
    logs in by ``login`` at the first URL's origin. All answers before the last one are phase ``login`` then,
    and each request has a login of its own. Cookies are ignored. Requests go
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
        addresses: Mapping[str, str] = MappingProxyType({}),
        tls_name: str | None = None,
        proxy: str | None = None,
        family: AddressFamily = "any",
        slot: Slot | None = None,
        login: HttpLogin | None = None,
    ) -> None:
        self._phases = phases
        self._seconds = seconds
        self._login = login
        self._network = Network(
            phases,
            partial(LineTransport.connect, timeout=seconds, resolve=resolve, family=family),
            lambda: http_context(ca, with_system=with_system),
            tls_name,
            slot,
            addresses,
        )
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.SSLContext(
                ssl.PROTOCOL_TLS_CLIENT
            ),  # trusts nobody and is not used; see `_Stream.start_tls`
            max_connections=1,
            network_backend=self._network,
            proxy=_proxy(proxy, phases) if proxy is not None else None,
        )

    @property
    def connections(self) -> int:
        """How many connections it has tried to open so far."""
        return self._network.connections

    def count_towards(self, phases: PhaseTimer) -> None:
        """Time later requests in ``phases``, of another run, also if they use an open connection."""
        self._phases = phases
        self._network.count_towards(phases)

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
        seconds: float | None = None,
        before_content: Callable[[], None] = lambda: None,
    ) -> Response:
        """Send a request and return the answer, with at most ``limit`` octets of its body.

        ``seconds`` replaces the client's limit. ``before_content`` is called right before ``content`` is
        sent, when a connection is open.

        Follows at most ``redirects`` redirects, only to https, and repeats method and content. Another
        origin gets none of ``headers`` except Accept and Content-Type. With ``redirects`` 0, a redirect is
        returned like any other answer. Raises `ProbeFault`, and ValueError as `origin_of` does.
        """
        parsed = _parsed(url)
        self._network.before_content = before_content
        fields = {**_DEFAULTS, **{name.lower(): value for name, value in headers.items()}}
        trail: list[str] = []
        login = self._login
        most = self._seconds if seconds is None else seconds
        try:
            async with asyncio.timeout(most):
                while len(trail) <= redirects:
                    ask = partial(self._exchange, method, parsed, content=content, limit=limit)
                    response = await self._answer(ask, parsed, fields, login)
                    if not redirects or not response.is_redirect:
                        return replace(response, redirects=tuple(trail))
                    trail.append(response.url)
                    parsed, before = _next_url(parsed, response.header("location")), parsed
                    if str(parsed) in trail:
                        raise ProbeFault(Reason.REDIRECT_LOOP, f"leads back to {shown_url(str(parsed))}")
                    if _origin(parsed) != _origin(before):
                        fields = {**_DEFAULTS, **{name: fields[name] for name in _FOR_ANYONE & fields.keys()}}
                        login = None
        except TimeoutError as error:
            phase = self._phases.current or ""
            missing = "turn for a connection" if phase == TURN else "answer"
            reason = _WHEN_SLOW.get(phase, Reason.COMMAND_TIMEOUT)
            raise ProbeFault(reason, f"no {missing} within {most:.3g} s") from error
        raise ProbeFault(Reason.REDIRECT_LOOP, f"more than {redirects} redirects")

    async def _answer(
        self, ask: Ask[Response], url: httpx.URL, fields: Mapping[str, str], login: HttpLogin | None
    ) -> Response:
        if login is None:
            return await ask(fields)
        attempt = LoginAttempt(login, url.raw_host.decode("ascii"), self._phases)
        response = await attempt.answer(ask, fields, self._network)
        return replace(response, login=attempt.scheme)

    async def _exchange(
        self,
        method: str,
        url: httpx.URL,
        fields: Mapping[str, str],
        *,
        content: bytes | None,
        limit: int,
        phase: str = "first_byte",
    ) -> Response:
        made = httpx.Request(method, url, headers=fields, content=content)
        request = httpcore.Request(
            method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=made.headers.raw,
            content=content,
        )
        network = self._network
        network.begin(f"{method} {url.path} HTTP/1.1", phase)  # the query may hold a token
        try:
            answer = await self._pool.handle_async_request(request)
            try:
                self._phases.transcript.received(_status_line(answer))
                network.begin_body()
                with self._phases.phase(network.phase):
                    pass  # so that the phase exists even if the body came with the header section
                if phase == "login" and answer.status == 401:
                    limit = LOGIN_PAGE_LIMIT
                body, is_cut = await read_body(answer.aiter_stream(), limit)
            finally:
                await answer.aclose()
        except httpcore.ProxyError as error:
            with self._phases.phase("connect"):  # redacts the proxy's text, which may repeat its password
                raise ProbeFault(Reason.PROTOCOL_ERROR, f"the proxy answered: {error}") from None
        except httpcore.RemoteProtocolError as error:
            reason = Reason.CONNECTION_LOST if network.is_at_end else Reason.PROTOCOL_ERROR
            with self._phases.phase(network.phase):  # names the phase, and redacts the server's text
                raise ProbeFault(reason, shown_error(str(error))) from None
        found = httpx.Headers(answer.headers)
        return Response(
            str(url),
            answer.status,
            tuple(found.multi_items()),
            body,
            is_cut,
            network.certificate_expiry,
        )


def _proxy(url: str, phases: PhaseTimer) -> httpcore.Proxy:
    parsed = httpx.URL(url)
    if parsed.password:
        phases.transcript.redaction.add(parsed.password)
    credentials = (parsed.username, parsed.password) if parsed.userinfo else None
    return httpcore.Proxy(str(parsed.copy_with(userinfo=b"")), auth=credentials)


def _status_line(answer: httpcore.Response) -> bytes:
    said = answer.extensions
    return b"%s %d %s" % (said.get("http_version", b""), answer.status, said.get("reason_phrase", b""))


def _next_url(url: httpx.URL, location: str) -> httpx.URL:
    """Return the target of a redirect, or raise `ProbeFault` if it must not be followed."""
    try:
        found = url.join(location)
        shown = shown_url(str(found), 80)
        if found.scheme != "https":
            raise ProbeFault(Reason.REDIRECT_REFUSED, f"leads to {shown}, which is not https")
        return _parsed(str(found))
    except (httpx.InvalidURL, ValueError) as error:
        raise ProbeFault(Reason.REDIRECT_REFUSED, f"leads to {shown_url(location, 80)}: {error}") from error
