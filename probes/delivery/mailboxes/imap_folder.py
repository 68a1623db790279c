"""One folder of an IMAP mailbox: what is known about its copies, and what a poll shows."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TypeVar

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.delivery.mailboxes.mailbox import (
    CONTENT_SECONDS,
    HEADER_LIMIT,
    IDENTIFYING,
    REFUSALS,
    SECOND_CHANCE,
    Content,
    FolderRole,
)
from probes.protocols.imap_arrivals import Interval
from probes.protocols.imap_session import BATCH, ImapSession

FIRST_PIECE = HEADER_LIMIT
"""Octets of each message of a set to request."""

CONTENTS = 64
"""Maximum number of messages whose contents are requested at once: together at most 4 MiB."""

PIECE_SIZE = 1024 * 1024
"""Octets of a large message to request at a time after that."""

MANY = 16
"""Number of pending copies from which each command is followed by a look for new ones."""

_NARROWING = 8  # after a failure, the number of copies to request at once is divided by this

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class View:
    """What is known about a folder: which copies are pending, and which are done."""

    session: ImapSession  # the session that listed it
    validity: int | None
    epoch: str  # makes uids unique for ever, together with the folder's name
    next_uid: int  # the first uid that is not listed yet
    heard_at: float  # when the latest EXISTS that was handled arrived
    pending: set[int] = field(default_factory=set)
    set_aside: set[int] = field(default_factory=set)
    unreadable: dict[int, float] = field(default_factory=dict)  # when each was given up (monotonic)
    refusals: Counter[int] = field(default_factory=Counter)
    recorded: set[int] = field(default_factory=set)  # copies of ours that are to be deleted
    told: dict[int, Interval] = field(default_factory=dict)  # when pending copies arrived, if it was reported
    narrowed: dict[str, int] = field(
        default_factory=dict
    )  # the most copies to ask for at once, after a failure

    @property
    def unread(self) -> int:
        """Number of copies that could not be read."""
        return len(self.unreadable)

    @classmethod
    def of(cls, session: ImapSession, before: View | None, heard_at: float) -> View:
        """Return an empty view of the open folder, with what remains valid of the view ``before``."""
        validity = session.uid_validity
        # Without UIDVALIDITY, uids are valid within one session only (RFC 3501 section 6.3.1).
        epoch = str(validity) if validity is not None else f"session-{secrets.token_hex(8)}"
        view = cls(session, validity, epoch, session.uid_next or 1, heard_at)
        if before is not None and before.epoch == epoch:
            view.set_aside, view.unreadable = before.set_aside, before.unreadable
            view.refusals, view.recorded, view.narrowed = before.refusals, before.recorded, before.narrowed
        return view

    def holds_in(self, session: ImapSession) -> bool:
        """Whether this view is of the folder that ``session`` has open, with the same uids."""
        return self.session is session and self.validity == session.uid_validity

    def take_in(self, found: Set[int]) -> set[int]:
        """Update the view with all uids that a search found; return the new ones."""
        new = found - self.pending - self.set_aside - self.unreadable.keys()
        self.pending &= found
        self.set_aside &= found
        self.recorded &= found
        for uid in self.unreadable.keys() - found:
            del self.unreadable[uid]
        for uid in self.refusals.keys() - found:
            del self.refusals[uid]
        self.add(new)
        return new

    def add(self, uids: Set[int]) -> None:
        """Add new copies; the next poll asks for the uids after them."""
        self.pending |= uids - self.set_aside - self.unreadable.keys()
        self.next_uid = max(self.next_uid, max(uids, default=0) + 1)

    def refuse(self, uid: int, fault: ProbeFault, now: float) -> bool:
        """Count a server's refusal of one copy; return whether to ignore the copy from now on."""
        self.refusals[uid] += 1
        if self.refusals[uid] < REFUSALS:
            return False
        _log.warning("a message is left alone because the server refused it %d times: %s", REFUSALS, fault)
        self.pending.discard(uid)
        if uid in self.recorded:
            self.set_aside.add(uid)  # it is counted, and stays there
        elif uid not in self.set_aside:
            self.unreadable[uid] = now
        return True

    def give_second_chances(self, now: float) -> None:
        """Allow another try for copies that could not be read some time ago."""
        for uid, since in list(self.unreadable.items()):
            if now - since >= SECOND_CHANCE:
                del self.unreadable[uid]
                self.refusals[uid] = REFUSALS - 1
                self.pending.add(uid)


