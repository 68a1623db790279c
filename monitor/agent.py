"""The agent: resumes open messages, runs the probes, serves metrics, and shuts down cleanly."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from monitor.collector import AgentCollector
from monitor.config.exposure import exposure
from monitor.config.models import AgentSettings, Configuration
from monitor.housekeeping import housekeeping
from monitor.ledger.store import AGENT
from monitor.load import Load
from monitor.recent import POINTS_KEPT, Recent
from monitor.reloading import Reloader, Source
from monitor.runner import Result
from monitor.runs import Runs
from monitor.runtime import Runtime, open_runtime
from monitor.schedule import Schedule
from monitor.self_watch import SelfWatch
from monitor.state import AgentState
from monitor.web.access import WebConfigError, WebConfigInForce, served_to_the_admitted
from monitor.web.app import web_app
from monitor.web.pages import Pages
from monitor.web.probe_endpoint import ProbeEndpoint
from monitor.web.serving import bind
from monitor.web.views import Views
from probes.core.clock import Clock, SystemClock
from probes.core.probe import Probe
from probes.delivery.message_life import LedgerError

if TYPE_CHECKING:
    from monitor.otlp import OtlpExporter

GRACE = 4.0
"""Seconds for runs in the middle of a dialogue to finish when the agent stops."""

RUNS_RECALLED = 5000
"""Maximum runs of an earlier agent that the pages show at start, beyond one per route."""

SWITCH_INTERVAL = 0.001
"""Seconds until a computing thread, such as one that renders metrics, lets the event loop continue.

