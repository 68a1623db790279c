"""Logs a trouble that goes on: its begin, each new reason, its end, and a reminder once an hour."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from probes.core.clock import Clock

REMINDER = 3600.0
"""Minimum seconds between two lines about a trouble that does not change."""


class TroubleLog:
    """The lines about one subject, such as a mailbox.

    Thousands may be in trouble at once, and each for days, so a failure that only repeats is not logged.
    """

    __slots__ = ("_clock", "_log", "_reasons", "_since", "_told_at", "failures", "subject")

    def __init__(self, log: logging.Logger, subject: str, clock: Clock) -> None:
        self.subject = subject
        self._log = log
        self._clock = clock
        self.failures = 0
        """The number of failures since the last success."""
        self._reasons: set[str] = set()
        self._since = self._told_at = 0.0  # monotonic

    def failed(self, reason: str, text: str, extra: Mapping[str, object] | None = None) -> None:
        """Log a failure, unless one for this reason has been logged since the last success.

        ``reason`` is from a closed list. After `REMINDER` seconds, a repetition is logged all the same, with
        its duration. ``extra`` has further members of the record.
        """
        now = self._clock.monotonic()
        if not self.failures:
            self._since = now
        self.failures += 1
        is_new = reason not in self._reasons
        if not is_new and now - self._told_at < REMINDER:
            return
        self._reasons.add(reason)
        self._told_at = now
        still = "" if is_new else f"; {self.failures} failures in {now - self._since:.0f} s"
        self._log.warning("%s: %s%s", self.subject, text, still, extra=extra)

    def works(self) -> None:
        """Log the end of a trouble, if there was one, with its duration."""
        if self.failures:
            seconds = self._clock.monotonic() - self._since
            count = "1 failure" if self.failures == 1 else f"{self.failures} failures"
            self._log.info("%s: works again after %s in %.0f s", self.subject, count, seconds)
            self.failures = 0
            self._reasons.clear()
