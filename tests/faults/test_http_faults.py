"""Every fault of a web server: an export, a search for servers or a probe fails, and nothing else.

All use bounded time and memory, close their sockets, and do not affect a healthy probe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from prometheus_client.registry import Collector

from monitor import otlp
from monitor.config.models import OtlpSettings
from monitor.init import web
from monitor.init.discovery import Discovery, Source
from monitor.init.web import Web
from monitor.otlp import OtlpExporter
from monitor.runner import Runner
from probes.autodiscover import Autodiscover
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.probe import Probe
from probes.core.reasons import Outcome, Reason
from probes.core.settings import Site
from probes.exchange import Exchange
from probes.http import Http
from probes.protocols.dns import Resolver
from tests.fakes.black_hole import black_hole
from tests.fakes.dns_server import dns_server, zone
from tests.fakes.scripted_server import Peer, Script, scripted_server, server_context
from tests.faults.misdeeds import Misdeed, breaks_off, close, drip, flood, reset, says, silence
from tests.faults.running import (
    PATIENCE,
    beside_a_healthy_run,
    bounded_memory,
    closed,
    open_files,
    refusing,
    undisturbed,
)

SILENT = 1.0
"""Seconds that a request may take in front of a server that never answers it whole."""

OK = b"HTTP/1.1 200 OK\r\n"


@dataclass(frozen=True)
class HttpFault:
    """What a web server does with a request, and whether an export then counts as received."""

    name: str
    commit: Misdeed
    is_received: bool = False
    limit: float = PATIENCE


FAULTS = [
    HttpFault("close", close),
    HttpFault("reset", reset),
    HttpFault("silence", silence, limit=SILENT),
    HttpFault("one octet at a time", drip, limit=SILENT),
    HttpFault("close within the header section", breaks_off(OK + b"Content-Le")),
    HttpFault("a header section without end", flood(b"X-Field: x\r\n" * 4096, OK)),
    HttpFault("a header line without end", flood(b"x" * 65536, OK + b"X-Field: ")),
    HttpFault("a status line without end", flood(b"x" * 65536, b"HTTP/1.1 200 ")),
    HttpFault("interim answers without end", flood(b"HTTP/1.1 100 Continue\r\n\r\n" * 1024)),
    HttpFault("a body without end", flood(b"x" * 65536, OK + b"\r\n"), is_received=True),
    HttpFault(
        "a body of 100 MB", flood(b"x" * 65536, OK + b"Content-Length: 100000000\r\n\r\n"), is_received=True
    ),
    HttpFault(
        "chunks without end",
        flood(b"1000\r\n" + b"x" * 4096 + b"\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
        is_received=True,
    ),
    HttpFault("a length beyond the body", breaks_off(OK + b"Content-Length: 100\r\n\r\nshort")),
    HttpFault("a length that is no number", says(OK + b"Content-Length: many\r\n")),
    HttpFault("a negative length", says(OK + b"Content-Length: -1\r\n")),
    HttpFault("two lengths", says(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n")),
    HttpFault("no chunk", says(OK + b"Transfer-Encoding: chunked\r\n\r\nwhat?")),
    HttpFault("close within a chunk", breaks_off(OK + b"Transfer-Encoding: chunked\r\n\r\n100\r\nx")),
    HttpFault("NUL in a header", says(OK + b"X-Field: a\0b\r\n")),
    HttpFault("another protocol", says(b"220 mx.example.test ESMTP"), limit=SILENT),
    HttpFault("another version", says(b"HTTP/9.9 200 OK\r\n"), limit=SILENT),
    HttpFault("an error", breaks_off(b"HTTP/1.1 500 Oh no\r\nContent-Length: 0\r\n\r\n")),
    HttpFault("a status of no class", breaks_off(b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n")),
    HttpFault(
        "a redirect in a circle",
        breaks_off(b"HTTP/1.1 302 Found\r\nLocation: https://example.test/\r\nContent-Length: 0\r\n\r\n"),
    ),
    HttpFault(
        "a redirect to nowhere",
        breaks_off(b"HTTP/1.1 302 Found\r\nLocation: file:///x\r\nContent-Length: 0\r\n\r\n"),
    ),
]
HANDSHAKES: dict[str, Misdeed] = {
    "a close for a handshake": close,
    "silence for a handshake": silence,
    "no TLS": says(b"HTTP/1.1 400 Speak in clear"),
}
NO_CONNECTION: dict[str, Callable[[], AbstractContextManager[int]]] = {
    "refused": refusing,
    "black hole": black_hole,
}
KINDS = ("OTLP export", "init", "http", "exchange", "autodiscover")


@pytest.fixture
def authority(certificate_authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    certificate_authority.cert_pem.write_to_path(str(path))
    return path


class Nothing(Collector):
    """Collects no metrics."""

    def collect(self) -> list[object]:
        return []


async def export(port: int, authority: Path, limit: float) -> bool:
    """Export once; return whether the receiver's answer counts as received."""
    settings = OtlpSettings(endpoint=f"https://127.0.0.1:{port}/v1/metrics", interval="60s")
    settings = settings.model_copy(update={"tls_ca": authority})
    exporter = OtlpExporter(settings, Nothing(), SystemClock(), {})
    await exporter.export()
    return not exporter._failing


