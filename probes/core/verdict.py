"""The result of a run: one reason from a closed list, findings, the duration of each phase, and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.finding import Finding
from probes.core.reasons import Outcome, Reason
from probes.core.remedies import GENERAL
from probes.core.transcript import Transcript


class MessageState(StrEnum):
    """All states of a message; the ledger has exactly one for each message."""

    INTENT = "intent"
    SENT = "sent"
    DELIVERED = "delivered"
    LATE = "late"
    LOST = "lost"
    BOUNCED = "bounced"
    REJECTED = "rejected"
    DEFERRED = "deferred"
    AMBIGUOUS = "ambiguous"


LATENCY_ALONE = frozenset({Reason.NONE, Reason.GREYLISTED})
"""Reasons of a delivery that tell nothing but its latency: junk is junk, however late it is found."""


@dataclass(frozen=True, slots=True)
class MessageReport:
    """A round trip's message in a verdict. Times are in seconds, and ``None`` if not known.

    ``delivery_seconds`` is the middle of the interval between the last poll without the message and the first
    poll with it, and ``uncertainty_seconds`` is half the width of this interval. ``held_up_seconds`` is the
    part of this interval that is our own delay.
    """

    id: str
    state: MessageState
    submission_seconds: float | None = None
    transit_seconds: float | None = None
    delivery_seconds: float | None = None
    uncertainty_seconds: float | None = None
    held_up_seconds: float = 0.0

    @property
    def is_measured(self) -> bool:
        """Whether the latency is known precisely enough to count in a histogram or objective.

        If the interval is wider than the latency itself (because the agent was down, or the mailbox could not
        be read), it only shows that the message arrived.
        """
        if self.delivery_seconds is None or self.uncertainty_seconds is None:
            return False
        return self.uncertainty_seconds <= max(1.0, self.delivery_seconds / 2)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one run found. ``phases`` are in seconds. ``values`` has numbers, texts or lists for display.

    ``findings`` lists everything that is wrong, while ``reason`` is only the worst. ``findings`` is ``None``
    if the kind has no checks, or if the run ended before it could judge: then earlier findings remain valid.
    ``remedy`` says what to do about the reason: by default what the reason in general asks for.
    """

    reason: Reason
    detail: str = ""
    broken_phase: str = ""  # the phase in which the run failed, if any
    phases: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    values: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    certificate_not_after: float | None = None  # unix seconds
    message: MessageReport | None = None
    findings: tuple[Finding, ...] | None = None
    remedy: str = ""
    throttled: int = 0  # how often a server refused something because it limits this client
    is_late: bool = False  # whether a wait for the server ended at its time limit

    def __post_init__(self) -> None:
        if not self.remedy and self.reason in GENERAL:
            object.__setattr__(self, "remedy", GENERAL[self.reason])

    @property
    def outcome(self) -> Outcome:
        """The outcome of the reason."""
        return self.reason.outcome

    @property
    def is_warning(self) -> bool:
        """Whether the run is ok but found something that needs attention."""
        return self.reason.word == "warning"


RESOLVE = "resolve"
"""The phase that looks up a host's addresses."""

MX_LOOKUP = "mx"
"""The phase that looks up a domain's MX records."""


TOKEN = "token"  # noqa: S105 # the name of a phase
"""The phase in which a run waits for an access token."""

TICKET = "ticket"
"""The phase in which a run waits for Kerberos tickets."""

TURN = "turn"
"""The phase in which a run waits for a limit of our own, such as one on open connections."""

QUEUE = "queue"
"""The phase in which a run waits until the runs before it have used the connection that they share."""


class PhaseTimer:
    """Times the named phases of a run in seconds, on the monotonic clock.

    When a run fails, ``seconds`` has all phases so far, including the failed one, and ``current`` is that
    phase's name. ``transcript`` has the dialogue. Its redaction also applies to every fault that ends a
    phase. ``held_up`` is how many seconds the event loop took, in total, to continue the run when something
    that it waited for had arrived. ``throttled`` is how often a server refused something because it limits
    this client.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}
        self.current: str | None = None
        self.transcript = Transcript(clock)
        self.held_up = 0.0
        self.throttled = 0

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager that adds the time inside to phase ``name``; not in another phase."""
        return _Phase(self, name, self._clock)

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Add the time inside to phase ``name`` instead of the phase around it, which goes on afterwards."""
        around, before = self.current, self.seconds.get(name, 0.0)
        try:
            with self.phase(name):
                yield
            self.current = around
        finally:
            if around is not None:
                self.seconds[around] = self.seconds.get(around, 0.0) - (self.seconds[name] - before)


class _Phase(AbstractContextManager[None]):
    """One part of a phase. A class, because a run uses about ten and a generator would cost more."""

    __slots__ = ("_begun", "_clock", "_name", "_timer")

    def __init__(self, timer: PhaseTimer, name: str, clock: Clock) -> None:
        self._timer, self._name, self._clock = timer, name, clock
        self._begun = 0.0

    def __enter__(self) -> None:
        self._timer.current = self._name
        self._begun = self._clock.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        seconds = self._timer.seconds
        seconds[self._name] = seconds.get(self._name, 0.0) + self._clock.monotonic() - self._begun
        if kind is None:
            self._timer.current = None
        elif isinstance(error, ProbeFault):
            self._timer.transcript.redaction.fault(error)
            self._timer.throttled += error.reason is Reason.THROTTLED


@dataclass(slots=True)
class Run:
    """One execution of a probe: its id (32 hex digits), when it began, and its phase timer.

    ``blocked`` returns a number of seconds that grows while the event loop is blocked.
    """

    id: str
    started_at: float  # unix seconds
    phases: PhaseTimer
    blocked: Callable[[], float] = lambda: 0.0
    can_stop: bool = False
    """Whether the run can be stopped now without losing anything; see `waiting`."""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark the block as only waiting, so that the agent can end the run at once when it stops."""
        self.can_stop = True
        try:
            yield
        finally:
            self.can_stop = False
