"""What the header section of an arrived message says of how it was treated, and whether it was changed."""

from __future__ import annotations

import binascii
import hashlib
import re

from probes.header_section import first_value_of, split, values_of, without_comments
from probes.mime import content_type, decoded, parts
from probes.token import token_in

JUNK_LEVEL = 5
"""Spam confidence level, of -1 to 9, from which on Exchange moves a message to the junk folder."""

HEADER_LIMIT = 256 * 1024
"""Longest header section, of a message or of a part, that a digest is worked out for, in octets."""

_SLICE = 256 * 1024  # octets of base64 decoded at once: Python runs nothing else meanwhile
_SUBJECT_LIMIT = 4096
_YES = re.compile(r"yes(?![\w-])", re.IGNORECASE)
_SPAM_ACTIONS = frozenset({"add header", "rewrite subject", "reject"})
_VERDICTS = frozenset({"SPM", "SKB"})
_CATEGORIES = frozenset({"SPM", "HSPM", "PHSH", "HPHISH", "HPHSH"})
_ENCODED_WORD = re.compile(r"=\?([\w-]{1,40})(?:\*[\w-]{1,20})?\?([bq])\?([ ->@-~]*)\?=", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\r\n]+")
_TRAILING = re.compile(rb"(?<![ \t\r])[ \t\r]++$", re.MULTILINE)  # each run is read once, however long


def junk_mark(header_section: bytes) -> str | None:
    """Return the name of the first field by which a filter marked the message as junk; ``None`` if none did.

    Of several fields of one name, as of several filters on the way, any counts.
    """
    for name in ("X-Spam-Flag", "X-Spam-Status", "X-Spam"):
        if any(_YES.match(value) for value in values_of(header_section, name)):
            return name.lower()
    if any(action.lower() in _SPAM_ACTIONS for action in values_of(header_section, "X-Rspamd-Action")):
        return "x-rspamd-action"
    if any(_is_junk_level(level) for level in values_of(header_section, "X-MS-Exchange-Organization-SCL")):
        return "x-ms-exchange-organization-scl"
    for said in map(_pairs, values_of(header_section, "X-Forefront-Antispam-Report")):
        if (
            _is_junk_level(said.get("SCL", ""))
            or said.get("SFV") in _VERDICTS
            or said.get("CAT") in _CATEGORIES
        ):
            return "x-forefront-antispam-report"
    return None


def _is_junk_level(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text.isdecimal() and int(text) >= JUNK_LEVEL


def _pairs(report: str) -> dict[str, str]:
    """Return what stands in ``CIP:192.0.2.1;SCL:5;SFV:SPM``, in upper case."""
    pairs = (pair.partition(":") for pair in report.upper().split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def is_auto_reply(header_section: bytes) -> bool:
    """Return whether an auto-responder made the message (RFC 3834 section 5, and what came before it).

    ``Auto-Submitted: auto-generated``, which our own messages carry, is no reply.
    """
    submitted = (without_comments(value) for value in values_of(header_section, "Auto-Submitted"))
    if any(value.partition(";")[0].strip().lower() == "auto-replied" for value in submitted):
        return True
    older = ("X-Autoreply", "X-Autorespond", "X-Autoresponse")
    if any(first_value_of(header_section, name).lower() not in {"", "no"} for name in older):
        return True
    return first_value_of(header_section, "Precedence").lower() == "auto_reply"


def subject_token(header_section: bytes) -> str | None:
    """Return the text of a token that stands anywhere in the subject, whatever was put around it."""
    subject = _subject(header_section)
    # A gateway that folds anew may have put white space into the token, which has none.
    return token_in(subject) or token_in(_SPACE.sub("", subject))


def _subject(header_section: bytes) -> str:
    """Return the subject with its encoded words decoded (RFC 2047).

    No codec is looked up by a foreign name: there are ones that misbehave, and Python keeps each name for
    good. Octets of other charsets than UTF-8 and ISO 8859-1 come as escapes, where they are not ASCII.
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
        if end == 0 or not between.isspace():  # white space between encoded words is not shown, section 6.2
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


def digest(subject: str, body: bytes, attachment: bytes) -> str:
    """Return 32 hex digits over what a message says: subject, text and attachment.

    White space that mail systems change by right does not count: runs of it in the subject, line
    ends, and what ends lines and the text.
    """
    text = _TRAILING.sub(b"", body.replace(b"\r\n", b"\n")).rstrip(b"\n")
    heading = _SPACE.sub(" ", subject).strip(" ").encode("utf-8", "surrogatepass")
    summary = b"".join(hashlib.sha256(piece).digest() for piece in (heading, text, attachment))
    return hashlib.sha256(summary).hexdigest()[:32]


def digest_of(raw: bytes) -> str | None:
    """Return the `digest` of a stored message, whatever transfer encodings it has now.

    ``None`` where it is neither one text/plain nor a multipart/mixed of one text/plain and one attachment.
    """
    header_section, body = split(raw)
    if len(header_section) > HEADER_LIMIT:
        return None
    subject = _subject(header_section)
    media_type, parameters = content_type(header_section)
    if media_type == "text/plain":
        return digest(subject, _text(header_section, body), b"")
    found = parts(body, parameters.get("boundary", "")) if media_type == "multipart/mixed" else []
    if len(found) != 2 or max(len(fields) for fields, _ in found) > HEADER_LIMIT:
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
    """Return what a part holds; base64 that is not sound stays as it is."""
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
