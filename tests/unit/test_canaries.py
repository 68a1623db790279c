"""Canaries for undocumented parts of libraries. A red one says what to do.

It means that a library has changed, not that your change is wrong. Cap the library below its new
version in pyproject.toml until the code is adapted.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import signal
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import httpx
import prometheus_client
import pytest
import uvicorn
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from cronsim import CronSim
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from twisted.internet.testing import StringTransport
from twisted.mail.smtp import ESMTP
from twisted.protocols.basic import LineReceiver
from uvicorn.protocols.http.h11_impl import H11Protocol

from monitor.web.serving import bind, served
from tests.fakes.certificates import certify, chain_context

ROOT = Path(__file__).parents[2]
OURS = ("monitor", "probes")

PRIVATE = {
    *("_process_jobs", "_start_timer", "_jobstores", "_jobstores_lock", "_modify"),  # APScheduler
    *("_buffer", "_to"),  # Twisted
    "_sslobj",  # Python's ssl before 3.13
}
"""The private names of libraries that monitor/ and probes/ use. Each has a canary below."""

_NOT_LIBRARIES = {*OURS, "builtins", "abc", "typing", "enum", "contextlib", "pydantic"}


def advice(library: str, what: str, where: str, remedy: str) -> str:
    """Return the message of a red canary."""
    return (
        f"{library} {version(library)} no longer {what}, but {where} relies on it. {remedy} "
        f"Until then, cap {library} below {version(library)} in pyproject.toml."
    )


@cache
def _sources() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for room in OURS for path in (ROOT / room).rglob("*.py")}


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _undefined_names() -> Iterator[str]:
    """Yield the private names that the code uses but does not define."""
    used, defined = set(), {"_value_"}  # documented by enum
    for node in (node for tree in _sources().values() for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                defined.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                defined.add(name)
            case ast.Attribute(attr=name):
                used.add(name)
            case ast.Import(names=names):
                used.update(part for each in names for part in each.name.split("."))
            case ast.ImportFrom(module=module, names=names):
                used.update((module or "").split("."), *(each.name.split(".") for each in names))
    yield from filter(_is_private, used - defined)


def _inherited_names() -> Iterator[str]:
    """Yield the private names that subclasses of library classes use or override."""
    for path, tree in _sources().items():
        if path.name == "__main__.py":
            continue
        module = importlib.import_module(
            ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        )
        for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            bases = inspect.getmro(getattr(module, node.name))
            foreign = [base for base in bases if base.__module__.split(".")[0] not in _NOT_LIBRARIES]
            names = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
            names |= {
                each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            yield from (
                name for name in names if _is_private(name) and any(name in vars(base) for base in foreign)
            )


def test_every_private_name_has_a_canary() -> None:
    """The code uses no private name of a library without a canary in this file."""
    assert {*_undefined_names(), *_inherited_names()} == PRIVATE, (
        "Use the library's documented interface. If there is none, add a canary and list the name in "
        "PRIVATE. Remove names that are no longer used."
    )


async def test_apscheduler_plans_by_process_jobs_and_start_timer() -> None:
    """APScheduler passes the wait of `_process_jobs` to `_start_timer`, and `_modify` moves a job."""
    waits: list[float | None] = []

    class Scheduler(AsyncIOScheduler):  # type: ignore[misc] # APScheduler 3 has no types
        def _process_jobs(self) -> float | None:
            waits.append(super()._process_jobs())
            return 12.0

        def _start_timer(self, wait_seconds: float | None) -> None:
            waits.append(wait_seconds)
            super()._start_timer(wait_seconds)

    scheduler = Scheduler(timezone=UTC)
    due = datetime.now(UTC) + timedelta(seconds=60)
    scheduler.add_job(waits.clear, "date", run_date=due, id="canary")
    scheduler.start()
    for _ in range(3):  # the scheduler wakes up on the loop's next turn
        await asyncio.sleep(0)
    with scheduler._jobstores_lock:
        (store,) = scheduler._jobstores.values()
        (job,) = store.get_all_jobs()
        job._modify(next_run_time=due + timedelta(hours=1))
        store.update_job(job)
    moved = scheduler.get_job("canary").next_run_time - due
    scheduler.shutdown()
    found, *timers = waits[:2]
    told = advice(
        "apscheduler",
        "plans by _process_jobs and _start_timer, with jobs in _jobstores that _modify moves",
        "_Scheduler in monitor/schedule.py",
        "Override whatever sets the timer now: it must not fire just before a run is due, "
        "and runs must keep their interval when the wall clock is set.",
    )
    assert found is not None, told
    assert 50 < found <= 60, told
    assert timers == [12.0], told
    assert moved == timedelta(hours=1), told


async def test_uvicorn_leaves_signals_alone() -> None:
    """Serving pages does not change how the process handles SIGINT and SIGTERM."""
    app, bound = Starlette(), bind("127.0.0.1", 0)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with served(app, bound), httpx.AsyncClient(trust_env=False) as client:
        await client.get("http://{}:{}/".format(*bound.getsockname()))
        during = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    bound.close()
    assert during == before, advice(
        "uvicorn",
        "installs its signal handlers in Server.capture_signals",
        "_Server in monitor/web/serving.py",
        "Find where it installs them now: SIGTERM must stop the agent in order, not only the web server.",
    )


async def test_uvicorn_shows_the_state_of_a_connection() -> None:
    """A connection of uvicorn has its peers, its transport, its loop and the state of its answer."""
    states: list[object] = []

    async def passed_on(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        states.append("passed on")
        await app(scope, receive, send)

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as there
            super().connection_made(transport)
            states.extend(
                [self in self.connections, self.transport is transport, self.cycle, type(self.loop.time())]
            )
            self.app = partial(passed_on, self.app)
            made.append(self)

    async def answer(_: object) -> PlainTextResponse:
        states.append(made[0].cycle.response_complete)
        return PlainTextResponse("hello")

    made: list[Connection] = []
    app = Starlette(routes=[Route("/", answer)])
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, log_config=None, lifespan="off"))
    server.capture_signals = _nothing  # type: ignore[method-assign] # pytest has them
    bound = bind("127.0.0.1", 0)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get("http://{}:{}/".format(*bound.getsockname()))
        states.append(made[0].cycle.response_complete)
    server.should_exit = True
    await serving
    assert states == [True, True, None, float, "passed on", False, True], advice(
        "uvicorn",
        "has connections, transport, app, loop and cycle.response_complete on H11Protocol",
        "_Connection in monitor/web/serving.py",
        "Adapt `waits` and `connection_made`: idle connections must not keep Prometheus out.",
    )
    assert all(name in vars(H11Protocol) for name in ("pause_writing", "resume_writing")), advice(
        "uvicorn",
        "handles slow clients in pause_writing and resume_writing",
        "_Connection in monitor/web/serving.py",
        "Find where it handles them now: unread answers must not use up the memory.",
    )


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")],
)
def test_prometheus_client_chooses_the_format(accept: str, content_type: str) -> None:
    """For an Accept header, prometheus_client returns an encoder and its content type."""
    encode, found = choose_encoder(accept)
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Gauge("canary", "A canary.", registry=registry).set(1)
    told = advice(
        "prometheus-client",
        "chooses a format in exposition.choose_encoder",
        "_Metrics in monitor/web/app.py",
        "Use whatever its own WSGI and ASGI applications use now.",
    )
    assert found.startswith(content_type), told
    assert b"canary 1.0" in encode(registry), told


def test_twisted_keeps_half_a_line_and_the_recipients() -> None:
    """Twisted keeps an unfinished line in `_buffer`, and an SMTP transaction's recipients in `_to`."""

    class Receiver(LineReceiver):
        def lineReceived(self, line: bytes) -> None:  # noqa: N802 # Twisted's name
            pass

    receiver, smtp = Receiver(), ESMTP()
    for protocol in (receiver, smtp):
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(b"MAIL FROM:<canary@example.com>\r\nhalf a line")
    told = advice(
        "twisted",
        "keeps an unfinished line in _buffer, and recipients in _to",
        "monitor/demo/sandbox_protocols.py",
        "Adapt it: clear text after STARTTLS must not be read as if it were encrypted, POP3 commands must "
        "stay bounded, and a message must have one recipient.",
    )
    assert (receiver._buffer, smtp._buffer) == (b"half a line", b"half a line"), told
    assert smtp._to == [], told


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="get_verified_chain is documented there")
def test_ssl_has_the_verified_chain(tmp_path: Path) -> None:
    """Before 3.13, `SSLObject._sslobj` has the verified chain, even after a failed verification."""
    root = certify("root")
    leaf = certify("localhost", root, is_ca=False)
    (tmp_path / "ca.pem").write_bytes(root.pem)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cafile=tmp_path / "ca.pem").wrap_bio(
        to_client, to_server, server_hostname="another.test"
    )
    server = chain_context(tmp_path, leaf).wrap_bio(to_server, to_client, server_side=True)
    for end in (client, server):
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError):
        client.do_handshake()
    chain = getattr(client._sslobj, "get_verified_chain", list)() or []  # type: ignore[attr-defined] # no stub has it
    assert [each.public_bytes() for each in chain] == [each.pem.decode() for each in (leaf, root)], (
        f"Python {sys.version} no longer has _sslobj.get_verified_chain on an SSLObject, but "
        "probes/protocols/tls.py relies on it. Find what has the chain now: until then only the end of "
        "a server's own certificate is known, and nothing says which one has expired."
    )


def test_cronsim_steps_by_days_and_hours() -> None:
    """Windows step over hours in their own way, and are looked at by what the library has parsed."""
    where = "monitor/config/maintenance.py"
    asked = []

    class Asked(CronSim):
        def advance_hour(self) -> bool:
            asked.append("advance")
            return super().advance_hour()

        def reverse_hour(self) -> bool:
            asked.append("reverse")
            return super().reverse_hour()

    day = datetime(2026, 1, 1, tzinfo=UTC)
    forwards, backwards = Asked("30 2 * 1 *", day), Asked("30 2 * 1 *", day, reverse=True)
    next(forwards)
    next(backwards)
    parsed = (forwards.minutes, forwards.hours, forwards.months, forwards.match_day(day.date()))
    remedy = "See how it steps now, and adapt `_Times` and `_periods`."
    assert set(asked) == {"advance", "reverse"}, advice("cronsim", "steps by hours", where, remedy)
    assert parsed == ({30}, {2}, {1}, True), advice("cronsim", "shows what it parsed", where, remedy)
