"""What sessions with mail servers share: connecting, the greeting, TLS and the login."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import ClassVar, Self

from pydantic import SecretStr

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols import sasl
from probes.protocols.line_transport import LineTransport
from probes.protocols.sasl import Mechanism
from probes.protocols.tls import CertificateExpiry, client_context, opportunistic_context

_WORKED: set[int] = set()
"""Hashes of the credentials that a server took in this process, with host and port."""

_OTHER_TROUBLE = re.compile(
    rb"temporar|\blater\b|unavailable|server error|internal|chdir|maildir|maildrop|\block\b|locked by|"
    rb"too many|connections|timed? ?out|maintenance",
    re.IGNORECASE,
)


class MailSession(ABC):
    """One connection to a mail server. Every method raises `ProbeFault`; `abort` ends it at once."""

    starttls: ClassVar[str] = "STARTTLS"
    """The capability, and the command, that begins TLS on a connection in clear."""
    login_phase: ClassVar[str] = "login"
    own_methods: ClassVar[Mapping[str, bool]] = MappingProxyType({})
    """The protocol's own methods to log in, beside SASL, and whether each is safe in clear."""

    def __init__(
        self, server: ServerSettings, transport: LineTransport, phases: PhaseTimer, clock: Clock
    ) -> None:
        self._server = server
        self._transport = transport
        self._phases = phases
        self._clock = clock
        self._is_encrypted = False
        self._worked_before = False

    @classmethod
    async def connect(cls, server: ServerSettings, phases: PhaseTimer, clock: Clock) -> Self:
        """Return a session that is greeted and encrypted as ``server`` says, not logged in."""
        transport = await LineTransport.connect(
            server.host, server.port, phases, server.timeout, family=server.family
        )
        session = cls(server, transport, phases, clock)
        with session._aborted_on_failure():
            await session._begin()
        return session

    @classmethod
    async def open(
        cls, server: ServerSettings, *, username: str, password: SecretStr, phases: PhaseTimer, clock: Clock
    ) -> Self:
        """Return a session that is logged in; closed again if that fails."""
        session = await cls.connect(server, phases, clock)
        with session._aborted_on_failure():
            await session.log_in(username, password)
        return session

    @contextmanager
    def _aborted_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise

    async def _begin(self) -> None:
        tls = self._server.tls
        if tls == "implicit":
            await self._encrypt()
        await self._greet()
        is_offered = self._offers(self.starttls)
        if tls == "starttls" and not is_offered:
            raise ProbeFault(Reason.TLS_NOT_OFFERED, f"the server does not offer {self.starttls}")
        if tls == "starttls" or (tls == "opportunistic" and is_offered):
            await self._ask_for_tls()
            await self._encrypt()
            await self._learn_capabilities()

    async def _encrypt(self) -> None:
        server = self._server
        is_any_taken = server.tls == "opportunistic"
        with self._phases.phase("tls"):
            context = opportunistic_context() if is_any_taken else client_context(server.tls_ca)
            await self._transport.start_tls(context, server.tls_server_name or server.host)
        self._is_encrypted = True

    @abstractmethod
    async def _greet(self) -> None:
        """Take in the greeting, and learn the capabilities."""

    @abstractmethod
    async def _learn_capabilities(self) -> None:
        """Ask for the capabilities; what was said before TLS counts no more (RFC 3207 section 4.2)."""

    @abstractmethod
    def _offers(self, capability: str) -> bool: ...

    @abstractmethod
    async def _ask_for_tls(self) -> None:
        """Send ``starttls`` and return once the server agreed; octets in clear behind that are an attack."""

    async def log_in(self, username: str, password: SecretStr) -> None:
        """Log in by the configured method, or by the best one offered.

        Where that is refused, another one may follow, once: see `sasl.choose`. Raises `ProbeFault`:
        `AUTH_FAILED` where the credentials are to blame, as far as the server lets us know, and
        `LOGIN_REFUSED` where it refuses for another reason, or without one what it took before.
        """
        secret = password.get_secret_value()
        credentials = hash((self._server.host, self._server.port, username, secret))
        self._worked_before = credentials in _WORKED
        redaction = self._phases.transcript.redaction
        redaction.add(secret)
        with self._phases.phase(self.login_phase):
            methods = sasl.choose(
                self._login_methods(),
                self._server.auth,
                encrypted=self._is_encrypted,
                own=self.own_methods,
            )
            await sasl.log_in(methods, lambda method: self._log_in_by(method, username, secret), redaction)
        _WORKED.add(credentials)

    def refusal_of(self, text: bytes) -> Reason:
        """Return what a refusal to log in stands for that has no code which says why.

        Credentials that worked before in this process do not turn wrong by themselves, and a text that
        tells of other trouble is believed.
        """
        is_unclear = self._worked_before or _OTHER_TROUBLE.search(text)
        return Reason.LOGIN_REFUSED if is_unclear else Reason.AUTH_FAILED

    @abstractmethod
    def _login_methods(self) -> Collection[str]:
        """Return the methods that the server offers, in upper case, those that we do not know included."""

    async def _log_in_by(self, method: str, username: str, password: str) -> None:
        """Log in by one method; a refusal is `AUTH_FAILED`. Protocols add their own methods here."""
        redaction = self._phases.transcript.redaction
        await self._authenticate(sasl.MECHANISMS[method](username, password, redaction))

    @abstractmethod
    async def _authenticate(self, mechanism: Mechanism) -> None:
        """Do the exchange of a SASL mechanism."""

    @property
    def certificate_expiry(self) -> CertificateExpiry | None:
        """The earliest end of a certificate in the server's chain; ``None`` without TLS."""
        return self._transport.certificate_expiry

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()
