"""TLS for clients: contexts made once for each set of authorities, and when a certificate expires."""

from __future__ import annotations

import logging
import ssl
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from cryptography.x509 import load_der_x509_certificate

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason

_log = logging.getLogger(__name__)

_FileVersion = tuple[int, ...]


class _Held(NamedTuple):
    """A context, and the version of the file that it was made for; ``None`` where that file was gone."""

    version: _FileVersion | None
    context: ssl.SSLContext


_held: dict[tuple[Path | None, tuple[str, ...]], _Held] = {}


def client_context(ca: Path | None, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    """Return the context that verifies against the PEM file ``ca``, or the system's authorities.

    It verifies chain and name always, and speaks TLS 1.2 or newer (RFC 8996). Each combination of
    ``ca`` and of the protocols ``alpn`` (RFC 7301) has a context of its own: a mail server may
    refuse a client that offers HTTP.

    The system's authorities are loaded once, because that takes 20 ms or more. A file is loaded again when
    it changes. While it is missing or broken, its last good authorities stay in use and a warning is
    logged; if there are none, raises `ProbeFault` with `LOCAL_RESOURCES`, for no server is to blame.
    """
    held = _held.get((ca, alpn))
    version = () if ca is None else _version(ca)
    if held is None or held.version != version:
        held = _held[ca, alpn] = _Held(version, _loaded(ca, alpn, held))
    return held.context


def _version(file: Path) -> _FileVersion | None:
    """Return what changes with a file's content, also where a link leads to another file; cheap."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _loaded(ca: Path | None, alpn: tuple[str, ...], held: _Held | None) -> ssl.SSLContext:
    """Return a new context, or the one that is held if the file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:  # OpenSSL's errors are some too
        why = getattr(error, "reason", None) or error.strerror or str(error)
        if held is None:
            raise ProbeFault(Reason.LOCAL_RESOURCES, f"CA file {ca} cannot be used: {why}") from error
        _log.warning("CA file %s cannot be used, its last good content stays trusted: %s", ca, why)
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
