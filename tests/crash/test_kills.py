"""Every message is accounted for, however often the agent is killed."""

from __future__ import annotations

import os
import secrets

from tests.crash.killing import POINTS
from tests.crash.rounds import AGENTS, kill_agents

SEED = int(os.environ.get("MAILSONDE_CRASH_SEED", secrets.randbelow(10**6)))
"""Decides where agents are killed, and what the server does with messages; a failure prints it."""

KILLS = AGENTS * len(POINTS)


async def test_every_message_is_accounted_for_after_kills() -> None:
    """After kills at each point, no message is unrecorded, falsely lost, sent twice or left behind."""
    outcome = await kill_agents(SEED, KILLS)
    said = f"MAILSONDE_CRASH_SEED={SEED}\n{outcome}"
    print(f"\n{said}")
    assert outcome.kills.total() == KILLS >= 25
    assert outcome.settled.faults == [], said
    assert outcome.settled.in_flight == 0, said
    assert outcome.settled.accepted > KILLS, said
