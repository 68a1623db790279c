"""The clock of probes and agent, which tests can replace."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """The agent's view of time."""

    boot: str  # identifies the boot: its monotonic readings are comparable, even across processes

    def monotonic(self) -> float:
        """Seconds on a clock that never steps; only differences are meaningful."""
        ...

    def since_boot(self) -> float:
        """Seconds on a clock that never steps and also counts while the machine is suspended."""
        ...

    def time(self) -> float:
        """Unix seconds of the wall clock, which may step."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``, while other tasks run."""
        ...


class SystemClock:
    """The machine's clocks. Linux gives all processes of one boot the same monotonic clock."""

    def __init__(self) -> None:
        boot_id = Path("/proc/sys/kernel/random/boot_id")
        self.boot = boot_id.read_text().strip() if boot_id.exists() else ""

    def monotonic(self) -> float:  # noqa: D102 # as in Clock
        return time.monotonic()

    def since_boot(self) -> float:  # noqa: D102 # as in Clock
        return time.clock_gettime(time.CLOCK_BOOTTIME)  # Linux 2.6.39, 2011

    def time(self) -> float:  # noqa: D102 # as in Clock
        return time.time()

    async def sleep(self, seconds: float) -> None:  # noqa: D102 # as in Clock
        await asyncio.sleep(seconds)
