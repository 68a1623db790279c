"""``/probe``: one run of a configured probe when Prometheus asks for it, as blackbox_exporter has it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from monitor.assembly import Assembly
from monitor.collector import AgentCollector
from monitor.ledger.tally import Tally
from monitor.runner import Result
from monitor.state import AgentState
from monitor.textfile import one_shot_text
from probes.probe import Probe
from probes.reasons import Outcome

MOST_AT_ONCE = 10
"""Runs at once; who asks for more is told to try again, so that no flood holds up the scheduled probes."""

OFFSET = 0.5
"""Seconds that a run ends before Prometheus gives up, so that the answer still arrives."""

_SECONDS = re.compile(r"\d{1,5}(\.\d{1,9})?")


class ProbeEndpoint:
    """Runs the probes that send no message, each at most once at a time, and apart from the schedule."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._probes = [probe for probe in assembly.probes.values() if probe.mailbox is None]
        self._running: set[str] = set()

    def routes(self) -> Sequence[Route]:
        """Return what the application is to answer."""
        return [Route("/probe", self.probe)]

    async def probe(self, request: Request) -> Response:
        """Run the one probe that ``module`` and ``target`` name, and answer in Prometheus's text format.

        ``module`` is a probe's name or a kind, ``target`` the server or domain that the probe is about. A run
        that tells nothing of the mail system is answered 503: the scrape fails, and no outage is told.
        """
        fitting = self._fitting(
            request.query_params.get("module", ""), request.query_params.get("target", "")
        )
        if len(fitting) != 1:
            return PlainTextResponse(self._what_there_is(fitting), 400)
        (probe,) = fitting
        name = probe.settings.name
        if name in self._running or len(self._running) >= MOST_AT_ONCE:
            busy = f"{name} is running" if name in self._running else f"{MOST_AT_ONCE} probes are running"
            return PlainTextResponse(f"{busy}; try again\n", 503, {"retry-after": "1"})
        self._running.add(name)
        try:
            result = await self._assembly.runner.run(probe, limit=_limit(request))
        finally:
            self._running.discard(name)
        if result.verdict.outcome is Outcome.UNKNOWN:
            text = (
                f"nothing can be said of the mail system: {result.verdict.reason}: {result.verdict.detail}\n"
            )
            return PlainTextResponse(text, 503)
        return Response(_metrics(probe, result, self._assembly.clock.time()), media_type=CONTENT_TYPE_LATEST)

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


def _limit(request: Request) -> float:
    """Return the seconds that a run may take by what Prometheus says of its own patience."""
    said = request.headers.get("x-prometheus-scrape-timeout-seconds", "")
    return max(0.1, float(said) - OFFSET) if _SECONDS.fullmatch(said) else float("inf")


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
    text = one_shot_text(AgentCollector(state, Tally), {result.probe})
    return generate_latest(_Blackbox(result)) + text
