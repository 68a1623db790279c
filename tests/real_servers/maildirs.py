"""Maildirs that one server fills and another serves."""

from __future__ import annotations

import os
from pathlib import Path

OWNER = 64101
"""The user and group that own the maildirs, as a number that the system does not use."""


class Maildirs:
    """A folder of maildirs, each named after its user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.chmod(0o755)
        os.chown(directory, OWNER, OWNER)

    def put(self, user: str, name: str, raw: bytes) -> Path:
        """Put a message into a user's maildir under a new name; return its file."""
        maildir = self.directory / user
        file = maildir / "new" / name
        for folder in (maildir, *(maildir / part for part in ("cur", "new", "tmp"))):
            folder.mkdir(exist_ok=True)
            os.chown(folder, OWNER, OWNER)
        file.write_bytes(raw)
        os.chown(file, OWNER, OWNER)
        return file
