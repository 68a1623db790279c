"""Runs a probe once: enforces its deadline and turns every outcome into a result."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf
from typing import Any

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.finding import reported
from probes.core.histogram import LAG_BUCKETS, Histogram
from probes.core.probe import Probe
from probes.core.reasons import Outcome, Reason
from probes.core.transcript import Transcript
from probes.core.verdict import (
    LATENCY_ALONE,
    MX_LOOKUP,
    QUEUE,
    RESOLVE,
    TICKET,
    TOKEN,
    TURN,
    MessageState,
    PhaseTimer,
    Run,
    Verdict,
)

BEAT = 0.1
"""Seconds between checks of the event loop's delay while runs are in progress."""

HELD_UP_SHARE = 0.25
"""Share of a run's time. If the event loop was blocked or the run waited for its turn for longer, a timeout
says nothing about mail."""

LATE = frozenset({Reason.TIMEOUT, Reason.CONNECT_TIMEOUT, Reason.COMMAND_TIMEOUT})
"""Reasons of a run in which something took too long."""

_NOT_OF_MAIL = {
    RESOLVE: Reason.DNS_TIMEOUT,
    MX_LOOKUP: Reason.DNS_TIMEOUT,
    TOKEN: Reason.TOKEN_UNAVAILABLE,
    TICKET: Reason.TICKET_UNAVAILABLE,
    TURN: Reason.LOCAL_RESOURCES,
    QUEUE: Reason.LOCAL_RESOURCES,
}
"""The reason of a timeout in phases that do not involve the mail system yet."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run, as shown by `check`, the ledger's history and the logs."""

    run: str  # its id, 32 hex digits
    probe: str
    kind: str
    target: str
    location: str
    verdict: Verdict
    started_at: float  # unix seconds
    duration_seconds: float
    transcript: Transcript

    def as_object(self) -> dict[str, Any]:
        """Return the object for ``check --format json``."""
        verdict = self.verdict
        shown: dict[str, Any] = {
            "probe": self.probe,
            "kind": self.kind,
            "target": self.target,
            "location": self.location,
            "outcome": str(verdict.outcome),
            "reason": str(verdict.reason),
            "detail": verdict.detail,
            "started_at": datetime.fromtimestamp(self.started_at, UTC).isoformat(timespec="microseconds"),
            "duration_seconds": round(self.duration_seconds, 6),
            "phases": {name: round(seconds, 6) for name, seconds in verdict.phases.items()},
            "values": dict(verdict.values),
        }
        if verdict.remedy:
            shown["remedy"] = verdict.remedy
        if verdict.findings is not None:
            shown["findings"] = [finding.as_object() for finding in verdict.findings]
        if verdict.message is not None:
            values = ((name, getattr(verdict.message, name)) for name in verdict.message.__slots__)
            shown["message"] = {
                name: round(value, 6) if isinstance(value, float) else value for name, value in values
            }
        return shown

    def with_transcript(self) -> dict[str, Any]:
        """Return the same object with the run's id and transcript, for the ledger's history."""
        return {"run": self.run, **self.as_object(), "transcript": self.transcript.lines()}


