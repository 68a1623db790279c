"""What of HTTP is safe to show: URLs and header fields without what they may hold of a session."""

from __future__ import annotations

import re

from probes.core.faults import legible
from probes.core.redaction import WITHHELD

_SECRET_NAME = re.compile(
    r"(?i)cookie|token|secret|password|session|canary|api-?key|^(proxy-)?authorization$|authentication-info$"
)
_CHALLENGE_NAME = re.compile(r"(?i)(www|proxy)-authenticate")
_TOKEN68 = re.compile(r"(?i)\b(Negotiate|NTLM|Kerberos) +[a-z0-9+/._~-]+=*")  # RFC 9110 section 11.2
_USER = re.compile(r"//[^/?#@\s]*@")
_QUERY = re.compile(r"[?#][^\s\"'<>;,]+")
_FIELD_LINE = re.compile(r"(illegal header line: bytearray\(b['\"][!-9;-~]*).*", re.DOTALL)


def shown_url(url: str, limit: int = 300) -> str:
    """Return a URL, legible, without its query, fragment and credentials, which may hold a token."""
    return legible(_USER.sub("//", re.split("[?#]", url, maxsplit=1)[0]), limit)


def shown_field(name: str, value: str) -> str:
    """Return what to show of a header field's value.

    A cookie or token is withheld, and so are a challenge's data (as of NTLM) and the query of any URL.
    """
    if _SECRET_NAME.search(name):
        return WITHHELD
    if _CHALLENGE_NAME.fullmatch(name):
        return _TOKEN68.sub(rf"\1 {WITHHELD}", value)
    return _QUERY.sub(lambda found: found[0][0] + WITHHELD, _USER.sub("//", value))


def shown_error(text: str) -> str:
    """Return h11's text about a malformed answer, which quotes header fields, without their values."""
    return _FIELD_LINE.sub(rf"\1: {WITHHELD}", text)
