"""Keeps credentials out of displayed server text, which may repeat what the server was sent."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus

from probes.core.faults import ProbeFault, legible

WITHHELD = "(withheld)"

PLAIN_PIECE = 6
"""Length in characters of a password's pieces: a text that shows one is withheld. Random text has none."""

CODED_PIECE = 8
"""The same of a coded password: about as much of it, and no date or number has one by chance."""

# What a reply begins with: its codes, which are no secret (RFC 5321, 2034, 1939, 2449 and 9051).
_CODES = re.compile(
    r"(?:(?:\d{3}|[245]\.\d{1,3}\.\d{1,3}|\+OK|-ERR|[+*]|M\d+|OK|NO|BAD|BYE|\[[A-Za-z/-]{1,30}\])[ -])*",
    re.ASCII,
)
# A reply's lines are one text, whether or not they are escaped already.
_BETWEEN_WORDS = re.compile(r"(?:\n|\\n)[0-9]{3}[ -]|\\[nrt]|[\s\\]")


class Redaction:
    """Withholds what shows a piece of a secret: in any case, cut, split over lines, quoted or coded."""

    def __init__(self) -> None:
        self._pieces: set[str] = set()

    def add(self, password: str, *made: str) -> None:
        """Withhold ``password`` from now on, and what was ``made`` of it to log in, such as a digest."""
        escaped = legible(password, 10 * len(password))
        for form in {password, escaped, quote(password, safe=""), quote_plus(password)}:
            self._pieces |= _pieces(form, PLAIN_PIECE)
        for form in _coded(password.encode()):
            if len(form) >= PLAIN_PIECE:  # a shorter one is everywhere
                self._pieces |= _pieces(form, CODED_PIECE)
        for form in made:
            self._pieces |= _pieces(form, CODED_PIECE)

    @property
    def has_secrets(self) -> bool:
        """Whether there are secrets to withhold yet."""
        return bool(self._pieces)

    def _is_secret(self, text: str) -> bool:
        folded = _folded(text)
        return any(piece in folded for piece in self._pieces)

    def text(self, text: str) -> str:
        """Return ``text``, or no more than its reply codes where it shows a piece of a secret."""
        if not self._pieces or not self._is_secret(text):
            return text
        codes = _CODES.match(text)
        assert codes is not None  # noqa: S101 # it may be empty
        return WITHHELD if self._is_secret(codes[0]) else codes[0] + WITHHELD

    def value(self, value: object) -> object:
        """Return a value as `Verdict.values` has them, each text in it as `text` returns it."""
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
            fault.__cause__ = None  # an error of a library, whose text is the server's, too


def _coded(octets: bytes) -> Iterator[str]:
    """Yield the forms that a password has in hexadecimal and base64, wherever in a base64 text it begins."""
    yield octets.hex()
    for before in range(3):  # octets before it, as in SASL PLAIN; their bits are in the first characters
        text = base64.b64encode(bytes(before) + octets).decode()
        yield text[-(-before * 8 // 6) : (before + len(octets)) * 8 // 6]


def _pieces(form: str, length: int) -> set[str]:
    """Return every piece of ``form`` of that length, or the whole where it is shorter."""
    folded = _folded(form)
    return {folded[begin : begin + length] for begin in range(max(1, len(folded) - length + 1))} - {""}


def _folded(text: str) -> str:
    return _BETWEEN_WORDS.sub("", text).casefold()
