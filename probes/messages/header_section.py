"""Reads single fields of untrusted header sections (RFC 5322 section 2.2)."""

from __future__ import annotations

import re

FIELDS_EXAMINED = 200
"""Maximum number of fields of one name to read, from the top."""

_BLANK_LINE = re.compile(rb"(?:\r?\n|\A)\r?\n")


def values_of(header_section: bytes, name: str) -> list[str]:
    """Return the values of all fields called ``name``, unfolded, topmost first.

    White space before the colon is allowed (RFC 5322 section 4.5). Octets that are not UTF-8 are escaped.
    Anything after the first blank line is ignored.
    """
    wanted = name.lower().encode("ascii")
    found: list[list[bytes]] = []
    is_wanted = False
    for line in header_section.split(b"\n"):
        line = line.removesuffix(b"\r")
        if not line:
            break
        if line[:1] in (b" ", b"\t"):
            if is_wanted:
                found[-1].append(line)
            continue
        is_wanted = False
        if line[: len(wanted)].lower() == wanted and len(found) < FIELDS_EXAMINED:
            rest = line[len(wanted) :].lstrip(b" \t")
            if is_wanted := rest.startswith(b":"):
                found.append([rest[1:]])
    return [b"".join(pieces).decode("utf-8", "backslashreplace").strip() for pieces in found]


def first_value_of(header_section: bytes, name: str) -> str:
    """Return the value of the topmost field called ``name``; empty if there is none."""
    return next(iter(values_of(header_section, name)), "")


def split(raw: bytes) -> tuple[bytes, bytes]:
    """Return header section and body of a message or MIME part; without a blank line, there is no body."""
    blank_line = _BLANK_LINE.search(raw)
    return (raw, b"") if blank_line is None else (raw[: blank_line.start()], raw[blank_line.end() :])


def without_comments(value: str) -> str:
    """Return a structured value without its comments, which nest (RFC 5322 section 3.2.2)."""
    kept, depth, is_quoted, is_escaped = [], 0, False, False
    for character in value:
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif character == '"' and depth == 0:
            is_quoted = not is_quoted
        elif character == "(" and not is_quoted:
            depth += 1
        elif character == ")" and depth:
            depth -= 1
            kept.append(" ")
            continue
        if depth == 0:
            kept.append(character)
    return "".join(kept)
