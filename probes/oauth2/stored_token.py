"""The refresh token that ``mailsonde login`` stores, readable by its owner only."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from probes.core.regular_file import read_regular, require_replaceable

TOKEN_FILE_LIMIT = 64 * 1024
"""Maximum size of the file, in bytes."""


class StoredToken:
    """A file with a refresh token."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str:
        """Return the refresh token; raises ValueError, which says what to do."""
        try:
            token = json.loads(read_regular(self._path, TOKEN_FILE_LIMIT))["refresh_token"]
        except FileNotFoundError:
            raise ValueError(f"{self._path} does not exist; log in once with: mailsonde login") from None
        except OSError as error:
            raise ValueError(f"token file {self._path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            token = None
        if not isinstance(token, str) or not token:
            raise ValueError(f"{self._path} has no refresh token; log in again with: mailsonde login")
        return token

    def write(self, refresh_token: str) -> None:
        """Replace the file by one with ``refresh_token`` and mode 0600, as a whole or not at all.

        Raises OSError.
        """
        require_replaceable(self._path)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{self._path.name}-", dir=self._path.parent)
        try:
            with os.fdopen(descriptor, "w") as file:  # mkstemp's mode is 0600
                json.dump({"refresh_token": refresh_token}, file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self._path)
        except BaseException:
            with suppress(OSError):
                Path(temporary).unlink()
            raise
