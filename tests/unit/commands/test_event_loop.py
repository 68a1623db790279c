"""What commands set up before they run on the event loop."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

_SCRIPT = """
import asyncio, ctypes
from monitor.commands.event_loop import LARGE_BLOCK, run_on_loop

class Blocks(ctypes.Structure):  # struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd e f g h i".split()]

blocks = ctypes.CDLL(None).mallinfo2
blocks.restype = Blocks
run_on_loop(asyncio.sleep(0))
for _ in range(10):
    bytearray(4 * LARGE_BLOCK)
before = blocks().hblks
kept = [bytearray(2 * LARGE_BLOCK) for _ in range(10)]
print(blocks().hblks - before)
"""


def test_the_heap_does_not_grow_for_a_large_block() -> None:
    """With glibc, a large block is mapped on its own, even after larger ones were freed.

    The first may still fit into what is left of the heap.
    """
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("another C library")
    command = [sys.executable, "-c", _SCRIPT]
    assert int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) >= 9
