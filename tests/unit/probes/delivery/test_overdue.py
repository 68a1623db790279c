"""From which age on a message in flight is overdue."""

from __future__ import annotations

from typing import Any

import pytest

from probes.delivery.message_probe import MessageProbeSettings


def settings(**changes: Any) -> MessageProbeSettings:
    written = {
        "name": "trip",
        "kind": "roundtrip",
        "interval": "1d",
        "from": "a@example.com",
        "to": "canary",
        **changes,
    }
    return MessageProbeSettings.model_validate(written)


@pytest.mark.parametrize(
    ("deadline", "usual", "overdue"),
    [
        ("5m", 2.0, 60.0),  # not sooner than a minute
        ("5m", 25.0, 75.0),
        ("5m", 200.0, 150.0),  # half the deadline
        ("1m", 2.0, 12.0),  # a fifth of the deadline, where a minute is no less
        ("1h", 2.0, 180.0),  # not sooner than a twentieth of the deadline
        ("1h", 100.0, 300.0),
        ("5m", None, None),
    ],
)
def test_learned(deadline: str, usual: float | None, overdue: float | None) -> None:
    """Three times what is usual, within bounds that depend on the deadline; unknown for a new route."""
    assert settings(deadline=deadline).overdue_after(usual) == overdue


@pytest.mark.parametrize("usual", [None, 2.0, 200.0])
def test_configured(usual: float | None) -> None:
    """A probe's own threshold holds, whatever is usual."""
    assert settings(deadline="5m", alerts={"overdue": "20s"}).overdue_after(usual) == 20.0
