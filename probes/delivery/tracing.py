"""Asks the tenant that a message passes where it ended, once it is overdue.

Nothing waits for the answer, and nothing that goes wrong here changes a verdict: it only adds what is known.
A message is asked for at most twice, also across restarts: each look is in the ledger before it begins.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from probes.core.clock import Clock
from probes.core.credentials import Credentials
from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer, Verdict
from probes.delivery.arrivals import Settled, shift_of
from probes.delivery.message_life import Ledger, LedgerError, Message
from probes.delivery.succession import Succession

if TYPE_CHECKING:
    from probes.protocols.graph_tenant import GraphTenant

Found = TypeVar("Found")

MOST_TRACES = 90
"""Maximum number of traces of an entry of ``oauth2`` within `TRACE_WINDOW`; a tenant allows 100."""

TRACE_WINDOW = 300.0
"""Seconds for which a tenant counts traces."""

HEALTH_LASTS = 300.0
"""Seconds for which an answer about the tenant's health is used again."""

LAST_LOOK = 20.0
"""Seconds before a message's deadline when it is traced again, if its end was not known before."""

LOOKS = 2
"""Maximum number of times that one message is asked for: when it is overdue, and before its deadline."""

EARLIER_TRACED = 20
"""Maximum number of messages of a probe that earlier processes lost and a start of the agent traces."""

OLDEST = 9 * 86400.0
"""Age in seconds beyond which a message is not asked for: a tenant shows traces of the last 10 days."""

_log = logging.getLogger(__name__)

_TIME_LIMIT = 30.0
_CLOCKS_DIFFER = 300.0  # seconds by which our clock may be ahead of the tenant's


@dataclass(slots=True)
class Trace:
    """What a tenant says about one message, and about its own health; empty as long as nothing is known."""

    end: str = ""
    issues: tuple[str, ...] = ()
    looks: int = 0  # how often the tenant was asked; `LOOKS` if the end is known

    @property
    def told(self) -> str:
        """All that is known, as parts of a sentence."""
        parts = [f"message trace: {self.end}"] if self.end else []
        if self.issues:
            parts.append(f"the tenant has service issues: {', '.join(self.issues)}")
        return "; ".join(parts)

    def added_to(self, verdict: Verdict) -> Verdict:
        """Return the verdict with what is known, if the run was not ok. Its reason stays as it is."""
        if verdict.outcome is Outcome.OK:
            return verdict
        values = dict(verdict.values)
        if self.end:
            values["message_trace"] = self.end
        if self.issues:
            values["service_health"] = list(self.issues)
        detail = "; ".join(part for part in (verdict.detail, self.told) if part)
        return replace(verdict, detail=detail, values=values)


class TraceObserver(Protocol):
    """Receives what a tenant says about messages."""

    def traced(self, message: Message, trace: Trace) -> None:
        """Record what is known now about a message."""
        ...


@dataclass(slots=True)
class _Watch:
    """A message that is not settled, and the task that traces it."""

    message: Message
    overdue_after: float
    settled: asyncio.Future[Settled]
    trace: Trace
    task: asyncio.Task[None]


