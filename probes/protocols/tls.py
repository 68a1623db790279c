"""TLS for clients: one context for each set of authorities, and certificate expiry."""

from __future__ import annotations

import logging
import ssl
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from cryptography.x509 import Certificate, InvalidVersion, load_der_x509_certificate

from probes.core.faults import X509_EXPIRED, X509_NOT_YET_VALID, ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.regular_file import CERTIFICATES_LIMIT, FileVersion, require_regular, version_of

CERTIFICATE_SUBJECT_LIMIT = 120
"""Maximum characters to show of a certificate's subject."""

RESUMED_FOR = 600.0
"""Maximum seconds for which sessions are resumed without looking at the server's certificate again."""

_ENCODING_DER = 2
"""OpenSSL's X509_FILETYPE_ASN1, which ``ssl`` has no public name for."""

_log = logging.getLogger(__name__)


class _Held(NamedTuple):
    """A context, and the version of its CA file when it was last checked (``None``: the file was missing)."""

    version: FileVersion | None
    context: ssl.SSLContext


_held: dict[tuple[Path | None, tuple[str, ...], bool, bool], _Held] = {}


def client_context(
    ca: Path | None, alpn: tuple[str, ...] = (), *, with_system: bool = False, resumes: bool = False
) -> ssl.SSLContext:
    """Return a context that trusts the PEM file ``ca`` or, if it is ``None``, the system's authorities.

    ``with_system`` trusts both. The context always verifies chain and name, and requires TLS 1.2 or
    newer (RFC 8996). ``alpn`` lists the protocols to offer (RFC 7301). Contexts are shared only between
    calls with the same arguments, because a mail server may refuse a client that offers HTTP. One that
    ``resumes`` saves most of the handshake; see `keep_session`. It is not for probes, which check handshakes.

    The system's authorities are loaded once, because that takes 20 ms or more. A file is loaded again
    when it changes. If it is then missing or broken, its last good content stays trusted, and a warning
    is logged. If it was never readable, raises `ProbeFault` with `LOCAL_RESOURCES`: this is not the
    server's fault.
    """
    key = ca, alpn, with_system, resumes
    held = _held.get(key)
    version = () if ca is None else version_of(ca)
    if held is None or held.version != version:
        held = _held[key] = _Held(version, _loaded(*key, held))
    return held.context


def _loaded(
    ca: Path | None, alpn: tuple[str, ...], with_system: bool, resumes: bool, held: _Held | None
) -> ssl.SSLContext:
    """Return a new context, or the held one if the file cannot be used."""
    try:
        if ca is not None:
            require_regular(ca, CERTIFICATES_LIMIT)
        context = ssl.create_default_context(cafile=ca)
        if with_system and ca is not None:
            context.load_default_certs()
    except OSError as error:  # includes ssl.SSLError
        why = getattr(error, "reason", None) or error.strerror or str(error)
        if held is None:
            raise ProbeFault(Reason.LOCAL_RESOURCES, f"CA file {ca} cannot be used: {why}") from error
        _log.warning("CA file %s cannot be used; its last good content stays trusted: %s", ca, why)
        return held.context
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslobject_class = _ResumingObject if resumes else _TellingObject
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if held is not None:
        _log.info("CA file %s has changed and was read again", ca)
    return context


@cache
def opportunistic_context() -> ssl.SSLContext:
    """Return the context that accepts any certificate, as between mail servers (RFC 7435)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def description(connection: ssl.SSLObject | ssl.SSLSocket) -> str:
    """Return the protocol's version and the cipher suite, such as ``TLSv1.3, TLS_AES_256_GCM_SHA384``."""
    suite = connection.cipher()
    return f"{connection.version()}, {suite[0] if suite else 'no cipher suite'}"


class CertificateExpiry(NamedTuple):
    """When a certificate expires, in unix seconds, and its subject, safe to show."""

    not_after: float
    subject: str

    def __str__(self) -> str:
        return f"{self.subject} ends on {_date(self.not_after)}"


def certificate_expiry(connection: ssl.SSLObject | ssl.SSLSocket) -> CertificateExpiry | None:
    """Return the earliest expiry in the chain of ``connection``'s peer, including the trusted root.

    Without verification, only the peer's own certificate counts. Returns ``None`` if it cannot be read.
    """
    return min((read.expiry for read in _readable(_chain(connection))), default=None)


def expiry_of(der: bytes) -> CertificateExpiry | None:
    """Return the expiry of a certificate in DER; ``None`` if it cannot be read."""
    read = _read(der)
    return read and read.expiry


class _Read(NamedTuple):
    expiry: CertificateExpiry
    not_before: float  # unix seconds


