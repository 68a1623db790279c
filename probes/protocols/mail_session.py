"""The common part of sessions with mail servers: connecting, greeting, TLS and login."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import ClassVar, Self

from pydantic import SecretStr

from probes.core.clock import Clock
from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.secret import BearerToken
from probes.core.settings import ServerSettings
from probes.core.verdict import TICKET, PhaseTimer
from probes.protocols import sasl
from probes.protocols.connection_limits import Slot
from probes.protocols.line_transport import LineTransport
from probes.protocols.sasl import Mechanism
from probes.protocols.tls import CertificateExpiry, client_context, opportunistic_context

_WORKED: dict[int, str] = {}
"""By what method a server has last accepted credentials in this process: by hash of them, host and port."""


class MailSession(ABC):
    """One connection to a mail server. Every method raises `ProbeFault`; `abort` closes it at once."""

    starttls: ClassVar[str] = "STARTTLS"
    """The name of the capability and command that starts TLS on an unencrypted connection."""
    login_phase: ClassVar[str] = "login"
    service: ClassVar[str]
    """The protocol's service name for SASL (RFC 4422 section 4)."""
    own_methods: ClassVar[Mapping[str, bool]] = MappingProxyType({})
    """The protocol's own login methods, in addition to SASL, and whether each is safe without TLS."""

    def __init__(
        self, server: ServerSettings, transport: LineTransport, phases: PhaseTimer, clock: Clock
    ) -> None:
        self._server = server
        self._transport = transport
        self._phases = phases
        self._clock = clock
        self._is_encrypted = False
        self._worked_before = False
        self._resumes = False

    @classmethod
    async def connect(
        cls,
        server: ServerSettings,
        phases: PhaseTimer,
        clock: Clock,
        slot: Slot | None = None,
        *,
        resumes: bool = False,
    ) -> Self:
        """Return a session after the greeting and TLS, if configured, without a login.

        It uses ``slot``, or waits for one. ``resumes`` says whether to resume an earlier TLS session.
        """
        transport = await LineTransport.connect(
            server.host, server.port, phases, server.timeout, family=server.family, slot=slot
        )
        session = cls(server, transport, phases, clock)
        session._resumes = resumes
        with session._aborted_on_failure():
            await session._begin()
        return session

    @classmethod
    async def open(
        cls,
        server: ServerSettings,
        *,
        username: str,
        password: SecretStr,
        phases: PhaseTimer,
        clock: Clock,
        resumes: bool = False,
        patience: float | None = None,
    ) -> Self:
        """Return a session that is logged in; if that fails, close it.

        ``patience`` replaces the server's timeout until then, if it is shorter; in seconds.
        """
        is_hurried = patience is not None and patience < server.timeout
        hurried = server.model_copy(update={"timeout": patience}) if is_hurried else server
        session = await cls.connect(hurried, phases, clock, resumes=resumes)
        with session._aborted_on_failure():
            await session.log_in(username, password)
        if is_hurried:
            session._server = server
            session._transport.limit_waits(server.timeout)
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
            context = (
                opportunistic_context()
                if is_any_taken
                else client_context(server.tls_ca, resumes=self._resumes)
            )
            await self._transport.start_tls(context, server.tls_server_name or server.host)
        self._is_encrypted = True

    @abstractmethod
    async def _greet(self) -> None:
        """Read the greeting, and learn the capabilities."""

    @abstractmethod
    async def _learn_capabilities(self) -> None:
        """Request the capabilities. Those from before TLS must be discarded (RFC 3207 section 4.2)."""

    @abstractmethod
    def _offers(self, capability: str) -> bool: ...

    @abstractmethod
    async def _ask_for_tls(self) -> None:
        """Send ``starttls``, and return once the server agrees. Unencrypted octets after it are an attack."""

    async def log_in(self, username: str, password: SecretStr) -> None:
        """Log in by the configured method, or by the best one offered.

        ``password`` may be a `BearerToken`, which is told if the server refuses it. If a method is refused,
        another may be tried once: see `sasl.choose`. Raises `ProbeFault` with `AUTH_FAILED` if the
        credentials are wrong, as far as the server says so. The reason is `LOGIN_REFUSED` if the server gives
        another reason, or gives none for a password that it has accepted before.
        """
        secret = password.get_secret_value()
        token = password if isinstance(password, BearerToken) else None
        credentials = hash((self._server.host, self._server.port, username, secret))
        self._worked_before = credentials in _WORKED
        redaction = self._phases.transcript.redaction
        if token is None:
            redaction.add(secret)
        else:
            redaction.add_token(secret)
        with self._phases.phase(self.login_phase):
            methods = sasl.choose(
                self._login_methods(),
                self._server.auth,
                encrypted=self._is_encrypted,
                with_token=token is not None,
                own=self.own_methods,
            )
            if self._is_encrypted and (worked := _WORKED.get(credentials)) in methods:
                methods = methods[methods.index(worked) :]  # no refused login every time
            try:
                method = await sasl.log_in(
                    methods, lambda method: self._log_in_by(method, username, secret), redaction
                )
            except ProbeFault as fault:
                if token is not None and fault.reason is Reason.AUTH_FAILED:
                    token.refuse()
                raise
        if token is None:  # a token does become invalid by itself
            _WORKED[credentials] = method
        self._transport.answered()

    def _unexplained_refusal(self, *, is_coded: bool) -> Reason:
        """Return the reason of a login refusal that neither its code nor its text explains.

        Servers with codes for wrong credentials use them (``is_coded``), and credentials that worked before
        in this process do not become wrong by themselves.
        """
        return Reason.LOGIN_REFUSED if is_coded or self._worked_before else Reason.AUTH_FAILED

    @abstractmethod
    def _login_methods(self) -> Collection[str]:
        """Return all methods that the server offers, in upper case, including ones unknown to us."""

    async def _log_in_by(self, method: str, username: str, password: str) -> None:
        """Log in by one method; a refusal is `AUTH_FAILED`. Subclasses add their protocol's own methods."""
        mechanism = sasl.MECHANISMS[method](
            username,
            password,
            self._phases.transcript.redaction,
            service=self.service,
            host=self._server.tls_server_name or self._server.host,
        )
        try:
            with self._phases.apart(TICKET) if mechanism.needs_ticket else nullcontext():
                await mechanism.prepare()
            await self._authenticate(mechanism)
        except ProbeFault as fault:
            if mechanism.explanation:
                fault.detail = legible(f"{mechanism.explanation}: {fault.detail}")
            raise

    @abstractmethod
    async def _authenticate(self, mechanism: Mechanism) -> None:
        """Do the exchange of a SASL mechanism."""

    @property
    def certificate_expiry(self) -> CertificateExpiry | None:
        """The earliest expiry in the server's certificate chain; ``None`` without TLS."""
        return self._transport.certificate_expiry

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()
