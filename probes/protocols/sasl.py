"""SASL (RFC 4422): the mechanisms, which of them to use, and what to do when one is refused.

The protocols do the dialogue. They send ``AUTH`` or ``AUTHENTICATE`` with a mechanism's name and, if
possible, its initial response; then they answer challenges until the server decides. Responses and
challenges are in base64, as in SMTP, POP3 and IMAP (RFC 4954, 5034, 9051).
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

from probes.core.faults import DETAIL_LIMIT, ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.redaction import Redaction
from probes.protocols.kerberos import KerberosContext
from probes.protocols.security_context import NtlmContext


class Mechanism(ABC):
    """One exchange by one mechanism. Each secret is added to ``redaction`` before it is returned."""

    name: ClassVar[str]
    """The mechanism's registered name, in upper case."""
    safe_in_clear: ClassVar[bool]
    """Whether the password stays secret from someone who records an unencrypted connection."""
    from_hash: ClassVar[bool] = False
    """Whether it needs only a hash of the password at the server, which every Windows domain has."""
    needs_ticket: ClassVar[bool] = False
    """Whether `prepare` asks a KDC for tickets."""
    challenges: ClassVar[int]
    """Maximum number of challenges in a valid exchange, including an empty one for the initial response."""
    takes_token: ClassVar[bool] = False
    """Whether it sends an OAuth2 access token in place of a password."""
    explanation: str = ""
    """Why the server refuses the token, if it said so before its final answer."""

    def __init__(
        self,
        username: str,
        password: str,
        redaction: Redaction,
        *,
        service: str = "host",
        host: str = "unspecified",
    ) -> None:
        """Begin an exchange with ``service`` (RFC 4422 section 4), such as ``imap``, on ``host``."""
        self._username = username
        self._password = password
        self._redaction = redaction
        self._service = service
        self._host = host
        self._answered = 0

    async def prepare(self) -> None:  # noqa: B027 # most mechanisms have nothing to prepare
        """Do the work that takes long, without delaying the event loop."""

    def initial_response(self) -> bytes | None:
        """Return the initial response in base64; ``None`` if the mechanism begins with a challenge."""
        return None

    def answer(self, challenge: bytes) -> bytes:
        """Return the response to a challenge, both in base64.

        Raises `ProbeFault` with `PROTOCOL_ERROR` for too many challenges or a malformed one.
        """
        self._answered += 1
        if self._answered > self.challenges:
            raise ProbeFault(Reason.PROTOCOL_ERROR, b"one challenge too many: " + challenge)
        return self._answer(challenge)

    @abstractmethod
    def _answer(self, challenge: bytes) -> bytes: ...

    def _secret(self, response: bytes, *parts: str) -> bytes:
        """Return a response in base64; withhold it and its ``parts`` from now on."""
        encoded = base64.b64encode(response)
        self._redaction.add(self._password, encoded.decode(), *parts)
        return encoded


class Plain(Mechanism):
    """PLAIN (RFC 4616): one message with username and password. Some servers prompt; that is ignored."""

    name = "PLAIN"
    safe_in_clear = False
    challenges = 1  # some servers ask even after an initial response

    def initial_response(self) -> bytes:
        """Return username and password, each after a NUL."""
        return self._secret(f"\0{self._username}\0{self._password}".encode())

    def _answer(self, challenge: bytes) -> bytes:  # noqa: ARG002 # only asks for the response
        return self.initial_response()


class Login(Mechanism):
    """LOGIN (draft-murchison-sasl-login): username, then password. The text of prompts is ignored."""

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


class Ntlm(Mechanism):
    """NTLM (MS-NLMP; the dialogue is that of MS-SMTPNTLM, MS-POP3 and MS-OXIMAP).

    The first challenge only asks for our first message, in any words: Exchange says ``ntlm supported``.
    """

    name = "NTLM"
    safe_in_clear = True
    from_hash = True
    challenges = 2

    async def prepare(self) -> None:
        """Make the context on a thread."""
        await asyncio.to_thread(lambda: self._context)

    @cached_property
    def _context(self) -> NtlmContext:
        return NtlmContext(self._username, self._password, service=self._service, host=self._host)

    def _answer(self, challenge: bytes) -> bytes:
        return self._secret(self._context.step(None if self._answered == 1 else _decoded(challenge)))


class Gssapi(Mechanism):
    """GSSAPI (RFC 4752): Kerberos, without a security layer, because TLS protects the connection."""

    name = "GSSAPI"
    safe_in_clear = True
    needs_ticket = True
    challenges = 3  # an empty one for the initial response, the server's token, and its offer of layers
    _token = b""

    async def prepare(self) -> None:
        """Ask the KDC for tickets; raises `ProbeFault` as `KerberosContext.begin` does."""
        self._token = await self._context.begin()

    @cached_property
    def _context(self) -> KerberosContext:
        return KerberosContext(self._username, self._password, service=self._service, host=self._host)

    def initial_response(self) -> bytes:
        """Return the first token."""
        return self._secret(self._token)

    def _answer(self, challenge: bytes) -> bytes:
        if not challenge.strip() and self._answered == 1:
            return self.initial_response()
        return self._secret(self._context.answer(_decoded(challenge)))


