"""IMAP parsing as pure functions (RFC 9051, 3501, 5530, 6154)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.protocols import replies

RESPONSE_LIMIT = 8192
"""Maximum octets of a response without its literals; RFC 9051 gives clients the same limit."""

SEARCH_LIMIT = 3 * 2**19
"""Maximum octets of the answer to SEARCH, a single line with all the numbers."""

MOST_MESSAGES = 150_000
"""Maximum number of messages that a search may find."""

Value: TypeAlias = "bytes | list[Value] | None"
"""A parsed value: an atom, number or string; a parenthesized list; or NIL."""

_TAG = re.compile(rb"\*|[A-Za-z0-9]{1,20}")
_NUMBER = re.compile(rb"\d{1,10}")
_RESPONSE_CODE = re.compile(rb"\[([A-Za-z][A-Za-z0-9-]{0,40})(?: ([^\]]*))?\]")
# Alternatives: a parenthesis, a quoted string, a literal's placeholder, and an atom or a FETCH item's name.
_TOKEN = re.compile(
    rb' *(?:([()])|"((?:[^"\\\n]|\\[^\n])*+)"|(\n)|'
    rb'(BODY\[[^\]\n]{0,400}\](?:<\d{1,10}>)?|[^\x00-\x20()"\x7f]+))',
    re.IGNORECASE,
)
_SHIFTED = re.compile(rb"&([^&-]*)-")
_UNPRINTABLE = re.compile(r"([^\x20-\x7e]+)")

_STATUSES = frozenset({b"OK", b"NO", b"BAD"})
_TEXTS = _STATUSES | {b"BYE", b"PREAUTH"}


@dataclass(frozen=True, slots=True)
class Response:
    """One response. ``tag`` is ``*``, ``+`` or a command's tag; ``kind`` is in upper case.

    ``number`` is the number before the kind, as in ``3 EXISTS``, or 0. ``text`` is everything after the kind,
    with a line feed in place of each of the ``literals``.
    """

    tag: bytes
    kind: bytes
    text: bytes
    number: int = 0
    literals: tuple[bytes, ...] = ()

    @classmethod
    def parse(cls, text: bytes, literals: Iterable[bytes] = ()) -> Response:
        """Return the response in ``text``; raises `ProbeFault` if it is not one (RFC 9051 section 7)."""
        tag, _, rest = text.partition(b" ")
        if tag == b"+":
            return cls(tag, b"", rest)
        kind, _, after = rest.partition(b" ")
        number = 0
        if tag == b"*" and _NUMBER.fullmatch(kind):
            number = int(kind)
            kind, _, after = after.partition(b" ")
        kind = kind.upper()
        if not _TAG.fullmatch(tag) or not kind or (tag != b"*" and kind not in _STATUSES):
            raise ProbeFault(Reason.PROTOCOL_ERROR, b"not an IMAP response: " + text[:200])
        return cls(tag, kind, after, number, tuple(literals))

    @property
    def is_status(self) -> bool:
        """Whether its text is for people and contains no literals (RFC 9051 section 7.1)."""
        return self.tag == b"+" or self.kind in _TEXTS

    @property
    def code(self) -> tuple[bytes, bytes]:
        """The response code of a status, in upper case, and its arguments; empty if there is none."""
        match = _RESPONSE_CODE.match(self.text) if self.is_status else None
        return (match[1].upper(), match[2] or b"") if match else (b"", b"")


def literal_size(line: bytes) -> int | None:
    """Return the octets of the literal announced at the end of ``line`` (RFC 9051 section 4.3).

    A size of more than ten digits is returned as 2**63. Raises `ProbeFault` for forms that servers must not
    send.
    """
    start = line.rfind(b"{")
    if start < 0 or not line.endswith(b"}"):
        return None
    digits = line[start + 1 : -1]
    if not digits.isdigit() or line[:start].endswith(b"~"):
        raise ProbeFault(Reason.PROTOCOL_ERROR, b"not a literal that was asked for: " + line[-100:])
    return int(digits) if len(digits) <= 10 else 2**63


def refusal(response: Response, otherwise: Reason) -> ProbeFault:
    """Return the fault for a NO, BAD or BYE, with what `replies.diagnose` finds, or else ``otherwise``."""
    return replies.refusal("imap", response.code[0], response.text, otherwise)


def capabilities_of(response: Response) -> frozenset[str] | None:
    """Return the capabilities in a response or its response code, in upper case; ``None`` without any."""
    code, arguments = response.code
    if response.kind == b"CAPABILITY" or code == b"CAPABILITY":
        text = arguments if code else response.text
        return frozenset(legible(word, 200).upper() for word in text.split())
    return None


def parse_values(response: Response) -> list[Value]:
    """Return the values in a response's text; raises `ProbeFault` if it is malformed."""
    values: list[Value] = []
    lists = [values]  # the open lists, outermost first
    literals = iter(response.literals)
    text = response.text.rstrip(b" ")
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or (match[1] == b")" and len(lists) == 1):
            raise _malformed(response)
        position = match.end()
        parenthesis, quoted, literal, atom = match.groups()
        if parenthesis == b"(":
            inner: list[Value] = []
            lists[-1].append(inner)
            lists.append(inner)
        elif parenthesis:
            lists.pop()
        elif quoted is not None:
            lists[-1].append(re.sub(rb"\\(.)", rb"\1", quoted, flags=re.DOTALL))
        elif literal:
            lists[-1].append(next(literals))
        else:
            lists[-1].append(None if atom.upper() == b"NIL" else atom)
    if len(lists) > 1:
        raise _malformed(response)
    return values


