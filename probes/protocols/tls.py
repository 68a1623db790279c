"""TLS for clients: contexts made once, and when the server's certificate expires."""

from __future__ import annotations

import ssl
from functools import cache, lru_cache
from pathlib import Path

from cryptography.x509 import load_der_x509_certificate

from probes.core.reasons import Reason


@cache
def client_context(ca: Path | None) -> ssl.SSLContext:
    """Return the context that verifies against the PEM file ``ca``, or the system's authorities.

    It verifies chain and name always, and speaks TLS 1.2 or newer (RFC 8996). Made once for
    each file, because loading the system's authorities takes about 20 ms.
    """
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@cache
def opportunistic_context() -> ssl.SSLContext:
    """Return the context that takes any certificate, as between mail servers (RFC 7435)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def description(connection: ssl.SSLObject | ssl.SSLSocket) -> str:
    """Return the protocol's version and the cipher suite, such as ``TLSv1.3, TLS_AES_256_GCM_SHA384``."""
    suite = connection.cipher()
    return f"{connection.version()}, {suite[0] if suite else 'no cipher suite'}"


def certificate_not_after(connection: ssl.SSLObject | ssl.SSLSocket) -> float:
    """Return when the certificate of ``connection``'s peer expires, in unix seconds."""
    return _not_after(connection.getpeercert(binary_form=True) or b"")


@lru_cache(maxsize=1024)
def _not_after(der: bytes) -> float:
    """Return when a certificate expires; the same few certificates come again with every run."""
    return load_der_x509_certificate(der).not_valid_after_utc.timestamp()


def expiry_reason(not_after: float | None, now: float, warning: float) -> Reason:
    """Return a warning when the certificate expires within ``warning`` seconds of ``now``, else none."""
    if not_after is not None and not_after - now < warning:
        return Reason.CERTIFICATE_EXPIRING
    return Reason.NONE
