"""Recognizing messages from auto-responders."""

from __future__ import annotations

import pytest

from probes.messages.auto_reply import is_auto_reply


@pytest.mark.parametrize(
    ("line", "is_reply"),
    [
        ("Auto-Submitted: auto-replied", True),
        ("Auto-Submitted: Auto-Replied (vacation)", True),
        ("Auto-Submitted: auto-generated", False),
        ("Auto-Submitted: no", False),
        ("X-Autoreply: yes", True),
        ("X-Autoreply: no", False),
        ("Precedence: auto_reply", True),
        ("Precedence: bulk", False),
        ("X-Auto-Response-Suppress: All", False),
        ("auto-submitted:\r\n Auto-Replied; owner-token=x", True),
        ("Auto-Submitted: auto-replied (vacation)", True),
        ("Auto-Submitted: (by (nested) rule) auto-replied", True),
        ("Auto-Submitted: auto-generated\r\nAuto-Submitted: auto-replied", True),
        ("Auto-Submitted: auto-generated (auto-replied)", False),
        ("Auto-Submitted: auto-notified", False),
        ("Auto-Submitted: auto-replied-not", False),
        ("X-Autorespond: vacation", True),
        ("Subject: x\r\n\r\nAuto-Submitted: auto-replied", False),
    ],
)
def test_auto_replies(line: str, is_reply: bool) -> None:
    """Automatic replies are distinguished from other generated messages, such as ours."""
    assert is_auto_reply(f"Subject: Re: x\r\n{line}\r\n\r\n".encode()) is is_reply