class ImapFolder:
    """A selected folder, or a folder known to have nothing new (see `mailbox.Folder`).

    ``fields`` are those of copies already identified. ``overlooked`` has the uids that earlier polls should
    have shown.
    """

    def __init__(
        self,
        view: View,
        name: str,
        clock: Clock,
        *,
        role: FolderRole,
        absent_at: float,
        listed_at: float,
        fields: Mapping[int, bytes],
        overlooked: Set[int] = frozenset(),
    ) -> None:
        self.name = name
        self.role = role
        self.absent_at = absent_at
        self.listed_at = listed_at
        self.is_whole = True
        self._view = view
        self._session = view.session
        self._clock = clock
        self._fields = fields
        self._session.looks_along = len(view.pending) > MANY
        told = sorted(view.pending & view.told.keys())
        others = sorted(view.pending - view.told.keys(), reverse=True)
        self.uids = [self._text(uid) for uid in (*told, *others)]
        self.overlooked = frozenset(map(self._text, overlooked))

    def _text(self, uid: int) -> str:
        """Return a uid that stays unique if UIDVALIDITY changes (RFC 9051 section 2.3.1.1)."""
        return f"{self.name}/{self._view.epoch}/{uid}"

    @staticmethod
    def _number(uid: str) -> int:
        return int(uid.rpartition("/")[2])

    def told(self, uid: str) -> Interval | None:  # noqa: D102 # as in Folder
        return self._view.told.get(self._number(uid))

    async def identify(self, uids: Sequence[str]) -> AsyncGenerator[dict[str, bytes], None]:
        """Yield the identifying fields of copies by uid, a set at a time (see `mailbox.Folder`)."""
        held: dict[int, ProbeFault] = {}  # if the server shows no copy, it is at fault, not the messages
        may_count = len(uids) == 1
        async for batch, fields in self._in_sets("fields", map(self._number, uids), BATCH, self._fields_of):
            if isinstance(fields, ProbeFault):
                held[batch[0]] = fields
            else:
                may_count = True
            while held and may_count:
                self._refuse(*held.popitem())
            if not isinstance(fields, ProbeFault):
                self._view.pending -= set(batch) - fields.keys()  # these are gone
                yield {self._text(uid): fields[uid] for uid in batch if uid in fields}
        if held:
            raise next(iter(held.values()))

    async def _in_sets(
        self, what: str, numbers: Iterable[int], most: int, ask: Callable[[Sequence[int]], Awaitable[T]]
    ) -> AsyncGenerator[tuple[Sequence[int], T | ProbeFault], None]:
        """Yield the answers for copies in sets of at most ``most``, and the fault of each copy that has one.

        If a set fails, smaller sets follow, until the copy that the server refuses is found; then they grow
        again. Copies that were refused before come last and alone, because they may end the session. If a
        session ends, the next ones have only smaller sets of this kind (``what``), until that copy is found.
        """
        view = self._view
        size = most = min(most, view.narrowed.get(what, most))
        waiting = sorted(numbers, key=lambda uid: view.refusals[uid])
        while waiting:
            batch = [uid for uid in waiting[:size] if not view.refusals[uid]] or waiting[:1]
            answer: T | ProbeFault
            try:
                answer = await ask(batch)
                size = min(2 * size, most)
            except ProbeFault as fault:
                smaller = max(1, len(batch) // _NARROWING)
                if fault.asks_to_wait or not self._session.is_open:
                    if len(batch) > 1:
                        view.narrowed[what] = smaller
                    elif not fault.asks_to_wait:
                        self._refuse(batch[0], fault)
                        view.narrowed.pop(what, None)
                    raise
                if len(batch) > 1:
                    size = smaller
                    continue
                answer = fault
            del waiting[: len(batch)]
            yield batch, answer
        view.narrowed.pop(what, None)

    async def _fields_of(self, uids: Sequence[int]) -> dict[int, bytes]:
        known = {uid: self._fields[uid] for uid in uids if uid in self._fields}
        unknown = [uid for uid in uids if uid not in known]
        return known | await self._session.fetch_fields_of(unknown, IDENTIFYING) if unknown else known

    async def contents(
        self, limits: Mapping[str, int], *, whole: bool
    ) -> AsyncGenerator[dict[str, Content], None]:
        """Yield the contents of copies by uid, a set at a time (see `mailbox.Folder`)."""
        uids = {self._number(uid): uid for uid in limits}
        async for batch, begun in self._in_sets("contents", uids, CONTENTS, self._beginnings):
            if isinstance(begun, ProbeFault):
                if whole:
                    yield {uids[batch[0]]: Content(b"", is_whole=False)}
                else:
                    self._refuse(batch[0], begun)
                continue
            texts = {uids[number]: begun.get(number, b"") for number in batch}
            yield {
                uid: Content(text, is_whole=bool(text))
                for uid, text in texts.items()
                if len(text) < FIRST_PIECE
            }
            for uid, text in texts.items():
                if len(text) >= FIRST_PIECE:
                    yield {uid: await self._continued(uid, text, limits[uid], whole=whole)}

    async def _beginnings(self, numbers: Sequence[int]) -> dict[int, bytes]:
        return await self._session.beginnings(numbers, FIRST_PIECE)

    async def _continued(self, uid: str, beginning: bytes, limit: int, *, whole: bool) -> Content:
        """Read the rest of a large copy, up to its limit; a fault ends the reading."""
        text, is_whole, enough = bytearray(beginning), False, limit + 1 if whole else limit
        try:
            async with asyncio.timeout(CONTENT_SECONDS):
                while not is_whole and len(text) < enough:
                    piece = await self._session.part_of(self._number(uid), len(text), PIECE_SIZE) or b""
                    text += piece
                    is_whole = len(piece) < PIECE_SIZE
        except (ProbeFault, TimeoutError) as error:
            _log.warning("a message was read only in part: %s", error or f"more than {CONTENT_SECONDS:g} s")
        return Content(bytes(text), is_whole, is_too_large=len(text) > limit)

    def _refuse(self, uid: int, fault: ProbeFault) -> None:
        if not self._view.refuse(uid, fault, self._clock.monotonic()):
            self.is_whole = False

    def set_aside(self, uid: str) -> None:  # noqa: D102 # as in Folder
        self._view.pending.discard(self._number(uid))
        self._view.set_aside.add(self._number(uid))

    async def delete(self, uids: Sequence[str]) -> None:
        """Delete copies; without UIDPLUS, they only get the flag ``\\Deleted``."""
        numbers = [self._number(uid) for uid in uids]
        self._view.recorded.update(numbers)
        async for batch, answer in self._in_sets("deletion", numbers, BATCH, self._session.delete):
            if isinstance(answer, ProbeFault):
                self._refuse(batch[0], answer)
            else:
                self._view.pending.difference_update(batch)
