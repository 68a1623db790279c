"""Kerberos' security contexts (RFC 4121): the one place that uses GSSAPI, an extra of this package.

A context has credentials of its own, obtained with user name and password and kept in memory: it neither
reads nor writes a credential cache of this machine. Realms, KDCs and time limits are those of its krb5.conf.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from probes.core.daemon_threads import DaemonThreads, TooManyThreads
from probes.core.faults import ProbeFault
from probes.core.kerberos_user import principal_of
from probes.core.reasons import Reason

if TYPE_CHECKING:
    from gssapi import SecurityContext
    from gssapi.exceptions import GSSError

KDC_TIMEOUT = 15.0
"""Seconds to wait for tickets. MIT's library gives up a single KDC that is silent after 27 s."""

MOST_AT_KDC = 8
"""Maximum number of logins that ask a KDC for tickets at the same time."""

_MECHANISM = "1.2.840.113554.1.2.2"  # RFC 1964 section 1
_NO_LAYER = b"\1\0\0\0"  # RFC 4752 section 3.1: no security layer, so no limit to a message
_ERRORS = -1765328384  # where the library's table of errors begins; the first 128 are those of RFC 4120
_CREDENTIALS = frozenset({6, 18, 23, 24, 31})  # section 7.5.9: unknown, revoked, expired, wrong password (2)
_UNREACHABLE = frozenset({29, 154, 155, 156})  # KDC unavailable; no KDC found, resolved or answering
_threads = DaemonThreads(MOST_AT_KDC)


class KerberosContext:
    """One exchange with ``service`` on ``host``, such as ``HTTP`` on ``mail.example.com``.

    ``username`` is ``user``, in the realm that is this machine's default, or ``user@REALM``.
    """

    def __init__(self, username: str, password: str, *, service: str, host: str) -> None:
        self._username = username
        self._password = password
        self._server = f"{service}@{host}"
        self._context: SecurityContext | None = None

    async def begin(self, bindings: bytes | None = None) -> bytes:
        """Return the first token, with tickets that the KDC issues now.

        ``bindings`` are the data of channel bindings, which tie the token to a TLS connection. Raises
        `ProbeFault` with `AUTH_FAILED` if the KDC refuses user name or password, with `TICKET_REFUSED` if it
        issues no ticket for another reason, or with `TICKET_UNAVAILABLE` if none answers in `KDC_TIMEOUT`.
        """
        try:
            async with asyncio.timeout(KDC_TIMEOUT):
                return await _threads.call(lambda: self._begin(bindings), f"Kerberos {self._server}")
        except TimeoutError as error:
            told = f"no answer of a KDC within {KDC_TIMEOUT:g} s"
            raise ProbeFault(Reason.TICKET_UNAVAILABLE, told) from error
        except TooManyThreads:
            told = f"{MOST_AT_KDC} earlier logins still wait for a KDC"
            raise ProbeFault(Reason.TICKET_UNAVAILABLE, told) from None

    def _begin(self, bindings: bytes | None) -> bytes:
        import gssapi
        from gssapi import raw

        try:
            mechanism = gssapi.OID.from_int_seq(_MECHANISM)
            name = gssapi.Name(principal_of(self._username), gssapi.NameType.kerberos_principal)
            acquired = raw.acquire_cred_with_password(
                name, self._password.encode(), mechs=[mechanism], usage="initiate"
            )
            self._context = gssapi.SecurityContext(
                name=gssapi.Name(self._server, gssapi.NameType.hostbased_service),
                creds=gssapi.Credentials(base=acquired.creds),
                mech=mechanism,
                usage="initiate",
                channel_bindings=raw.ChannelBindings(application_data=bindings) if bindings else None,
            )
            return bytes(self._context.step())
        except ValueError as error:
            raise ProbeFault(Reason.TICKET_REFUSED, str(error)) from None
        except gssapi.exceptions.GSSError as error:
            raise _refusal(error) from None

    def answer(self, token: bytes) -> bytes:
        """Return the answer to a server's token or, after that, to its offer of security layers.

        The dialogue is that of RFC 4752 section 3.1. Raises `ProbeFault` with `PROTOCOL_ERROR` for
        anything else.
        """
        from gssapi.exceptions import GSSError

        if self._context is None:
            raise ValueError("begin comes first")
        try:
            if not self._context.complete:
                return bytes(self._context.step(token) or b"")
            offer = self._context.unwrap(token).message
            if len(offer) != len(_NO_LAYER) or not offer[0] & _NO_LAYER[0]:
                raise ProbeFault(Reason.PROTOCOL_ERROR, "the server insists on a security layer of GSSAPI")
            return bytes(self._context.wrap(_NO_LAYER, encrypt=False).message)
        except GSSError as error:
            told = f"not a token of Kerberos: {type(error).__name__}"
            raise ProbeFault(Reason.PROTOCOL_ERROR, told) from None


def _refusal(error: GSSError) -> ProbeFault:
    """Return the fault for an error of the library, with its text."""
    said = "; ".join(error.get_all_statuses(error.min_code, is_maj=False))
    code = (error.min_code + 2**31) % 2**32 - 2**31 - _ERRORS  # the code is one of 32 bits with a sign
    if code in _CREDENTIALS:
        return ProbeFault(Reason.AUTH_FAILED, f"the KDC: {said}")
    return ProbeFault(Reason.TICKET_UNAVAILABLE if code in _UNREACHABLE else Reason.TICKET_REFUSED, said)
