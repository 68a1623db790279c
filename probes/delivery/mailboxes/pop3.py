"""A mailbox read by POP3: each poll is one session, with the server's snapshot of the mailbox at login."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import PhaseTimer
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.mailbox import HEADER_LIMIT, REFUSALS, SECOND_CHANCE, OpenFolder, unread
from probes.protocols.pop3_session import Pop3Session

_log = logging.getLogger(__name__)

_OF_ONE_COPY = frozenset({Reason.POP3_ERROR, Reason.POP3_SYS_TEMP, Reason.POP3_SYS_PERM})


@dataclass(slots=True)
class _Memory:
    """What earlier sessions found out about copies, by the keys of `_keyed`."""

    set_aside: set[str] = field(default_factory=set)
    unreadable: dict[str, float] = field(default_factory=dict)  # when each was given up (monotonic)
    refusals: Counter[str] = field(default_factory=Counter)

    def keep_only(self, present: Collection[str]) -> None:
        self.set_aside.intersection_update(present)
        for key in self.unreadable.keys() - present:
            del self.unreadable[key]
        for key in self.refusals.keys() - present:
            del self.refusals[key]

    def give_second_chances(self, now: float) -> None:
        """Allow another try for copies that could not be read some time ago."""
        for key, since in list(self.unreadable.items()):
            if now - since >= SECOND_CHANCE:
                del self.unreadable[key]
                self.refusals[key] = REFUSALS - 1


class Pop3Folder:
    """The only folder in POP3, in one session (see `mailbox.Folder`)."""

    name = ""
    is_junk = False
    overlooked: frozenset[str] = frozenset()  # every poll lists the whole mailbox

    def __init__(
        self, session: Pop3Session, numbers: dict[str, int], listed_at: float, memory: _Memory
    ) -> None:
        self._session = session
        self._numbers = numbers
        self._headers: dict[str, bytes] = {}
        self._memory = memory
        self._refused: set[str] = set()
        self.absent_at = session.login_sent_at
        self.listed_at = listed_at
        done_with = memory.set_aside | memory.unreadable.keys()
        self.uids = [key for key in reversed(numbers) if key not in done_with]

    async def identify(self, uids: Sequence[str]) -> AsyncGenerator[tuple[str, bytes], None]:  # noqa: D102 # as in Folder
        faults: dict[str, ProbeFault] = {}
        for uid in uids:
            try:
                header_section = await self._session.top(self._numbers[uid], limit=HEADER_LIMIT)
            except ProbeFault as fault:
                if fault.reason is Reason.RESPONSE_TOO_LARGE:  # our own messages have short header sections
                    self._give_up(uid)
                if fault.reason not in _OF_ONE_COPY:
                    raise
                faults[uid] = fault
            else:
                if not header_section.strip():  # ours have one: this must not read as somebody else's message
                    faults[uid] = ProbeFault(Reason.POP3_ERROR, "no header section")
                    continue
                self._headers = {uid: header_section}
                yield uid, header_section
        if 1 < len(faults) == len(uids):  # the server is at fault, not the messages
            raise faults[uids[-1]]
        for uid in faults:
            self.refused(uid, faults[uid])

    async def header_section(self, uid: str) -> bytes:  # noqa: D102 # as in Folder
        return self._headers[uid]

    async def beginning(self, uid: str, octets: int) -> bytes:  # noqa: D102 # as in Folder
        try:
            return await self._session.beginning(self._numbers[uid], octets=octets)
        except ProbeFault as fault:
            if fault.reason is Reason.RESPONSE_TOO_LARGE:
                self._give_up(uid)
            raise

    async def whole(self, uid: str, limit: int) -> bytes:  # noqa: D102 # as in Folder
        return await self._session.retr(self._numbers[uid], limit=limit)

    def refused(self, uid: str, fault: ProbeFault) -> bool:  # noqa: D102 # as in Folder
        if fault.reason not in _OF_ONE_COPY:
            return False
        self._memory.refusals[uid] += 1
        if self._memory.refusals[uid] < REFUSALS:
            self._refused.add(uid)
        else:
            _log.warning("a message is left alone, for the server refused it %d times: %s", REFUSALS, fault)
            self._give_up(uid)
        return True

    def _give_up(self, uid: str) -> None:
        """Leave out a copy that cannot be read, until it gets a second chance."""
        if uid not in self._memory.set_aside:
            self._memory.unreadable[uid] = self.listed_at

    @property
    def is_whole(self) -> bool:  # noqa: D102 # as in Folder
        return not self._refused

    def set_aside(self, uid: str) -> None:  # noqa: D102 # as in Folder
        self._memory.set_aside.add(uid)

    async def delete(self, uid: str) -> None:  # noqa: D102 # as in Folder
        if self._session.gave_up:
            raise ProbeFault(Reason.RESPONSE_TOO_LARGE, "the session ended over a message that is too large")
        try:
            await self._session.dele(self._numbers[uid])
        except ProbeFault:
            if self._memory.refusals[uid] + 1 >= REFUSALS:
                self.set_aside(uid)  # it was read and counted, and stays in the mailbox
            raise


def _keyed(listing: Mapping[int, str]) -> dict[str, int]:
    """Return message numbers, ascending, by a unique key for each copy.

    The key is the unique id. Identical messages may share an id (RFC 1939 section 7), so all but the oldest
    of them also have their position among these.
    """
    numbers: dict[str, int] = {}
    seen: Counter[str] = Counter()
    for number in sorted(listing):
        unique_id = listing[number]
        seen[unique_id] += 1
        numbers[unique_id if seen[unique_id] == 1 else f"{unique_id} {seen[unique_id]}"] = number
    return numbers


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
        self._memory = _Memory()
        self._unreadable_ids = 0

    @property
    def doubt(self) -> str:
        """How many messages could not be read (see `mailbox.Mailbox`)."""
        return unread(len(self._memory.unreadable) + self._unreadable_ids)

    def excuses(self, fault: ProbeFault) -> bool:  # noqa: ARG002 # there is one folder
        """Every fault affects the whole mailbox."""
        return False

    async def admit(self) -> None:
        """Wait for a login within the server's budget."""
        await self._budget.take()

    @asynccontextmanager
    async def poll(self, *, afresh: bool = False) -> AsyncIterator[Sequence[OpenFolder]]:
        """Log in and yield the folder. Leaving the block sends QUIT, which makes deletions take effect."""
        session = await Pop3Session.open(
            self._server,
            username=self._settings.username,
            password=self._settings.password,
            phases=PhaseTimer(self._clock),
            clock=self._clock,
        )
        try:
            yield [partial(self._list, session, afresh=afresh)]
            if not session.gave_up:
                await session.quit()
        finally:
            session.abort()

    async def _list(self, session: Pop3Session, *, afresh: bool) -> Pop3Folder:
        numbers = _keyed(await session.uidl())
        listed_at = self._clock.monotonic()
        if session.unreadable_ids > self._unreadable_ids:
            _log.warning("%d messages have ids that cannot be read; they are ignored", session.unreadable_ids)
        self._unreadable_ids = session.unreadable_ids
        self._memory.keep_only(numbers.keys())
        if afresh:
            self._memory.give_second_chances(listed_at)
        return Pop3Folder(session, numbers, listed_at, self._memory)

    async def news(self) -> None:
        """Wait for ever: POP3 cannot report changes."""
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Nothing is open between polls."""
