"""Reads single fields of untrusted header sections (RFC 5322 section 2.2)."""

from __future__ import annotations

import re
from functools import lru_cache

FIELDS_EXAMINED = 200
"""Maximum number of fields of one name to read, from the top."""

LARGEST_REMEMBERED = 64 * 1024
"""Maximum octets of a header section that is kept in memory for a moment, because more questions follow."""

_BLANK_LINE = re.compile(rb"(?:\r?\n|\A)\r?\n")
_COMMENT_MARKS = re.compile(r'\\.|[\\"()]', re.DOTALL)

_Fields = dict[bytes, list[list[bytes]]]
"""The lines of each value, topmost first, by the field's name in lower case."""


def values_of(header_section: bytes, name: str) -> list[str]:
    """Return the values of all fields called ``name``, unfolded, topmost first.

    White space before the colon is allowed (RFC 5322 section 4.5). Octets that are not UTF-8 are escaped.
    Anything after the first blank line is ignored.
    """
    read = _remembered if len(header_section) <= LARGEST_REMEMBERED else _fields
    found = read(header_section).get(name.lower().encode("ascii"), ())
    return [b"".join(lines).decode("utf-8", "backslashreplace").strip() for lines in found]


def _fields(header_section: bytes) -> _Fields:
    fields: _Fields = {}
    lines: list[bytes] = []  # of the current field
    for line in header_section.split(b"\n"):
        line = line.removesuffix(b"\r")
        if not line:
            break
        if line.startswith((b" ", b"\t")):
            lines.append(line)
            continue
        name, colon, value = line.partition(b":")
        lines = [value]
        if colon:
            found = fields.setdefault(name.rstrip(b" \t").lower(), [])
            if len(found) < FIELDS_EXAMINED:
                found.append(lines)
    return fields


_remembered = lru_cache(maxsize=8)(_fields)  # a dozen questions are asked about each message


def first_value_of(header_section: bytes, name: str) -> str:
    """Return the value of the topmost field called ``name``; empty if there is none."""
    return next(iter(values_of(header_section, name)), "")


def split(raw: bytes) -> tuple[bytes, bytes]:
    """Return header section and body of a message or MIME part; without a blank line, there is no body."""
    blank_line = _BLANK_LINE.search(raw)
    return (raw, b"") if blank_line is None else (raw[: blank_line.start()], raw[blank_line.end() :])


def without_comments(value: str) -> str:
    """Return a structured value without its comments, which nest (RFC 5322 section 3.2.2)."""
    kept, depth, is_quoted, begin = [], 0, False, 0
    for mark in _COMMENT_MARKS.finditer(value):
        match mark[0]:
            case '"' if depth == 0:
                is_quoted = not is_quoted
            case "(" if not is_quoted:
                if depth == 0:
                    kept.append(value[begin : mark.start()])
                depth += 1
            case ")" if depth:
                depth -= 1
                kept.append(" ")
                begin = mark.end()
    return "".join([*kept, value[begin:]] if depth == 0 else kept)
