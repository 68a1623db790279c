"""One folder of a mailbox that is read through Microsoft Graph."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.delivery.mailboxes.mailbox import (
    CONTENT_SECONDS,
    HEADER_LIMIT,
    REFUSALS,
    SECOND_CHANCE,
    Content,
    FolderRole,
)
from probes.protocols.graph import GraphSession, Listed

OF_ONE_COPY = frozenset({Reason.GRAPH_ERROR, Reason.GRAPH_UNAVAILABLE, Reason.GRAPH_NOT_FOUND})
"""Answers about one copy, which say nothing about the others."""

FIELDS_LIMIT = 16 * 2**20
"""Maximum octets of header fields to keep of copies that are to be identified; the rest is read again."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class View:
    """What earlier polls found in a folder; copies by their ids."""

    folder: str  # its id or well-known name
    known: dict[str, float] = field(default_factory=dict)  # all that were listed, and when Graph got them
    pending: dict[str, bytes | None] = field(default_factory=dict)  # to read, and their fields if known
    unreadable: dict[str, float] = field(default_factory=dict)  # when each was given up (monotonic)
    refusals: Counter[str] = field(default_factory=Counter)
    searched: set[str] = field(default_factory=set)  # what the search in progress has found
    pages: int = 0  # how many pages it has read
    backlog: str | None = None  # where that search goes on at the next poll
    is_searched: bool = False  # whether a search has ended
    unlisted: int = 0  # entries of the latest list that were no messages

    @property
    def unread(self) -> int:
        """Number of copies that could not be read, and of entries that were no messages."""
        return len(self.unreadable) + self.unlisted

    def add(self, messages: Sequence[Listed]) -> set[str]:
        """Take in messages of a list; return those that are new."""
        new = set[str]()
        room = FIELDS_LIMIT - sum(map(len, filter(None, self.pending.values())))
        for message in messages:
            if message.id not in self.known:
                new.add(message.id)
                room -= len(message.fields or b"")
                self.pending[message.id] = message.fields if room > 0 else None
            self.known[message.id] = message.received
        return new

    def end_search(self, now: float) -> None:
        """Forget what a search of the whole folder did not find, and give copies a second chance."""
        for uid in self.known.keys() - self.searched:
            self.forget(uid)
        for uid, since in list(self.unreadable.items()):
            if now - since >= SECOND_CHANCE:
                del self.unreadable[uid]
                self.refusals[uid] = REFUSALS - 1
                self.pending[uid] = None
        self.searched, self.is_searched = set(), True

    def clear(self) -> None:
        """Forget everything."""
        for found in (self.known, self.pending, self.unreadable, self.refusals, self.searched):
            found.clear()
        self.backlog, self.is_searched = None, False

    def forget(self, uid: str) -> None:
        """Forget a copy that is gone."""
        self.known.pop(uid, None)
        self.pending.pop(uid, None)
        self.unreadable.pop(uid, None)
        self.refusals.pop(uid, None)

    def refuse(self, uid: str, fault: ProbeFault, now: float) -> bool:
        """Count a refusal of one copy; return whether to ignore the copy from now on."""
        self.refusals[uid] += 1
        if self.refusals[uid] < REFUSALS:
            return False
        _log.warning("a message is left alone because the server refused it %d times: %s", REFUSALS, fault)
        self.pending.pop(uid, None)
        self.unreadable[uid] = now
        return True


