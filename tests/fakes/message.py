"""Messages as the ledger records them, for tests that need no round trip to make one."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from probes.core.clock import Clock
from probes.core.verdict import MessageState
from probes.delivery.message_life import Message


def intent(clock: Clock, *, age: float = 0.0, **fields: Any) -> Message:
    """Return a message that was created ``age`` seconds ago and not sent yet, with the given ``fields``."""
    message = Message(
        id=secrets.token_hex(16),
        probe="trip",
        target="out",
        mailbox="canary",
        state=MessageState.INTENT,
        created_at=round(clock.time() - age, 6),
        deadline_seconds=300.0,
        instance="me",
        boot=clock.boot,
        created_mono=clock.monotonic() - age,
    )
    return replace(message, **fields)
