"""Folders beside the main one, without which a mailbox can be watched: junk, and copies of what was sent."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from probes.core.clock import Clock
from probes.delivery.mailboxes.mailbox import FolderRole
from probes.protocols.imap import FolderStatus

JUNK_GAP = 1.0
"""Minimum seconds between polls of the junk folder."""

SIDE_PAUSE = 60.0
"""Seconds before an unreadable folder is tried again; they double each time."""

LONGEST_SIDE_PAUSE = 3600.0
"""Maximum seconds before it is tried again. A folder that makes the server hang delays the main folder."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class SideFolder:
    """Its name, if it is known, and whether it can be read."""

    role: FolderRole
    name: str | None = None
    trouble: str = ""
    """Why it is not read."""
    pause: float = SIDE_PAUSE
    """Seconds after the next failure; only the first failure is logged."""
    due_at: float = float("-inf")
    """Monotonic time before which it is not polled."""
    status: FolderStatus | None = None
    """IMAP: what the server told at the latest poll."""

    def is_due(self, now: float, *, afresh: bool = False) -> bool:
        """Whether to read it in this poll."""
        return now >= self.due_at or (afresh and not self.trouble)

    def do_without(self, trouble: str, address: str, clock: Clock, remedy: str) -> None:
        """Continue without it for a while."""
        if self.pause == SIDE_PAUSE:
            said = f"{trouble}; remedy: {remedy}" if remedy else trouble
            _log.warning("mailbox %s is watched without its %s: %s", address, self.role.noun, said)
        self.trouble, self.due_at = trouble, clock.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_SIDE_PAUSE)

    def was_read(self) -> None:
        """Forget earlier failures."""
        self.pause = SIDE_PAUSE
