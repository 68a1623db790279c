"""TLS for clients: one context for each set of authorities, and certificate expiry."""

from __future__ import annotations

import logging
import ssl
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from cryptography.x509 import load_der_x509_certificate

from probes.core.faults import ProbeFault
from probes.core.file_version import FileVersion, version_of
from probes.core.reasons import Reason

_log = logging.getLogger(__name__)


class _Held(NamedTuple):
    """A context, and the version of its CA file when it was last checked (``None``: the file was missing)."""

    version: FileVersion | None
    context: ssl.SSLContext


_held: dict[tuple[Path | None, tuple[str, ...], bool], _Held] = {}


def client_context(
    ca: Path | None, alpn: tuple[str, ...] = (), *, besides_system: bool = False
) -> ssl.SSLContext:
    """Return a context that trusts the PEM file ``ca`` or, if it is ``None``, the system's authorities.

    ``besides_system`` trusts both. The context always verifies chain and name, and requires TLS 1.2 or
    newer (RFC 8996). ``alpn`` lists the protocols to offer (RFC 7301). Contexts are shared only between
    calls with the same arguments, because a mail server may refuse a client that offers HTTP.

    The system's authorities are loaded once, because that takes 20 ms or more. A file is loaded again
    when it changes. If it is then missing or broken, its last good content stays trusted, and a warning
    is logged. If it was never readable, raises `ProbeFault` with `LOCAL_RESOURCES`: this is not the
    server's fault.
    """
    key = ca, alpn, besides_system
    held = _held.get(key)
    version = () if ca is None else version_of(ca)
    if held is None or held.version != version:
        held = _held[key] = _Held(version, _loaded(*key, held))
    return held.context


def _loaded(
    ca: Path | None, alpn: tuple[str, ...], besides_system: bool, held: _Held | None
) -> ssl.SSLContext:
    """Return a new context, or the held one if the file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=ca)
        if besides_system and ca is not None:
            context.load_default_certs()
    except OSError as error:  # includes ssl.SSLError
        why = getattr(error, "reason", None) or error.strerror or str(error)
        if held is None:
            raise ProbeFault(Reason.LOCAL_RESOURCES, f"CA file {ca} cannot be used: {why}") from error
        _log.warning("CA file %s cannot be used; its last good content stays trusted: %s", ca, why)
        return held.context
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if held is not None:
        _log.info("CA file %s has changed and was read again", ca)
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
