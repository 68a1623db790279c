"""SASL (RFC 4422): the mechanisms, which of them to use, and what to do when one is refused.

A protocol brings its own lines around this. It sends ``AUTH`` or ``AUTHENTICATE`` with a mechanism's name
and, where there is room for it, its initial response; then it answers challenges until the server decides.
SMTP, POP3 and IMAP carry responses and challenges in base64 (RFC 4954, 5034, 9051), and so does `Mechanism`.
"""

from __future__ import annotations

import base64
import hmac
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

from probes.core.faults import DETAIL_LIMIT, ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.redaction import Redaction


class Mechanism(ABC):
    """One exchange by one mechanism. What it sends is withheld by ``redaction`` before it returns it."""

    name: ClassVar[str]
    """As on the wire, in upper case."""
    safe_in_clear: ClassVar[bool]
    """Whether somebody who listens does not learn the password."""
    challenges: ClassVar[int]
    """Most challenges of a sound exchange, the empty one that asks for the initial response included."""

    def __init__(self, username: str, password: str, redaction: Redaction) -> None:
        self._username = username
        self._password = password
        self._redaction = redaction
        self._answered = 0

    def initial_response(self) -> bytes | None:
        """Return the initial response in base64; ``None`` where the server begins with a challenge."""
        return None

    def answer(self, challenge: bytes) -> bytes:
        """Return the response to a challenge, both in base64.

        Raises `ProbeFault` with `PROTOCOL_ERROR` for one challenge too many, or one that makes no sense.
        """
        self._answered += 1
        if self._answered > self.challenges:
            raise ProbeFault(Reason.PROTOCOL_ERROR, b"one challenge too many: " + challenge)
        return self._answer(challenge)

    @abstractmethod
    def _answer(self, challenge: bytes) -> bytes: ...

    def _secret(self, response: bytes, *parts: str) -> bytes:
        """Return a response in base64; it and its ``parts`` are withheld from now on."""
        encoded = base64.b64encode(response)
        self._redaction.add(self._password, encoded.decode(), *parts)
        return encoded


class Plain(Mechanism):
    """PLAIN (RFC 4616): one message with all of it. Prompts are ignored, for some servers send text."""

    name = "PLAIN"
    safe_in_clear = False
    challenges = 1  # also after an initial response: some servers ask all the same

    def initial_response(self) -> bytes:
        """Return username and password, each behind a NUL."""
        return self._secret(f"\0{self._username}\0{self._password}".encode())

    def _answer(self, challenge: bytes) -> bytes:  # noqa: ARG002 # it only asks for the response
        return self.initial_response()


class Login(Mechanism):
    """LOGIN (draft-murchison-sasl-login): username, then password. What the prompts say is ignored."""

    name = "LOGIN"
    safe_in_clear = False
    challenges = 2

    def _answer(self, challenge: bytes) -> bytes:  # noqa: ARG002 # prompts differ from server to server
        if self._answered == 1:
            return base64.b64encode(self._username.encode())
        return self._secret(self._password.encode())


class CramMd5(Mechanism):
    """CRAM-MD5 (RFC 2195): a digest of the server's challenge, keyed with the password."""

    name = "CRAM-MD5"
    safe_in_clear = True
    challenges = 1

    def _answer(self, challenge: bytes) -> bytes:
        digest = hmac.new(self._password.encode(), _decoded(challenge), "md5").hexdigest()
        return self._secret(f"{self._username} {digest}".encode(), digest)


def _decoded(challenge: bytes) -> bytes:
    try:
        return base64.b64decode(challenge, validate=True)
    except ValueError:
        raise ProbeFault(Reason.PROTOCOL_ERROR, f"a challenge not in base64: {legible(challenge)}") from None


MECHANISMS: Mapping[str, type[Mechanism]] = MappingProxyType(
    {mechanism.name: mechanism for mechanism in (Plain, Login, CramMd5)}
)
"""The mechanisms by name, best first among those that are alike in clear."""


def choose(
    offered: Collection[str],
    wanted: str,
    *,
    encrypted: bool,
    own: Mapping[str, bool] = MappingProxyType({}),
) -> list[str]:
    """Return the methods to log in by, from the names ``offered``: the best and perhaps one to fall back on.

    ``wanted`` is a name in lower case, or ``auto``. ``own`` are the protocol's own methods, such as APOP, and
    whether each is safe in clear. Methods that are come first in clear. Encrypted they come last, because
    they need a server that can recover the password.

    There is a fallback only from a method that proves knowledge of the password to one that hands it over:
    the first also fails where the server cannot recover the password. After one that hands it over, every
    other would be refused alike and bring the account closer to being locked. Raises `ProbeFault` with
    `AUTH_NOT_OFFERED` where nothing fits.
    """
    safe = {**{name: mechanism.safe_in_clear for name, mechanism in MECHANISMS.items()}, **own}
    usable = [name for name in safe if name in offered and wanted in ("auto", name.lower())]
    if not usable:
        found = ", ".join(sorted(offered)) or "none"
        raise ProbeFault(Reason.AUTH_NOT_OFFERED, f"wanted {wanted}; the server offers: {found}")
    best, *others = sorted(usable, key=lambda name: safe[name] == encrypted)
    fallbacks = [name for name in others if safe[best] and not safe[name]]
    return [best, *fallbacks[:1]]


async def log_in(
    methods: Sequence[str], attempt: Callable[[str], Awaitable[None]], redaction: Redaction
) -> None:
    """Log in by the first of ``methods``; each that is refused gives way to the next.

    Raises the `ProbeFault` of the last attempt. Its detail names every method that failed, and what the
    server said to it. A server that hangs up after a refusal has refused.
    """
    refused: ProbeFault | None = None
    for method in methods:
        try:
            await attempt(method)
        except ProbeFault as fault:
            if refused is not None and fault.reason is Reason.CONNECTION_LOST:
                break
            redaction.fault(fault)  # first, for it keeps the codes that a text begins with
            before = f"{legible(refused.detail, DETAIL_LIMIT // 2)}; " if refused is not None else ""
            fault.detail = legible(f"{before}{method}: {fault.detail}".removesuffix(": "))
            if fault.reason not in {Reason.AUTH_FAILED, Reason.LOGIN_REFUSED}:
                raise
            refused = fault
        else:
            return
    raise refused or ValueError("no method to log in by")
