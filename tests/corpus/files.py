"""Bounces, and mail that only looks like them, modelled on real ones, one file each."""

from __future__ import annotations

from pathlib import Path

TOKEN = "mailsonde1:trip:" + "0" * 32 + ":1700000000000000:" + "a" * 32
"""The token, signed by nobody, that the returned message has in every file."""

ENVELOPE_ID = "mailsonde-envelope1:" + "0" * 32 + ":" + "a" * 32
"""The envelope id, signed by nobody, in the report that returns no message."""

_HERE = Path(__file__).parent


def names(folder: str) -> list[str]:
    """Return the names of all files of ``bounces`` or ``not_bounces``."""
    return sorted(path.stem for path in (_HERE / folder).glob("*.eml"))


def text(folder: str, name: str) -> str:
    """Return a file with LF line ends."""
    return (_HERE / folder / f"{name}.eml").read_text("ascii")


def octets(folder: str, name: str) -> bytes:
    """Return a file as stored in a mailbox, with CRLF line ends."""
    return text(folder, name).replace("\n", "\r\n").encode()
