"""A mailbox read by POP3: each poll is one session, with the server's snapshot of the mailbox at login."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from probes.core.clock import Clock
from probes.core.credentials import NO_TOKENS, Tokens
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import PhaseTimer
from probes.delivery.mailboxes.account import Account
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.mailbox import (
    CONTENT_SECONDS,
    HEADER_LIMIT,
    REFUSALS,
    SECOND_CHANCE,
    Content,
    FolderRole,
    OpenFolder,
    unread,
)
from probes.delivery.mailboxes.pop3_listing import Listing
from probes.protocols.pop3_session import Pop3Session

_log = logging.getLogger(__name__)

TOGETHER = 50
"""Maximum number of commands that await their answers at the same time (RFC 2449 section 6.6)."""

TOGETHER_OCTETS = 4 * 2**20
"""Maximum octets of messages that they ask for, unless one message alone is larger."""

T = TypeVar("T")

_OF_ONE_COPY = frozenset({Reason.POP3_ERROR, Reason.POP3_SYS_TEMP, Reason.POP3_SYS_PERM})


@dataclass(slots=True)
class _Memory:
    """What earlier sessions found out about copies, by the keys of `Listing`."""

    set_aside: set[str] = field(default_factory=set)
    unreadable: dict[str, float] = field(default_factory=dict)  # when each was given up (monotonic)
    refusals: Counter[str] = field(default_factory=Counter)
    together: int = TOGETHER  # how many copies to read or delete at the same time
    most_together: int = TOGETHER  # 1 once the server has mixed up pipelined answers

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
    role = FolderRole.MAIN

    def __init__(
        self,
        session: Pop3Session,
        listing: Listing,
        listed_at: float,
        memory: _Memory,
        overlooked: frozenset[str],
    ) -> None:
        self._session = session
        self._listing = listing
        self._numbers = listing.numbers_without(memory.set_aside, memory.unreadable)
        self._memory = memory
        self.overlooked = overlooked
        self._refused: set[str] = set()
        self.absent_at = session.login_sent_at
        self.listed_at = listed_at
        self.uids = list(reversed(self._numbers))

    def told(self, uid: str) -> None:  # noqa: ARG002, D102 # POP3 servers report nothing by themselves
        return None

    async def identify(self, uids: Sequence[str]) -> AsyncGenerator[dict[str, bytes], None]:  # noqa: D102 # as in Folder
        faults: dict[str, ProbeFault] = {}
        together = self._memory.together
        for begin in range(0, len(uids), together):
            batch = uids[begin : begin + together]
            answers = await self._ask(batch, self._header_section)
            faults |= self._faults_of_copies(answers)
            yield {uid: answer for uid, answer in answers.items() if isinstance(answer, bytes)}
        if 1 < len(faults) == len(uids):  # the server is at fault, not the messages
            raise faults[uids[-1]]
        for uid in faults:
            self._refuse(uid, faults[uid])

    async def contents(  # noqa: D102 # as in Folder
        self, limits: Mapping[str, int], *, whole: bool
    ) -> AsyncGenerator[dict[str, Content], None]:
        def read(uid: str) -> Coroutine[object, object, bytes]:
            number, limit = self._numbers[uid], limits[uid]
            return (
                self._session.retr(number, limit=limit)
                if whole
                else self._session.beginning(number, octets=limit)
            )

        for batch in _sets_of(limits, self._memory.together):
            answers = await self._ask(batch, read, CONTENT_SECONDS if whole else None)
            if not whole:
                for uid, fault in self._faults_of_copies(answers).items():
                    self._refuse(uid, fault)
            yield {
                uid: _content_of(answer)
                for uid, answer in answers.items()
                if not isinstance(answer, ProbeFault) or (whole and (len(batch) == 1 or _is_answer(answer)))
            }
            self._require_session()
            self._faults_of_copies(answers)

    def _require_session(self) -> None:
        if self._session.gave_up:
            self._memory.together = 1
            raise ProbeFault(Reason.RESPONSE_TOO_LARGE, "the session ended over a message that is too large")

    async def _header_section(self, uid: str) -> bytes:
        header_section = await self._session.top(self._numbers[uid], limit=HEADER_LIMIT)
        if not header_section.strip():  # ours have one: this must not read as somebody else's message
            raise ProbeFault(Reason.POP3_ERROR, "no header section")
        return header_section

    def _faults_of_copies(self, answers: Mapping[str, object]) -> dict[str, ProbeFault]:
        """Return the faults of single copies; raises the first one that ended the session."""
        faults = {uid: answer for uid, answer in answers.items() if isinstance(answer, ProbeFault)}
        for uid, fault in faults.items():
            if fault.reason is Reason.RESPONSE_TOO_LARGE:  # our own messages are not that large
                self._give_up(uid)
            if fault.reason not in _OF_ONE_COPY:
                self._memory.together = 1  # the next session reads up to the copy that ended this one
                raise fault
        return faults

    def _refuse(self, uid: str, fault: ProbeFault) -> None:
        """Count the server's refusal of one copy; one that is refused repeatedly is set aside."""
        self._memory.refusals[uid] += 1
        if self._memory.refusals[uid] < REFUSALS:
            self._refused.add(uid)
        else:
            told = "a message is left alone because the server refused it %d times: %s"
            _log.warning(told, REFUSALS, fault)
            self._give_up(uid)

    def _give_up(self, uid: str) -> None:
        """Leave out a copy that cannot be read, until it gets a second chance."""
        if uid not in self._memory.set_aside:
            self._memory.unreadable[uid] = self.listed_at

    @property
    def is_whole(self) -> bool:  # noqa: D102 # as in Folder
        return not self._refused

    def set_aside(self, uid: str) -> None:  # noqa: D102 # as in Folder
        self._memory.set_aside.add(uid)

    async def delete(self, uids: Sequence[str]) -> None:  # noqa: D102 # as in Folder
        self._require_session()
        together = self._memory.together
        for begin in range(0, len(uids), together):
            batch = uids[begin : begin + together]
            # Not verified: the command names the message, and a deleted one has no unique id any more.
            answers = await _together(batch, lambda uid: self._session.dele(self._numbers[uid]))
            faults = self._faults_of_copies(answers)
            for uid in answers.keys() - faults.keys():
                self._listing.mark(self._numbers[uid])
            for uid, fault in faults.items():
                if self._memory.refusals[uid] + 1 >= REFUSALS:
                    self.set_aside(uid)  # it was read and counted, and stays in the mailbox
                self._refuse(uid, fault)
        self._memory.together = self._memory.most_together

    async def _ask(
        self,
        uids: Sequence[str],
        ask: Callable[[str], Coroutine[object, object, T]],
        seconds: float | None = None,
    ) -> dict[str, T | ProbeFault | None]:
        """Do as `_together`; raise if the answers may belong to other copies than they seem to."""
        answers = await _together(uids, ask, seconds)
        if len(uids) == 1 or not self._session.is_pipelining:
            return answers
        if self._session.is_over:  # too late to verify what was read
            lost = ProbeFault(Reason.CONNECTION_LOST, "the session ended before the answers were verified")
            unverified = {uid: lost for uid, answer in answers.items() if isinstance(answer, bytes)}
            return {uid: answer for uid, answer in answers.items() if uid not in unverified} | unverified
        try:
            number = self._numbers[uids[-1]]
            await self._session.verify(number, self._listing.id_of(number))
        except ProbeFault as fault:
            self._memory.together = 1
            if fault.reason is Reason.PROTOCOL_ERROR:
                self._memory.most_together = 1
            raise
        return answers


