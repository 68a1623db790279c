"""Long work on the event loop in short turns, so that no probe's timing suffers when a page is drawn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

TURN = 0.005
"""Seconds of work after which the probes have their turn."""

Item = TypeVar("Item")


async def in_turns(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Yield the items, and give way whenever what is done with them has taken a turn's time.

    What the items stand for may be gone when they come: a reload can happen in between.
    """
    begun = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - begun > TURN:
            await asyncio.sleep(0)
            begun = time.perf_counter()
