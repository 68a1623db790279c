"""When messages arrived in an open IMAP folder, according to the server's EXISTS responses."""

from __future__ import annotations

from collections.abc import Sequence

Interval = tuple[float, float]
"""Two monotonic times: absent at some moment after the first, present before the second."""

MOST_TOLD = 1000
"""Maximum number of arrivals that are remembered until a FETCH shows them."""

BUSY_GAP = 1.0
"""Maximum seconds between two arrivals in a folder that is busy."""


class ToldArrivals:
    """The arrivals that EXISTS has reported and no FETCH has shown yet, oldest first.

    Uids ascend in the order of arrival (RFC 9051 section 2.3.1.1), so the first arrival belongs to the first
    uid that a FETCH shows. Nothing is remembered if the reports do not add up.
    """

    def __init__(self) -> None:
        self._told: list[Interval] = []
        self._absent_at = float("-inf")
        self._latest_at = self._one_before_at = float("-inf")

    def begin(self, sent_at: float) -> None:
        """Forget everything; a command that shows the folder as it is was sent at this monotonic time."""
        self._told.clear()
        self._absent_at = sent_at

    def looked(self, sent_at: float) -> None:
        """Record that a NOOP sent at this monotonic time is answered: it reported all earlier arrivals."""
        self._absent_at = sent_at

    def told(self, count: int, now: float) -> None:
        """Record that EXISTS has just reported so many more messages; fewer make all times unknown."""
        self._one_before_at = now if count > 1 else self._latest_at
        self._latest_at = now
        if count < 0 or len(self._told) + count > MOST_TOLD:
            self._told.clear()
        else:
            self._told += [(self._absent_at, now)] * count

    def expunged(self, place: int, exists: int) -> None:
        """Record that the message at this place among ``exists`` is gone (RFC 9051 section 7.5.1)."""
        index = len(self._told) - 1 - (exists - place)
        if 0 <= index < len(self._told):
            del self._told[index]

    def take(self, uids: Sequence[int], asked_at: float) -> dict[int, Interval]:
        """Return when each of the ``uids`` arrived, or nothing if EXISTS did not report exactly these.

        They are all the new uids, ascending, that a FETCH sent at ``asked_at`` has shown. A server may report
        an EXPUNGE later (RFC 9051 section 7.5.1), so a message reported before may be missing among them.
        """
        told, left = self._told, self._told[len(uids) :]
        self._told = [interval for interval in left if interval[1] > asked_at]
        if len(told) < len(uids) or len(self._told) < len(left):
            return {}
        return dict(zip(uids, told, strict=False))

    def is_busy(self, now: float) -> bool:
        """Whether messages arrive so often that any delay of the next look would blur their times."""
        return now - self._one_before_at < BUSY_GAP
