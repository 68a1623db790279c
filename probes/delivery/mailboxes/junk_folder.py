"""The junk folder of a mailbox, which can be watched without it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from probes.core.clock import Clock

JUNK_GAP = 1.0
"""Minimum seconds between polls of the junk folder."""

JUNK_PAUSE = 60.0
"""Seconds before an unreadable junk folder is tried again; they double each time."""

LONGEST_JUNK_PAUSE = 3600.0
"""Maximum seconds before it is tried again. A folder that makes the server hang delays the main folder."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class JunkFolder:
    """Its name, if there is one, and whether it can be read."""

    name: str | None = None
    trouble: str = ""
    """Why it is not read."""
    pause: float = JUNK_PAUSE
    """Seconds after the next failure; only the first failure is logged."""
    due_at: float = float("-inf")
    """Monotonic time before which it is not polled."""

    def is_due(self, now: float, *, afresh: bool) -> bool:
        """Whether to read it in this poll."""
        return self.name is not None and (now >= self.due_at or (afresh and not self.trouble))

    def do_without(self, trouble: str, address: str, clock: Clock) -> None:
        """Continue without it for a while."""
        if self.pause == JUNK_PAUSE:
            _log.warning("mailbox %s is watched without its junk folder: %s", address, trouble)
        self.trouble, self.due_at = trouble, clock.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_JUNK_PAUSE)
