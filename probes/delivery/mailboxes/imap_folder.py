"""One folder of an IMAP mailbox: what is known about its copies, and what a poll shows."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.delivery.mailboxes.mailbox import HEADER_LIMIT, IDENTIFYING, REFUSALS, SECOND_CHANCE
from probes.protocols.imap_session import BATCH, ImapSession

PIECE_SIZE = 1024 * 1024
"""Octets of a large message to request at a time."""

_NARROWING = 8  # after a failure, the number of copies to request at once is divided by this

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
    batch: int = BATCH  # how many copies to request at once

    @classmethod
    def of(cls, session: ImapSession, before: View | None, heard_at: float) -> View:
        """Return an empty view of the open folder, with what remains valid of the view ``before``."""
        validity = session.uid_validity
        # Without UIDVALIDITY, uids are valid within one session only (RFC 3501 section 6.3.1).
        epoch = str(validity) if validity is not None else f"session-{secrets.token_hex(8)}"
        view = cls(session, validity, epoch, session.uid_next or 1, heard_at)
        if before is not None and before.epoch == epoch:
            view.set_aside, view.unreadable = before.set_aside, before.unreadable
            view.refusals, view.batch = before.refusals, before.batch
        return view

    def holds_in(self, session: ImapSession) -> bool:
        """Whether this view is of the folder that ``session`` has open, with the same uids."""
        return self.session is session and self.validity == session.uid_validity

    def take_in(self, found: Set[int]) -> set[int]:
        """Update the view with all uids that a search found; return the new ones."""
        new = found - self.pending - self.set_aside - self.unreadable.keys()
        self.pending &= found
        self.set_aside &= found
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
        _log.warning("a message is left alone, for the server refused it %d times: %s", REFUSALS, fault)
        self.pending.discard(uid)
        if uid not in self.set_aside:
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
        is_junk: bool,
        absent_at: float,
        listed_at: float,
        fields: Mapping[int, bytes],
        overlooked: Set[int] = frozenset(),
    ) -> None:
        self.name = name
        self.is_junk = is_junk
        self.absent_at = absent_at
        self.listed_at = listed_at
        self.is_whole = True
        self._view = view
        self._session = view.session
        self._clock = clock
        self._fields = fields
        self.uids = [self._text(uid) for uid in sorted(view.pending, reverse=True)]
        self.overlooked = frozenset(map(self._text, overlooked))

    def _text(self, uid: int) -> str:
        """Return a uid that stays unique if UIDVALIDITY changes (RFC 9051 section 2.3.1.1)."""
        return f"{self.name}/{self._view.epoch}/{uid}"

    @staticmethod
    def _number(uid: str) -> int:
        return int(uid.rpartition("/")[2])

    async def identify(self, uids: Sequence[str]) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield uids with their identifying fields (see `mailbox.Folder`).

        If a FETCH of many copies fails, fewer are requested at once, until the copy that the server cannot
        show is found. Copies that were refused before come last, because they may end the session.
        """
        view, faults = self._view, dict[int, ProbeFault]()
        waiting = sorted(map(self._number, uids), key=lambda uid: (view.refusals[uid], -uid))
        while waiting:
            batch = self._next_batch(waiting)
            try:
                fields = await self._fields_of(batch)
            except ProbeFault as fault:
                if len(batch) > 1:
                    view.batch = max(1, len(batch) // _NARROWING)
                if fault.asks_to_wait or not self._session.is_open:
                    if len(batch) == 1 and not fault.asks_to_wait:
                        self._refuse(batch[0], fault)
                    raise
                if len(batch) > 1:
                    continue
                faults[batch[0]] = fault
            del waiting[: len(batch)]
            for uid in batch:
                if uid in faults:
                    continue
                if uid in fields:
                    yield self._text(uid), fields[uid]
                else:
                    view.pending.discard(uid)  # it is gone
        view.batch = BATCH
        if 1 < len(faults) == len(uids):  # the server is at fault, not the messages
            raise next(iter(faults.values()))
        for uid in faults:
            self._refuse(uid, faults[uid])

    def _next_batch(self, waiting: Sequence[int]) -> Sequence[int]:
        """Return the copies to request at once; one that was refused before is requested alone."""
        refusals = self._view.refusals
        together = [uid for uid in waiting[: self._view.batch] if not refusals[uid]]
        return together or waiting[:1]

    async def _fields_of(self, uids: Sequence[int]) -> dict[int, bytes]:
        known = {uid: self._fields[uid] for uid in uids if uid in self._fields}
        unknown = [uid for uid in uids if uid not in known]
        return known | await self._session.fetch_fields_of(unknown, IDENTIFYING) if unknown else known

    async def header_section(self, uid: str) -> bytes:  # noqa: D102 # as in Folder
        # If it is too large, the beginning is enough: the newest fields are at the top.
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

    def refused(self, uid: str, fault: ProbeFault) -> bool:  # noqa: D102 # as in Folder
        if fault.asks_to_wait:
            return False
        self._refuse(self._number(uid), fault)
        return self._session.is_open

    def _refuse(self, uid: int, fault: ProbeFault) -> None:
        if not self._view.refuse(uid, fault, self._clock.monotonic()):
            self.is_whole = False

    def set_aside(self, uid: str) -> None:  # noqa: D102 # as in Folder
        self._view.pending.discard(self._number(uid))
        self._view.set_aside.add(self._number(uid))

    async def delete(self, uid: str) -> None:
        """Delete a copy; without UIDPLUS, it only gets the flag ``\\Deleted``."""
        number = self._number(uid)
        try:
            await self._session.delete(number)
        except ProbeFault as fault:
            if self._view.refusals[number] + 1 >= REFUSALS and not fault.asks_to_wait:
                self.set_aside(uid)  # it is counted, and stays there
            raise
        self._view.pending.discard(number)
