"""A digest of a message's content, which shows whether the message was altered on the way."""

from __future__ import annotations

import binascii
import hashlib
import re

from probes.messages.header_section import first_value_of, split
from probes.messages.mime import content_type, decoded, decoded_subject, parts

PART_HEADER_LIMIT = 256 * 1024
"""Longest header section of a message or part, in octets, for which a digest is computed."""

_SLICE = 256 * 1024  # octets of base64 to decode at once, because this blocks all other threads
_SPACE = re.compile(r"[ \t\r\n]+")
_TRAILING = re.compile(rb"(?<![ \t\r])[ \t\r]++$", re.MULTILINE)  # reads each run once: linear time


def digest(subject: str, body: bytes, attachment: bytes) -> str:
    """Return the digest of subject, text and attachment: 32 hex digits.

    It ignores white space that mail systems may change: runs of it in the subject, line ends, and white
    space at the end of lines and of the text.
    """
    text = _TRAILING.sub(b"", body.replace(b"\r\n", b"\n")).rstrip(b"\n")
    heading = _SPACE.sub(" ", subject).strip(" ").encode("utf-8", "surrogatepass")
    summary = b"".join(hashlib.sha256(piece).digest() for piece in (heading, text, attachment))
    return hashlib.sha256(summary).hexdigest()[:32]


def digest_of(raw: bytes) -> str | None:
    """Return the `digest` of a stored message in any transfer encoding.

    Returns ``None`` unless it is a text/plain, or a multipart/mixed of one text/plain and one attachment.
    """
    header_section, body = split(raw)
    if len(header_section) > PART_HEADER_LIMIT:
        return None
    subject = decoded_subject(header_section)
    media_type, parameters = content_type(header_section)
    if media_type == "text/plain":
        return digest(subject, _text(header_section, body), b"")
    found = parts(body, parameters.get("boundary", "")) if media_type == "multipart/mixed" else []
    if len(found) != 2 or max(len(fields) for fields, _ in found) > PART_HEADER_LIMIT:
        return None
    if content_type(found[0][0])[0] != "text/plain" or content_type(found[1][0])[0].startswith("multipart/"):
        return None
    return digest(subject, _text(*found[0]), _content(*found[1]))


def _text(header_section: bytes, body: bytes) -> bytes:
    """Return a text part in UTF-8."""
    text = _content(header_section, body)
    charset = content_type(header_section)[1].get("charset", "us-ascii").lower()
    return text.decode("latin-1").encode() if charset == "iso-8859-1" else text


def _content(header_section: bytes, body: bytes) -> bytes:
    """Return the decoded content of a part; invalid base64 is returned as it is."""
    if first_value_of(header_section, "Content-Transfer-Encoding").lower() != "base64":
        return decoded(header_section, body)
    kept, rest = bytearray(), b""
    try:
        for start in range(0, len(body), _SLICE):
            text = rest + body[start : start + _SLICE].translate(None, b" \t\r\n")
            whole = len(text) // 4 * 4
            kept += binascii.a2b_base64(text[:whole])
            rest = text[whole:]
        kept += binascii.a2b_base64(rest)
    except binascii.Error:
        return body
    return bytes(kept)
