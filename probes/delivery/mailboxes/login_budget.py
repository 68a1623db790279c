"""A budget of logins per minute, shared by all mailboxes of one server."""

from __future__ import annotations

from probes.core.clock import Clock

BURST = 20
"""Logins that may come at once after a quiet time."""


class LoginBudget:
    """Lets logins through at a steady rate, in the order in which they asked, after a first burst."""

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self._spacing = 60.0 / per_minute
        self._clock = clock
        self._spent_until = float("-inf")  # monotonic; how far the logins so far reach at the steady rate

    async def take(self) -> None:
        """Return when a login may begin, and count it."""
        now = self._clock.monotonic()
        self._spent_until = max(self._spent_until, now - (BURST - 1) * self._spacing) + self._spacing
        begins = self._spent_until - self._spacing
        if begins > now:
            try:
                await self._clock.sleep(begins - now)
            except BaseException:
                self._spent_until -= self._spacing  # nobody logs in by it
                raise
