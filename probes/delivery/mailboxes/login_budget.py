"""The logins to a server that many mailboxes share: how many a minute, and which mailboxes come first.

A mailbox that does not answer holds a connection until its time limit, and tries again for ever. With many of
them, the others would find no connection and no login left. So mailboxes in trouble share a few connections,
and use only logins that the others leave.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Area
from probes.protocols.connection_limits import PER_SERVER

BURST = 20
"""Number of logins allowed at once after a quiet period."""

SHARE_IN_TROUBLE = 0.25
"""Share of a server's connections for mailboxes whose latest poll took long and failed.

Also the share of logins that mailboxes whose latest poll failed get while the others need all.
"""

SHARE_UNTRIED = 0.75
"""Share of a server's connections for these and for mailboxes that were not polled yet, together."""

FIRST_PATIENCE = 3.0
"""Maximum seconds to wait for each answer of a mailbox's first login."""

LONG = 1.0
"""Seconds from which a poll that fails has held its connection for long."""

_BEFORE_LOGIN = frozenset({Area.AGENT, Area.DNS, Area.NETWORK, Area.TLS})
"""The areas of faults with which a connection fails before the server sees a login."""


@dataclass(slots=True, eq=False)
class Standing:
    """How the latest polls of a mailbox went."""

    failures: int = 0
    """Consecutive polls that failed, and not by our own fault."""
    is_slow: bool = True
    """Whether the next poll may hold its connection for long, because the latest did, or there was none."""
    is_known: bool = False
    """Whether there was a poll."""
    holds_place: bool = False
    """Whether the poll in progress has one of the places for polls that may take long."""

    @property
    def patience(self) -> float | None:
        """Maximum seconds to wait for each answer of the next login; ``None`` if only the settings limit it.

        Many mailboxes that hang do not keep the others waiting for long when the agent starts. A server that
        is only slow has its full time from the second login on.
        """
        return None if self.is_known else FIRST_PATIENCE

    def take_over(self, earlier: Standing) -> None:
        """Begin with what is known of the same mailbox."""
        self.failures, self.is_slow, self.is_known = earlier.failures, earlier.is_slow, earlier.is_known


_Waiter = tuple[int, int, Standing, "asyncio.Future[None]"]
"""Failures, order of arrival, standing, and what it waits for."""


class SlowPolls:
    """Limits how many polls that may take long there are at a time, for a server with so many connections.

    Mailboxes with the fewest failures come first, so that one that is well again need not wait for the rest.
    """

    def __init__(self, connections: int = PER_SERVER) -> None:
        self._taken = 0
        self._waiting: list[_Waiter] = []  # the next one first
        self._numbers = count()
        self.configure(connections)

    def configure(self, connections: int) -> None:
        """Set how many connections the server allows."""
        self._most_in_trouble = max(1, int(connections * SHARE_IN_TROUBLE))
        self._most = max(1, int(connections * SHARE_UNTRIED))
        self._admit()

    async def enter(self, standing: Standing) -> None:
        """Wait for a place, if the poll may take long."""
        if not standing.is_slow:
            return
        entered = asyncio.get_running_loop().create_future()
        waiter = standing.failures, next(self._numbers), standing, entered
        insort(self._waiting, waiter)
        self._admit()
        try:
            await entered
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            self.leave(standing)
            raise

    def _admit(self) -> None:
        while self._waiting:
            failures, _, standing, entered = self._waiting[0]
            if self._taken >= (self._most_in_trouble if failures else self._most):
                return
            del self._waiting[0]
            standing.holds_place = True
            self._taken += 1
            if not entered.done():
                entered.set_result(None)

    def leave(self, standing: Standing) -> None:
        """Give the place to the next poll, if this one has any."""
        if standing.holds_place:
            standing.holds_place = False
            self._taken -= 1
            self._admit()


class LoginBudget:
    """Allows logins at a steady rate after an initial burst, first come, first served.

    Mailboxes whose latest poll failed leave a part of the burst to the others; see `SHARE_IN_TROUBLE`.
    """

    def __init__(self, per_minute: float, clock: Clock, slow_polls: SlowPolls | None = None) -> None:
        self._spacing = 60.0 / per_minute
        self._clock = clock
        self._slow_polls = slow_polls or SlowPolls()
        self._spent_until = float("-inf")  # monotonic: when the logins so far would end at the steady rate
        self._in_trouble_at = float("-inf")  # monotonic: the latest login of a mailbox in trouble

    async def turn(self, standing: Standing) -> None:
        """Wait until a mailbox may open a connection; `take` must follow."""
        await self._slow_polls.enter(standing)

    async def take(self, standing: Standing) -> None:
        """Wait until a mailbox that had its `turn` may log in, and count the login. A `poll` must follow."""
        try:
            if standing.failures:
                await self._leave_to_others()
            await self._login()
        except BaseException:
            self._slow_polls.leave(standing)
            raise

    async def _leave_to_others(self) -> None:
        """Wait until there are logins to spare, or until one is due for mailboxes in trouble."""
        while True:
            spared = self._spent_until + BURST * (1.0 - SHARE_IN_TROUBLE) * self._spacing
            due = min(spared, self._in_trouble_at + self._spacing / SHARE_IN_TROUBLE)
            now = self._clock.monotonic()
            if due <= now:
                self._in_trouble_at = now
                return
            await self._clock.sleep(due - now)

    async def _login(self) -> None:
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

    @contextmanager
    def poll(self, standing: Standing) -> Iterator[None]:
        """Record in ``standing`` how a poll goes; its place is free afterwards."""
        begun = self._clock.monotonic()
        try:
            yield
        except ProbeFault as fault:
            if fault.reason.area is not Area.AGENT:
                self._failed(standing, begun)
            raise
        except asyncio.CancelledError:  # it exceeded its time limit
            self._failed(standing, begun)
            raise
        else:
            standing.failures, standing.is_slow, standing.is_known = 0, False, True
        finally:
            self._slow_polls.leave(standing)

    def _failed(self, standing: Standing, begun: float) -> None:
        standing.failures += 1
        standing.is_known = True
        standing.is_slow = self._clock.monotonic() - begun > LONG
