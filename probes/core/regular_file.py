"""Files that people name: read within bounds, watched for changes, and told from devices and folders."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

CERTIFICATES_LIMIT = 4 * 1024 * 1024
"""Maximum size of a file with authorities, in bytes: those of a system have a quarter of a megabyte."""

FileVersion = tuple[int, ...]
"""Attributes of a file that change together with its content."""


def version_of(file: Path | int) -> FileVersion | None:
    """Return the version of a file, given by path or descriptor, or ``None`` if it cannot be found.

    The version of a path also changes if a symbolic link points elsewhere.
    """
    try:
        found = os.stat(file)  # noqa: PTH116 # also of a descriptor
    except (OSError, ValueError):  # the latter for a path with NUL, which no file has
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError, also for a folder, a device, or a named pipe, which block."""
    _require_regular(path.stat())  # before, because opening some devices has an effect
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    try:
        _require_regular(os.fstat(file.fileno()))
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path, limit: int) -> bytes:
    """Return the content of a file; raises OSError, also if it is longer than ``limit`` bytes."""
    with open_regular(path) as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise OSError(errno.EFBIG, f"it is longer than {limit} bytes")
    return raw


def require_regular(path: Path, limit: int) -> None:
    """Raise OSError unless others can read the file at once, because it has at most ``limit`` bytes."""
    found = path.stat()
    _require_regular(found)
    if found.st_size > limit:
        raise OSError(errno.EFBIG, f"it is longer than {limit} bytes")


def require_replaceable(path: Path) -> None:
    """Raise OSError for a folder or a device: root could replace /dev/null, or close it to others."""
    try:
        found = path.stat()
    except OSError:
        return  # nothing is there yet, or writing it will tell
    _require_regular(found)


def _require_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