async def _together(
    uids: Sequence[str], ask: Callable[[str], Coroutine[object, object, T]], seconds: float | None = None
) -> dict[str, T | ProbeFault | None]:
    """Ask for copies at the same time; return the answers or faults, ``None`` for those not in time."""
    asking = {uid: asyncio.ensure_future(ask(uid)) for uid in uids}
    try:
        await asyncio.wait(asking.values(), timeout=seconds)
    finally:
        for task in asking.values():
            task.cancel()
    await asyncio.wait(asking.values())
    answers: dict[str, T | ProbeFault | None] = {}
    for uid, task in asking.items():
        fault = None if task.cancelled() else task.exception()
        if fault is not None and not isinstance(fault, ProbeFault):
            raise fault
        answers[uid] = fault if task.cancelled() or fault is not None else task.result()
    return answers


def _is_answer(fault: ProbeFault) -> bool:
    """Whether a fault is about its copy, and not the end of a session over another one."""
    return fault.reason in _OF_ONE_COPY or fault.reason is Reason.RESPONSE_TOO_LARGE


def _content_of(answer: bytes | ProbeFault | None) -> Content:
    if isinstance(answer, bytes):
        return Content(answer, is_whole=True)
    is_too_large = answer is not None and answer.reason is Reason.RESPONSE_TOO_LARGE
    return Content(b"", is_whole=False, is_too_large=is_too_large)


