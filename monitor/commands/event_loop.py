"""The event loop that commands run on: uvloop where it is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


def run_on_loop(main: Coroutine[object, object, T]) -> T:
    """Run ``main`` to its end and return what it returns."""
    try:
        from uvloop import new_event_loop  # not there on every platform
    except ImportError:
        from asyncio import new_event_loop  # the fallback
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
