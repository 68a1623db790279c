"""A small part of MIME: one level of parts, and their decoded contents (RFC 2045, 2046).

Nested parts are not parsed, so any input takes time linear in its length.
"""

from __future__ import annotations

import binascii
import re

from probes.messages.header_section import first_value_of, split, without_comments

PARTS_LIMIT = 20
"""Maximum number of parts of a message to read."""

_SUBJECT_LIMIT = 4096  # characters
_ENCODED_WORD = re.compile(r"=\?([\w-]{1,40})(?:\*[\w-]{1,20})?\?([bq])\?([ ->@-~]*)\?=", re.IGNORECASE)
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
    """Return header section and body of each part (RFC 2046 section 5.1.1); the last may be truncated."""
    if not 1 <= len(boundary) <= 70 or not boundary.isascii():
        return []
    delimiter = b"\n--" + boundary.encode("ascii")
    found = []
    for piece in (b"\n" + body).split(delimiter, PARTS_LIMIT + 1)[1 : PARTS_LIMIT + 1]:
        rest, line_end, content = piece.partition(b"\n")
        if rest.startswith(b"--") or not line_end:
            break
        if rest.strip():
            continue  # a longer boundary with the same beginning
        header_section, text = split(content)
        found.append((header_section, text.removesuffix(b"\r")))
    return found


def decoded(header_section: bytes, body: bytes) -> bytes:
    """Return a part's content with its transfer encoding removed (RFC 2045 section 6)."""
    encoding = first_value_of(header_section, "Content-Transfer-Encoding").lower()
    if encoding == "quoted-printable":
        return binascii.a2b_qp(body)
    if encoding == "base64":
        try:
            return binascii.a2b_base64(body)
        except binascii.Error:
            return body
    return body


def decoded_subject(header_section: bytes) -> str:
    """Return the subject with its encoded words decoded (RFC 2047).

    Python's codecs are never looked up by a foreign name: some misbehave, and Python caches every name
    for ever. In charsets other than UTF-8 and ISO 8859-1, octets that are not ASCII are escaped.
    """
    value = first_value_of(header_section, "Subject")[:_SUBJECT_LIMIT]
    pieces: list[tuple[str, bytes]] = []
    end = 0
    for word in _ENCODED_WORD.finditer(value):
        try:
            octets = _octets(word[2], word[3])
        except binascii.Error:
            continue
        between = value[end : word.start()]
        if end == 0 or not between.isspace():  # section 6.2: white space between encoded words is dropped
            pieces.append(("utf-8", between.encode("utf-8", "surrogatepass")))
        charset = "latin-1" if word[1].lower() == "iso-8859-1" else "utf-8"
        if pieces and pieces[-1][0] == charset:  # a character may be split between two words
            pieces[-1] = (charset, pieces[-1][1] + octets)
        else:
            pieces.append((charset, octets))
        end = word.end()
    shown = "".join(octets.decode(charset, "backslashreplace") for charset, octets in pieces)
    return shown + value[end:]


def _octets(encoding: str, text: str) -> bytes:
    if encoding in "qQ":
        return binascii.a2b_qp(text, header=True)
    return binascii.a2b_base64(text + "=" * (-len(text) % 4))
