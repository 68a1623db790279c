"""What the header section of an arrived message says of how it was treated, and whether it was changed."""

from __future__ import annotations

import hashlib
import re

from probes.header_section import first_value_of, split, values_of
from probes.mime import content_type, decoded, decoded_words, parts
from probes.token import token_in

JUNK_LEVEL = 5
"""Spam confidence level from which on Exchange moves a message to the junk folder."""

_SCL = re.compile(r"(?:^|;)\s*SCL:\s*(-?\d{1,2})\s*(?:;|$)")
_FILTERED = re.compile(r"(?:^|;)\s*(?:SFV:(?:SPM|SKB)|CAT:(?:SPM|HSPM|PHSH|HPHISH|HPHSH))\s*(?:;|$)")
_REPLIED = re.compile(r"\s*auto-replied\b", re.IGNORECASE)


def junk_mark(header_section: bytes) -> str | None:
    """Return the name of the field by which a filter marked the message as junk; ``None`` if none did."""
    if first_value_of(header_section, "X-Spam-Flag").lower() == "yes":
        return "x-spam-flag"
    if first_value_of(header_section, "X-Spam-Status").lower().startswith("yes"):
        return "x-spam-status"
    if first_value_of(header_section, "X-Spam").lower() == "yes":
        return "x-spam"
    if first_value_of(header_section, "X-Rspamd-Action").lower() in {
        "add header",
        "rewrite subject",
        "reject",
    }:
        return "x-rspamd-action"
    level = first_value_of(header_section, "X-MS-Exchange-Organization-SCL")
    if _is_junk_level(level):
        return "x-ms-exchange-organization-scl"
    report = first_value_of(header_section, "X-Forefront-Antispam-Report")
    said = _SCL.search(report)
    if (said and _is_junk_level(said[1])) or _FILTERED.search(report):
        return "x-forefront-antispam-report"
    return None


def _is_junk_level(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text.isdecimal() and int(text) >= JUNK_LEVEL


def is_auto_reply(header_section: bytes) -> bool:
    """Return whether an auto-responder made the message (RFC 3834 section 5, and what came before it)."""
    if any(_REPLIED.match(value) for value in values_of(header_section, "Auto-Submitted")):
        return True
    older = ("X-Autoreply", "X-Autorespond", "X-Autoresponse")
    if any(first_value_of(header_section, name).lower() not in {"", "no"} for name in older):
        return True
    return first_value_of(header_section, "Precedence").lower() == "auto_reply"


def subject_token(header_section: bytes) -> str | None:
    """Return the text of a token that stands anywhere in the subject, whatever was put around it."""
    subject = decoded_words(first_value_of(header_section, "Subject")[:4096])
    # A gateway that folds anew may have put white space into the token, which has none.
    return token_in(subject) or token_in("".join(subject.split()))


def digest(subject: str, body: bytes, attachment: bytes) -> str:
    """Return 32 hex digits over what a message says: subject, text and attachment.

    White space that mail systems change by right does not count: runs of it in the subject, line
    ends, and what ends lines and the text.
    """
    text = b"\n".join(line.rstrip(b" \t\r") for line in body.split(b"\n")).rstrip(b"\n")
    summary = hashlib.sha256(" ".join(subject.split()).encode("utf-8", "backslashreplace"))
    for piece in (text, attachment):
        summary.update(b"\0%d\0" % len(piece) + hashlib.sha256(piece).digest())
    return summary.hexdigest()[:32]


def digest_of(raw: bytes) -> str | None:
    """Return the `digest` of a stored message, whatever transfer encodings it has now.

    ``None`` where it is neither one text nor one text with one attachment.
    """
    header_section, body = split(raw)
    subject = decoded_words(first_value_of(header_section, "Subject")[:4096])
    media_type, parameters = content_type(header_section)
    if media_type == "text/plain":
        return digest(subject, _text(header_section, body), b"")
    if media_type != "multipart/mixed":
        return None
    found = parts(body, parameters.get("boundary", ""))
    if len(found) != 2 or content_type(found[0][0])[0] != "text/plain":
        return None
    return digest(subject, _text(*found[0]), decoded(*found[1]))


def _text(header_section: bytes, body: bytes) -> bytes:
    """Return a text part in UTF-8."""
    text = decoded(header_section, body)
    charset = content_type(header_section)[1].get("charset", "us-ascii").lower()
    return text.decode("latin-1").encode() if charset == "iso-8859-1" else text