def _malformed(response: Response) -> ProbeFault:
    return ProbeFault(
        Reason.PROTOCOL_ERROR, b"not a well-formed " + response.kind + b": " + response.text[:200]
    )


def number_of(value: Value) -> int:
    """Return a number of at most ten digits; raises `ProbeFault` for anything else."""
    if not isinstance(value, bytes) or not _NUMBER.fullmatch(value):
        raise ProbeFault(Reason.PROTOCOL_ERROR, b"no number where one belongs")
    return int(value)


def identifier_of(value: bytes) -> int | None:
    """Return a UIDVALIDITY or UIDNEXT, which are never 0 (RFC 9051 section 9); ``None`` for anything else."""
    return (int(value) or None) if _NUMBER.fullmatch(value) else None


def _items(response: Response, value: Value) -> dict[bytes, Value]:
    """Return a list of alternating names and values, as in FETCH."""
    if not isinstance(value, list) or len(value) % 2:
        raise _malformed(response)
    names = [name.upper() if isinstance(name, bytes) else b"" for name in value[::2]]
    return dict(zip(names, value[1::2], strict=True))


def parse_fetch(response: Response) -> tuple[int, bytes] | None:
    """Return uid and octets of a FETCH with ``BODY[…]``; ``None`` for any other response.

    Also ``None`` if the text is NIL, because it no longer exists.
    """
    if response.kind != b"FETCH":
        return None
    items = _items(response, next(iter(parse_values(response)), None))
    texts = [value for name, value in items.items() if name.startswith(b"BODY[")]
    if b"UID" not in items or not texts or not isinstance(texts[0], bytes):
        return None
    return number_of(items[b"UID"]), texts[0]


def parse_search(response: Response) -> list[int] | None:
    """Return the numbers of a SEARCH; ``None`` for any other response."""
    if response.kind != b"SEARCH":
        return None
    return [number_of(word) for word in response.text.partition(b"(")[0].split()]  # (MODSEQ …) may follow


@dataclass(frozen=True, slots=True)
class FolderStatus:
    """The attributes of a folder in a STATUS response; ``None`` if missing."""

    messages: int | None
    uid_next: int | None
    uid_validity: int | None


