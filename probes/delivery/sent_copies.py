"""Which copies of our messages are still to be removed from the sent folder of the account that sent them.

A mail system may show a message in the sent folder and in the inbox as one (Gmail does). So a copy stays
until its message is settled.
"""

from __future__ import annotations

from collections import OrderedDict

from probes.core.clock import Clock

LOOKED_FOR = 60.0
"""Seconds from the end of a message to the last poll that looks for its sent copy."""

LOOK_GAP = 10.0
"""Seconds between these polls."""


class SentCopies:
    """The sent copies in one mailbox; ``are_kept`` says whether a mail system makes any."""

    def __init__(self, clock: Clock, *, are_kept: bool) -> None:
        self._clock = clock
        self._are_kept = are_kept
        # Messages, and when they were settled; oldest first. A dict would search for its first entry.
        self._settled: OrderedDict[str, float] = OrderedDict()
        self._looked_at = float("-inf")
        self._is_searched = False  # whether copies that an earlier process left have been found
        self._removing: list[str] = []  # messages whose copies the poll in progress deletes
        self._is_read = False  # whether it has read the whole folder

    @property
    def are_expected(self) -> bool:
        """Whether to poll for copies, without any other reason to poll."""
        oldest_wanted = self._clock.monotonic() - LOOKED_FOR
        while self._settled:
            settled_at = next(iter(self._settled.values()))
            if settled_at >= oldest_wanted or settled_at > self._looked_at:
                break
            self._settled.popitem(last=False)
        return bool(self._settled)

    def expect(self, message_id: str) -> bool:
        """Expect the copy of a message that has just been settled, if copies are kept; return whether."""
        if self._are_kept:
            self._settled[message_id] = self._clock.monotonic()
        return self._are_kept

    def take_over(self, earlier: SentCopies) -> None:
        """Take over what ``earlier`` expects."""
        if self._are_kept:
            self._settled.update(earlier._settled)

    def next_poll(self) -> float:
        """Return the monotonic time when the next poll for copies is due."""
        if not self.are_expected:
            return float("inf")
        youngest = next(reversed(self._settled.values()))
        return youngest if youngest > self._looked_at else self._looked_at + LOOK_GAP

    def begin_poll(self) -> bool:
        """Return whether a poll that begins now should read the sent folder."""
        self._removing, self._is_read = [], False
        if not self._are_kept or (self._is_searched and not self.are_expected):
            return False
        self._looked_at = self._clock.monotonic()
        return True

    def remove(self, message_id: str) -> None:
        """Note that the poll in progress deletes the copy of a message."""
        self._removing.append(message_id)

    def read(self) -> None:
        """Note that the poll in progress has read the whole folder."""
        self._is_read = True

    def end_poll(self) -> None:
        """Note that the poll has ended, and that its deletions have taken effect."""
        if self._is_read:
            self._is_searched = True
            for message_id in self._removing:
                self._settled.pop(message_id, None)