async def search(port: int, authority: Path, limit: float = PATIENCE) -> bool:
    """Search for a domain's servers, with correct SRV records; return whether its pages gave any."""
    names = ("example.test.", "autoconfig.example.test.", "autodiscover.example.test.")
    srv = "_imaps._tcp.example.test. 60 IN SRV 0 1 993 imap.example.test."
    async with dns_server(zone(*(f"{name} 60 IN A 127.0.0.1" for name in names), srv)) as dns:
        resolver = Resolver(dns.settings())
        discovery = Discovery("a@example.test", resolver, Web(resolver, authority, port))
        told: list[Source] = []
        sources = {source.name: source for source in await discovery.sources(told.append)}
    assert [endpoint.host for endpoint in sources["SRV records"].endpoints] == ["imap.example.test"]
    assert all(source.said for source in told)
    return any(source.endpoints for name, source in sources.items() if " at " in name)


async def http(port: int, authority: Path, limit: float) -> bool:
    """Run an ``http`` probe; return whether the answer is as expected."""
    return await _is_ok(Http, authority, limit, kind="http", url=f"https://127.0.0.1:{port}/")


async def exchange(port: int, authority: Path, limit: float) -> bool:
    """Run an ``exchange`` probe; return whether the health page is the healthy one."""
    nodes = {"ex1": {"address": "127.0.0.1"}}
    return await _is_ok(
        Exchange, authority, limit, kind="exchange", host="127.0.0.1", port=port, nodes=nodes, smtp_port=0
    )


async def autodiscover(port: int, authority: Path, limit: float) -> bool:
    """Run an ``autodiscover`` probe; return whether the only host that exists answers as it should."""
    async with dns_server(zone("autodiscover.example.test. 60 IN A 127.0.0.1")) as dns:
        return await _is_ok(
            Autodiscover,
            authority,
            limit,
            kind="autodiscover",
            email="a@example.test",
            port=port,
            http_port=0,
            resolver={"address": "127.0.0.1", "port": dns.port},
        )


async def _is_ok(probe: type[Probe], authority: Path, limit: float, **written: object) -> bool:
    """Run a probe once within its deadline; its reason is one of its kind, and no fault of ours."""
    written |= {"name": "web", "deadline": f"{limit}s", "tls_ca": str(authority)}
    made = probe.settings_model.model_validate(written)
    result = await Runner(SystemClock(), "here").run(
        probe(made, Context(SystemClock(), Site("here", {}, {})))
    )
    assert result.verdict.reason.area in probe.areas
    assert result.verdict.reason is not Reason.INTERNAL
    assert result.duration_seconds < limit + PATIENCE
    return result.verdict.outcome is Outcome.OK


WORK = {
    "OTLP export": export,
    "init": search,
    "http": http,
    "exchange": exchange,
    "autodiscover": autodiscover,
}


async def received(
    kind: str,
    port: int,
    authority: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: float,
    *,
    is_endless: bool = False,
) -> bool:
    """Do the work with a web server, and check its promises; return the result."""
    monkeypatch.setattr(otlp, "EXPORT_SECONDS", limit)
    monkeypatch.setattr(web, "PAGE_SECONDS", limit)
    begun = asyncio.get_running_loop().time()
    with bounded_memory() if is_endless else nullcontext():
        is_received, beside = await beside_a_healthy_run(WORK[kind](port, authority, limit))
    requests = 2 if kind == "init" else 1  # one after the other
    assert asyncio.get_running_loop().time() - begun < requests * limit + PATIENCE
    undisturbed(beside)
    return is_received


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_in_the_answer(
    kind: str,
    fault: HttpFault,
    certificate_authority: trustme.CA,
    authority: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Any answer of a web server loses only that answer, and costs some time and little memory."""
    context = server_context(certificate_authority, "127.0.0.1", "*.example.test", "example.test")

    async def script(peer: Peer) -> None:
        await peer.start_tls(context)
        await peer.octets()
        await fault.commit(peer)

    before = open_files()
    async with scripted_server(script) as server:
        is_endless = "without end" in fault.name
        is_received = await received(
            kind, server.port, authority, monkeypatch, fault.limit, is_endless=is_endless
        )
    await closed(before)
    assert is_received is (fault.is_received and kind in {"OTLP export", "http"})
    assert server.connections
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("handshake", [*HANDSHAKES])
async def test_a_handshake_that_fails(
    kind: str, handshake: str, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TLS, no request is sent."""
    commit: Script = HANDSHAKES[handshake]
    before = open_files()
    async with scripted_server(commit) as server:
        assert not await received(
            kind, server.port, authority, monkeypatch, SILENT if "silence" in handshake else PATIENCE
        )
    await closed(before)
    assert server.received == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_certificate_that_is_not_trusted(
    kind: str, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unverified server gets no request."""
    context = server_context(trustme.CA(), "127.0.0.1", "*.example.test", "example.test")
    asked: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.start_tls(context)
        asked.append(await peer.octets())

    before = open_files()
    async with scripted_server(script) as server:
        assert not await received(kind, server.port, authority, monkeypatch, PATIENCE)
    await closed(before)
    assert not any(asked)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [*NO_CONNECTION])
async def test_no_connection(kind: str, fault: str, authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection, nothing else is affected."""
    with NO_CONNECTION[fault]() as port:
        before = open_files()
        assert not await received(kind, port, authority, monkeypatch, SILENT)
        await closed(before)
