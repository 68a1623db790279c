"""The agent's runs: each result is passed on to state, ledger, pages, log and observers."""

from __future__ import annotations

import asyncio
import logging

from monitor.load import Load
from monitor.recent import Recent
from monitor.runner import Result
from monitor.runtime import Runtime
from probes.core.clock import Clock
from probes.core.probe import Probe
from probes.core.reasons import Reason
from probes.core.trouble_log import TroubleLog

RESULTS_KEPT = 100
"""Maximum results that wait for an observer, each with its transcript; there may be no observer."""

_log = logging.getLogger("mailsonde.agent")


class Runs:
    """Runs probes for the agent. ``results`` has the newest results, for observers."""

    def __init__(self, runtime: Runtime, recent: Recent, load: Load, clock: Clock) -> None:
        self.results: asyncio.Queue[Result] = asyncio.Queue(maxsize=RESULTS_KEPT)
        self._runtime = runtime
        self._recent = recent
        self._load = load
        self._clock = clock

    async def run(self, probe: Probe) -> None:
        """Run a probe now, whatever the load."""
        try:
            await self._runtime.run(probe, self._take_in)
        except asyncio.CancelledError:
            return  # the agent is stopping; the scheduler would log it as an error
        if probe.sub_probes:  # only their targets come and go
            self._recent.keep_only(probe.settings.name, probe.targets)

    async def run_if_admitted(self, probe: Probe) -> None:
        """Run a probe, or its successor if a reload has just replaced it, unless the load forbids it."""
        current = self._runtime.assembly.probes.get(probe.settings.name)
        if current is not None and self._load.admits(current):
            await self.run(current)

    def _take_in(self, result: Result) -> None:
        state = self._runtime.state
        state.ran(
            result.probe,
            result.target,
            result.verdict,
            ended_at=self._clock.time(),
            duration=result.duration_seconds,
        )
        told = result.with_transcript()
        self._runtime.ledger.record_run(told)
        if (result.probe, result.target) in state.probes:  # a reload may have removed it during the run
            self._recent.take_in(told)
        self._log_run(result)
        if self.results.full():
            self.results.get_nowait()
        self.results.put_nowait(result)

    def _log_run(self, result: Result) -> None:
        """Log each run for debugging, and otherwise when a route's trouble begins, changes and ends."""
        verdict = result.verdict
        told = f"{verdict.outcome}/{verdict.reason} {verdict.detail}"
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s: %s", result.probe, told, extra={"run": result.as_object()})
        route = self._runtime.state.probes.get((result.probe, result.target))
        if route is None:
            return
        if verdict.reason is not Reason.NONE:
            route.trouble = route.trouble or TroubleLog(
                _log, f"{result.probe} at {result.target}", self._clock
            )
            route.trouble.failed(verdict.reason, told, extra={"run": result.as_object()})
        elif route.trouble is not None:
            route.trouble.works()
            route.trouble = None
