"""Reading single fields of untrusted header sections."""

from __future__ import annotations

import pytest

from probes.messages.header_section import first_value_of, split, values_of


def test_values_are_unfolded_and_topmost_first() -> None:
    """A field may be folded anywhere and in any case; text in the body is not a field."""
    raw = b"A: one\r\n two\r\nb: x\r\na:\n\tthree\nA B: no\r\n\r\nA: body\r\n"
    assert values_of(raw, "A") == ["one two", "three"]
    assert first_value_of(raw, "missing") == ""


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_header_section_ends_at_the_first_blank_line(line_end: bytes) -> None:
    """A message is split at its first blank line, with either line end; the header may be empty."""
    assert split(b"A: b" + line_end * 2 + b"c" + line_end * 2 + b"d") == (b"A: b", b"c" + line_end * 2 + b"d")
    assert split(line_end + b"body") == (b"", b"body")
    assert split(b"A: b") == (b"A: b", b"")


@pytest.mark.parametrize("line", [b"Action : failed", b"ACTION\t \t: failed", b"Action :\r\n failed"])
def test_white_space_before_the_colon(line: bytes) -> None:
    """White space between name and colon is obsolete but allowed (RFC 5322 section 4.5)."""
    assert values_of(b"Actions: x\r\n" + line + b"\r\n y\r\nAction x: no", "Action") == ["failed y"]
