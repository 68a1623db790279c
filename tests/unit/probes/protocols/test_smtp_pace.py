"""Deliberate delays of an SMTP server, told apart by the answers that they delay."""

from __future__ import annotations

import pytest

from probes.protocols.smtp_pace import delays


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ({"ehlo": 0.1, "mail": 10.0, "rcpt": 0.1}, "back pressure: the answer to MAIL FROM took 10 s"),
        ({"ehlo": 10.1, "mail": 55.2, "rcpt": 0.1}, "back pressure: the answer to MAIL FROM took 55 s"),
        ({"ehlo": 0.1, "mail": 15.0}, "back pressure: the answer to MAIL FROM took 15 s"),
        ({"ehlo": 5.0, "mail": 5.0, "rcpt": 5.0}, "tarpit, or a slow server: each answer takes about 5 s"),
        ({"ehlo": 0.1, "mail": 20.0, "rcpt": 20.0}, "tarpit, or a slow server: each answer takes about 20 s"),
        ({"ehlo": 5.1}, "tarpit, or a slow server: each answer takes about 5 s"),
        ({"ehlo": 0.1, "mail": 9.9, "rcpt": 0.1}, None),
        ({}, None),
    ],
)
def test_delays(phases: dict[str, float], told: str | None) -> None:
    """Only MAIL FROM late is back pressure; every answer late is a tarpit or a slow server."""
    assert delays(phases) == ({} if told is None else {"delayed_answers": told})
