"""Patterns for text from servers: ``*`` stands for any characters.

Regular expressions are not used, because a hostile text can make one take hours. These patterns take time in
proportion to the text.
"""

from __future__ import annotations

from probes.core.setting_types import Line

ANY = "*"

TextPattern = Line
"""Text in which each ``*`` stands for any characters, also none."""


def occurs(pattern: str, text: str) -> bool:
    """Return whether some part of ``text`` matches ``pattern``."""
    return _found(pattern.split(ANY), text, 0, len(text))


def matches(pattern: str, text: str) -> bool:
    """Return whether ``text`` as a whole matches ``pattern``."""
    first, *middle = pattern.split(ANY)
    if not middle:
        return text == first
    last = middle.pop()
    fits = len(text) >= len(first) + len(last) and text.startswith(first) and text.endswith(last)
    return fits and _found(middle, text, len(first), len(text) - len(last))


def _found(pieces: list[str], text: str, begin: int, end: int) -> bool:
    """Return whether ``text`` has the pieces one after the other; the first place of each is the best one."""
    for piece in pieces:
        found = text.find(piece, begin, end)
        if found < 0:
            return False
        begin = found + len(piece)
    return True
