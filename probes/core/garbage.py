"""Makes and frees large numbers of objects without blocking the threads that run probes."""

from __future__ import annotations

import gc
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

_counting = Lock()
_blocks = 0


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage during the block, nor during those of other threads.

    Each pass over a large number of objects would block all threads, and so the probes, for up to half a
    second.
    """
    global _blocks  # the collector is the process's, too
    with _counting:
        _blocks += 1
        gc.disable()
    try:
        yield
    finally:
        with _counting:
            _blocks -= 1
            if not _blocks:
                gc.enable()


def take_apart(container: list[Any] | MutableMapping[Any, Any]) -> None:
    """Empty a large container that is no longer needed, one entry after the other.

    To free it all at once would block all threads for as long as that takes.
    """
    remove = container.pop if isinstance(container, list) else container.popitem
    while container:
        remove()
