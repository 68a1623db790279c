"""Targets for the agent's web server, and for the history on its pages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, cast
from urllib.parse import unquote

from starlette.applications import Starlette

from monitor.collector import AgentCollector
from monitor.config.models import Configuration
from monitor.ledger.counters import Counters
from monitor.ledger.last_week import LastWeek
from monitor.ledger.recorded_run import RunReader
from monitor.ledger.store import SqlLedger
from monitor.recent import Recent
from monitor.runtime import Runtime
from monitor.web.app import web_app
from monitor.web.pages import Pages
from monitor.web.probe_endpoint import ProbeEndpoint
from monitor.web.views import Views
from tests.fakes.clock import InstantClock
from tests.fuzz.target import Target
from tests.fuzz.wire import TURN, connections

MARKUP = b"<b id=x>"
"""Text that must be escaped wherever a page shows it."""

_CONFIGURATION = {
    "agent": {"location": "here"},
    "servers": {
        "mail": {"protocol": "smtp", "host": "192.0.2.1", "tls": "none"},
        "pop": {"protocol": "pop3", "host": "192.0.2.1", "tls": "implicit"},
    },
    "probes": [
        {"name": "hq", "kind": "smtp", "server": "mail"},
        {"name": "dom", "kind": "mx", "domain": "example.com", "resolver": {"address": "192.0.2.53"}},
    ],
}


class _Ledger:
    """A ledger with only the given ``runs``."""

    token_key = b"key of the fuzzer"
    counters = Counters()

    def __init__(self) -> None:
        self.last_week = LastWeek()
        self.runs: list[dict[str, Any]] = []

    async def recent_runs(self, *_: object, **__: object) -> list[dict[str, Any]]:
        return self.runs

    async def find_run(self, *_: object) -> dict[str, Any] | None:
        return self.runs[0] if self.runs else None


@cache
def _agent() -> tuple[Starlette, Views, _Ledger]:
    """Return the web application of an agent that runs no probe by itself."""
    clock, ledger = InstantClock(), _Ledger()
    configured = Configuration.model_validate(_CONFIGURATION)
    runtime = Runtime(configured, clock, cast("SqlLedger", ledger), "me", runs_all=False)
    views = Views(runtime, Recent(clock.time()))
    collector = AgentCollector(runtime.state, lambda: ledger.counters)
    pages = Pages(views, cast("SqlLedger", ledger))
    return web_app(collector, lambda: True, pages, ProbeEndpoint(runtime), ["mx"]), views, ledger


async def _get(path: str, query: bytes = b"", headers: Mapping[bytes, bytes] = {}) -> tuple[int, bytes]:
    """Return the status and body of an answer; a defect of the application raises."""
    status, body = 0, bytearray()
    has_gone = asyncio.Event()

    async def receive() -> dict[str, object]:
        if not has_gone.is_set():
            has_gone.set()
            return {"type": "http.request", "body": b""}
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        body.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "root_path": "",
        "query_string": query,
        "headers": [(name.lower(), value) for name, value in headers.items()],
        "client": ("192.0.2.9", 1),
        "server": ("192.0.2.1", 9725),
        "state": {},
    }
    async with asyncio.timeout(120):
        await _agent()[0](scope, receive, send)
    return status, bytes(body)


def request(octets: bytes) -> None:
    """Answer a request: a path with a query, and header fields."""
    line, *fields = octets.split(b"\n")
    path, _, query = line.partition(b"?")
    headers = {
        name.strip(): value.strip()
        for name, colon, value in (each.partition(b":") for each in fields)
        if colon
    }
    _, views, ledger = _agent()
    views.recent, ledger.runs = Recent(0.0), []
    with connections([]):
        status, body = asyncio.run(_get(unquote("/" + path.decode("latin-1").lstrip("/")), query, headers))
    assert 200 <= status < 500 or status == 503, status
    assert MARKUP not in body, "markup of the request is in the page"


def history(octets: bytes) -> None:
    """Show a run of the history, from another version or broken, on every page."""
    document, _, transcript = octets.partition(TURN)
    reader = RunReader("ledger")
    runs = reader.read([(document.decode("utf-8", "replace"), transcript.decode("utf-8", "replace") or None)])
    _, views, ledger = _agent()
    views.recent, ledger.runs = Recent(0.0), runs
    for run in runs:
        views.recent.take_in(run)
        asyncio.run(_shown(str(run["probe"])))


async def _shown(probe: str) -> None:
    names = {probe} & {"hq", "dom"}
    for path in ("/", *(f"/probes/{name}" for name in names), "/probes/hq/runs/" + "0" * 32):
        for accept in (b"text/html", b"application/json"):
            status, body = await _get(path, headers={b"accept": accept})
            assert status == 200, (path, status, body)
            assert accept != b"text/html" or MARKUP not in body, f"markup of a run is in {path}"


_HOP = {"by": "a", "sender": "b", "protocol": "c", "stamped_at": 1.5, "delay_seconds": 1.5, "skewed": False}
_MESSAGE = {
    "submission_seconds": 0.5,
    "transit_seconds": 1.5,
    "delivery_seconds": 2.0,
    "uncertainty_seconds": 0.1,
}
_FINDING = {"check": "mx_missing", "severity": "critical", "subject": MARKUP.decode(), "seen": "a"}
_SHOWN = {
    "run": "0" * 32,
    "probe": "hq",
    "kind": "smtp",
    "target": "mail",
    "location": "here",
    "outcome": "failed",
    "reason": "timeout",
    "detail": MARKUP.decode(),
    "started_at": "2027-01-15T08:00:00.000000+00:00",
    "duration_seconds": 0.25,
    "phases": {"connect": 0.25},
    "values": {"hops": [_HOP], "a": [MARKUP.decode()]},
    "message": {"id": "x", "state": "delivered", **_MESSAGE},
    "findings": [_FINDING],
}
_RUN = json.dumps(_SHOWN).encode()

TARGETS = (
    Target(
        "request",
        request,
        (
            b"probe?module=hq&target=mail\nX-Prometheus-Scrape-Timeout-Seconds: 1.5",
            b"probe?module=<b id=x>\nSec-Fetch-Site: cross-site",
            b"?q=<b id=x>&wrong\nHost: localhost\nAccept: text/html",
            b"probes/hq?target=mail\nAccept: application/json",
            b"probes/hq/runs/%3Cb%20id=x%3E",
            b"events?since=1&probe=hq\nLast-Event-ID: 1\nAccept: text/event-stream",
            b"static/../pages.py\nRange: bytes=0-",
            b"metrics\nAccept: application/openmetrics-text; version=1.0.0, text/plain;version=x",
        ),
        (
            MARKUP,
            b"&",
            b"=",
            b"%3C",
            b"%00",
            b"..",
            b"/",
            b"\n",
            b"Host: ",
            b"Accept: ",
            b"Range: bytes=",
            b"Last-Event-ID: ",
        ),
        4096,
    ),
    Target(
        "history",
        history,
        (
            _RUN,
            json.dumps(_SHOWN | {"probe": "dom", "target": "example.com"}).encode(),
            _RUN + TURN + b'["   0.000 C: a"]',
        ),
        (
            b"null",
            b"{}",
            b"[]",
            b"1e999",
            b"-1",
            b'"',
            b'"unknown"',
            b"9" * 400,
            b"0.5",
            b'"ok"',
            b"\\ud800",
            MARKUP,
            TURN,
        ),
        64 * 1024,
    ),
)
