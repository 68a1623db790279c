"""Our own delays in watching a mailbox, with their causes: they say nothing about the mail system."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from probes.core.clock import Clock

SIGNIFICANT = 0.25
"""Share of an interval. If our own delays explain more of it, it is not the mail system that made it wide."""

KEPT = 300
"""Number of delays of each cause that are remembered; those within a second of each other are one."""

_TOGETHER = 1.0  # seconds


class Cause(StrEnum):
    """What can delay us, as a phrase with room for the seconds."""

    MACHINE = "this machine was too busy for {:.2g} s"
    LEDGER = "the ledger took {:.2g} s"
    LOGINS = "polls waited {:.2g} s for a login (logins_per_minute)"
    CONNECTIONS = "polls waited {:.2g} s for a connection (max_connections)"
    RESOURCES = "polls failed for {:.2g} s because this machine was short of resources"


@dataclass(frozen=True, slots=True)
class OwnDelay:
    """Our own delay in some period: its seconds, and the cause of most of them."""

    seconds: float
    cause: Cause

    def __str__(self) -> str:
        return self.cause.format(self.seconds)


@dataclass(slots=True)
class _Span:
    begin: float
    end: float
    seconds: float

    def within(self, begin: float, end: float) -> float:
        overlap = min(end, self.end) - max(begin, self.begin)
        if overlap <= 0.0:
            return 0.0
        return self.seconds * overlap / (self.end - self.begin)


@dataclass(slots=True)
class _Known:
    spans: deque[_Span] = field(default_factory=lambda: deque(maxlen=KEPT))
    waiting: int = 0
    since: float = 0.0  # when the first of those that wait now began


class OwnDelays:
    """Records our own delays in watching one mailbox. Times are monotonic seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known = {cause: _Known() for cause in Cause}

    def add(self, cause: Cause, begin: float, end: float, seconds: float | None = None) -> None:
        """Record a delay of ``seconds`` between two times; by default, all of the time between them."""
        seconds = end - begin if seconds is None else seconds
        if seconds <= 0.0 or end <= begin:
            return
        spans = self._known[cause].spans
        if spans and end - spans[-1].begin <= _TOGETHER:
            spans[-1].end = max(spans[-1].end, end)
            spans[-1].seconds += seconds
        else:
            spans.append(_Span(begin, end, seconds))

    def add_all(self, cause: Cause, begin: float, end: float) -> None:
        """Record all of the time between two times as a delay, without what is recorded of it already."""
        self.add(cause, begin, end, end - begin - self.within(begin, end).seconds)

    @contextmanager
    def waiting(self, cause: Cause) -> Iterator[None]:
        """Record the duration of the block as a delay; blocks that overlap count once."""
        known = self._known[cause]
        if not known.waiting:
            known.since = self._clock.monotonic()
        known.waiting += 1
        try:
            yield
        finally:
            known.waiting -= 1
            if not known.waiting:
                self.add(cause, known.since, self._clock.monotonic())

    def waited(self, cause: Cause) -> float:
        """Return for how many seconds somebody has been waiting for this cause; 0 if nobody waits."""
        known = self._known[cause]
        return self._clock.monotonic() - known.since if known.waiting else 0.0

    def within(self, begin: float, end: float) -> OwnDelay:
        """Return our own delay between two times, at most the time between them."""
        seconds = {cause: self._seconds(known, begin, end) for cause, known in self._known.items()}
        cause = max(Cause, key=seconds.__getitem__)
        return OwnDelay(min(sum(seconds.values()), max(0.0, end - begin)), cause)

    @staticmethod
    def _seconds(known: _Known, begin: float, end: float) -> float:
        total = max(0.0, end - max(begin, known.since)) if known.waiting else 0.0
        for span in reversed(known.spans):
            if span.end <= begin:
                break
            total += span.within(begin, end)
        return total
