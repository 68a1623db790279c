"""A mailbox read through Microsoft Graph: a poll is one request for the newest messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from probes.core.clock import Clock
from probes.core.credentials import NO_TOKENS, Tokens
from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import PhaseTimer
from probes.delivery.mailboxes.account import FolderAccount
from probes.delivery.mailboxes.graph_folder import GraphFolder, Permanence, View
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.mailbox import IDENTIFYING, FolderRole, OpenFolder
from probes.delivery.mailboxes.side_folder import JUNK_GAP, SideFolder
from probes.protocols.graph import GraphSession

LATEST_LISTED = 20
"""Number of messages to ask for in a poll."""

PAGE = 25
"""Number of messages in each page of a search of the whole folder: with up to 40 KB of header fields each."""

SEARCH_SECONDS = 20.0
"""Seconds after which a poll reads no further pages; a search goes on at the next poll."""

MOST_PAGES = 800
"""Maximum number of pages of a folder: 20,000 messages that were received within the retention."""

MOST_KNOWN = MOST_PAGES * PAGE
"""Number of known messages from which the folder is searched, to forget those that are gone."""

OVERLAP = 3600.0
"""How many seconds before the newest known message a poll begins: some get there with an older time."""

_WELL_KNOWN = {"inbox": "inbox"}
_JUNK, _SENT = "junkemail", "sentitems"


class GraphMailbox(FolderAccount[GraphSession, View]):
    """Polls the folder, the junk and the sent folder through Graph (see `mailbox.Mailbox`)."""

    stays_open = False
    shortest_gap = 0.02
    first_read = 500
    usual_polls = 6.0
    resource = "graph"
    usual_junk, usual_sent = _JUNK, _SENT

    def __init__(
        self,
        settings: MailboxSettings,
        server: ServerSettings,
        clock: Clock,
        budget: LoginBudget,
        retention: float,
        tokens: Tokens = NO_TOKENS,
    ) -> None:
        super().__init__(settings, server, clock, budget, retention, tokens)
        self._permanence = Permanence()

    @asynccontextmanager
    async def poll(
        self, phases: PhaseTimer | None = None, *, afresh: bool = False, sent: bool = False
    ) -> AsyncIterator[Sequence[OpenFolder]]:
        """Yield the folders that are due, the main folder first."""
        with self._budget.poll(self.standing):
            session = self._session = self._session or self._open(phases or PhaseTimer(self._clock))
            main = self._settings.folder
            self._side = None
            try:
                # At once, because a fault of the list is one of the whole poll.
                folder = await self._listed(session, main, FolderRole.MAIN, afresh=afresh)
                now, due = self._clock.monotonic(), [partial(_opened, folder)]
                if self._junk.name != main and self._junk.is_due(now, afresh=afresh):
                    due.append(partial(self._open_side, session, self._junk, afresh=afresh))
                if sent and self._sent.is_due(now):
                    due.append(partial(self._open_side, session, self._sent, afresh=afresh))
                yield due
            except BaseException:
                await self.close()
                raise
            if self._side is not None:
                self._side.was_read()

    def _open(self, phases: PhaseTimer) -> GraphSession:
        phases.transcript.keep_latest_only()
        return GraphSession(self._server, self._settings.username, self._credentials, phases, self._clock)

    async def _open_side(self, session: GraphSession, side: SideFolder, *, afresh: bool) -> GraphFolder:
        if self._side is not None:
            self._side.was_read()
        self._side = side
        if side is self._junk:
            side.due_at = self._clock.monotonic() + JUNK_GAP
        folder = await self._listed(session, side.name or "", side.role, afresh=afresh)
        side.trouble = ""
        return folder

    async def _view(self, session: GraphSession, name: str, role: FolderRole) -> View:
        view = self._views.get(name)
        if view is None:
            is_default = role is not FolderRole.MAIN and getattr(self._settings, role.value) is None
            known = name if is_default else _WELL_KNOWN.get(name.lower())
            try:
                view = self._views[name] = View(known or await session.folder_id(name))
            except ProbeFault as fault:
                if fault.reason is Reason.GRAPH_NOT_FOUND:
                    fault.detail = legible(f"the mailbox's {role.value} {name!r}: {fault.detail}")
                    fault.remedy = role.remedy
                raise
        return view

    async def _listed(
        self, session: GraphSession, name: str, role: FolderRole, *, afresh: bool
    ) -> GraphFolder:
        """Return a folder with what is new or, ``afresh`` and at first, with everything in the retention."""
        view = await self._view(session, name, role)
        try:
            absent_at, overlooked = await self._list(session, view, afresh=afresh)
        except ProbeFault as fault:
            if fault.reason is Reason.GRAPH_NOT_FOUND:
                del self._views[name]  # a folder of this name may come again, with another id
            raise
        return GraphFolder(
            session,
            view,
            name,
            role=role,
            absent_at=absent_at,
            listed_at=self._clock.monotonic(),
            overlooked=overlooked,
            permanence=self._permanence,
        )

    async def _list(self, session: GraphSession, view: View, *, afresh: bool) -> tuple[float, set[str]]:
        """Bring a view up to date; return when that began, and what earlier polls should have shown."""
        if (afresh or not view.is_searched or len(view.known) > MOST_KNOWN) and view.backlog is None:
            return await self._search(session, view)
        asked_at = await self._look(session, view)
        if view.backlog is not None:
            await self._go_on(session, view, view.backlog)
        return asked_at, set()

    async def _look(self, session: GraphSession, view: View) -> float:
        """Ask for the newest messages, and for more until one is known; return when that began."""
        since = max(self._newest(view) - OVERLAP, self._oldest())
        page = await session.newest(view.folder, since, LATEST_LISTED, IDENTIFYING)
        asked_at, pages = session.asked_at, 1
        ends = self._clock.monotonic() + SEARCH_SECONDS
        view.unlisted = page.unreadable
        while len(view.add(page.messages)) == len(page.messages) > 0 and page.next_link is not None:
            if (pages := pages + 1) > MOST_PAGES or self._clock.monotonic() > ends:
                view.pages = pages
                view.backlog, view.searched = page.next_link, set(view.known)
                break
            page = await session.page(page.next_link, IDENTIFYING)
        return asked_at

    async def _search(self, session: GraphSession, view: View) -> tuple[float, set[str]]:
        """Ask for all messages; return when that began, and what earlier polls should have shown."""
        before, oldest_shown = set(view.known), self._newest(view) - OVERLAP
        view.searched, view.pages = set(), 1
        page = await session.newest(view.folder, self._oldest(), PAGE, IDENTIFYING)
        asked_at = session.asked_at
        view.unlisted = page.unreadable
        # Whatever is among the newest would have been shown by a poll a moment ago.
        late = {message.id for message in page.messages[:LATEST_LISTED] if message.received >= oldest_shown}
        new = view.add(page.messages)
        view.searched |= {message.id for message in page.messages}
        if page.next_link is None:
            view.end_search(self._clock.monotonic())
        else:
            new |= await self._go_on(session, view, page.next_link)
        return asked_at, new - late if before else set()

    async def _go_on(self, session: GraphSession, view: View, link: str) -> set[str]:
        """Read the next pages of a search; return the new messages."""
        new, ends = set[str](), self._clock.monotonic() + SEARCH_SECONDS
        while self._clock.monotonic() < ends:
            view.backlog = None  # a page that cannot be read is not tried again: a new search begins
            page = await session.page(link, IDENTIFYING)
            new |= view.add(page.messages)
            view.searched |= {message.id for message in page.messages}
            view.unlisted += page.unreadable
            if page.next_link is None:
                view.end_search(self._clock.monotonic())
                return new
            if (pages := view.pages + 1) > MOST_PAGES:
                view.clear()
                raise ProbeFault(Reason.RESPONSE_TOO_LARGE, f"more than {MOST_PAGES} pages of messages")
            view.pages = pages
            link = view.backlog = page.next_link
        return new

    def _newest(self, view: View) -> float:
        """Return when the newest known message arrived; one from the future must not hide those of today."""
        return min(max(view.known.values(), default=0.0), self._clock.time())

    def _oldest(self) -> float:
        return self._clock.time() - self._retention - 86400.0

    async def news(self) -> None:
        """Wait for ever: changes are not reported."""
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


async def _opened(folder: GraphFolder) -> GraphFolder:
    return folder