class _Bearer(Mechanism):
    """The common part of mechanisms with an access token: one message, or an error and an empty answer."""

    safe_in_clear = False
    challenges = 2  # an empty one for the initial response, and the error
    takes_token = True
    _acknowledgement: ClassVar[bytes]
    """The answer to an error, in base64; only then does the server end the exchange."""

    def initial_response(self) -> bytes:
        """Return user name and token."""
        self._redaction.add_token(self._password)
        return base64.b64encode(self._message().encode())

    @abstractmethod
    def _message(self) -> str: ...

    def _answer(self, challenge: bytes) -> bytes:
        if not challenge.strip():
            return self.initial_response()
        self.explanation = _status_of(challenge)
        return self._acknowledgement


class XOAuth2(_Bearer):
    """XOAUTH2, by Google and Microsoft: as OAUTHBEARER, in another form."""

    name = "XOAUTH2"
    _acknowledgement = b""

    def _message(self) -> str:
        return f"user={self._username}\1auth=Bearer {self._password}\1\1"


class OAuthBearer(_Bearer):
    """OAUTHBEARER (RFC 7628)."""

    name = "OAUTHBEARER"
    _acknowledgement = b"AQ=="  # section 3.2.3

    def _message(self) -> str:
        name = self._username.replace("=", "=3D").replace(",", "=2C")  # RFC 5801 section 4
        return f"n,a={name},\1auth=Bearer {self._password}\1\1"


def _status_of(challenge: bytes) -> str:
    """Return the status in a server's error (RFC 7628 section 3.2.2), or the error itself if it has none."""
    try:
        error = json.loads(base64.b64decode(challenge, validate=True))
        status = error["status"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"error {legible(challenge, DETAIL_LIMIT // 4)}"
    return f"status {legible(str(status), DETAIL_LIMIT // 4)}"


def _decoded(challenge: bytes) -> bytes:
    try:
        return base64.b64decode(challenge, validate=True)
    except ValueError:
        raise ProbeFault(Reason.PROTOCOL_ERROR, f"a challenge not in base64: {legible(challenge)}") from None


MECHANISMS: Mapping[str, type[Mechanism]] = MappingProxyType(
    {mechanism.name: mechanism for mechanism in (Plain, Login, CramMd5, Ntlm, Gssapi, XOAuth2, OAuthBearer)}
)
"""The mechanisms by name; among those that are equally strong, the best comes first."""


def choose(
    offered: Collection[str],
    wanted: str,
    *,
    encrypted: bool,
    with_token: bool = False,
    own: Mapping[str, bool] = MappingProxyType({}),
) -> list[str]:
    """Return the login methods to try, from the names ``offered``: the best one, and perhaps a fallback.

    ``wanted`` is a name in lower case, or ``auto``, which leaves out GSSAPI: an offer does not say that a KDC
    is in reach. ``own`` has the protocol's own methods, such as APOP, and whether each is safe without TLS.
    ``with_token`` selects the methods that send an access token, which no other method can. With TLS, NTLM
    comes first, because it never shows the password to the server; then methods that send it, and last those
    that need a server that stores recoverable passwords. Without TLS, all methods that send the password come
    last, and NTLM is not preferred to a digest: if NTLM were refused, the password would be sent where a
    digest had sufficed.

    The only fallback is from a method that proves knowledge of the password to one that sends it, because the
    former also fails if the server cannot recover the password. If a method that sends the password fails,
    any other would fail too, and bring the account closer to being locked. Raises `ProbeFault` with
    `AUTH_NOT_OFFERED` if no method fits.
    """
    fitting = {name: it.safe_in_clear for name, it in MECHANISMS.items() if it.takes_token == with_token}
    safe = fitting if with_token else {**fitting, **own}
    automatic = [name for name in safe if name not in MECHANISMS or not MECHANISMS[name].needs_ticket]
    wanted_names = automatic if wanted == "auto" else [wanted.upper()]
    usable = [name for name in safe if name in offered and name in wanted_names]
    if not usable:
        found = ", ".join(sorted(offered)) or "none"
        raise ProbeFault(Reason.AUTH_NOT_OFFERED, f"wanted {wanted}; the server offers: {found}")

    def order(name: str) -> tuple[bool, bool]:
        from_hash = name in MECHANISMS and MECHANISMS[name].from_hash
        return (not from_hash, safe[name]) if encrypted else (not safe[name], from_hash)

    best, *others = sorted(usable, key=order)
    fallbacks = [name for name in others if safe[best] and not safe[name]]
    return [best, *fallbacks[:1]]


async def log_in(
    methods: Sequence[str], attempt: Callable[[str], Awaitable[None]], redaction: Redaction
) -> str:
    """Log in by the first of ``methods`` that the server accepts, and return it.

    Raises the `ProbeFault` of the last attempt; its detail has every failed method with the server's answer.
    If the server hangs up after a refusal, the refusal counts.
    """
    refused: ProbeFault | None = None
    for method in methods:
        try:
            await attempt(method)
        except ProbeFault as fault:
            if refused is not None and fault.reason is Reason.CONNECTION_LOST:
                break
            redaction.fault(fault)  # first, because it keeps the codes at the start of a text
            before = f"{legible(refused.detail, DETAIL_LIMIT // 2)}; " if refused is not None else ""
            fault.detail = legible(f"{before}{method}: {fault.detail}".removesuffix(": "))
            if fault.reason not in {Reason.AUTH_FAILED, Reason.LOGIN_REFUSED}:
                raise
            refused = fault
        else:
            return method
    raise refused or ValueError("no method to log in by")
