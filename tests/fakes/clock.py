"""A clock that stands still until somebody sleeps, and then jumps ahead."""

from __future__ import annotations

import asyncio


class InstantClock:
    """Sleeping moves this clock without waiting, so that hours pass in milliseconds."""

    def __init__(self, boot: str = "boot-1", wall: float = 1_700_000_000.0) -> None:
        self.boot = boot
        self.now = 1000.0
        self.wall_offset = wall - self.now
        """Added to get wall-clock time; a change is a step of the wall clock."""

    def monotonic(self) -> float:
        return self.now

    def since_boot(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + self.wall_offset

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.now += max(0.0, seconds)
        await asyncio.sleep(0)