def parse_status(response: Response) -> FolderStatus | None:
    """Return the attributes in a STATUS; ``None`` for any other response.

    They are in the last list, after a folder name in any form.
    """
    if response.kind != b"STATUS":
        return None
    _, opening, rest = response.text.rpartition(b"(")
    words = rest.partition(b")")[0].split() if opening else []
    items = {name.upper(): value for name, value in zip(words[::2], words[1::2], strict=False)}
    messages = items.get(b"MESSAGES", b"")
    return FolderStatus(
        int(messages) if _NUMBER.fullmatch(messages) else None,
        identifier_of(items.get(b"UIDNEXT", b"")),
        identifier_of(items.get(b"UIDVALIDITY", b"")),
    )


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder in a LIST response; attributes in upper case, such as ``\\JUNK`` (RFC 6154)."""

    name: str
    delimiter: str | None
    attributes: frozenset[str]


def parse_list(response: Response) -> Folder | None:
    """Return the folder of a LIST; ``None`` for any other response."""
    if response.kind != b"LIST":
        return None
    match parse_values(response):
        case [list() as attributes, (bytes() | None) as delimiter, bytes() as name, *_]:
            return Folder(
                decode_folder(name),
                legible(delimiter) if delimiter else None,
                frozenset(legible(word).upper() for word in attributes if isinstance(word, bytes)),
            )
    raise _malformed(response)


def parse_namespace(response: Response) -> list[str] | None:
    """Return the personal namespaces' prefixes (RFC 9051 section 7.3.4); ``None`` for any other response."""
    if response.kind != b"NAMESPACE":
        return None
    match parse_values(response):
        case [None, *_]:
            return []
        case [list() as personal, *_]:
            spaces = [space for space in personal if isinstance(space, list) and space]
            return [decode_folder(space[0]) for space in spaces if isinstance(space[0], bytes)]
    raise _malformed(response)


def decode_folder(name: bytes) -> str:
    """Decode a folder's name from modified UTF-7 (RFC 3501 section 5.1.3); an invalid one stays as it is."""
    if name.upper() == b"INBOX":  # in any case (RFC 9051 section 5.1)
        return "INBOX"
    parts = _SHIFTED.split(name)
    try:
        return "".join(
            _unshifted(part) if index % 2 else part.decode("ascii") for index, part in enumerate(parts)
        )
    except ValueError:
        return name.decode("utf-8", "backslashreplace")


def _unshifted(part: bytes) -> str:
    if not part:
        return "&"
    padded = part.replace(b",", b"/") + b"=" * (-len(part) % 4)
    return binascii.a2b_base64(padded, strict_mode=True).decode("utf-16-be")


def encode_folder(name: str) -> bytes:
    """Return a folder's name in modified UTF-7, as a quoted string of printable ASCII."""
    parts = _UNPRINTABLE.split(name.replace("&", "&-"))
    return quoted(
        b"".join(_shifted(part) if index % 2 else part.encode("ascii") for index, part in enumerate(parts))
    )


def _shifted(part: str) -> bytes:
    coded = base64.b64encode(part.encode("utf-16-be", "surrogatepass"))
    return b"&" + coded.rstrip(b"=").replace(b"/", b",") + b"-"


def quoted(octets: bytes) -> bytes:
    """Return octets as a quoted string (RFC 9051 section 4.3); they must be printable ASCII."""
    return b'"' + octets.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def login_lines(username: str, password: str) -> list[bytes]:
    """Return the lines of LOGIN. Each line after the first begins with a literal, and is sent after a ``+``.

    An argument becomes a literal only if it is not printable ASCII.
    """
    lines = [b"LOGIN"]
    for text in (username, password):
        if text.isascii() and text.isprintable():
            lines[-1] += b" " + quoted(text.encode("ascii"))
        else:
            octets = text.encode()
            lines[-1] += b" {%d}" % len(octets)
            lines.append(octets)
    return lines


def uid_set(uids: Iterable[int]) -> bytes:
    """Return a sequence set (RFC 9051 section 9) of exactly these uids, with ranges."""
    ranges: list[list[int]] = []
    for uid in sorted(set(uids)):
        if ranges and ranges[-1][1] == uid - 1:
            ranges[-1][1] = uid
        else:
            ranges.append([uid, uid])
    return b",".join(b"%d" % first if first == last else b"%d:%d" % (first, last) for first, last in ranges)