While the metrics of thousands of probes are rendered, every step of a probe takes this much longer.
"""

GARBAGE = 10_000
"""New objects between garbage collections: a few megabytes, and tens of runs."""

_log = logging.getLogger("mailsonde.agent")


@dataclass(frozen=True, slots=True)
class Agent:
    """A running agent: its address, and its parts for inspection."""

    address: str
    runtime: Runtime
    recent: Recent
    results: asyncio.Queue[Result]
    run: Callable[[Probe], Awaitable[None]]
    """Runs a probe now, as the schedule does, whatever the load."""
    schedule: Schedule
    reloader: Reloader | None
    """Reads the configuration again, if it is from a file."""


class StartError(Exception):
    """The agent cannot start; the text says why and what to do."""


@asynccontextmanager
async def running_agent(
    configuration: Configuration, clock: Clock | None = None, source: Source | None = None
) -> AsyncIterator[Agent]:
    """Run the agent during the block; then stop everything within 10 s, with every message accounted for.

    With a ``source`` of the configuration, it can be reloaded. Raises `StartError`.
    """
    clock = clock or SystemClock()
    host, port = configuration.agent.listen
    try:
        bound = bind(host, port)
    except OSError as error:
        raise StartError(
            f"cannot listen on {host}:{port}: {error.strerror}; "
            "change agent.listen, or stop the process that uses the port"
        ) from error
    try:
        async with (
            open_runtime(configuration, clock, AGENT) as runtime,
            _at_work(configuration, runtime, bound, clock, source) as agent,
        ):
            yield agent
    except LedgerError as error:
        raise StartError(str(error)) from error
    finally:
        bound.close()


@asynccontextmanager
async def _at_work(
    configuration: Configuration,
    runtime: Runtime,
    bound: socket.socket,
    clock: Clock,
    source: Source | None,
) -> AsyncIterator[Agent]:
    settings = configuration.agent
    web_config = _web_config(settings, runtime.state)
    runtime.ledger.lock_for_agent()
    open_messages = await runtime.ledger.adopt()
    started_at = clock.time()
    runtime.assembly.resume(open_messages)
    recent = await _recalled(runtime, clock)
    load = Load(runtime.state, clock, runtime.runner.blocked, lambda: runtime.ledger.wait)
    runs = Runs(runtime, recent, load, clock)
    schedule = Schedule(runs.run_if_admitted, runtime.state, clock)
    runtime.state.configured_at = clock.time()
    reloader = None if source is None else Reloader(source, runtime, recent, schedule, clock)
    is_ready = False
    collector = _collector(runtime, clock)
    exporter = _exporter(settings, collector, clock)

    def notices() -> list[str]:
        return _notices(settings, web_config, runtime.state)

    pages = Pages(Views(runtime, recent), runtime.ledger, notices)
    reload = reloader.reload if reloader is not None and "http" in settings.reload else None
    app = web_app(collector, lambda: is_ready, pages, ProbeEndpoint(runtime), _host_names(settings), reload)
    async with (
        served_to_the_admitted(app, bound, web_config),
        housekeeping(runtime, load, exporter, clock, started_at),
    ):
        if reloader is not None and "watch" in settings.reload:
            reloader.watch_files()
        _tune_interpreter()
        schedule.start(probe for probe in runtime.assembly.probes.values() if probe.settings.scheduled)
        is_ready = True
        address = _address(bound, web_config)
        probes, resumed = len(runtime.assembly.probes), len(open_messages)
        _log.info(
            "agent started: live page at %s, %d probes, %d open messages resumed", address, probes, resumed
        )
        for notice in notices():
            _log.warning("%s", notice)
        try:
            yield Agent(address, runtime, recent, runs.results, runs.run, schedule, reloader)
        finally:
            is_ready = False
            if reloader is not None:
                await reloader.stop()
            schedule.stop()
            await runtime.runner.stop(GRACE)
            _log.info("agent stopped")


def _collector(runtime: Runtime, clock: Clock) -> AgentCollector:
    ledger = runtime.ledger
    return AgentCollector(
        runtime.state,
        lambda: ledger.counters,
        runtime.overdue_after,
        lambda: runtime.assembly.tokens,
        clock.time,
        SelfWatch(runtime.runner.loop_lag, ledger.commits, lambda: ledger.wait, lambda: ledger.runs_dropped),
    )


def _address(bound: socket.socket, web_config: WebConfigInForce | None) -> str:
    """Return the URL of the live page."""
    scheme = "https" if web_config and web_config.current().tls_server_config else "http"
    return "{}://{}:{}".format(scheme, *bound.getsockname()[:2])


def _web_config(settings: AgentSettings, state: AgentState) -> WebConfigInForce | None:
    """Return the web configuration, if configured. Raises `StartError`."""
    if settings.web_config is None:
        return None
    try:
        return WebConfigInForce(settings.web_config, state)
    except WebConfigError as error:
        raise StartError(str(error)) from error


def _notices(settings: AgentSettings, web_config: WebConfigInForce | None, state: AgentState) -> list[str]:
    """Return what people should know about the access to the pages."""
    found = [exposure(settings, web_config.current() if web_config is not None else None)]
    if state.web_config_is_valid is False:
        found.append("The web configuration is not valid, so the previous one stays in force; see the log")
    return [notice for notice in found if notice]


def _host_names(settings: AgentSettings) -> set[str]:
    """Return the names under which the live page opens."""
    names = {settings.listen[0], socket.gethostname(), *settings.hosts}
    if settings.url is not None:
        names.add(str(urlsplit(settings.url).hostname))
    return names


def _tune_interpreter() -> None:
    """Stop scanning the objects made so far for garbage, and let threads give way to the event loop soon.

    These objects live as long as the agent. To scan them would take a tenth of a probe's processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)
    sys.setswitchinterval(SWITCH_INTERVAL)


async def _recalled(runtime: Runtime, clock: Clock) -> Recent:
    """Return the newest runs of each route by an earlier agent, for the pages to show at start."""
    recent = Recent(clock.time())
    try:
        newest = await runtime.ledger.newest_runs(runtime.assembly.probes.keys(), POINTS_KEPT, RUNS_RECALLED)
    except LedgerError as error:  # the history is only for display
        _log.warning("the pages begin without the runs of an earlier agent: %s", error)
        return recent
    for earlier in newest:
        recent.take_in(earlier)
    return recent


def _exporter(settings: AgentSettings, collector: AgentCollector, clock: Clock) -> OtlpExporter | None:
    """Return the OTLP exporter, if configured. Raises `StartError`."""
    if settings.otlp is None:
        return None
    try:
        from monitor.otlp import OtlpExporter
    except ImportError as error:  # an extra, because most sites do not need it
        raise StartError(
            f"agent.otlp needs the package {error.name}; run: pip install 'mailsonde[otlp]'"
        ) from error
    instance = {"service.instance.id": f"{settings.location}/{socket.gethostname()}"}
    return OtlpExporter(settings.otlp, collector, clock, {**instance, "location": settings.location})
