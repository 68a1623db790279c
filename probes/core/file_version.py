"""Noticing that a file has changed, so that it is read again."""

from __future__ import annotations

from pathlib import Path

FileVersion = tuple[int, ...]
"""Values that change with a file's content."""


def version_of(file: Path) -> FileVersion | None:
    """Return the version of ``file``, or ``None`` if it cannot be found.

    It also changes if a symbolic link is redirected.
    """
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
