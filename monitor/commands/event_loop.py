"""The event loop for commands: uvloop if it is installed."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Coroutine
from contextlib import suppress
from typing import TypeVar

from probes.core.descriptors import raise_limit

LARGE_BLOCK = 128 * 1024
"""Octets from which a block of memory is apart from the heap."""

_M_MMAP_THRESHOLD = -3  # malloc.h of glibc

T = TypeVar("T")


def run_on_loop(main: Coroutine[object, object, T]) -> T:
    """Run ``main`` and return its result, with as many file descriptors as the system allows."""
    raise_limit()
    _keep_large_blocks_apart()
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        return runner.run(main)


def _keep_large_blocks_apart() -> None:
    """Fix glibc's threshold for large blocks, which otherwise grows with the blocks that are freed.

    Large blocks, such as the metrics of thousands of probes, would then be in the heap, between small objects
    that keep their memory from being given back.
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not available on every platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
