"""A mailbox read by POP3: each poll is one session, and the server's picture of the mailbox at login."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import PhaseTimer
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.mailbox import HEADER_LIMIT, OpenFolder
from probes.protocols.pop3_session import Pop3Session


class Pop3Folder:
    """The one folder that POP3 shows, in one session (see `mailbox.Folder`)."""

    name = ""
    is_junk = False

    def __init__(
        self, session: Pop3Session, listing: dict[int, str], listed_at: float, set_aside: set[str]
    ) -> None:
        self._session = session
        self._numbers = {uid: number for number, uid in listing.items()}
        self._headers: dict[str, bytes] = {}
        self._set_aside = set_aside
        self.absent_at = session.login_sent_at
        self.listed_at = listed_at
        self.uids = [listing[number] for number in sorted(listing, reverse=True)]

    async def identify(self, uids: Sequence[str]) -> AsyncGenerator[tuple[str, bytes], None]:  # noqa: D102 # as in Folder
        for uid in uids:
            try:
                header_section = await self._session.top(self._numbers[uid], limit=HEADER_LIMIT)
            except ProbeFault as fault:
                if fault.reason is Reason.RESPONSE_TOO_LARGE:  # no message of ours has such a header section
                    self.set_aside(uid)
                raise
            self._headers = {uid: header_section}
            yield uid, header_section

    async def header_section(self, uid: str) -> bytes:  # noqa: D102 # as in Folder
        return self._headers[uid]

    async def beginning(self, uid: str, octets: int) -> bytes:  # noqa: D102 # as in Folder
        try:
            return await self._session.beginning(self._numbers[uid], octets=octets)
        except ProbeFault as fault:
            if fault.reason is Reason.RESPONSE_TOO_LARGE:
                self.set_aside(uid)
            raise

    async def whole(self, uid: str, limit: int) -> bytes:  # noqa: D102 # as in Folder
        return await self._session.retr(self._numbers[uid], limit=limit)

    def set_aside(self, uid: str) -> None:  # noqa: D102 # as in Folder
        self._set_aside.add(uid)

    async def delete(self, uid: str) -> None:  # noqa: D102 # as in Folder
        if self._session.gave_up:
            raise ProbeFault(Reason.RESPONSE_TOO_LARGE, "the session ended over a message that is too large")
        await self._session.dele(self._numbers[uid])


class Pop3Mailbox:
    """Polls by POP3, within the server's budget of logins (see `mailbox.Mailbox`)."""

    folders = (Pop3Folder.name,)
    stays_open = False
    shortest_gap = 0.02

    def __init__(
        self, settings: MailboxSettings, server: ServerSettings, clock: Clock, budget: LoginBudget
    ) -> None:
        self.polls = settings.polls_per_message or 6.0
        self._settings = settings
        self._server = server
        self._clock = clock
        self._budget = budget
        self._set_aside: set[str] = set()

    async def admit(self) -> None:
        """Wait for a login within the server's budget."""
        await self._budget.take()

    @asynccontextmanager
    async def poll(self) -> AsyncIterator[Sequence[OpenFolder]]:
        """Log in, and give the folder; leaving the block quits, and so makes deletions hold."""
        session = await Pop3Session.open(
            self._server,
            username=self._settings.username,
            password=self._settings.password,
            phases=PhaseTimer(self._clock),
            clock=self._clock,
        )
        try:
            yield [lambda: self._list(session)]
            if not session.gave_up:
                await session.quit()
        finally:
            session.abort()

    async def _list(self, session: Pop3Session) -> Pop3Folder:
        listing = await session.uidl()
        listed_at = self._clock.monotonic()
        self._set_aside.intersection_update(listing.values())
        wanted = {number: uid for number, uid in listing.items() if uid not in self._set_aside}
        return Pop3Folder(session, wanted, listed_at, self._set_aside)

    async def news(self) -> None:
        """Wait for ever: POP3 cannot tell of news."""
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Nothing is open between polls."""
