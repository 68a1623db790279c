"""A budget of logins per minute, shared by all mailboxes of one server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Area

BURST = 20
"""Number of logins allowed at once after a quiet period."""

_BEFORE_LOGIN = frozenset({Area.AGENT, Area.DNS, Area.NETWORK, Area.TLS})
"""The areas of faults with which a connection fails before the server sees a login."""


class LoginBudget:
    """Allows logins at a steady rate, first come, first served, after an initial burst."""

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self._spacing = 60.0 / per_minute
        self._clock = clock
        self._spent_until = float("-inf")  # monotonic: when the logins so far would end at the steady rate

    async def take(self) -> None:
        """Wait until a login is allowed, and count it."""
        now = self._clock.monotonic()
        self._spent_until = max(self._spent_until, now - (BURST - 1) * self._spacing) + self._spacing
        begins = self._spent_until - self._spacing
        if begins > now:
            try:
                await self._clock.sleep(begins - now)
            except BaseException:
                self._spent_until -= self._spacing  # cancelled, so there is no login
                raise

    @contextmanager
    def logging_in(self) -> Iterator[None]:
        """Give the login back if the block never comes to it: a server that is down uses up no logins."""
        try:
            yield
        except ProbeFault as fault:
            if fault.reason.area in _BEFORE_LOGIN:
                self._spent_until -= self._spacing
            raise