def _sets_of(limits: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Yield at most so many uids at a time, with limits up to `TOGETHER_OCTETS` together or a single one."""
    batch: list[str] = []
    octets = 0
    for uid, limit in limits.items():
        if batch and (len(batch) == most or octets + limit > TOGETHER_OCTETS):
            yield batch
            batch, octets = [], 0
        batch.append(uid)
        octets += limit
    if batch:
        yield batch


class Pop3Mailbox(Account[Pop3Session]):
    """Polls by POP3, within the server's budget of logins (see `mailbox.Mailbox`)."""

    folders = (Pop3Folder.name,)
    stays_open = False
    shortest_gap = 0.02
    first_read = 8
    usual_polls = 6.0

    def __init__(
        self,
        settings: MailboxSettings,
        server: ServerSettings,
        clock: Clock,
        budget: LoginBudget,
        tokens: Tokens = NO_TOKENS,
    ) -> None:
        super().__init__(settings, server, clock, budget, tokens)
        self._memory = _Memory()
        self._listing = Listing(clock)
        self._unreadable_ids = 0

    @property
    def doubt(self) -> str:
        """How many messages could not be read (see `mailbox.Mailbox`)."""
        return unread(len(self._memory.unreadable) + self._unreadable_ids)

    def excuses(self, fault: ProbeFault) -> bool:  # noqa: ARG002 # there is one folder
        """Every fault affects the whole mailbox."""
        return False

    @asynccontextmanager
    async def poll(
        self,
        phases: PhaseTimer | None = None,
        *,
        afresh: bool = False,
        sent: bool = False,  # noqa: ARG002 # POP3 shows no such folder
    ) -> AsyncIterator[Sequence[OpenFolder]]:
        """Log in and yield the folder. Leaving the block sends QUIT, which makes deletions take effect."""
        with self._budget.poll(self.standing):
            session = await self._log_in(Pop3Session, phases or PhaseTimer(self._clock))
            try:
                yield [partial(self._list, session, afresh=afresh)]
                if not session.gave_up:
                    await session.quit()
                    self._listing.deleted()
            finally:
                session.abort()

    async def _list(self, session: Pop3Session, *, afresh: bool) -> Pop3Folder:
        overlooked = await self._listing.update(session, afresh=afresh)
        listed_at = self._clock.monotonic()
        if session.unreadable_ids > self._unreadable_ids:
            _log.warning("%d messages have ids that cannot be read; they are ignored", session.unreadable_ids)
        self._unreadable_ids = session.unreadable_ids
        if self._listing.is_complete:
            self._memory.keep_only(set(self._listing.keys))
        if afresh:
            self._memory.give_second_chances(listed_at)
        return Pop3Folder(session, self._listing, listed_at, self._memory, overlooked)

    async def news(self) -> None:
        """Wait for ever: POP3 cannot report changes."""
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Nothing is open between polls."""
