"""The messages of a POP3 mailbox by their numbers, from one session to the next.

The answer to UIDL has a line for each message. So a large mailbox is not listed again at every poll: STAT and
the unique id of the last known message show that the earlier ones are the same, because a message that comes
or goes among them moves the last one to another number. Only the new ones are listed then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.protocols.pop3_session import Pop3Session

LARGE = 1000
"""Number of messages from which a mailbox is not listed at every poll."""

MOST_NEW = 100
"""Maximum number of new messages to ask for one by one."""

LISTED_FOR = 300.0
"""Seconds after which even a large mailbox is listed again, in case its server adds messages in between."""


_NO_HELP = frozenset({Reason.POP3_ERROR, Reason.PROTOCOL_ERROR})
"""Answers to these commands that only mean that all messages must be listed."""


class Listing:
    """Unique ids by message number, and a key for each message that is unique in the mailbox.

    The key is the unique id. Identical messages may share an id (RFC 1939 section 7), so all but the oldest
    of them also have their position among these.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._numbers: Sequence[int] = ()
        self._ids: list[str] = []
        self.keys: list[str] = []
        """The keys, in the order of the messages' numbers."""
        self._marked: set[int] = set()  # numbers of messages that this session deletes
        self._is_usable = False  # whether numbers begin with 1, without a gap
        self._is_extended = False  # whether the latest session added to an earlier listing
        self._listed_at = float("-inf")  # monotonic

    @property
    def is_complete(self) -> bool:
        """Whether the latest session listed all messages."""
        return not self._is_extended

    def id_of(self, number: int) -> str:
        """Return the unique id of a message."""
        return self._ids[self._numbers.index(number)]

    def numbers_without(self, *done_with: Collection[str]) -> dict[str, int]:
        """Return the numbers of messages by key, ascending, without those that are done with."""
        pairs = zip(self.keys, self._numbers, strict=True)
        return {key: number for key, number in pairs if not any(key in done for done in done_with)}

    async def update(self, session: Pop3Session, *, afresh: bool) -> frozenset[str]:
        """Learn which messages a session shows; return the keys that earlier sessions should have shown.

        ``afresh`` lists them all. Raises `ProbeFault`.
        """
        self._marked.clear()
        is_recent = self._clock.monotonic() - self._listed_at <= LISTED_FOR
        is_known = self._is_usable and len(self._ids) >= LARGE
        if is_known and is_recent and not afresh and await self._extend(session):
            return frozenset()
        return await self._list(session)

    async def _extend(self, session: Pop3Session) -> bool:
        """Add the messages behind those known; return whether these are the same as before."""
        known = len(self._ids)
        try:
            count, _ = await session.stat()
            if not known <= count <= known + MOST_NEW or await session.unique_id(known) != self._ids[-1]:
                return False
            new = [await session.unique_id(number) for number in range(known + 1, count + 1)]
        except ProbeFault as fault:
            if fault.reason not in _NO_HELP:
                raise
            return False
        if None in new:
            return False
        for unique_id in filter(None, new):
            self._add(unique_id, self._ids.count(unique_id) + 1)
        self._numbers = range(1, len(self._ids) + 1)
        self._is_extended = True
        return True

    async def _list(self, session: Pop3Session) -> frozenset[str]:
        listing = await session.uidl()
        known = set(self.keys) if self._is_extended else set[str]()
        self._numbers, self._ids, self.keys = sorted(listing), [], []
        seen: Counter[str] = Counter()
        for number in self._numbers:
            seen[listing[number]] += 1
            self._add(listing[number], seen[listing[number]])
        self._is_usable = (
            len(listing) > 0 and self._numbers[-1] == len(listing) and not session.unreadable_ids
        )
        self._listed_at, self._is_extended = self._clock.monotonic(), False
        last = next((place for place in range(len(self.keys) - 1, -1, -1) if self.keys[place] in known), 0)
        return frozenset(self.keys[:last]) - known

    def _add(self, unique_id: str, occurrence: int) -> None:
        self._ids.append(unique_id)
        self.keys.append(unique_id if occurrence == 1 else f"{unique_id} {occurrence}")

    def mark(self, number: int) -> None:
        """Record that the session deletes a message; this counts once `deleted` follows."""
        self._marked.add(number)

    def deleted(self) -> None:
        """Record that the session has ended, and that its deletions have taken effect."""
        for number in sorted(self._marked, reverse=True):
            place = self._numbers.index(number)
            del self._ids[place], self.keys[place]
        if self._is_usable:
            self._numbers = range(1, len(self._ids) + 1)
        self._marked.clear()
