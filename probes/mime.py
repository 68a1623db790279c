"""The little of MIME that we read: one level of parts, and what they hold (RFC 2045, 2046).

Nested parts are not entered and nothing is recursive, so any input takes time linear in its length.
"""

from __future__ import annotations

import binascii
import re

from probes.header_section import first_value_of, split, without_comments

PARTS_LIMIT = 20
"""Most parts of one message that are looked at."""

_PARAMETER = re.compile(r';\s*([A-Za-z0-9_-]{1,40})\s*=\s*(?:"((?:[^"\\]|\\.){0,300})"|([^\s;"]{1,300}))')


def content_type(header_section: bytes) -> tuple[str, dict[str, str]]:
    """Return the media type in lower case and its parameters (RFC 2045 section 5.1)."""
    value = without_comments(first_value_of(header_section, "Content-Type")[:2000])
    media_type = value.partition(";")[0].strip().lower() or "text/plain"
    parameters = {
        match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        for match in _PARAMETER.finditer(value)
    }
    return media_type, parameters


def parts(body: bytes, boundary: str) -> list[tuple[bytes, bytes]]:
    """Return header section and body of each part (RFC 2046 section 5.1.1); the last may be cut off."""
    if not 1 <= len(boundary) <= 70 or not boundary.isascii():
        return []
    delimiter = b"\n--" + boundary.encode("ascii")
    found = []
    for piece in (b"\n" + body).split(delimiter, PARTS_LIMIT + 1)[1 : PARTS_LIMIT + 1]:
        rest, line_end, content = piece.partition(b"\n")
        if rest.startswith(b"--") or not line_end:
            break
        if rest.strip():
            continue  # a longer boundary that begins as ours
        header_section, text = split(content)
        found.append((header_section, text.removesuffix(b"\r")))
    return found


def decoded(header_section: bytes, body: bytes) -> bytes:
    """Return what a part holds, without its transfer encoding (RFC 2045 section 6)."""
    encoding = first_value_of(header_section, "Content-Transfer-Encoding").lower()
    if encoding == "quoted-printable":
        return binascii.a2b_qp(body)
    if encoding == "base64":
        try:
            return binascii.a2b_base64(body)
        except binascii.Error:
            return body
    return body
