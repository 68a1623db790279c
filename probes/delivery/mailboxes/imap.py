"""A mailbox read by IMAP: one lasting connection, a NOOP per poll, and IDLE in the pauses.

IDLE alone is imprecise, because servers may report an arrival late (Dovecot by half a second). A NOOP needs
no login and shows at once whether a message is there. So each poll is a NOOP, frequent when an arrival is
likely, and IDLE is used the rest of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial

from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.delivery.mailboxes.account import FolderAccount
from probes.delivery.mailboxes.imap_folder import ImapFolder, View
from probes.delivery.mailboxes.mailbox import IDENTIFYING, FolderRole, OpenFolder
from probes.delivery.mailboxes.side_folder import JUNK_GAP, SideFolder
from probes.protocols.imap_session import ImapSession

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CLOSED = frozenset({"\\NOSELECT", "\\NONEXISTENT"})  # RFC 9051 section 7.3.1


class ImapMailbox(FolderAccount[ImapSession, View]):
    """Polls the folder, the junk and the sent folder by IMAP on one connection (see `mailbox.Mailbox`)."""

    stays_open = True
    shortest_gap = 0.01
    first_read = 500
    usual_polls = 200.0

    _exists = 0  # number of messages in the main folder when another was selected

    @asynccontextmanager
    async def poll(
        self, phases: PhaseTimer | None = None, *, afresh: bool = False, sent: bool = False
    ) -> AsyncIterator[Sequence[OpenFolder]]:
        """Yield the folders that are due, the main folder first. IDLE watches that one afterwards."""
        with self._budget.poll(self.standing):
            timer = phases or PhaseTimer(self._clock)
            async with self._open_folders(timer, afresh=afresh, sent=sent) as due:
                yield due

    @asynccontextmanager
    async def _open_folders(
        self, phases: PhaseTimer, *, afresh: bool, sent: bool
    ) -> AsyncIterator[Sequence[OpenFolder]]:
        session = self._session = self._session or await self._open(phases)
        due: list[OpenFolder] = [partial(self._main, session, afresh=afresh)]
        now = self._clock.monotonic()
        if self._junk.name is not None and self._junk.is_due(now, afresh=afresh):
            due.append(partial(self._open_side, session, self._junk, afresh=afresh))
        if sent and self._sent.is_due(now):
            due.append(partial(self._open_side, session, self._sent, afresh=afresh))
        self._side = None
        try:
            yield due
            await self._leave_side(session)
        except BaseException:
            self._drop()
            raise
        if not session.is_open:
            self._drop()

    async def _open(self, phases: PhaseTimer) -> ImapSession:
        session = await self._opened(phases)
        if self._settings.junk_folder is not None or self._clock.monotonic() < self._junk.due_at:
            return session
        try:
            name = await self._marked(session, "\\JUNK")
            if name is None or name != self._junk.name:
                self._junk = SideFolder(FolderRole.JUNK, name)
        except ProbeFault as fault:
            if fault.reason is Reason.THROTTLED:
                session.abort()
                raise
            if self._junk.name is None:
                trouble = f"the junk folder is not known: {fault}"
                self._junk.do_without(trouble, self._settings.address, self._clock, fault.remedy)
        except BaseException:
            session.abort()
            raise
        return session if session.is_open else await self._opened(phases)

    async def _opened(self, phases: PhaseTimer) -> ImapSession:
        session = await self._log_in(ImapSession, phases)
        phases.transcript.keep_latest_only()
        return session

    async def _marked(self, session: ImapSession, attribute: str) -> str | None:
        """Return the folder with a special-use attribute (RFC 6154), if it can be opened."""
        for folder in await session.folders():
            is_other = folder.name != self._settings.folder and not folder.attributes & _CLOSED
            if is_other and attribute in folder.attributes:
                return folder.name
        return None

    async def _main(self, session: ImapSession, *, afresh: bool) -> ImapFolder:
        name = self._settings.folder
        view = self._views.get(name)
        if session.folder != name or view is None or not view.holds_in(session):
            return await self._selected(session, name, afresh=afresh)
        absent_at = await session.noop()
        return await self._with_news(view, name, absent_at, afresh=afresh)

    async def _open_side(self, session: ImapSession, side: SideFolder, *, afresh: bool) -> ImapFolder:
        """Check whether anything arrived in a side folder, and select it only then."""
        if self._side is not None:
            self._side.was_read()
        self._side = side
        if session.folder == self._settings.folder:
            self._exists = session.exists
        asked_at = self._clock.monotonic()
        if side is self._junk:
            side.due_at = asked_at + JUNK_GAP
        name = side.name = side.name or await self._sent_name(session)
        before, view = side.status, self._views.get(name)
        with self._naming():
            side.status = status = await session.status_of(name)
        if afresh or view is None or view.session is not session or view.pending or status != before:
            folder = await self._selected(session, name, afresh=afresh)
        else:
            folder = self._folder(view, name, asked_at, asked_at)
        side.trouble = ""
        return folder

    async def _sent_name(self, session: ImapSession) -> str:
        name = await self._marked(session, "\\SENT")
        if name is None:
            raise ProbeFault(
                Reason.IMAP_NO_FOLDER, "none is marked as \\Sent", remedy="Set `sent_folder` to its name."
            )
        return name

    async def _leave_side(self, session: ImapSession) -> None:
        """Select the main folder again, so that IDLE watches it. The next poll reports any failure."""
        if self._side is not None:
            self._side.was_read()
        if session.is_open and session.folder != self._settings.folder:
            with contextlib.suppress(ProbeFault):
                await session.select(self._settings.folder)
                next_uid = self._views[self._settings.folder].next_uid
                session.changed = (session.exists, session.uid_next) != (self._exists, next_uid)

    async def _selected(self, session: ImapSession, name: str, *, afresh: bool) -> ImapFolder:
        absent_at = self._clock.monotonic()
        with self._naming():
            await session.select(name)
        view = self._views.get(name)
        if view is not None and view.holds_in(session):
            session.changed = True
            return await self._with_news(view, name, absent_at, afresh=afresh)
        view = self._views[name] = View.of(session, view, session.heard_at)
        found = await self._search(session)
        view.take_in(found)
        if afresh:
            view.give_second_chances(self._clock.monotonic())
        return self._folder(view, name, absent_at, self._clock.monotonic())

    async def _with_news(self, view: View, name: str, absent_at: float, *, afresh: bool) -> ImapFolder:
        """Return the open folder with what arrived since the last poll or, ``afresh``, with everything."""
        session, fields, overlooked = view.session, dict[int, bytes](), set[int]()
        if session.changed:
            session.changed = False
            fields = await self._new(view)
        if afresh:
            if overlooked := view.take_in(await self._search(session)):
                session.arrivals.begin(absent_at)
            view.give_second_chances(self._clock.monotonic())
        view.told = {uid: view.told[uid] for uid in view.told.keys() & view.pending}
        listed_at = session.heard_at if fields and not afresh else self._clock.monotonic()
        return self._folder(view, name, absent_at, listed_at, fields, overlooked)

    def _folder(
        self,
        view: View,
        name: str,
        absent_at: float,
        listed_at: float,
        fields: dict[int, bytes] | None = None,
        overlooked: set[int] | None = None,
    ) -> ImapFolder:
        return ImapFolder(
            view,
            name,
            self._clock,
            role=FolderRole.MAIN if self._side is None else self._side.role,
            absent_at=absent_at,
            listed_at=listed_at,
            fields=fields or {},
            overlooked=overlooked or set(),
        )

    async def _search(self, session: ImapSession) -> set[int]:
        """Return the copies in the open folder that may be ours."""
        since = datetime.fromtimestamp(self._clock.time() - self._retention - 86400.0, UTC)
        date = f"{since.day}-{_MONTHS[since.month - 1]}-{since.year}".encode()
        # With UIDPLUS, also find copies that an earlier session marked as deleted but did not expunge.
        marked = [] if session.has_uidplus else [b"UNDELETED"]
        return set(await session.uid_search(*marked, b"SINCE", date))

    async def _new(self, view: View) -> dict[int, bytes]:
        """Add the copies that arrived since the last poll; return their fields if they are known."""
        session, fields, asked_at = view.session, dict[int, bytes](), self._clock.monotonic()
        try:
            fields = await session.fetch_fields(view.next_uid, IDENTIFYING)
        except ProbeFault as fault:
            if fault.asks_to_wait or not session.is_open:
                raise  # otherwise the server cannot show one of them, which `ImapFolder.identify` finds
        view.add(fields.keys())
        view.told |= session.arrivals.take(sorted(fields), asked_at)
        if not fields and session.heard_at > view.heard_at:
            # There are more messages, but none with a new uid, so the server's UIDNEXT was too high.
            new = view.take_in(await self._search(session))
            session.arrivals.begin(asked_at)
            view.next_uid = max(new) + 1 if new else view.next_uid
        view.heard_at = session.heard_at
        return fields

    async def news(self) -> None:
        """Return once the server reports a change, by IDLE if it has that."""
        session = self._session
        if session is None or session.folder != self._settings.folder:
            await asyncio.get_running_loop().create_future()
        elif not session.changed:
            try:
                await session.news()
            except ProbeFault:
                self._drop()
                raise

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """If a folder cannot be opened, add the setting that names it to the fault."""
        try:
            yield
        except ProbeFault as fault:
            if fault.reason is Reason.IMAP_NO_FOLDER:
                role = FolderRole.MAIN if self._side is None else self._side.role
                is_set = getattr(self._settings, role.value) is not None
                marked = "\\Junk" if role is FolderRole.JUNK else "\\Sent"
                named = f"the mailbox's {role.value}" if is_set else f"the folder marked as {marked}"
                if not is_set and self._side is self._sent:
                    self._sent.name = None  # another folder may be marked by now
                fault.detail, fault.remedy = legible(f"{named} {fault.detail}"), role.remedy
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
