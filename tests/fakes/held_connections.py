"""All connections to a server that our own limit allows, in use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from probes.core.clock import SystemClock
from probes.core.verdict import PhaseTimer
from probes.protocols import connection_limits


@asynccontextmanager
async def all_connections_in_use(host: str, port: int) -> AsyncIterator[None]:
    """Hold every connection that this process may have to a server during the block."""
    phases = PhaseTimer(SystemClock())
    held = [
        await connection_limits.system.take(host, port, phases) for _ in range(connection_limits.PER_SERVER)
    ]
    try:
        yield
    finally:
        for slot in held:
            slot.release()
