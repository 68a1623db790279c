"""Detects changes to a file, so that it can be read again."""

from __future__ import annotations

from pathlib import Path

FileVersion = tuple[int, ...]
"""Attributes of a file that change together with its content."""


def version_of(file: Path) -> FileVersion | None:
    """Return the version of ``file``, or ``None`` if it cannot be found.

    The version also changes if a symbolic link points elsewhere.
    """
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
