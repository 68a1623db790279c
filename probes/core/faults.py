"""The only place that maps socket, TLS and protocol errors to reasons."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from typing import Literal

from probes.core.reasons import Reason
from probes.core.remedies import GENERAL

DETAIL_LIMIT = 300
"""Maximum characters of a server's text in a verdict."""

X509_NOT_YET_VALID = 9
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID."""

X509_EXPIRED = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""

_BY_VERIFY_CODE = {
    X509_NOT_YET_VALID: Reason.CERTIFICATE_NOT_YET_VALID,
    X509_EXPIRED: Reason.CERTIFICATE_EXPIRED,
    62: Reason.CERTIFICATE_NAME,  # X509_V_ERR_HOSTNAME_MISMATCH
    64: Reason.CERTIFICATE_NAME,  # X509_V_ERR_IP_ADDRESS_MISMATCH
    66: Reason.CERTIFICATE_WEAK,  # X509_V_ERR_EE_KEY_TOO_SMALL
    67: Reason.CERTIFICATE_WEAK,  # X509_V_ERR_CA_KEY_TOO_SMALL
    68: Reason.CERTIFICATE_WEAK,  # X509_V_ERR_CA_MD_TOO_WEAK
}

_BY_ERRNO = {
    errno.ECONNREFUSED: Reason.CONNECT_REFUSED,
    errno.ECONNRESET: Reason.CONNECTION_LOST,
    errno.EPIPE: Reason.CONNECTION_LOST,
    errno.ETIMEDOUT: Reason.CONNECT_TIMEOUT,
    errno.EHOSTUNREACH: Reason.HOST_UNREACHABLE,
    errno.ENETUNREACH: Reason.NETWORK_UNREACHABLE,
    errno.ENETDOWN: Reason.NETWORK_UNREACHABLE,
    errno.EMFILE: Reason.LOCAL_RESOURCES,
    errno.ENFILE: Reason.LOCAL_RESOURCES,
    errno.ENOMEM: Reason.LOCAL_RESOURCES,
    errno.ENOBUFS: Reason.LOCAL_RESOURCES,
    errno.EADDRNOTAVAIL: Reason.LOCAL_RESOURCES,
}
_ASKS_TO_WAIT = frozenset(
    {
        Reason.POP3_IN_USE,
        Reason.POP3_LOGIN_DELAY,
        Reason.POP3_SYS_TEMP,
        Reason.IMAP_IN_USE,
        Reason.THROTTLED,
    }
)
Refusal = Literal["temporary", "permanent"]
_REFUSALS: dict[int, Refusal] = {4: "temporary", 5: "permanent"}  # RFC 5321 section 4.2.1
_BY_RESOLUTION = {
    socket.EAI_NONAME: Reason.DNS_NXDOMAIN,
    socket.EAI_NODATA: Reason.DNS_NO_ADDRESS,
    socket.EAI_AGAIN: Reason.DNS_TIMEOUT,
    socket.EAI_FAIL: Reason.DNS_SERVFAIL,
}


def legible(text: str | bytes, limit: int = DETAIL_LIMIT) -> str:
    """Return untrusted text in a form safe to show: controls escaped, cut to ``limit`` characters."""
    if isinstance(text, bytes):
        text = text[: limit * 2].decode("utf-8", "backslashreplace")
    if len(text) <= limit and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


class ProbeFault(Exception):  # noqa: N818 # a fault of the mail system, not an error of the code
    """An expected failure of a check: its reason, and the server's text if there is any.

    ``reply_code`` is from SMTP (RFC 5321 section 4.2), ``enhanced_status_code`` from RFC 3463.
    ``retry_after`` is the pause in seconds that the server asked for. ``remedy`` says what to do about this
    reply, never in a server's words. ``refusal`` says whether a server refused for now or for good; a reply
    code implies it.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str | bytes = "",
        *,
        reply_code: int | None = None,
        enhanced_status_code: str | None = None,
        retry_after: float | None = None,
        remedy: str = "",
    ) -> None:
        self.reason = reason
        self.detail = legible(detail)
        self.reply_code = reply_code
        self.enhanced_status_code = enhanced_status_code
        self.retry_after = retry_after
        self._remedy = remedy
        self.refusal = _REFUSALS.get((reply_code or 0) // 100)
        super().__init__(reason)

    @property
    def asks_to_wait(self) -> bool:
        """Whether the server only asked us to try later, which says nothing about the mail."""
        return self.reason in _ASKS_TO_WAIT

    @property
    def remedy(self) -> str:
        """What to do; empty if that is not known."""
        return self._remedy or GENERAL.get(self.reason, "")

    @remedy.setter
    def remedy(self, remedy: str) -> None:
        self._remedy = remedy

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


def fault_of(error: Exception) -> ProbeFault | None:
    """Return the fault for a socket, TLS or stream error, or ``None`` for any other exception."""
    if isinstance(error, ssl.SSLCertVerificationError):
        untrusted = _BY_VERIFY_CODE.get(error.verify_code, Reason.CERTIFICATE_UNTRUSTED)
        return ProbeFault(untrusted, error.verify_message or str(error))
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None)  # only OpenSSL's own errors have one
        return ProbeFault(Reason.TLS_HANDSHAKE, reason or str(error))
    if isinstance(error, socket.gaierror):
        return ProbeFault(_BY_RESOLUTION.get(error.errno or 0, Reason.DNS_SERVFAIL), error.strerror or "")
    if isinstance(error, (asyncio.IncompleteReadError, EOFError, ConnectionError)) and not isinstance(
        error, ConnectionRefusedError
    ):
        return ProbeFault(Reason.CONNECTION_LOST, str(error) or "the connection ended")
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        # asyncio replaces the system's text with the address
        return ProbeFault(_BY_ERRNO[error.errno], os.strerror(error.errno))
    return None
