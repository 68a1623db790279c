"""The event loop for commands: uvloop if it is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from probes.core.descriptors import raise_limit

T = TypeVar("T")


def run_on_loop(main: Coroutine[object, object, T]) -> T:
    """Run ``main`` and return its result, with as many file descriptors as the system allows."""
    raise_limit()
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        return runner.run(main)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not available on every platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
