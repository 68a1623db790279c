"""Keeps credentials out of displayed server text, because a server may repeat what it was sent."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from urllib.parse import quote, quote_plus

from probes.core.faults import ProbeFault, legible

WITHHELD = "(withheld)"

PLAIN_PIECE = 6
"""Characters of a password that are enough to withhold a text: unrelated text rarely contains so many."""

TOKEN_PIECE = 12
"""Characters of each block of a text to look for in an access token.

Any 23 characters of a token in a row contain such a block.
"""

LATEST_TOKENS = 4
"""Number of tokens to withhold: a session that lasts for weeks has one after the other."""

CODED_PIECE = 8
"""The same for an encoded password: about as much of it, and no date or number matches by chance."""

# The codes at the start of a reply, which are not secret (RFC 5321, 2034, 1939, 2449 and 9051).
_CODES = re.compile(
    r"(?:(?:\d{3}|[245]\.\d{1,3}\.\d{1,3}|\+OK|-ERR|[+*]|M\d+|OK|NO|BAD|BYE|\[[A-Za-z/-]{1,30}\])[ -])*",
    re.ASCII,
)
# Matches between the lines of a reply, escaped or not, so that a secret is found across lines.
_BETWEEN_LINES = re.compile(r"(?:\n|\\n)[0-9]{3}[ -]|\\[nrt]|\\")


class Redaction:
    """Withholds text that contains a piece of a secret, in any case: split over lines, quoted or encoded."""

    def __init__(self) -> None:
        self._pieces: frozenset[str] = frozenset()
        self._tokens: tuple[str, ...] = ()
        self._long: tuple[str, ...] = ()

    def add(self, password: str, *made: str) -> None:
        """Withhold ``password`` from now on, and anything ``made`` from it to log in, such as a digest."""
        self._pieces = self._pieces.union(
            _pieces_of_password(password), *(_pieces(form, CODED_PIECE) for form in made)
        )

    def add_token(self, token: str) -> None:
        """Withhold a token from now on. It is a hundred times as long as a password, and unguessable.

        Its forms are made when a text is compared, because keeping them for each session takes much memory.
        """
        if len(token) < 2 * TOKEN_PIECE:
            self.add(token)
        elif token not in self._tokens:
            self._tokens = (*self._tokens, token)[-LATEST_TOKENS:]

    def add_long(self, secret: str) -> None:
        """Withhold a long secret from now on, in blocks as a token, however many others follow."""
        if secret not in self._long:
            self._long = (*self._long, secret)

    @property
    def has_secrets(self) -> bool:
        """Whether there are any secrets to withhold."""
        return bool(self._pieces or self._tokens or self._long)

    def _is_secret(self, text: str) -> bool:
        folded = _folded(text)
        for token in (*self._tokens, *self._long):
            if _repeats(folded, token):
                return True
        for piece in self._pieces:  # noqa: SIM110 # `any` takes twice as long
            if piece in folded:
                return True
        return False

    def applies_to(self, texts: Iterable[str]) -> bool:
        """Return whether any of the texts contains a piece of a secret; quicker than `text` for each."""
        return self.has_secrets and self._is_secret("\0".join(texts))

    def text(self, text: str) -> str:
        """Return ``text``, or only its reply codes if it contains a piece of a secret."""
        if not self.has_secrets or not self._is_secret(text):
            return text
        codes = _CODES.match(text)
        assert codes is not None  # noqa: S101 # it may be empty
        return WITHHELD if self._is_secret(codes[0]) else codes[0] + WITHHELD

    def values(self, values: Mapping[str, object]) -> dict[str, object]:
        """Return `Verdict.values` with each text in it replaced by `text`'s result."""
        if not self.applies_to(_texts_in(values)):
            return dict(values)
        return {name: self._value(value) for name, value in values.items()}

    def _value(self, value: object) -> object:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self._value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(inner) for inner in value]
        return value

    def fault(self, fault: ProbeFault) -> None:
        """Keep secrets out of a fault's text and traceback."""
        shown = self.text(fault.detail)
        if shown != fault.detail:
            fault.detail = shown
            fault.__cause__ = None  # a library's error, which may quote the server too


def _texts_in(value: object) -> Iterator[str]:
    """Yield each text in a value of `Verdict.values`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts_in(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts_in(inner)


@lru_cache(maxsize=256)
def _pieces_of_password(password: str) -> frozenset[str]:
    """Return the pieces of a password in any form. Cached, because every login needs them."""
    forms = {password, legible(password, 10 * len(password)), quote(password, safe=""), quote_plus(password)}
    plain = (_pieces(form, PLAIN_PIECE) for form in forms)
    # A shorter encoded form would match by chance.
    coded = (_pieces(form, CODED_PIECE) for form in _coded(password.encode()) if len(form) >= PLAIN_PIECE)
    return frozenset(chain(*plain, *coded))


def _repeats(folded: str, token: str) -> bool:
    """Whether a folded text has a block that is in a token, or the token's beginning, in any form."""
    if len(folded) < TOKEN_PIECE:
        return False
    forms = _forms_of_token(token)
    if any(form[:TOKEN_PIECE] in folded for form in forms.split("\0")):
        return True
    begins = range(0, len(folded) - TOKEN_PIECE + 1, TOKEN_PIECE)
    return any(folded[begin : begin + TOKEN_PIECE] in forms for begin in begins)


@lru_cache(maxsize=64)
def _forms_of_token(token: str) -> str:
    """Return a token in each of its forms, with NUL between them."""
    forms = (_folded(token), *(form.casefold() for form in (quote(token, safe=""), *_coded(token.encode()))))
    return "\0".join(dict.fromkeys(forms))


def _coded(octets: bytes) -> Iterator[str]:
    """Yield a secret in hexadecimal and in base64, for any position in a base64 text."""
    yield octets.hex()
    for before in range(3):  # octets before it, as in SASL PLAIN, which affect its first characters
        text = base64.b64encode(bytes(before) + octets).decode()
        yield text[-(-before * 8 // 6) : (before + len(octets)) * 8 // 6]


def _pieces(form: str, length: int) -> set[str]:
    """Return every piece of ``form`` with this length, or the whole form if it is shorter."""
    folded = _folded(form)
    return {folded[begin : begin + length] for begin in range(max(1, len(folded) - length + 1))} - {""}


def _folded(text: str) -> str:
    return "".join(_BETWEEN_LINES.sub("", text).split()).casefold()
