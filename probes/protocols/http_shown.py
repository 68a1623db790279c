"""What of HTTP is safe to show: URLs and header fields without what they may hold of a session."""

from __future__ import annotations

import re

from probes.core.faults import legible
from probes.core.redaction import WITHHELD

_SENSITIVE = "cookie|token|secret|password|session|canary|api-?key"
_SECRET_NAME = re.compile(rf"(?i){_SENSITIVE}|^(proxy-)?authorization$|authentication-info$")
_SECRET_PARAMETER = re.compile(
    rf'(?i)((?:{_SENSITIVE})[\w-]{{0,40}}+[ \t]*+=[ \t]*+)(?:"(?:[^"\\]|\\.)*+"?|[^\s,"<>]++)'
)
_CHALLENGE_NAME = re.compile(r"(?i)(www|proxy)-authenticate")
# RFC 9110 section 11.2. What follows the three schemes is always one, even if it is broken.
_TOKEN68 = re.compile(
    r"(?i)(\b(?:Negotiate|NTLM|Kerberos)[ \t]++)[^\s,]++|"
    r"((?:^|,)[ \t]*+[\w-]++[ \t]++)[a-z0-9+/._~-]++=*+(?=[ \t]*+(?:,|$))"
)
_URL_NAME = re.compile(r"(?i)(content-)?location")
_IN_TEXT = re.compile(r'(?://|[?#])[^\s">]+')  # what may need withholding of a URL in a field with other text
_USER = re.compile(r"//[^/?#]*@")  # up to the last @, although a valid one is percent-encoded
_QUERY = re.compile(r"([?#]).+", re.DOTALL)
_FIELD_LINE = re.compile(r"(illegal header line: bytearray\(b['\"][!-9;-~]*).*", re.DOTALL)


def shown_url(url: str, limit: int = 300) -> str:
    """Return a URL, legible, without its query, fragment and credentials, which may hold a token."""
    bare = _USER.sub("//", re.split("[?#]", url, maxsplit=1)[0])
    return legible(_SECRET_PARAMETER.sub(rf"\1{WITHHELD}", bare), limit)


def shown_field(name: str, value: str) -> str:
    """Return what to show of a header field's value.

    A cookie or token is withheld, and so are a challenge's data (as of NTLM), parameters with the name of a
    secret, and credentials, query and fragment of any URL. Takes time in proportion to the text.
    """
    if _SECRET_NAME.search(name):
        return WITHHELD
    if _CHALLENGE_NAME.fullmatch(name):
        value = _TOKEN68.sub(lambda found: f"{found[1] or found[2]}{WITHHELD}", value)
    if _URL_NAME.fullmatch(name):
        value = _marked(value)
    else:
        value = _IN_TEXT.sub(lambda found: _marked(found[0]), value)
    return _SECRET_PARAMETER.sub(rf"\1{WITHHELD}", value)


def _marked(url: str) -> str:
    return _QUERY.sub(rf"\1{WITHHELD}", _USER.sub("//", url))


def shown_error(text: str) -> str:
    """Return h11's text about a malformed answer, which quotes header fields, without their values."""
    return _FIELD_LINE.sub(rf"\1: {WITHHELD}", text)
