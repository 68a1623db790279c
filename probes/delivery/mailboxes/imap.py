"""A mailbox read by IMAP: one connection that stays, a NOOP a poll, and IDLE in the pauses between.

IDLE alone measures badly: servers may tell of an arrival late (Dovecot by half a second). A NOOP
costs no login and proves presence or absence at once, so polls are NOOPs, dense where arrival
is likely, and IDLE is for the rest of the time.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import PhaseTimer
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.mailbox import HEADER_LIMIT, IDENTIFYING, OpenFolder
from probes.protocols.imap_session import ImapSession

JUNK_GAP = 1.0
"""Shortest pause, in seconds, between polls of the junk folder."""

PIECE_SIZE = 1024 * 1024
"""Octets of a large message that are asked for at a time."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(slots=True)
class _View:
    """What is known of a folder: which copies are still to be dealt with, and which never again."""

    session: ImapSession  # the one that listed it
    validity: int | None
    epoch: str  # names the uids together with the folder: as long as it stays, they mean the same
    next_uid: int  # the first that was not listed yet
    pending: set[int]
    set_aside: set[int]


class ImapFolder:
    """A selected folder, or the knowledge that nothing new is in it (see `mailbox.Folder`)."""

    def __init__(
        self,
        session: ImapSession,
        view: _View,
        name: str,
        *,
        is_junk: bool,
        absent_at: float,
        listed_at: float,
        fields: dict[int, bytes],
    ) -> None:
        self.name = name
        self.is_junk = is_junk
        self.absent_at = absent_at
        self.listed_at = listed_at
        self.uids = [self._text(view, uid) for uid in sorted(view.pending, reverse=True)]
        self._session = session
        self._view = view
        self._fields = fields

    def _text(self, view: _View, uid: int) -> str:
        """Return a uid that stays unique when UIDVALIDITY changes (RFC 9051 section 2.3.1.1)."""
        return f"{self.name}/{view.epoch}/{uid}"

    @staticmethod
    def _number(uid: str) -> int:
        return int(uid.rpartition("/")[2])

    async def identify(self, uids: Sequence[str]) -> AsyncGenerator[tuple[str, bytes], None]:  # noqa: D102 # as in Folder
        numbers = [self._number(uid) for uid in uids]
        unknown = [number for number in numbers if number not in self._fields]
        fields = self._fields
        if unknown:
            fields = fields | await self._session.fetch_fields_of(unknown, IDENTIFYING)
        for uid, number in zip(uids, numbers, strict=True):
            if number in fields:
                yield uid, fields[number]
            else:
                self._view.pending.discard(number)  # it is gone

    async def header_section(self, uid: str) -> bytes:  # noqa: D102 # as in Folder
        # Of one that is too large, the beginning will do: the newest fields stand on top.
        return await self.beginning(uid, HEADER_LIMIT)

    async def beginning(self, uid: str, octets: int) -> bytes:  # noqa: D102 # as in Folder
        return await self._session.part_of(self._number(uid), 0, octets) or b""

    async def whole(self, uid: str, limit: int) -> bytes | None:  # noqa: D102 # as in Folder
        text = bytearray()
        while piece := await self._session.part_of(self._number(uid), len(text), PIECE_SIZE):
            text += piece
            if len(text) > limit:
                raise ProbeFault(Reason.RESPONSE_TOO_LARGE, f"more than {limit} octets")
            if len(piece) < PIECE_SIZE:
                break
        return bytes(text) or None

    def refused(self, uid: str, fault: ProbeFault) -> bool:  # noqa: ARG002, D102 # as in Folder
        return False

    @property
    def is_whole(self) -> bool:  # noqa: D102 # as in Folder
        return True

    def set_aside(self, uid: str) -> None:  # noqa: D102 # as in Folder
        self._view.pending.discard(self._number(uid))
        self._view.set_aside.add(self._number(uid))

    async def delete(self, uid: str) -> None:
        """Delete a copy; where the server has no UIDPLUS it stays, marked ``\\Deleted``."""
        await self._session.delete(self._number(uid))
        self._view.pending.discard(self._number(uid))