class Runner:
    """Runs probes, each within its time limit, and turns every outcome into a result."""

    def __init__(self, clock: Clock, location: str) -> None:
        self._clock = clock
        self._location = location
        self._running: dict[asyncio.Task[Any], tuple[Probe, Run]] = {}
        self._beat_due = inf  # monotonic seconds
        self.loop_lag = Histogram(LAG_BUCKETS)
        """How late the beats were."""

    async def run(self, probe: Probe, limit: float = inf) -> Result:
        """Run ``probe`` once, within its own limit and ``limit`` seconds.

        A `ProbeFault` ends with its own outcome, any other exception ``unknown``. A timeout is also
        ``unknown`` if the event loop was blocked, or the run waited for its turn, for more than
        `HELD_UP_SHARE` of the run's time, without the time that it waited for other runs.
        """
        run = Run(secrets.token_hex(16), self._clock.time(), PhaseTimer(self._clock), self.blocked)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 # a coroutine that runs is in a task
        self._running[task] = probe, run
        if self._beat_due == inf:
            self._beat()
        begun, held_up = self._clock.monotonic(), self.blocked()
        try:
            verdict = await self._verdict(probe, run, min(limit, probe.settings.run_limit))
        finally:
            del self._running[task]
        duration, held_up = self._clock.monotonic() - begun, self.blocked() - held_up
        # A message's deadline begins after the wait for a turn.
        waited = 0.0 if verdict.reason is Reason.MESSAGE_LOST else run.phases.seconds.get(TURN, 0.0)
        own_time = duration - run.phases.seconds.get(QUEUE, 0.0)
        if _depends_on_time(verdict) and held_up + waited > HELD_UP_SHARE * own_time:
            cause = (
                f"this machine was too busy to continue it for {held_up:.2g} s"
                if held_up > waited
                else f"it had to wait {waited:.2g} s for its turn"
            )
            detail = "; ".join(filter(None, [verdict.detail, cause]))
            verdict = replace(verdict, reason=Reason.LOCAL_RESOURCES, detail=detail, remedy="")
        redaction = run.phases.transcript.redaction
        return Result(
            run=run.id,
            probe=probe.settings.name,
            kind=probe.settings.kind,
            target=probe.target,
            location=self._location,
            verdict=replace(
                verdict,
                phases=dict(run.phases.seconds),
                broken_phase=run.phases.current or "",
                throttled=run.phases.throttled,
                detail=redaction.text(verdict.detail),
                values=redaction.values(verdict.values),
                findings=None if verdict.findings is None else reported(verdict.findings, redaction),
            ),
            started_at=run.started_at,
            duration_seconds=duration,
            transcript=run.phases.transcript,
        )

    async def _verdict(self, probe: Probe, run: Run, limit: float) -> Verdict:
        try:
            async with asyncio.timeout(limit):
                return await probe.run(run)
        except ProbeFault as fault:
            codes = {"reply_code": fault.reply_code, "enhanced_status_code": fault.enhanced_status_code}
            return Verdict(
                fault.reason,
                _placed(run, fault.detail),
                values=codes if fault.reply_code else {},
                remedy=fault.remedy,
                is_late=isinstance(fault.__cause__, TimeoutError),
            )
        except TimeoutError:
            reason = _NOT_OF_MAIL.get(run.phases.current or "", Reason.TIMEOUT)
            for phase in (RESOLVE, TOKEN, TICKET):
                if reason is Reason.TIMEOUT and run.phases.seconds.get(phase, 0.0) > limit / 2:
                    reason = _NOT_OF_MAIL[phase]  # this left the server too little time
            return Verdict(reason, _placed(run, f"not done after {limit:g} s"))
        except Exception as error:
            _log.exception("defect in probe %s", probe.settings.name)
            return Verdict(Reason.INTERNAL, f"{type(error).__name__}; the log has the traceback")

    def _beat(self) -> None:
        """Record how late this call is, and repeat while runs are in progress."""
        if self._beat_due < inf:
            self.loop_lag.observe(max(0.0, self._clock.monotonic() - self._beat_due))
        self._beat_due = inf
        if self._running:
            self._beat_due = self._clock.monotonic() + BEAT
            asyncio.get_running_loop().call_later(BEAT, self._beat)

    def blocked(self) -> float:
        """Return the total delay of all beats in seconds, including the one that is due.

        It only grows. A late deadline reveals only the last moment of a run; the beats cover all of it.
        """
        return self.loop_lag.sum + max(0.0, self._clock.monotonic() - self._beat_due)

    def cancel(self, is_pointless: Callable[[Probe], bool]) -> None:
        """Cancel the runs of probes whose result would say nothing any more."""
        for task, (probe, _) in list(self._running.items()):
            if is_pointless(probe):
                task.cancel()

    async def stop(self, grace: float) -> None:
        """End all runs: those that can stop at once, the others after ``grace`` seconds."""
        for task, (_, run) in list(self._running.items()):
            if run.can_stop:
                task.cancel()
        busy = set(self._running)
        if busy:
            _, late = await asyncio.wait(busy, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.wait(busy, timeout=2.0)


def _depends_on_time(verdict: Verdict) -> bool:
    """Whether the run says only that something took too long, or not even how long it took."""
    if (message := verdict.message) is not None and message.state is MessageState.DELIVERED:
        return verdict.reason in LATENCY_ALONE and not message.is_measured
    if verdict.is_late and verdict.outcome is Outcome.FAILED:
        return True
    return verdict.reason in LATE or verdict.reason is Reason.MESSAGE_LOST


def _placed(run: Run, detail: str) -> str:
    """Return ``detail`` with the phase of the run."""
    phase = run.phases.current
    return f"in phase {phase}: {detail}" if phase else detail
