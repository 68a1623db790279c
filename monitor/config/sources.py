"""The files that a configuration is read from, and whether they have changed since."""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path

from probes.core.regular_file import CERTIFICATES_LIMIT, FileVersion, read_regular, version_of


class Sources:
    """The files of one reading of a configuration, each as it was when it was read first.

    They include those that its secrets, CA files and ``for_each`` refer to, and files that are missing.
    """

    def __init__(self) -> None:
        self._versions: dict[Path, FileVersion | None] = {}
        self._digests: dict[Path, bytes] = {}
        self._found: dict[tuple[Path, str], tuple[str, ...]] = {}

    def note(self, path: Path) -> None:
        """Note that the configuration depends on the file ``path``, before it is read."""
        if path not in self._versions:
            self._versions[path] = version_of(path)

    def note_content(self, path: Path) -> None:
        """Note the same of a file whose content is not part of the configuration, but used by its path."""
        self.note(path)
        if path not in self._digests:
            self._digests[path] = _digest(path)

    def note_pattern(self, folder: Path, pattern: str, found: list[str]) -> None:
        """Note which files a pattern found."""
        self._found[folder, pattern] = tuple(found)

    def changed(self) -> list[Path]:
        """Return the files that have changed, come or gone, and the patterns that find others now."""
        return [
            *(path for path, version in self._versions.items() if version_of(path) != version),
            *(
                folder / pattern
                for (folder, pattern), found in self._found.items()
                if tuple(matches(folder, pattern)) != found
            ),
        ]

    def has_same_content(self, path: Path, earlier: Sources) -> bool:
        """Return whether a file, noted by `note_content`, has the content that it had in ``earlier``."""
        return self._digests.get(path) == earlier._digests.get(path)


def matches(folder: Path, pattern: str) -> list[str]:
    """Return the files that ``pattern`` matches, relative to ``folder``, in the order of their names."""
    return sorted(glob.glob(pattern, root_dir=folder))  # noqa: PTH207 # Path.glob refuses absolute patterns


def _digest(path: Path) -> bytes:
    """Return a digest of the file's content; empty if it cannot be read, which its own check tells."""
    try:
        return hashlib.sha256(read_regular(path, CERTIFICATES_LIMIT)).digest()
    except OSError:
        return b""
