"""The HTTP client with correct, slow, hostile and dead servers."""

from __future__ import annotations

import asyncio
import ssl
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols.http_network import MOST_SMALL_CHUNKS
from probes.protocols.https import HttpClient, Response
from probes.protocols.line_transport import Resolve
from tests.fakes.held_connections import all_connections_in_use
from tests.fakes.scripted_server import (
    Peer,
    Script,
    ScriptedServer,
    on_each_loop,
    scripted_server,
    server_context,
)
from tests.real_servers.dovecot import TlsFiles

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def head_of(peer: Peer) -> list[bytes]:
    """Read a request up to the end of its header section."""
    lines = [await peer.expect(rb"\S+ \S+ HTTP/1\.1")]
    while line := await peer.expect(rb".*"):
        lines.append(line)
    return lines


def answering(*answers: bytes, close: bool = False, context: ssl.SSLContext | None = None) -> Script:
    """Return a script that answers each request with the next of ``answers``."""

    async def script(peer: Peer) -> None:
        if context is not None:
            await peer.start_tls(context)
        for answer in answers:
            await head_of(peer)
            await peer.chunks(answer)
        if close:
            await peer.close()

    return script


def redirect(where: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Elsewhere\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode()


def resolving_to(*ports: int) -> Resolve:
    """Return a resolver that finds every host here, at each of ``ports`` in turn."""

    async def resolve(host: str, port: int, seconds: float) -> list[tuple[str, int]]:
        return [("127.0.0.1", port) for port in ports]

    return resolve


async def fetched(url: str, phases: PhaseTimer | None = None, **options: Any) -> Response:
    """Send one GET request."""
    of_request = {name: options.pop(name) for name in ("limit", "redirects", "headers") if name in options}
    options.setdefault("seconds", 5.0)
    async with HttpClient(phases or PhaseTimer(SystemClock()), **options) as client:
        return await client.request("GET", url, **of_request)


async def answer_to(script: Script, **options: Any) -> Response:
    """Send one unencrypted GET request to a scripted server."""
    async with scripted_server(script) as server:
        return await fetched(f"http://127.0.0.1:{server.port}/", **options)


async def fault_of(awaitable: Awaitable[object]) -> ProbeFault:
    with pytest.raises(ProbeFault) as caught:
        await awaitable
    return caught.value


@on_each_loop
async def test_answer_in_clear() -> None:
    """Status, header fields and body are as sent, and each wait has its phase."""
    answer = (
        b"HTTP/1.1 404 Nope\r\nA: b\r\nWWW-Authenticate: NTLM\r\nwww-authenticate: Basic\r\n\r\n\xffhello"
    )
    phases = PhaseTimer(SystemClock())
    got = await answer_to(answering(answer, close=True), phases=phases)
    assert (got.status, got.body, got.is_cut, got.is_success) == (404, b"\xffhello", False, False)
    assert (got.header("a"), got.header("absent", "x")) == ("b", "x")
    assert got.header_lines("WWW-Authenticate") == ["NTLM", "Basic"]
    assert got.certificate_not_after is None
    assert set(phases.seconds) == {"connect", "first_byte", "body"}


@on_each_loop
async def test_another_address_than_the_hosts(
    certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """A request can go to a different address, with the host's name in SNI, certificate and Host."""
    not_after = datetime.now(UTC).replace(microsecond=0) + timedelta(days=40)
    context = server_context(certificate_authority, "mail.example.com", not_after=not_after)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    phases = PhaseTimer(SystemClock())
    async with scripted_server(answering(HELLO, context=context)) as server:
        got = await fetched(
            "https://mail.example.com/x?y=z",
            phases,
            ca=server_tls.authority,
            resolve=resolving_to(server.port),
        )
    assert (got.host, got.body, names) == ("mail.example.com", b"hello", ["mail.example.com"])
    assert got.certificate_not_after == not_after.timestamp()
    assert server.received[0] == b"GET /x?y=z HTTP/1.1"
    assert b"Host: mail.example.com" in server.received
    assert b"accept-encoding: identity" in server.received
    assert set(phases.seconds) == {"resolve", "connect", "tls", "first_byte", "body"}


async def test_another_name_in_the_certificate(
    certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """If a different certificate name is given, that name is verified."""
    context = server_context(certificate_authority, "inside.example.com")
    async with scripted_server(answering(HELLO, context=context)) as server:
        url = f"https://127.0.0.1:{server.port}/"
        got = await fetched(url, ca=server_tls.authority, tls_name="inside.example.com")
    assert got.body == b"hello"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("other authority", Reason.CERTIFICATE_UNTRUSTED),
        ("other name", Reason.CERTIFICATE_NAME),
        ("expired", Reason.CERTIFICATE_EXPIRED),
        ("in clear", Reason.TLS_HANDSHAKE),
    ],
)
async def test_tls_that_is_not_trusted(
    kind: str, reason: Reason, certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """A server that cannot prove its name gets no request; the reasons are the same as for mail."""
    authority = trustme.CA() if kind == "other authority" else certificate_authority
    name = "other.example.com" if kind == "other name" else "127.0.0.1"
    not_after = datetime.now(UTC) - timedelta(days=1) if kind == "expired" else None
    context = server_context(authority, name, not_after=not_after)

    async def in_clear(peer: Peer) -> None:
        await peer.send(b"220 mail.example.com ESMTP")

    async with scripted_server(in_clear if kind == "in clear" else answering(context=context)) as server:
        fault = await fault_of(fetched(f"https://127.0.0.1:{server.port}/", ca=server_tls.authority))
        await server.peer_closed()
    assert fault.reason is reason
    assert server.received == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", Reason.CONNECTION_LOST),
        (b"HTTP/1.1 200 OK\r\nContent-Le", Reason.CONNECTION_LOST),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", Reason.CONNECTION_LOST),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", Reason.CONNECTION_LOST),
        (b"220 mail.example.com ESMTP\r\n\r\n", Reason.PROTOCOL_ERROR),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n", Reason.PROTOCOL_ERROR),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", Reason.PROTOCOL_ERROR),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 10**6, Reason.RESPONSE_TOO_LARGE),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10**4, Reason.RESPONSE_TOO_LARGE),
    ],
)
async def test_answer_that_is_none(answer: bytes, reason: Reason) -> None:
    """A truncated answer and one that is not HTTP have different faults, with the phase."""
    phases = PhaseTimer(SystemClock())
    fault = await fault_of(answer_to(answering(answer, close=True), phases=phases))
    assert fault.reason is reason
    assert phases.current in {"first_byte", "body"}


