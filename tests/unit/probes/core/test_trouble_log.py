"""What is logged about a trouble that goes on."""

from __future__ import annotations

import logging

import pytest

from probes.core.trouble_log import TroubleLog
from tests.fakes.clock import InstantClock

LOG = logging.getLogger("mailsonde.trouble")


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return what was logged since the last call."""
    found = [(record.levelname, record.getMessage()) for record in caplog.records]
    caplog.clear()
    return found


def test_a_trouble_from_begin_to_end(caplog: pytest.LogCaptureFixture) -> None:
    """The first failure, a change of reason and the end are logged, and a reminder no more than hourly."""
    caplog.set_level("INFO", "mailsonde.trouble")
    clock = InstantClock()
    trouble = TroubleLog(LOG, "mailbox canary", clock)
    trouble.works()
    assert lines(caplog) == []
    for _ in range(3):
        trouble.failed("timeout", "poll failed: timeout")
        clock.now += 60.0
    assert lines(caplog) == [("WARNING", "mailbox canary: poll failed: timeout")]
    for reason in ("imap_bye", "timeout", "imap_bye"):  # a server that alternates is no news
        trouble.failed(reason, f"poll failed: {reason}")
        clock.now += 60.0
    assert lines(caplog) == [("WARNING", "mailbox canary: poll failed: imap_bye")]
    for _ in range(2 * 60):
        trouble.failed("timeout", "poll failed: timeout")
        clock.now += 60.0
    reminders = lines(caplog)
    assert reminders[0] == ("WARNING", "mailbox canary: poll failed: timeout; 64 failures in 3780 s")
    assert len(reminders) == 2
    trouble.works()
    trouble.works()
    assert lines(caplog) == [("INFO", "mailbox canary: works again after 126 failures in 7560 s")]
    trouble.failed("timeout", "poll failed: timeout")
    assert lines(caplog) == [("WARNING", "mailbox canary: poll failed: timeout")]
    trouble.works()
    assert lines(caplog) == [("INFO", "mailbox canary: works again after 1 failure in 0 s")]
