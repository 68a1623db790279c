"""``/probe``: runs a configured probe on Prometheus' request, as blackbox_exporter does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from math import ceil, inf

from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from monitor.collector import AgentCollector
from monitor.ledger.counters import Counters
from monitor.runner import LATE, Result
from monitor.runtime import Runtime
from monitor.state import AgentState
from monitor.textfile import one_shot_text
from probes.core.probe import Probe
from probes.core.reasons import Outcome, Reason
from probes.delivery.message_probe import MessageProbe

MOST_AT_ONCE = 10
"""Maximum concurrent runs; further clients must retry, so that a flood cannot delay scheduled probes."""

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 5.0
"""Bounds of the pause after a run, in seconds. The pause is a quarter of the probe's interval."""

MOST_HANGING = MOST_AT_ONCE // 2
"""Maximum concurrent runs of probes whose latest run here timed out, so that these do not keep others out."""

OFFSET = 0.5
"""Seconds between the end of a run and Prometheus' timeout, so that the answer arrives in time."""

_TIMEOUTS = LATE | {Reason.DNS_TIMEOUT, Reason.LOCAL_RESOURCES}

_SECONDS = re.compile(r"[0-9]{1,5}(\.[0-9]{1,9})?")


class ProbeEndpoint:
    """Runs probes that send no messages, apart from the schedule and each at most once at a time.

    In the pause after a run, all requests for the same probe get the same answer. So nobody can make the
    agent log in again and again, and two Prometheus servers can request the same probes.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._running: set[tuple[str, str]] = set()  # by probe and target
        self._hanging: set[tuple[str, str]] = set()  # those whose latest run timed out
        self._kept: dict[tuple[str, str], tuple[float, Response]] = {}  # until when (monotonic seconds)

    def routes(self) -> Sequence[Route]:
        """Return the routes for the application."""
        return [Route("/probe", self.probe)]

    async def probe(self, request: Request) -> Response:
        """Run the probe that ``module`` and ``target`` select, and answer in Prometheus' text format.

        ``module`` is a probe's name or kind, ``target`` its server or domain. If the run says nothing about
        the mail system, the answer is 503: the scrape fails, and no outage is reported.
        """
        if request.headers.get("sec-fetch-site") == "cross-site":
            return PlainTextResponse("pages of other sites may not run probes\n", 403)
        fitting = self._fitting(
            request.query_params.get("module", ""), request.query_params.get("target", "")
        )
        if len(fitting) != 1:
            return PlainTextResponse(self._what_there_is(fitting), 400)
        (probe,) = fitting
        key = probe.settings.name, probe.target
        if key in self._kept and self._runtime.clock.monotonic() < self._kept[key][0]:
            return self._kept[key][1]
        if busy := self._busy(key):
            return _again(busy, 1)
        self._running.add(key)
        try:
            return await self._run(probe, _limit(request))
        finally:
            self._running.discard(key)

    def _busy(self, key: tuple[str, str]) -> str:
        """Return why this probe cannot run now; empty if it can."""
        if key in self._running:
            return f"{key[0]} is running"
        if len(self._running) >= MOST_AT_ONCE:
            return f"{MOST_AT_ONCE} probes are running"
        if key in self._hanging and len(self._running & self._hanging) >= MOST_HANGING:
            return f"{MOST_HANGING} probes that timed out before are running"
        return ""

    async def _run(self, probe: Probe, limit: float) -> Response:
        """Run ``probe`` within ``limit`` seconds; return the answer and keep it for the pause."""
        result = await self._runtime.runner.run(probe, limit=limit)
        verdict, clock, settings = result.verdict, self._runtime.clock, probe.settings
        pause = min(max(settings.interval / 4, SHORTEST_PAUSE), LONGEST_PAUSE)
        answer: Response
        if verdict.outcome is Outcome.UNKNOWN:
            nothing = f"nothing can be said of the mail system: {verdict.reason}: {verdict.detail}"
            answer = _again(nothing, pause)
        else:
            answer = Response(_metrics(probe, result, clock.time()), media_type=CONTENT_TYPE_LATEST)
        cut_short = verdict.reason is Reason.TIMEOUT and limit < settings.run_limit
        for_others = _again("another client's timeout cut the last run short", pause) if cut_short else answer
        if verdict.reason in _TIMEOUTS:
            self._hanging.add((settings.name, probe.target))
        else:
            self._hanging.discard((settings.name, probe.target))
        self._kept[settings.name, probe.target] = clock.monotonic() + pause, for_others
        return answer

    @property
    def _probes(self) -> list[Probe]:
        probes = self._runtime.assembly.probes.values()
        own = [probe for probe in probes if not isinstance(probe, MessageProbe)]
        return list(chain.from_iterable((probe, *probe.siblings) for probe in own))

    def _fitting(self, module: str, target: str) -> list[Probe]:
        if not module and not target:
            return []
        return [
            probe
            for probe in self._probes
            if module in {"", probe.settings.name, probe.settings.kind} and target in {"", probe.target}
        ]

    def _what_there_is(self, fitting: Sequence[Probe]) -> str:
        """Return an error that lists the choices, without quoting the request."""
        wrong = "more than one probe matches" if fitting else "no configured probe matches"
        lines = [
            f"{wrong}; module is a probe's name or kind, target its server or domain. There are:",
            *(
                f"  module={probe.settings.name} (or {probe.settings.kind}), target={probe.target}"
                for probe in fitting or self._probes
            ),
        ]
        if not self._probes:
            lines.append("  none: round trips send messages and run only on the agent's schedule")
        return "\n".join(lines) + "\n"


def _again(why: str, seconds: float) -> Response:
    """Return an error that asks the client to retry after that many seconds."""
    return PlainTextResponse(f"{why}; try again\n", 503, {"retry-after": str(ceil(seconds))})


def _limit(request: Request) -> float:
    """Return the time limit of a run in seconds, from the scrape timeout that Prometheus sends."""
    said = request.headers.get("x-prometheus-scrape-timeout-seconds", "")
    return max(0.1, float(said) - OFFSET) if _SECONDS.fullmatch(said) else inf


class _Blackbox(Collector):
    """The two metrics that rules and dashboards for blackbox_exporter use."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def collect(self) -> Iterator[Metric]:
        is_ok = self._result.verdict.outcome is Outcome.OK
        yield GaugeMetricFamily("probe_success", "1 if the run was ok, else 0.", float(is_ok))
        yield GaugeMetricFamily(
            "probe_duration_seconds", "Duration of the run.", self._result.duration_seconds
        )


def _metrics(probe: Probe, result: Result, now: float) -> bytes:
    """Return the metrics of one run, from a state with nothing else in it."""
    state = AgentState(location=probe.context.site.location)
    state.add(probe, now)
    state.ran(result.probe, result.target, result.verdict, ended_at=now, duration=result.duration_seconds)
    text = one_shot_text(AgentCollector(state, Counters), {result.probe})
    return generate_latest(_Blackbox(result)) + text
