"""POP3 parsing as pure functions (RFC 1939, 2449, 3206, 5034)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.protocols import replies
from probes.protocols.replies import LONGEST_PAUSE

POP3_LINE_LIMIT = 2048
"""Maximum octets of a status or listing line; RFC 2449 allows 512."""

MOST_MESSAGES = 150_000
"""Maximum number of messages in a listing."""

_ATOMS = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
_RESPONSE_CODE = re.compile(rb"\[([A-Z][A-Z0-9/-]{0,30})\]", re.IGNORECASE)
_TIMESTAMP = re.compile(rb"<%s@(?:%s|\[[\x21-\x5a\x5e-\x7e]+\])>" % (_ATOMS, _ATOMS))
_UNIQUE_ID = re.compile(rb"[\x21-\x7e]+")  # RFC 1939 allows 70, but servers send more


def status(line: bytes, refusal: Reason = Reason.POP3_ERROR) -> bytes:
    """Return the text after ``+OK``; raises `ProbeFault` for ``-ERR``.

    The reason is what `replies.diagnose` finds, or else ``refusal``. Any other line is a `PROTOCOL_ERROR`.
    """
    word, _, text = line.partition(b" ")
    if word == b"+OK":
        return text
    if word != b"-ERR":
        raise ProbeFault(Reason.PROTOCOL_ERROR, b"not a POP3 reply: " + line[:200])
    code = _RESPONSE_CODE.match(text)
    raise replies.refusal("pop3", code[1] if code else b"", text, refusal)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A server's answer to CAPA (RFC 2449); empty if the server has no CAPA."""

    words: Mapping[str, str]

    @classmethod
    def parse(cls, lines: Iterable[bytes]) -> Capabilities:
        """Return the capabilities in the lines of CAPA."""
        shown = [legible(line, 200) for line in lines]
        return cls({word.upper(): rest for line in shown for word, _, rest in [line.partition(" ")] if word})

    def has(self, word: str) -> bool:
        """Whether the server has the capability."""
        return word in self.words

    @property
    def sasl_mechanisms(self) -> frozenset[str]:
        """The SASL mechanisms offered (RFC 5034), in upper case."""
        return frozenset(self.words.get("SASL", "").upper().split())

    @property
    def login_delay(self) -> float | None:
        """Minimum seconds between two logins, if the server requires them."""
        first = self.words.get("LOGIN-DELAY", "").split(" ")[0]
        known = first.isascii() and first.isdecimal() and len(first) < 7
        return min(float(first), LONGEST_PAUSE) if known else None

    def listed(self) -> list[str]:
        """Return the capabilities as the server wrote them, sorted."""
        return sorted(f"{word} {rest}".strip() for word, rest in self.words.items())


def unstuffed(line: bytes) -> bytes | None:
    """Return a line of a multi-line response without its stuffed dot; ``None`` for the terminating line."""
    if line == b".":
        return None
    return line[1:] if line.startswith(b".") else line


def parse_stat(text: bytes) -> tuple[int, int | None]:
    """Return messages and octets of STAT's answer; octets are ``None`` if they are not a number."""
    messages = _number(text, 0)
    try:
        return messages, _number(text, 1)
    except ProbeFault:
        return messages, None  # seen in practice: a negative number after an overflow


def parse_unique_id(line: bytes) -> tuple[int, str] | None:
    """Return message number and unique id of a line of UIDL (RFC 1939 section 7).

    Returns ``None`` for an unreadable line, so that it affects only its own message.
    """
    number, _, unique_id = line.partition(b" ")
    unique_id = unique_id.strip()
    if not _UNIQUE_ID.fullmatch(unique_id) or not number.isdigit() or len(number) > 15:
        return None
    return int(number), unique_id.decode("ascii")


def _number(text: bytes, position: int) -> int:
    words = text.split()
    if len(words) <= position or not words[position].isdigit() or len(words[position]) > 15:
        raise ProbeFault(Reason.PROTOCOL_ERROR, b"no number where one belongs: " + text[:100])
    return int(words[position])


def timestamp_of(banner: bytes) -> bytes | None:
    """Return the timestamp of a banner that offers APOP; ``None`` without one (RFC 1939 section 7).

    It must be a valid message id (RFC 5322 section 3.6.4, without obsolete forms). Otherwise someone in
    between could learn the password by means of MD5 collisions.
    """
    match = _TIMESTAMP.search(banner)
    return match[0] if match else None


def apop_digest(timestamp: bytes, password: str) -> bytes:
    """Return APOP's answer to the banner's timestamp."""
    return hashlib.md5(timestamp + password.encode(), usedforsecurity=False).hexdigest().encode()
