"""How many copies a poll reads, so that a crowded mailbox does not delay the discovery of arrivals."""

from __future__ import annotations

from dataclasses import dataclass

MOST_READ = 500
"""Maximum number of header sections that a poll reads; older messages wait for the next poll."""

READ_SECONDS = 0.5
"""Seconds that reading and deleting may take in a poll, or as long as the poll has taken up to then."""

_CUT = 8  # divides the number after a poll that did not end in time


@dataclass(slots=True)
class ReadingPace:
    """The number of copies that the next poll may read, learnt from how long the latest ones took."""

    most: int

    def learn(self, count: int, seconds: float, before: float) -> None:
        """Learn that so many copies took so many ``seconds``, in a poll that had taken ``before`` seconds."""
        fitting = max(READ_SECONDS, before)
        if seconds > fitting:
            self.most = max(1, min(self.most, int(count * fitting / seconds)))
        elif count == self.most:
            self.most = min(MOST_READ, 2 * self.most)

    def cut(self) -> None:
        """Learn that a poll did not end in time."""
        self.most = max(1, self.most // _CUT)
