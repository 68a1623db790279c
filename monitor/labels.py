"""Labels and values of series, and their text in Prometheus' formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

Number = float | str
"""A value, or its text. Making the text of a float takes longer than all else that a sample needs."""

DIGITS = 6
"""Decimals of seconds that are shown: no clock of a mail server is as precise."""


class Labels:
    """Labels that many series share. Their text is made once, because a probe has some 40 series."""

    __slots__ = ("pairs", "text")

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self.pairs = pairs
        self.text = label_text(pairs.items())


def label_text(pairs: Iterable[tuple[str, str]]) -> str:
    """Return labels as text, with escaped values and without braces.

    The escapes are those of Prometheus' text format 0.0.4 and OpenMetrics 1.0, which agree on values.
    """
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def told(seconds: float) -> str:
    """Return the text of a value that changes less often than it is shown."""
    return repr(round(seconds, DIGITS))


@lru_cache(maxsize=1000)
def constant(value: float) -> str:
    """Return the text of a value that many probes share, such as an interval."""
    return repr(value)