def _chain(connection: ssl.SSLObject | ssl.SSLSocket) -> list[bytes]:
    """Return the verified chain in DER, the peer's certificate first; if not verified, only that."""
    if connection.context.verify_mode is not ssl.CERT_NONE:
        if sys.version_info >= (3, 13):
            return connection.get_verified_chain()
        with suppress(AttributeError):  # undocumented: tests/unit/test_canaries.py
            chain = connection._sslobj.get_verified_chain()  # type: ignore[union-attr] # no stub has it
            return [each.public_bytes(_ENCODING_DER) for each in chain or ()]
    own = connection.getpeercert(binary_form=True)
    return [own] if own else []


def _readable(chain: Iterable[bytes]) -> list[_Read]:
    return [read for der in chain if (read := _read(der)) is not None]


@lru_cache(maxsize=1024)
def _read(der: bytes) -> _Read | None:
    """Parse a certificate; ``None`` if it is broken. Cached, because each run has the same few."""
    try:
        certificate = load_der_x509_certificate(der)
        ends = CertificateExpiry(certificate.not_valid_after_utc.timestamp(), _subject(certificate))
        return _Read(ends, certificate.not_valid_before_utc.timestamp())
    except (ValueError, InvalidVersion):  # OpenSSL is less strict
        return None


def _subject(certificate: Certificate) -> str:
    """Return the subject, or the serial number if there is none or it cannot be read."""
    try:
        subject = certificate.subject.rfc4514_string()
    except (TypeError, ValueError):  # such as an attribute whose type does not fit it
        subject = ""
    return legible(subject or f"the certificate {certificate.serial_number:x}", CERTIFICATE_SUBJECT_LIMIT)


def _date(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


class _TellingObject(ssl.SSLObject):
    """Adds to OpenSSL's error which certificate of the chain is not valid now."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            chain = _readable(_chain(self))
            if chain and error.verify_code == X509_EXPIRED:
                ended = min(read.expiry for read in chain)
                error.verify_message += f": {ended.subject} ended on {_date(ended.not_after)}"
            elif chain and error.verify_code == X509_NOT_YET_VALID:
                latest = max(chain, key=lambda read: read.not_before)
                error.verify_message += f": {latest.expiry.subject} begins on {_date(latest.not_before)}"
            raise


class _Session(NamedTuple):
    """A session to resume, and when its certificate was verified (monotonic seconds)."""

    session: ssl.SSLSession
    context: ssl.SSLContext
    verified_at: float


_sessions: dict[str, _Session] = {}
"""The latest session with each server that is not offered at the moment, by the server's name."""

_offered_at: dict[str, float] = {}
"""When a session was offered to a server that has not answered since (monotonic seconds), by its name."""


class _ResumingObject(_TellingObject):
    """Resumes the server's latest session if possible; otherwise the handshake is an ordinary one."""

    verified_at: float | None = None
    """When the server's certificate was verified; ``None`` before the handshake."""

    has_offered = False
    """Whether a session was offered to the server."""

    def do_handshake(self) -> None:
        if self.verified_at is None:
            self.verified_at = time.monotonic()
            kept = _sessions.get(self.server_hostname or "")
            if (
                kept is not None
                and kept.context is self.context
                and self.verified_at - kept.verified_at < RESUMED_FOR
            ):
                self.session, self.verified_at = kept.session, kept.verified_at
                self.has_offered = True
                # A server may not bear it, and say so by an alert, by closing the connection or not at all.
                del _sessions[self.server_hostname or ""]
                _offered_at[self.server_hostname or ""] = time.monotonic()
        super().do_handshake()


def keep_session(connection: object) -> None:
    """Let later connections to this server resume the session, if its context allows this.

    To be called after the server has sent something, because tickets follow the handshake (RFC 8446 section
    4.6.1). A certificate is verified again at least every `RESUMED_FOR` seconds.
    """
    if not isinstance(connection, _ResumingObject):
        return
    session = connection.session  # a copy, which takes as long as a third of a handshake
    if session is None:
        return
    now, name = time.monotonic(), connection.server_hostname or ""
    if connection.has_offered:
        _offered_at.pop(name, None)
    elif now - _offered_at.get(name, float("-inf")) < RESUMED_FOR:
        return  # only whole handshakes work there, it seems
    at = connection.verified_at if connection.session_reused else now
    _sessions[name] = _Session(session, connection.context, at or 0.0)


def expiry_warning(expiry: CertificateExpiry | None, now: float, warning: float) -> tuple[Reason, str]:
    """Return a warning and its detail if ``expiry`` is within ``warning`` seconds of ``now``, or `NONE`."""
    if expiry is not None and expiry.not_after - now < warning:
        return Reason.CERTIFICATE_EXPIRING, str(expiry)
    return Reason.NONE, ""
