"""What a run found: one reason from a closed list, the time each phase took, and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from probes.clock import Clock
from probes.message_life import MessageState
from probes.reasons import Outcome, Reason


@dataclass(frozen=True, slots=True)
class MessageReport:
    """The message of a round trip as a verdict shows it; times in seconds, ``None`` where not known.

    ``delivery_seconds`` is the middle of the interval between the last look without the
    message and the first look with it; ``uncertainty_seconds`` is half that interval's width.
    """

    id: str
    state: MessageState
    submission_seconds: float | None = None
    transit_seconds: float | None = None
    delivery_seconds: float | None = None
    uncertainty_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one run found. ``phases`` are seconds; ``values`` numbers, texts or lists for people and JSON."""

    reason: Reason
    detail: str = ""
    phases: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    values: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    certificate_not_after: float | None = None  # unix seconds
    message: MessageReport | None = None

    @property
    def outcome(self) -> Outcome:
        """The outcome that the reason stands for."""
        return self.reason.outcome

    @property
    def is_warning(self) -> bool:
        """Whether the run is ok and yet found something that wants attention."""
        return self.reason.outcome is Outcome.OK and self.reason is not Reason.NONE


class PhaseTimer:
    """Times the named phases of a run in seconds, on the monotonic clock.

    When a run breaks off, ``seconds`` holds what was measured, the broken phase included,
    and ``current`` names the phase that it broke in.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}
        self.current: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to phase ``name``; phases do not nest."""
        self.current = name
        begun = self._clock.monotonic()
        try:
            yield
            self.current = None
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock.monotonic() - begun


@dataclass(slots=True)
class Run:
    """One execution of a probe: its id (32 hex digits), when it began, and its phase timer."""

    id: str
    started_at: float  # unix seconds
    phases: PhaseTimer
    only_waits: bool = False  # set by the probe once stopping the run loses nothing