class GraphFolder:
    """A folder in one poll (see `mailbox.Folder`).

    ``overlooked`` has the copies that earlier polls should have shown.
    """

    def __init__(
        self,
        session: GraphSession,
        view: View,
        name: str,
        *,
        role: FolderRole,
        absent_at: float,
        listed_at: float,
        overlooked: AbstractSet[str],
        permanence: Permanence,
    ) -> None:
        self.name = name
        self.role = role
        self.absent_at = absent_at
        self.listed_at = listed_at
        self.overlooked = frozenset(overlooked)
        self.uids = sorted(view.pending, key=lambda uid: -view.known.get(uid, 0.0))
        self.is_whole = view.backlog is None
        self._session = session
        self._view = view
        self._permanence = permanence

    def told(self, uid: str) -> None:  # noqa: ARG002, D102 # Graph tells whole seconds by another clock
        return None

    async def identify(self, uids: Sequence[str]) -> AsyncGenerator[dict[str, bytes], None]:  # noqa: D102 # as in Folder
        pending = self._view.pending
        known = {uid: fields for uid in uids if (fields := pending.get(uid)) is not None}
        for uid in [uid for uid, fields in known.items() if len(fields) > HEADER_LIMIT]:
            del known[uid]
            self.set_aside(uid)
        yield known
        for uid in uids:
            if uid in pending and pending[uid] is None:
                text = await self._read(uid, HEADER_LIMIT, may_refuse=True)
                if text is not None:
                    head, end, _ = text[0].partition(b"\r\n\r\n")
                    pending[uid] = head + end
                    yield {uid: head + end}

    async def contents(  # noqa: D102 # as in Folder
        self, limits: Mapping[str, int], *, whole: bool
    ) -> AsyncGenerator[dict[str, Content], None]:
        for uid, limit in limits.items():
            read = await self._read(uid, limit, may_refuse=not whole)
            if read is not None:
                octets, is_cut = read
                is_whole = bool(octets) and not (is_cut and whole)
                yield {uid: Content(octets, is_whole, is_too_large=is_cut and whole)}
            elif whole:
                yield {uid: Content(b"", is_whole=False)}

    async def _read(self, uid: str, limit: int, *, may_refuse: bool) -> tuple[bytes, bool] | None:
        """Return the beginning of a copy and whether there is more; ``None`` if it cannot be had."""
        try:
            async with asyncio.timeout(CONTENT_SECONDS):
                return await self._session.content(uid, limit)
        except ProbeFault as fault:
            if fault.reason not in OF_ONE_COPY:
                raise
            if fault.reason is Reason.GRAPH_NOT_FOUND:
                self._view.forget(uid)
            elif may_refuse:
                self._refuse(uid, fault)
        except TimeoutError:
            late = ProbeFault(Reason.COMMAND_TIMEOUT, f"not read within {CONTENT_SECONDS:g} s")
            if may_refuse:
                self._refuse(uid, late)
        return None

    def _refuse(self, uid: str, fault: ProbeFault) -> None:
        if not self._view.refuse(uid, fault, self.listed_at):
            self.is_whole = False

    def set_aside(self, uid: str) -> None:  # noqa: D102 # as in Folder
        self._view.pending.pop(uid, None)

    async def delete(self, uids: Sequence[str]) -> None:
        """Delete copies at once, for good where that is possible."""
        for uid in uids:
            try:
                await self._permanence.delete(self._session, uid)
            except ProbeFault as fault:
                if fault.reason not in OF_ONE_COPY:
                    raise
                if fault.reason is not Reason.GRAPH_NOT_FOUND:
                    self._refuse(uid, fault)
                    continue
            self._view.pending.pop(uid, None)


@dataclass(slots=True)
class Permanence:
    """Whether messages of a mailbox can be removed for good; otherwise they go to Deleted Items."""

    is_possible: bool = True

    async def delete(self, session: GraphSession, uid: str) -> None:
        """Remove a message; raises `ProbeFault`."""
        if self.is_possible:
            try:
                await session.delete(uid, permanently=True)
            except ProbeFault as fault:
                if fault.reason not in {Reason.NOT_GRANTED, Reason.GRAPH_ERROR}:
                    raise
                await session.delete(uid, permanently=False)
                self.is_possible = False
                _log.info("messages are moved to Deleted Items, for they cannot be removed: %s", fault)
            return
        await session.delete(uid, permanently=False)
