"""``/probe``: one run of a configured probe when Prometheus asks for it, as blackbox_exporter has it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
from monitor.runner import Result
from monitor.runtime import Runtime
from monitor.state import AgentState
from monitor.textfile import one_shot_text
from probes.core.probe import Probe
from probes.core.reasons import Outcome, Reason
from probes.delivery.message_probe import MessageProbe

MOST_AT_ONCE = 10
"""Runs at once; who asks for more is told to try again, so that no flood holds up the scheduled probes."""

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 5.0
"""Bounds in seconds of the pause after a run: a quarter of the probe's interval, within these."""

OFFSET = 0.5
"""Seconds that a run ends before Prometheus gives up, so that the answer still arrives."""

_SECONDS = re.compile(r"\d{1,5}(\.\d{1,9})?")


class ProbeEndpoint:
    """Runs the probes that send no message, each at most once at a time, and apart from the schedule.

    In the pause after a run whoever asks for the same probe gets the same answer, so that nobody can
    make the agent log in again and again, and two Prometheus servers may ask for the same probes.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._running: set[str] = set()
        self._kept: dict[str, tuple[float, Response]] = {}  # until when (monotonic seconds), by probe

    def routes(self) -> Sequence[Route]:
        """Return what the application is to answer."""
        return [Route("/probe", self.probe)]

    async def probe(self, request: Request) -> Response:
        """Run the one probe that ``module`` and ``target`` name, and answer in Prometheus's text format.

        ``module`` is a probe's name or a kind, ``target`` the server or domain that the probe is about. A run
        that tells nothing of the mail system is answered 503: the scrape fails, and no outage is told.
        """
        if request.headers.get("sec-fetch-site") == "cross-site":
            return PlainTextResponse("no page of another site may run probes\n", 403)
        fitting = self._fitting(
            request.query_params.get("module", ""), request.query_params.get("target", "")
        )
        if len(fitting) != 1:
            return PlainTextResponse(self._what_there_is(fitting), 400)
        (probe,) = fitting
        name = probe.settings.name
        if name in self._kept and self._runtime.clock.monotonic() < self._kept[name][0]:
            return self._kept[name][1]
        if name in self._running or len(self._running) >= MOST_AT_ONCE:
            busy = f"{name} is running" if name in self._running else f"{MOST_AT_ONCE} probes are running"
            return _again(busy, 1)
        self._running.add(name)
        try:
            return await self._run(probe, _limit(request))
        finally:
            self._running.discard(name)

    async def _run(self, probe: Probe, limit: float) -> Response:
        """Run ``probe`` within ``limit`` seconds, and return the answer, which is kept for the pause."""
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
        for_others = _again("another's patience cut the last run short", pause) if cut_short else answer
        self._kept[settings.name] = clock.monotonic() + pause, for_others
        return answer

    @property
    def _probes(self) -> list[Probe]:
        probes = self._runtime.assembly.probes.values()
        return [probe for probe in probes if not isinstance(probe, MessageProbe)]

    def _fitting(self, module: str, target: str) -> list[Probe]:
        if not module and not target:
            return []
        return [
            probe
            for probe in self._probes
            if module in {"", probe.settings.name, probe.settings.kind} and target in {"", probe.target}
        ]

    def _what_there_is(self, fitting: Sequence[Probe]) -> str:
        """Return a refusal that tells what could be asked for; nothing of the question is repeated."""
        wrong = "more than one probe fits" if fitting else "no configured probe fits"
        lines = [
            f"{wrong}; module is a probe's name or kind, target its server or domain. There are:",
            *(
                f"  module={probe.settings.name} (or {probe.settings.kind}), target={probe.target}"
                for probe in fitting or self._probes
            ),
        ]
        if not self._probes:
            lines.append("  none: round trips send messages, and run on the agent's schedule alone")
        return "\n".join(lines) + "\n"


def _again(why: str, seconds: float) -> Response:
    """Return a refusal that asks to come again after so many seconds."""
    return PlainTextResponse(f"{why}; try again\n", 503, {"retry-after": str(ceil(seconds))})


def _limit(request: Request) -> float:
    """Return the seconds that a run may take by what Prometheus says of its own patience."""
    said = request.headers.get("x-prometheus-scrape-timeout-seconds", "")
    return max(0.1, float(said) - OFFSET) if _SECONDS.fullmatch(said) else inf


class _Blackbox(Collector):
    """The two metrics that rules and dashboards for blackbox_exporter ask for."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def collect(self) -> Iterator[Metric]:
        is_ok = self._result.verdict.outcome is Outcome.OK
        yield GaugeMetricFamily("probe_success", "1 if the run was ok, else 0.", float(is_ok))
        yield GaugeMetricFamily(
            "probe_duration_seconds", "How long the run took.", self._result.duration_seconds
        )


def _metrics(probe: Probe, result: Result, now: float) -> bytes:
    """Return the metrics of one run, from a state that knows nothing else."""
    state = AgentState()
    state.add(probe, now)
    state.ran(result.probe, result.target, result.verdict, ended_at=now, duration=result.duration_seconds)
    text = one_shot_text(AgentCollector(state, Counters), {result.probe})
    return generate_latest(_Blackbox(result)) + text