class MessageTracer:
    """Traces messages with the tokens of one entry of ``oauth2``, within the tenant's limits."""

    def __init__(
        self,
        server: ServerSettings,
        credentials: Credentials,
        clock: Clock,
        ledger: Ledger,
        observer: TraceObserver,
        *,
        traces: bool,
        health: bool,
    ) -> None:
        self.server = server
        self._credentials = credentials
        self._clock = clock
        self._ledger = ledger
        self._observer = observer
        self._traces, self._health = traces, health
        self._recent: deque[float] = deque()
        self._issues: tuple[str, ...] = ()
        self._issues_at = float("-inf")
        self._watches: dict[str, _Watch] = {}
        self._earlier: set[asyncio.Task[None]] = set()
        self._succession = Succession(self)

    def follow(
        self, message: Message, overdue_after: float, settled: asyncio.Future[Settled], trace: Trace
    ) -> None:
        """Fill in ``trace`` once ``message`` is overdue, until it is ``settled``."""
        if (latest := self._succession.latest) is not self:
            latest.follow(message, overdue_after, settled, trace)
            return
        if trace.end:
            self._observer.traced(message, trace)
        if not settled.done():
            task = asyncio.create_task(self.watch(message, overdue_after, trace))
            self._watches[message.id] = _Watch(message, overdue_after, settled, trace, task)
            settled.add_done_callback(lambda _: self._drop(message.id))

    def follow_lost(self, messages: Sequence[Message]) -> None:
        """Trace the newest of ``messages``, which earlier processes found lost and have not traced."""
        newest = sorted(messages, key=lambda message: message.created_at)[-EARLIER_TRACED:]
        wanted = [message for message in newest if not message.trace_looks]
        if wanted and self._traces:
            task = asyncio.create_task(self._look_at(wanted))
            self._earlier.add(task)
            task.add_done_callback(self._earlier.discard)

    async def _look_at(self, messages: Sequence[Message]) -> None:
        for message in messages:
            await self._look(message, Trace(looks=LOOKS - 1))

    def _drop(self, message_id: str) -> None:
        if (watch := self._watches.pop(message_id, None)) is not None:
            watch.task.cancel()

    def take_over(self, earlier: MessageTracer) -> None:
        """Trace what ``earlier``, which is closed, would have traced. It counts towards the same limits."""
        self._succession = earlier._succession
        self._succession.latest = self
        self._recent = earlier._recent
        for watch in list(earlier._watches.values()):
            watch.task.cancel()
            self.follow(watch.message, watch.overdue_after, watch.settled, watch.trace)
        earlier._watches.clear()

    def stop(self) -> list[asyncio.Task[None]]:
        """Stop tracing, and return the tasks that end now. What was asked is in the ledger."""
        tasks = [*(watch.task for watch in self._watches.values()), *self._earlier]
        for task in tasks:
            task.cancel()
        return tasks

    async def close(self) -> None:
        """Stop tracing, and wait until nothing is being asked."""
        if tasks := self.stop():
            await asyncio.wait(tasks)

    async def refusals(self) -> dict[str, ProbeFault | None]:
        """Ask the tenant once for all that the entry may read; return why each is refused, if it is."""
        found: dict[str, object] = {}
        if self._traces:
            now = self._clock.time()
            none = secrets.token_hex(16)
            found["trace"] = await self._asked(lambda tenant: tenant.traced(none, now - 60.0, now))
        if self._health:
            found["health"] = await self._asked(lambda tenant: tenant.issues())
        return {name: told if isinstance(told, ProbeFault) else None for name, told in found.items()}

    async def watch(self, message: Message, overdue_after: float, trace: Trace) -> None:
        """Fill in ``trace`` when the message is overdue, and again shortly before its deadline if need be."""
        last = message.deadline_seconds - min(LAST_LOOK, message.deadline_seconds / 10)
        created = message.created_mono + shift_of(message, self._clock)
        now = self._clock.monotonic()
        ages = (min(overdue_after, last), last)
        missed = sum(created + age < now for age in ages)  # while no process watched: one look makes up
        for age in ages[max(trace.looks, missed - 1) :]:
            await self._clock.sleep(max(0.0, created + age - self._clock.monotonic()))
            await self._look(message, trace)
            if trace.looks >= LOOKS:
                break

    async def _look(self, message: Message, trace: Trace) -> None:
        if self._health and self._clock.monotonic() - self._issues_at >= HEALTH_LASTS:
            self._issues_at = self._clock.monotonic()
            found = await self._asked(lambda tenant: tenant.issues())
            self._issues = () if isinstance(found, ProbeFault) else found
        trace.issues = self._issues
        if self._traces and self._clock.time() - message.created_at < OLDEST:
            await self._trace(message, trace)
        if trace.told:
            self._observer.traced(message, trace)

    async def _trace(self, message: Message, trace: Trace) -> None:
        """Ask where the message ended, if that can be recorded."""
        since, until = message.created_at - _CLOCKS_DIFFER, self._clock.time()
        if not self._may_ask():
            told = f"{MOST_TRACES} messages were traced in {TRACE_WINDOW:g} s"
            trace.end = trace.end or f"not known ({Reason.THROTTLED}: {told})"
            return
        try:
            await self._ledger.note_trace(message.id, trace.looks + 1, trace.end)  # first, so never twice
            trace.looks += 1
            answer = await self._asked(lambda tenant: tenant.traced(message.id, since, until))
            if isinstance(answer, ProbeFault):
                trace.end = trace.end or f"not known ({answer.reason}: {answer.detail})"
            else:
                trace.end = str(answer or "the tenant has not seen the message")
                trace.looks = LOOKS if answer is not None and answer.is_final else trace.looks
            await self._ledger.note_trace(message.id, trace.looks, trace.end)
        except LedgerError as error:
            _log.warning("message %s is not traced: %s", message.id, error)
            trace.looks = LOOKS

    async def _asked(self, ask: Callable[[GraphTenant], Awaitable[Found]]) -> Found | ProbeFault:
        """Return the answer to a request, or why there is none."""
        from probes.protocols.graph_tenant import GraphTenant  # loads httpx, which only some sites need

        tenant = GraphTenant(self.server, self._credentials, PhaseTimer(self._clock), self._clock)
        try:
            async with asyncio.timeout(_TIME_LIMIT):
                return await ask(tenant)
        except TimeoutError:
            return ProbeFault(Reason.TIMEOUT, f"no answer in {_TIME_LIMIT:g} s")
        except ProbeFault as fault:
            return fault
        finally:
            await tenant.close()

    def _may_ask(self) -> bool:
        """Count one more trace, if the limit allows it."""
        now = self._clock.monotonic()
        while self._recent and self._recent[0] <= now - TRACE_WINDOW:
            self._recent.popleft()
        if len(self._recent) >= MOST_TRACES:
            return False
        self._recent.append(now)
        return True