class ImapMailbox:
    """Polls by IMAP on one connection, into the folder and the junk folder (`mailbox.Mailbox`).

    ``retention`` is how many seconds back, by the server's date of arrival, copies can be ours.
    """

    stays_open = True
    shortest_gap = 0.01

    def __init__(
        self,
        settings: MailboxSettings,
        server: ServerSettings,
        clock: Clock,
        budget: LoginBudget,
        retention: float,
    ) -> None:
        self.folders: tuple[str, ...] = (settings.folder,)
        self.polls = settings.polls_per_message or 200.0
        self._settings = settings
        self._server = server
        self._clock = clock
        self._budget = budget
        self._retention = retention
        self._session: ImapSession | None = None
        self._views: dict[str, _View] = {}
        self._junk_at = float("-inf")  # when the junk folder was last polled

    async def admit(self) -> None:
        """Wait for a login within the server's budget, where one is needed."""
        if self._session is None:
            await self._budget.take()

    @asynccontextmanager
    async def poll(self) -> AsyncIterator[Sequence[OpenFolder]]:
        """Give the folders that are due; the one that IDLE watches comes last and stays selected."""
        session = self._session or await self._open()
        due: list[OpenFolder] = [lambda: self._main(session)]
        if len(self.folders) > 1 and self._clock.monotonic() - self._junk_at >= JUNK_GAP:
            due.insert(0, lambda: self._junk(session))
        try:
            yield due
        except BaseException:
            self._drop()
            raise

    async def _open(self) -> ImapSession:
        session = await ImapSession.open(
            self._server,
            username=self._settings.username,
            password=self._settings.password,
            phases=PhaseTimer(self._clock),
            clock=self._clock,
        )
        try:
            junk = self._settings.junk_folder or await _junk_folder(session)
        except BaseException:
            session.abort()
            raise
        self.folders = (self._settings.folder, junk) if junk else (self._settings.folder,)
        self._session = session
        self._junk_at = float("-inf")
        return session

    async def _main(self, session: ImapSession) -> ImapFolder:
        name = self._settings.folder
        if session.folder != name:
            return await self._selected(session, name, is_junk=False)
        absent_at = await session.noop()
        fields = {}
        if session.changed:  # by the NOOP, or by any command since the last poll
            session.changed = False
            fields = await self._new(session, self._views[name])
        return ImapFolder(
            session,
            self._views[name],
            name,
            is_junk=False,
            absent_at=absent_at,
            listed_at=session.heard_at,
            fields=fields,
        )

    async def _junk(self, session: ImapSession) -> ImapFolder:
        """Check whether anything came into the junk folder, and select it only then."""
        name = self.folders[1]
        self._junk_at = self._clock.monotonic()
        status = await session.status_of(name)
        view = self._views.get(name)
        is_known = view is not None and view.session is session and not view.pending
        news = status.uid_validity, status.uid_next
        if view is None or not is_known or news != (view.validity, view.next_uid):
            return await self._selected(session, name, is_junk=True)
        return ImapFolder(
            session, view, name, is_junk=True, absent_at=self._junk_at, listed_at=self._junk_at, fields={}
        )

    async def _selected(self, session: ImapSession, name: str, *, is_junk: bool) -> ImapFolder:
        absent_at = self._clock.monotonic()
        await session.select(name)
        view, fields = self._views.get(name), {}
        if view is None or view.session is not session or view.validity != session.uid_validity:
            view = self._views[name] = await self._listed(session, view)
        else:
            fields = await self._new(session, view)
        return ImapFolder(
            session,
            view,
            name,
            is_junk=is_junk,
            absent_at=absent_at,
            listed_at=self._clock.monotonic(),
            fields=fields,
        )

    async def _listed(self, session: ImapSession, before: _View | None) -> _View:
        """Return the selected folder anew; what was set aside stays so while the uids mean the same."""
        since = datetime.fromtimestamp(self._clock.time() - self._retention - 86400.0, UTC)
        date = f"{since.day}-{_MONTHS[since.month - 1]}-{since.year}".encode()
        # One that an earlier session marked and did not come to expunge is to be found again.
        marked = [] if session.has_uidplus else [b"UNDELETED"]
        found = set(await session.uid_search(*marked, b"SINCE", date))
        validity = session.uid_validity
        # Without UIDVALIDITY, uids mean something within one session only (RFC 3501 section 6.3.1).
        epoch = str(validity) if validity is not None else f"session-{secrets.token_hex(8)}"
        aside = before.set_aside & found if before is not None and before.epoch == epoch else set()
        next_uid = max(session.uid_next or 1, max(found, default=0) + 1)
        return _View(session, validity, epoch, next_uid, found - aside, aside)

    async def _new(self, session: ImapSession, view: _View) -> dict[int, bytes]:
        """Take in the copies that came since the last poll, with their identifying fields."""
        fields = await session.fetch_fields(view.next_uid, IDENTIFYING)
        view.pending.update(fields)
        view.next_uid = max(view.next_uid, max(fields, default=0) + 1)
        return fields

    async def news(self) -> None:
        """Return once the server tells of a change, by IDLE where it has that."""
        session = self._session
        if session is None or session.folder != self._settings.folder:
            await asyncio.get_running_loop().create_future()
        elif not session.changed:
            try:
                await session.news()
            except ProbeFault:
                self._drop()
                raise

    def _drop(self) -> None:
        if self._session is not None:
            self._session.abort()
            self._session = None

    async def close(self) -> None:
        """Log out."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.log_out()


async def _junk_folder(session: ImapSession) -> str | None:
    """Return the folder that the server marks as the one for junk (RFC 6154), if it does."""
    marked: Iterable[str] = (
        folder.name for folder in await session.folders() if "\\JUNK" in folder.attributes
    )
    return next(iter(marked), None)
