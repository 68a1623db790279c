"""Servers that cannot be installed together with others: unpacked by ``install``, and started there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path("/var/cache/mailsonde-tests")
"""Where ``install`` unpacks each server into a folder of its own."""

# The programs look for their files in fixed places. In a mount namespace of their own, the unpacked files are
# there too, and the system's files do not change. Arguments: the unpacked folder, our etc, and the command.
_ENTER = """
set -e
mount -t overlay -o "lowerdir=$1/usr:/usr" overlay /usr
mount -t overlay -o "lowerdir=$2:/etc" overlay /etc
mount -t overlay -o "lowerdir=$1/var/lib:/var/lib" overlay /var/lib
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/spool
shift 2
exec "$@"
"""


class Unpacked:
    """An unpacked ``server``, with ``directory``/etc over the system's /etc.

    ``users`` has the numbers of the users that the server needs; each also gets a group.
    """

    def __init__(self, server: str, directory: Path, users: dict[str, int]) -> None:
        self._files = ROOT / server
        if not (self._files / "packages").exists():
            pytest.fail(f"{server} is not unpacked: run `make test-servers` as root")
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        self.etc = directory / "etc"
        self.etc.mkdir()
        self._add("passwd", [f"{name}:x:{number}:{number}::/:/bin/sh\n" for name, number in users.items()])
        self._add("group", [f"{name}:x:{number}:\n" for name, number in users.items()])

    def _add(self, name: str, lines: list[str]) -> None:
        (self.etc / name).write_text("".join([Path("/etc", name).read_text(), *lines]))

    def command(self, *command: str | Path) -> Sequence[str | Path]:
        """Return a command that starts ``command`` with the unpacked files in their places; needs root."""
        return ["unshare", "--mount", "sh", "-c", _ENTER, "sh", self._files, self.etc, *command]
