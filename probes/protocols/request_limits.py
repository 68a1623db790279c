"""The requests that Microsoft Graph allows one application for one mailbox.

The documented limits are four requests at a time and 10,000 in 10 minutes. A pause that Graph asks for is
obeyed by all that use the mailbox: whoever asks too early makes it longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from weakref import WeakKeyDictionary

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import TURN, PhaseTimer

AT_A_TIME = 4
"""Maximum number of requests at a time."""

MOST_REQUESTS = 10_000
"""Maximum number of requests within `WINDOW` seconds."""

WINDOW = 600.0
"""Seconds for which Graph counts requests."""

REQUEST_BURST = 1000
"""Number of requests that may follow each other at once after a quiet period; the rest is spread evenly."""

UNTOLD_PAUSE = 60.0
"""Seconds to pause if Graph does not say how long."""

LONGEST_PAUSE = 3600.0
"""Maximum seconds of a pause; after this, Graph is asked again anyway."""

_SPACING = WINDOW / (MOST_REQUESTS - REQUEST_BURST)


class RequestLimits:
    """The limits of one application and mailbox."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at_a_time = asyncio.Semaphore(AT_A_TIME)
        self._spent_until = float("-inf")  # monotonic: when the requests so far would end at the even rate
        self._paused_until = float("-inf")  # monotonic

    @asynccontextmanager
    async def request(self, phases: PhaseTimer) -> AsyncIterator[None]:
        """Make a request in the block, once it is allowed. Waiting is phase ``turn``.

        Raises `ProbeFault` with `THROTTLED`, without a request, while a pause lasts.
        """
        with phases.phase(TURN) if self._at_a_time.locked() else nullcontext():
            await self._at_a_time.acquire()
        try:
            now = self._clock.monotonic()
            self._spent_until = max(self._spent_until, now - (REQUEST_BURST - 1) * _SPACING) + _SPACING
            if (due := self._spent_until - _SPACING) > now:
                with phases.phase(TURN):
                    await self._clock.sleep(due - now)
            if (left := self._paused_until - self._clock.monotonic()) > 0:
                raise ProbeFault(
                    Reason.THROTTLED,
                    f"Graph asked for a pause, {left:.0f} s of it are left",
                    retry_after=left,
                )
            yield
        finally:
            self._at_a_time.release()

    def pause(self, seconds: float | None) -> float:
        """Make no request for ``seconds`` from now, or for `UNTOLD_PAUSE`; return the seconds."""
        length = min(UNTOLD_PAUSE if seconds is None else seconds, LONGEST_PAUSE)
        self._paused_until = max(self._paused_until, self._clock.monotonic() + length)
        return length


_LIMITS: WeakKeyDictionary[object, dict[str, RequestLimits]] = WeakKeyDictionary()


def limits_of(application: object, mailbox: str, clock: Clock) -> RequestLimits:
    """Return the limits that everyone in this process shares who is ``application`` to ``mailbox``."""
    return _LIMITS.setdefault(application, {}).setdefault(mailbox.lower(), RequestLimits(clock))
