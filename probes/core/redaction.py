"""Keeps credentials out of displayed server text, because a server may repeat what it was sent."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus

from probes.core.faults import ProbeFault, legible

WITHHELD = "(withheld)"

PLAIN_PIECE = 6
"""Characters of a password that are enough to withhold a text: unrelated text rarely contains so many."""

CODED_PIECE = 8
"""The same for an encoded password: about as much of it, and no date or number matches by chance."""

# The codes at the start of a reply, which are not secret (RFC 5321, 2034, 1939, 2449 and 9051).
_CODES = re.compile(
    r"(?:(?:\d{3}|[245]\.\d{1,3}\.\d{1,3}|\+OK|-ERR|[+*]|M\d+|OK|NO|BAD|BYE|\[[A-Za-z/-]{1,30}\])[ -])*",
    re.ASCII,
)
# Matches between the lines of a reply, escaped or not, so that a secret is found across lines.
_BETWEEN_WORDS = re.compile(r"(?:\n|\\n)[0-9]{3}[ -]|\\[nrt]|[\s\\]")


class Redaction:
    """Withholds text that contains a piece of a secret, in any case: split over lines, quoted or encoded."""

    def __init__(self) -> None:
        self._pieces: set[str] = set()

    def add(self, password: str, *made: str) -> None:
        """Withhold ``password`` from now on, and anything ``made`` from it to log in, such as a digest."""
        escaped = legible(password, 10 * len(password))
        for form in {password, escaped, quote(password, safe=""), quote_plus(password)}:
            self._pieces |= _pieces(form, PLAIN_PIECE)
        for form in _coded(password.encode()):
            if len(form) >= PLAIN_PIECE:  # a shorter one would match by chance
                self._pieces |= _pieces(form, CODED_PIECE)
        for form in made:
            self._pieces |= _pieces(form, CODED_PIECE)

    @property
    def has_secrets(self) -> bool:
        """Whether there are any secrets to withhold."""
        return bool(self._pieces)

    def _is_secret(self, text: str) -> bool:
        folded = _folded(text)
        return any(piece in folded for piece in self._pieces)

    def text(self, text: str) -> str:
        """Return ``text``, or only its reply codes if it contains a piece of a secret."""
        if not self._pieces or not self._is_secret(text):
            return text
        codes = _CODES.match(text)
        assert codes is not None  # noqa: S101 # it may be empty
        return WITHHELD if self._is_secret(codes[0]) else codes[0] + WITHHELD

    def value(self, value: object) -> object:
        """Return a value of `Verdict.values` with each text in it replaced by `text`'s result."""
        if not self._pieces:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        return value

    def fault(self, fault: ProbeFault) -> None:
        """Keep secrets out of a fault's text and traceback."""
        shown = self.text(fault.detail)
        if shown != fault.detail:
            fault.detail = shown
            fault.__cause__ = None  # a library's error, which may quote the server too


def _coded(octets: bytes) -> Iterator[str]:
    """Yield a password in hexadecimal and in base64, for any position in a base64 text."""
    yield octets.hex()
    for before in range(3):  # octets before it, as in SASL PLAIN, which affect its first characters
        text = base64.b64encode(bytes(before) + octets).decode()
        yield text[-(-before * 8 // 6) : (before + len(octets)) * 8 // 6]


def _pieces(form: str, length: int) -> set[str]:
    """Return every piece of ``form`` with this length, or the whole form if it is shorter."""
    folded = _folded(form)
    return {folded[begin : begin + length] for begin in range(max(1, len(folded) - length + 1))} - {""}


def _folded(text: str) -> str:
    return _BETWEEN_WORDS.sub("", text).casefold()
