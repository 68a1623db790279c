"""Asks the tenant that a message passes where it ended, once it is overdue.

Nothing waits for the answer, and nothing that goes wrong here changes a verdict: it only adds what is known.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from probes.core.clock import Clock
from probes.core.credentials import Credentials
from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer, Verdict
from probes.delivery.message_life import Message

if TYPE_CHECKING:
    from probes.protocols.graph_tenant import GraphTenant, Traced

Found = TypeVar("Found")

MOST_TRACES = 90
"""Maximum number of traces of an entry of ``oauth2`` within `TRACE_WINDOW`; a tenant allows 100."""

TRACE_WINDOW = 300.0
"""Seconds for which a tenant counts traces."""

HEALTH_LASTS = 300.0
"""Seconds for which an answer about the tenant's health is used again."""

LAST_LOOK = 20.0
"""Seconds before a message's deadline when it is traced again, if its end was not known before."""

_TIME_LIMIT = 30.0
_CLOCKS_DIFFER = 300.0  # seconds by which our clock may be ahead of the tenant's


@dataclass(slots=True)
class Trace:
    """What a tenant says about one message, and about its own health; empty as long as nothing is known."""

    end: str = ""
    issues: tuple[str, ...] = ()

    def added_to(self, verdict: Verdict) -> Verdict:
        """Return the verdict with what is known, if the run was not ok. Its reason stays as it is."""
        if verdict.outcome is Outcome.OK:
            return verdict
        values = dict(verdict.values)
        told = [verdict.detail] if verdict.detail else []
        if self.end:
            values["message_trace"] = self.end
            told.append(f"message trace: {self.end}")
        if self.issues:
            values["service_health"] = list(self.issues)
            told.append(f"the tenant has service issues: {', '.join(self.issues)}")
        return replace(verdict, detail="; ".join(told), values=values)


class MessageTracer:
    """Traces messages with the tokens of one entry of ``oauth2``, within the tenant's limits."""

    def __init__(
        self, server: ServerSettings, credentials: Credentials, clock: Clock, *, traces: bool, health: bool
    ) -> None:
        self._server = server
        self._credentials = credentials
        self._clock = clock
        self._traces, self._health = traces, health
        self._recent: deque[float] = deque()
        self._issues: tuple[str, ...] = ()
        self._issues_at = float("-inf")

    async def watch(self, message: Message, overdue_after: float, trace: Trace) -> None:
        """Fill in ``trace`` when the message is overdue, and again shortly before its deadline if need be."""
        last = message.deadline_seconds - min(LAST_LOOK, message.deadline_seconds / 10)
        for age in (min(overdue_after, last), last):
            await self._clock.sleep(message.created_mono + age - self._clock.monotonic())
            traced = await self._look(message, trace)
            if traced is not None and traced.is_final:
                break

    async def _look(self, message: Message, trace: Trace) -> Traced | None:
        if self._health and self._clock.monotonic() - self._issues_at >= HEALTH_LASTS:
            self._issues_at = self._clock.monotonic()
            found = await self._asked(lambda tenant: tenant.issues())
            self._issues = () if isinstance(found, ProbeFault) else found
        trace.issues = self._issues
        if not self._traces:
            return None
        since, until = message.created_at - _CLOCKS_DIFFER, self._clock.time()
        answer = await self._asked(lambda tenant: tenant.traced(message.id, since, until), counts=True)
        if isinstance(answer, ProbeFault):
            trace.end = trace.end or f"not known ({answer.reason}: {answer.detail})"
            return None
        trace.end = str(answer or "the tenant has not seen the message")
        return answer

    async def _asked(
        self, ask: Callable[[GraphTenant], Awaitable[Found]], *, counts: bool = False
    ) -> Found | ProbeFault:
        """Return the answer to a request, or why there is none."""
        from probes.protocols.graph_tenant import GraphTenant  # loads httpx, which only some sites need

        tenant = GraphTenant(self._server, self._credentials, PhaseTimer(self._clock), self._clock)
        try:
            if counts:
                self._count()
            async with asyncio.timeout(_TIME_LIMIT):
                return await ask(tenant)
        except TimeoutError:
            return ProbeFault(Reason.TIMEOUT, f"no answer in {_TIME_LIMIT:g} s")
        except ProbeFault as fault:
            return fault
        finally:
            await tenant.close()

    def _count(self) -> None:
        now = self._clock.monotonic()
        while self._recent and self._recent[0] <= now - TRACE_WINDOW:
            self._recent.popleft()
        if len(self._recent) >= MOST_TRACES:
            raise ProbeFault(Reason.THROTTLED, f"{MOST_TRACES} messages were traced in {TRACE_WINDOW:g} s")
        self._recent.append(now)


@contextmanager
def traced(
    tracer: MessageTracer | None, message: Message, overdue_after: float, trace: Trace
) -> Iterator[None]:
    """Fill in ``trace`` for a message during the block, which ends without waiting for an answer."""
    watch = None
    if tracer is not None:
        watch = asyncio.create_task(tracer.watch(message, overdue_after, trace))
    try:
        yield
    finally:
        if watch is not None:
            watch.cancel()
