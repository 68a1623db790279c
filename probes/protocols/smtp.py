"""SMTP parsing as pure functions (RFC 5321, 2034, 3463, 4954)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.protocols.replies import diagnose

REPLY_LINE_LIMIT = 8192
"""Maximum octets of a reply's line; RFC 5321 section 4.5.3.1.5 allows 512."""

REPLY_LIMIT = 32 * 1024
"""Maximum octets of all lines of a reply; a long answer to EHLO has 2,000."""

LARGEST_REMEMBERED_REPLY = 1024
"""Maximum octets of a reply that is remembered in its parsed form."""

COMMAND_LINE = 512
"""Maximum octets of a command line, including CRLF (RFC 5321 section 4.5.3.1.4)."""

WHOLE_REPLY = re.compile(rb"(?:([2-5][0-9]{2})-[^\n]*\n(?:\1-[^\n]*\n)*+)?+[^\n]*\n")
"""Matches the lines of one reply, up to the first that does not announce another line of the same code.

The last line may be anything; `Reply.parse` checks it.
"""

_REPLY = re.compile(rb"([2-5][0-9]{2})(?:-[^\n]*\n\1)*+(?: [^\n]*)?")
_CLOSING = re.compile(rb"(?:421-[^\n]*\n)*421(?: [^\n]*)?\r?\n")
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:\s|$)")
_OLD_AUTH = re.compile(r"^AUTH=", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply: its code (RFC 5321 section 4.2), 200 to 599, and the lines of its text."""

    code: int
    text: str

    @classmethod
    def parse(cls, said: bytes) -> Reply:
        """Return the reply in ``said``, lines with LF between them.

        Raises `ProbeFault` if it is not a reply, or if its lines have different codes.
        """
        return (_remembered if len(said) <= LARGEST_REMEMBERED_REPLY else _parsed)(said)

    @property
    def is_positive(self) -> bool:
        """Whether the command was successful (a 2yz reply)."""
        return self.code // 100 == 2

    @property
    def enhanced_status_code(self) -> str | None:
        """The code at the start of the text, such as ``5.1.1``, if there is one (RFC 2034)."""
        match = _ENHANCED.match(self.text)
        return match[1] if match else None

    def fault(self, *, login: bool = False) -> ProbeFault:
        """Return the fault for this reply; only one to a ``login`` can blame the credentials."""
        status = self.enhanced_status_code
        otherwise = Reason.AUTH_FAILED if login else Reason.PROTOCOL_ERROR
        found = diagnose("smtp", str(self.code), self.text, otherwise, status or "")
        return ProbeFault(
            found.reason,
            f"{self.code} {self.text}",
            reply_code=self.code,
            enhanced_status_code=status,
            retry_after=found.retry_after,
            remedy=found.remedy,
        )


def _parsed(said: bytes) -> Reply:
    if not _REPLY.fullmatch(said):
        raise ProbeFault(Reason.PROTOCOL_ERROR, b"not an SMTP reply: " + said)
    text = b"\n".join([line[4:].strip(b" \t") for line in said.split(b"\n")])
    return Reply(int(said[:3]), text.decode("utf-8", "backslashreplace"))


_remembered = lru_cache(maxsize=256)(_parsed)  # most replies of a server are the same in every session


def closing_reply(octets: bytes) -> Reply | None:
    """Return the reply 421 at the start of ``octets``, or ``None`` if there is something else.

    This is the only reply that a server may send without a command, before it closes the connection
    (RFC 5321 section 3.8).
    """
    match = _CLOSING.match(octets)
    return Reply.parse(match[0].replace(b"\r\n", b"\n")[:-1]) if match else None


@dataclass(frozen=True, slots=True)
class Extensions:
    """A server's extensions, from its reply to EHLO (RFC 5321 section 4.1.1.1); empty after HELO."""

    features: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Parameters by keyword, keywords in upper case."""
    auth_mechanisms: tuple[str, ...] = ()
    """SASL mechanisms, in lower case."""
    listed: tuple[str, ...] = ()
    """Keywords with their parameters, safe to show, sorted."""


@lru_cache(maxsize=64)
def extensions_of(text: str) -> Extensions:
    """Return the extensions in the text of a reply to EHLO. Cached, because servers repeat it in each run.

    ``AUTH=`` is from drafts of RFC 4954; some servers offer both forms for the sake of old clients.
    """
    features: dict[str, str] = {}
    mechanisms: dict[str, None] = {}  # without duplicates, in order
    for line in text.split("\n")[1:]:  # the first line has the server's name
        keyword, _, parameters = _OLD_AUTH.sub("AUTH ", line.strip()).partition(" ")
        keyword = keyword.upper()
        if keyword == "AUTH":
            mechanisms |= dict.fromkeys(parameters.upper().split())
            parameters = " ".join(mechanisms)
        if keyword:
            features[keyword] = parameters
    shown = (legible(f"{keyword} {parameters}".strip(), 100) for keyword, parameters in features.items())
    return Extensions(MappingProxyType(features), tuple(map(str.lower, mechanisms)), tuple(sorted(shown)))


def stuffed(content: bytes) -> bytes:
    """Return a message with lines ending in CRLF in the form for DATA (RFC 5321 section 4.5.2).

    Each line that begins with a dot gets another dot, and a single dot is the last line.
    """
    content = content.replace(b"\n.", b"\n..")
    ends = b".\r\n" if content.endswith(b"\n") or not content else b"\r\n.\r\n"
    return (b"." if content.startswith(b".") else b"") + content + ends