async def test_next_address() -> None:
    """If one address refuses the connection, the next is tried; if none is left, this is reported."""
    async with scripted_server(answering(HELLO)) as server:
        got = await fetched("http://mail.example.com/", resolve=resolving_to(1, server.port))
    assert got.body == b"hello"
    fault = await fault_of(fetched("http://mail.example.com/", resolve=resolving_to(1)))
    assert (fault.reason, fault.detail) == (
        Reason.CONNECT_REFUSED,
        "127.0.0.1 port 1: Connection refused",
    )


Stage = Callable[[Peer], Awaitable[None]]


async def silent(peer: Peer) -> None:
    """Answer nothing, not even a TLS handshake."""


async def after_request(peer: Peer) -> None:
    await head_of(peer)


async def after_head(peer: Peer) -> None:
    await head_of(peer)
    await peer.chunks(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")


async def with_hints(peer: Peer) -> None:
    await head_of(peer)
    while True:
        await peer.chunks(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0.01)


each_stage = pytest.mark.parametrize(
    ("scheme", "script", "phase", "reason"),
    [
        ("https", silent, "tls", Reason.TLS_HANDSHAKE),
        ("http", after_request, "first_byte", Reason.COMMAND_TIMEOUT),
        ("http", with_hints, "first_byte", Reason.COMMAND_TIMEOUT),
        ("http", after_head, "body", Reason.COMMAND_TIMEOUT),
    ],
)


@each_stage
@on_each_loop
async def test_one_limit_over_all(scheme: str, script: Stage, phase: str, reason: Reason) -> None:
    """Silence or an endless answer at any step ends at the time limit, and closes the connection."""
    phases = PhaseTimer(SystemClock())
    async with scripted_server(script) as server:
        fault = await fault_of(fetched(f"{scheme}://127.0.0.1:{server.port}/", phases, seconds=0.2))
        await server.peer_closed()
    assert (fault.reason, fault.detail, phases.current) == (reason, "no answer within 0.2 s", phase)


async def test_no_connection_of_our_own_is_free() -> None:
    """A request that waits for our own limit says nothing about the server."""
    phases = PhaseTimer(SystemClock())
    async with all_connections_in_use("127.0.0.1", 9):
        fault = await fault_of(fetched("http://127.0.0.1:9/", phases, seconds=0.1))
    assert (fault.reason, phases.current) == (Reason.LOCAL_RESOURCES, "turn")


async def test_names_that_are_never_found() -> None:
    """A resolver that does not answer is reported, within the same limit."""

    async def resolve(host: str, port: int, seconds: float) -> list[tuple[str, int]]:
        return await asyncio.Future[list[tuple[str, int]]]()

    fault = await fault_of(fetched("http://mail.example.com/", seconds=0.1, resolve=resolve))
    assert fault.reason is Reason.DNS_TIMEOUT


@each_stage
@on_each_loop
async def test_cancelled_request(scheme: str, script: Stage, phase: str, reason: Reason) -> None:
    """A cancelled request leaves no connection open at any step."""
    phases = PhaseTimer(SystemClock())
    async with scripted_server(script) as server:
        task = asyncio.create_task(fetched(f"{scheme}://127.0.0.1:{server.port}/", phases))
        while phases.current != phase:  # noqa: ASYNC110 # phases tell nobody when they begin
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await server.peer_closed()
    assert task.cancelled()


async def test_redirects_unless_asked_for() -> None:
    """By default a client follows no redirect, and reports it as such."""
    for where in ("https://elsewhere.example.com/", "javascript:x", "http://a:99999999/"):
        got = await answer_to(answering(redirect(where)))
        assert (got.status, got.is_redirect, got.header("location")) == (302, True, where)
    assert not (await answer_to(answering(HELLO))).is_redirect


async def follow(
    server: ScriptedServer, server_tls: TlsFiles, url: str = "https://a.test/", **options: Any
) -> Response:
    """Fetch from ``server`` under any name, following up to two redirects."""
    return await fetched(
        url, ca=server_tls.authority, resolve=resolving_to(server.port), redirects=2, **options
    )


@pytest.fixture
def context(certificate_authority: trustme.CA) -> ssl.SSLContext:
    return server_context(certificate_authority, "a.test", "b.test")


async def test_redirect_that_is_followed(context: ssl.SSLContext, server_tls: TlsFiles) -> None:
    """The answer has its final URL, and credentials are sent only to their own host."""
    answers = iter([redirect("/next"), redirect("https://b.test/last", 307), HELLO])

    async def script(peer: Peer) -> None:
        await peer.start_tls(context)
        while True:
            await head_of(peer)
            await peer.chunks(next(answers))

    async with scripted_server(script) as server:
        got = await follow(server, server_tls, headers={"Authorization": "Bearer x", "Accept": "text/plain"})
        asked = b"\n".join(server.received).split(b"\n\n")
    assert (got.url, got.body, server.connections) == ("https://b.test/last", b"hello", 2)
    assert [b"Bearer" in head for head in asked[:3]] == [True, True, False]
    assert b"accept: text/plain" in asked[2]


@pytest.mark.parametrize(
    ("where", "reason", "why"),
    [
        ("https://a.test/", Reason.REDIRECT_LOOP, "leads back to https://a.test/"),
        ("http://b.test/", Reason.REDIRECT_REFUSED, "leads to http://b.test/, which is not https"),
        ("//b.test:0/", Reason.REDIRECT_REFUSED, "its port from 1 to 65535"),
        ("https://b..test/", Reason.REDIRECT_REFUSED, "its host must be a host name"),
        ("https://\x7f/", Reason.REDIRECT_REFUSED, "leads to https://"),
    ],
)
async def test_redirect_that_ends_there(
    where: str, reason: Reason, why: str, context: ssl.SSLContext, server_tls: TlsFiles
) -> None:
    """Redirects in a circle, away from https or nowhere are the server's fault."""
    async with scripted_server(answering(*[redirect(where)] * 4, context=context)) as server:
        fault = await fault_of(follow(server, server_tls))
    assert fault.reason is reason
    assert why in fault.detail


@pytest.mark.parametrize(("limit", "body", "is_cut"), [(5, b"hello", False), (4, b"hell", True)])
async def test_body_limit(limit: int, body: bytes, is_cut: bool) -> None:
    """A body within the limit is complete; of a longer one, exactly the limit is kept."""
    got = await answer_to(answering(HELLO), limit=limit)
    assert (got.body, got.is_cut) == (body, is_cut)


async def test_endless_body() -> None:
    """Of an endless body, little more than the limit is read, and the connection is closed."""

    async def script(peer: Peer) -> None:
        await head_of(peer)
        await peer.chunks(b"HTTP/1.1 200 OK\r\n\r\n")
        await peer.flood(b"x" * 65536)

    async with scripted_server(script) as server:
        got = await fetched(f"http://127.0.0.1:{server.port}/", limit=1000)
        await server.peer_closed()
    assert (len(got.body), got.is_cut) == (1000, True)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\n" + b"a:b\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n" + b"a:b\r\n" * 10_000 + b"\r\n",
    ],
    ids=["chunks", "header fields", "header fields after hints"],
)
async def test_answer_in_tiny_pieces(answer: bytes) -> None:
    """An answer in more pieces than any server needs is given up, and other tasks run meanwhile."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(others())
    fault = await fault_of(answer_to(answering(answer)))
    beside.cancel()
    assert fault.reason is Reason.RESPONSE_TOO_LARGE
    assert turns > MOST_SMALL_CHUNKS / 100 if b"chunked" in answer else turns > 1


async def test_a_body_of_many_short_lines() -> None:
    """Lines and chunks of a body count only if they are far too many."""
    lines = b"\r\n" * 5000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(lines)
    assert (await answer_to(answering(head + lines))).body == lines
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (size, b"x" * size) for size in range(1, 300))
    assert len((await answer_to(answering(chunked + chunks + b"0\r\n\r\n"))).body) == 299 * 150


async def test_malformed_field_is_told_without_its_value() -> None:
    """A malformed header field is named, without what it holds."""
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: session=0123456789\x00\r\n\r\n"
    fault = await fault_of(answer_to(answering(answer)))
    assert fault.reason is Reason.PROTOCOL_ERROR
    assert "Set-Cookie" in fault.detail
    assert "0123456789" not in "".join(traceback.format_exception(fault)) + fault.detail


async def test_nothing_is_decompressed() -> None:
    """A compressed body that was not requested is kept as it is and marked."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: GZIP\r\nContent-Length: 3\r\n\r\nabc"
    got = await answer_to(answering(answer))
    assert (got.body, got.is_encoded) == (b"abc", True)
    assert not (await answer_to(answering(HELLO))).is_encoded


