"""Requests for tokens of 200 mailboxes that share one, also during an outage of the endpoint: a simulation.

There is no waiting: the clock is moved by hand, a second at a time. Each mailbox logs in once a minute. A
token is valid for an hour.
"""

from __future__ import annotations

import asyncio
import logging
import random

from probes.core.credentials import Resource
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.oauth2.grants import Grant
from probes.oauth2.settings import AnyOAuth2, GenericOAuth2
from probes.oauth2.tokens import TokenSource
from tests.fakes.clock import InstantClock

MAILBOXES, AGENTS, LIFETIME, OUTAGE = 200, 20, 3600, 600


class Agent:
    """One agent with its token source."""

    def __init__(self) -> None:
        self.clock = InstantClock()
        self.begun = self.clock.now
        self.is_down = False
        self.asked_at: list[float] = []
        self.failed_logins = 0
        settings = GenericOAuth2.model_construct(provider="generic", client_id="app")
        self.source = TokenSource("shared", settings, self.clock, self._fetch)

    async def _fetch(
        self, settings: AnyOAuth2, resource: Resource, subject: str, phases: PhaseTimer, now: float
    ) -> Grant:
        del settings, resource, subject, phases, now
        self.asked_at.append(self.clock.now - self.begun)
        if self.is_down:
            raise ProbeFault(Reason.TOKEN_UNAVAILABLE, "HTTP status 503")
        return Grant("a-token", LIFETIME)

    async def pass_seconds(self, count: int) -> list[float]:
        """Let the mailboxes log in, and return when a token was asked for, in seconds from the beginning."""
        before = len(self.asked_at)
        for second in range(count):
            for mailbox in range(second % 60, MAILBOXES, 60):
                try:
                    await self.source.token("mail", f"box-{mailbox}", PhaseTimer(self.clock))
                except ProbeFault:
                    self.failed_logins += 1
            await asyncio.sleep(0)
            self.clock.now += 1.0
        return self.asked_at[before:]


async def _figures() -> None:
    quiet = Agent()
    day = await quiet.pass_seconds(24 * LIFETIME)
    print(f"{MAILBOXES} mailboxes, {24 * LIFETIME // 60 * MAILBOXES} logins in a day: {len(day)} requests")
    print(f"  that is {len(day) / 24:.2f} an hour; logins that failed: {quiet.failed_logins}")
    for label, before in (("with a token 2900 s old", 2900), ("without one", 0)):
        outages, failed = [], []
        for _ in range(AGENTS):
            agent = Agent()
            await agent.pass_seconds(before)
            agent.is_down = True
            outages.append(await agent.pass_seconds(OUTAGE))
            failed.append(agent.failed_logins)
        counts = sorted(map(len, outages))
        moments = [round(at) for asked in outages for at in asked[1:]]
        most = max(map(moments.count, moments))
        print(f"outage of {OUTAGE} s {label}, {AGENTS} agents: {counts[0]} to {counts[-1]} requests each")
        print(f"  after the first, at most {most} of {len(moments)} in the same second;", end=" ")
        print(f"logins that failed: {min(failed)} to {max(failed)}")


def main() -> None:
    """Print the figures."""
    logging.disable(logging.WARNING)  # each outage is logged
    random.seed(17)
    asyncio.run(_figures())
