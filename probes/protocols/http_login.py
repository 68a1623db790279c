"""Logins over HTTP: NTLM (MS-NTHT) and Kerberos, which Negotiate (RFC 4559) carries, and Basic (RFC 7617)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from pydantic import SecretStr

from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.verdict import TICKET, PhaseTimer
from probes.protocols.challenges import Challenge, challenges
from probes.protocols.http_network import Network
from probes.protocols.kerberos import KerberosContext
from probes.protocols.security_context import NtlmContext, end_point_bindings

_SCHEMES = {
    "kerberos": ("negotiate",),
    "ntlm": ("ntlm", "negotiate"),
    "basic": ("basic",),
    "auto": ("ntlm", "negotiate", "basic"),
}
_SHOWN = {"ntlm": "NTLM", "negotiate": "Negotiate", "basic": "Basic"}
_REFUSED = (
    "Correct username and password, and check that the account is not locked. If both are right, look for a "
    "load balancer that ends TLS: Extended Protection refuses NTLM and Kerberos through it."
)


@dataclass(frozen=True, slots=True)
class HttpLogin:
    """The credentials for one origin, and how to log in: ``auto`` takes the strongest way that is offered.

    It leaves out Kerberos: an offer of Negotiate says neither that the server has it nor that a KDC is in
    reach. ``username`` may be ``user``, ``user@domain`` or, except for Kerberos, ``DOMAIN\\user``.
    """

    username: str
    password: SecretStr
    auth: Literal["auto", "kerberos", "ntlm", "basic"] = "auto"


class Answer(Protocol):
    """An answer of the server."""

    @property
    def status(self) -> int:
        """Its status."""
        ...

    @property
    def body(self) -> bytes:
        """As much of its body as was read."""
        ...

    @property
    def is_cut(self) -> bool:
        """Whether there is more of the body, which ends the connection."""
        ...

    def header_lines(self, name: str) -> list[str]:
        """Return the values of a header field."""
        ...


AnswerT = TypeVar("AnswerT", bound=Answer)


Ask = Callable[..., Awaitable[AnswerT]]
"""Sends a request with header fields, and returns the answer; both count towards ``phase``."""


class LoginAttempt:
    """One login: what to send in Authorization after each answer with status 401.

    Every secret is withheld from the transcript of ``phases`` before it is sent. ``host`` names the server.
    """

    def __init__(self, login: HttpLogin, host: str, phases: PhaseTimer) -> None:
        self._login = login
        self._host = host
        self._phases = phases
        self._context: NtlmContext | None = None
        self._scheme = ""
        self._is_last = False  # whether what was sent last ends the login

    @property
    def scheme(self) -> str:
        """The scheme in use, as it is usually written; empty before the first answer."""
        return _SHOWN.get(self._scheme, "")

    async def answer(self, ask: Ask[AnswerT], fields: Mapping[str, str], network: Network) -> AnswerT:
        """Send a request, and again for each step of the login, and return the last answer.

        All answers before that are phase ``login``, and the wait for Kerberos tickets is phase ``ticket``.
        Raises `ProbeFault` as `KerberosContext` does, with `AUTH_NOT_OFFERED`, with `AUTH_FAILED`, with
        `CONNECTION_LOST` if a login by NTLM met a second connection (or `RESPONSE_TOO_LARGE` if our limit
        closed the first one), or with `PROTOCOL_ERROR` for a challenge that is malformed or one too many.
        """
        answer, connections = await ask(fields, phase="login"), 0
        cut = 0  # how many octets were read of the answer before, if that was not all of it
        while answer.status == 401:
            with self._phases.phase("login"):
                if self._is_last and self._context is not None and network.connections > connections:
                    if cut:
                        told = f"a page of more than {cut:,} octets in the middle of the login"
                        raise ProbeFault(Reason.RESPONSE_TOO_LARGE, told)
                    raise ProbeFault(Reason.CONNECTION_LOST, "it ended in the middle of the login")
                offered = challenges(answer.header_lines("www-authenticate"))
                value = await self._authorization(offered, network.certificate)
            connections, cut = network.connections, len(answer.body) if answer.is_cut else 0
            phase = "first_byte" if self._is_last else "login"
            answer = await ask({**fields, "authorization": value}, phase=phase)
        return answer

    async def _authorization(self, offered: Sequence[Challenge], certificate: bytes | None) -> str:
        """Return the value of Authorization that answers the server's challenges."""
        if not self._scheme:
            return await self._begin([each.scheme for each in offered], certificate)
        challenge = next((each.token for each in offered if each.scheme == self._scheme and each.token), "")
        if self._context is None or not challenge:
            raise ProbeFault(Reason.AUTH_FAILED, f"{self.scheme} was refused", remedy=_REFUSED)
        token = self._context.step(_decoded(challenge), _bindings(certificate))
        self._is_last = True
        return self._secret(token)

    async def _begin(self, offered: Sequence[str], certificate: bytes | None) -> str:
        login = self._login
        usable = [scheme for scheme in _SCHEMES[login.auth] if scheme in offered]
        if not usable:
            found = legible(", ".join(offered)) or "none"
            raise ProbeFault(Reason.AUTH_NOT_OFFERED, f"wanted {login.auth}; the server offers: {found}")
        self._scheme, password = usable[0], login.password.get_secret_value()
        if self._scheme == "basic":
            self._is_last = True
            return self._secret(f"{login.username}:{password}".encode())
        if login.auth == "kerberos":  # in one step, and without SPNEGO, as NTLM below
            self._is_last = True
            exchange = KerberosContext(login.username, password, service="HTTP", host=self._host)
            with self._phases.apart(TICKET):
                return self._secret(await exchange.begin(_bindings(certificate)))
        # On a thread, because the first context takes long. In Negotiate, servers also take NTLM's messages
        # without SPNEGO (RFC 4178) around them, and answer likewise.
        self._context = await asyncio.to_thread(
            NtlmContext, login.username, password, service="HTTP", host=self._host
        )
        return self._secret(self._context.step())

    def _secret(self, token: bytes) -> str:
        encoded = base64.b64encode(token).decode()
        self._phases.transcript.redaction.add(self._login.password.get_secret_value(), encoded)
        return f"{self.scheme} {encoded}"


def _bindings(certificate: bytes | None) -> bytes | None:
    """Return the channel bindings of a certificate; ``None`` without one, or if RFC 5929 defines none."""
    if certificate is None:
        return None
    try:
        return end_point_bindings(certificate)
    except ValueError:
        return None


def _decoded(challenge: str) -> bytes:
    try:
        return base64.b64decode(challenge, validate=True)
    except ValueError:
        raise ProbeFault(Reason.PROTOCOL_ERROR, "a challenge not in base64") from None