async def test_requests_share_a_connection() -> None:
    """Requests share one connection, and use a new one after the server closes it."""
    scripts = iter([answering(HELLO, HELLO, close=True), answering(HELLO)])

    async def script(peer: Peer) -> None:
        await next(scripts)(peer)

    async with (
        scripted_server(script) as server,
        HttpClient(PhaseTimer(SystemClock()), seconds=5) as client,
    ):
        url = f"http://127.0.0.1:{server.port}/"
        counts = []
        for _ in range(3):
            assert (await client.request("POST", url, content=b"")).body == b"hello"
            counts.append(server.connections)
            if len(counts) == 2:
                await server.peer_closed()
                for _turn in range(10):  # lets the client's end notice it
                    await asyncio.sleep(0)
    assert counts == [1, 1, 2]


async def test_transcript_shows_no_secret() -> None:
    """A transcript shows request and answer without query, header fields and bodies."""
    phases = PhaseTimer(SystemClock())
    phases.transcript.redaction.add("s3cret-token")
    answer = b"HTTP/1.1 401 no s3cret-token\r\nContent-Length: 12\r\n\r\ns3cret-token"
    async with scripted_server(answering(answer)) as server:
        url = f"http://127.0.0.1:{server.port}/x?t=s3cret-token"
        await fetched(url, phases, headers={"Authorization": "s3cret-token"})
    told = [line.partition(": ")[2] for line in phases.transcript.lines()]
    assert told[1:] == ["GET /x HTTP/1.1", "(withheld)"]
    assert "s3cret" not in str(phases.transcript.lines())


@pytest.mark.parametrize(
    "url", ["ftp://a.test/", "a.test", "https:///x", "https://u:p@a.test/", "https://a.test:0/", "http://[/"]
)
async def test_url_that_leads_nowhere(url: str) -> None:
    """An impossible URL is the caller's mistake, reported before anything is sent."""
    with pytest.raises(ValueError, match="must be"):
        await fetched(url)
