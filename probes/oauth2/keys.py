"""Private keys that prove who mailsonde is, and the assertions that they sign (RFC 7521, 7523, 7515)."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from probes.core.secret import read_at_most

if TYPE_CHECKING:  # cryptography is loaded by sites with OAuth2 only
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

KEY_FILE_LIMIT = 64 * 1024
"""Maximum size of a key file, in bytes."""

ASSERTION_SECONDS = 300
"""Seconds that an assertion is valid: enough for clocks that differ by minutes, and useless soon after."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """An application's private key and certificate. ``not_after`` is in unix seconds."""

    key: RSAPrivateKey = field(repr=False)
    thumbprint: str
    """SHA-256 of the certificate in base64url (RFC 7515 section 4.1.8)."""
    not_after: float


@dataclass(frozen=True, slots=True)
class ServiceAccountKey:
    """A service account's address, and its key with the key's id."""

    email: str
    key_id: str
    key: RSAPrivateKey = field(repr=False)


def read_certificate(path: Path) -> ClientCertificate:
    """Return the private key and the certificate in a PEM file; raises ValueError, which never quotes it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    raw = read_at_most(path, KEY_FILE_LIMIT, "file")
    key = _private_key(raw, path)
    try:
        certificates = x509.load_pem_x509_certificates(raw)
    except ValueError:
        raise ValueError(f"file {path} contains no PEM certificate; add the one of its key") from None
    for certificate in certificates:
        if certificate.public_key() == key.public_key():
            thumbprint = _base64url(certificate.fingerprint(hashes.SHA256()))
            return ClientCertificate(key, thumbprint, certificate.not_valid_after_utc.timestamp())
    raise ValueError(f"file {path}: its certificate is for another private key")


def read_service_account(path: Path) -> ServiceAccountKey:
    """Return the key in a service account's JSON file; raises ValueError, which never quotes it."""
    try:
        entries = json.loads(read_at_most(path, KEY_FILE_LIMIT, "file"))
        email, key_id, pem = (entries[name] for name in ("client_email", "private_key_id", "private_key"))
        account = str(email), str(key_id), str(pem).encode()
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError):
        raise ValueError(
            f"file {path} is not a service account's key in JSON, with client_email, private_key_id and "
            "private_key"
        ) from None
    return ServiceAccountKey(*account[:2], _private_key(account[2], path))


def _private_key(raw: bytes, path: Path) -> RSAPrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_private_part(raw), password=None)
    except TypeError:
        raise ValueError(f"file {path}: its private key has a passphrase; store it without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"file {path} contains no private key in PEM; add it to the certificate") from None
    if not isinstance(key, RSAPrivateKey):
        raise ValueError(f"file {path}: its private key is not an RSA key, which the provider needs")  # noqa: TRY004 # a mistake in a file
    return key


def _private_part(raw: bytes) -> bytes:
    """Return the private key's block of a PEM file, whichever order its blocks are in."""
    for block in raw.split(b"-----BEGIN ")[1:]:
        if block.split(b"-----")[0].endswith(b"PRIVATE KEY"):
            return b"-----BEGIN " + block
    return b""


def client_assertion(certificate: ClientCertificate, client_id: str, audience: str, now: float) -> str:
    """Return a JWT that proves who an application is, signed with PS256 (RFC 7523 section 2.2).

    ``now`` is in unix seconds.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    header = {"alg": "PS256", "typ": "JWT", "x5t#S256": certificate.thumbprint}
    claims = {
        "aud": audience,
        "iss": client_id,
        "sub": client_id,
        "jti": secrets.token_hex(16),
        "nbf": int(now),
        "exp": int(now) + ASSERTION_SECONDS,
    }
    signed = _signing_input(header, claims)
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=hashes.SHA256.digest_size)
    return _compact(signed, certificate.key.sign(signed, pss, hashes.SHA256()))


def delegated_assertion(
    account: ServiceAccountKey, subject: str, scope: str, audience: str, now: float
) -> str:
    """Return a JWT by which a service account acts as ``subject``, signed with RS256 (RFC 7523 section 2.1).

    ``now`` is in unix seconds.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    header = {"alg": "RS256", "typ": "JWT", "kid": account.key_id}
    claims = {
        "iss": account.email,
        "sub": subject,
        "scope": scope,
        "aud": audience,
        "iat": int(now),
        "exp": int(now) + ASSERTION_SECONDS,
    }
    signed = _signing_input(header, claims)
    return _compact(signed, account.key.sign(signed, padding.PKCS1v15(), hashes.SHA256()))


def _signing_input(header: Mapping[str, object], claims: Mapping[str, object]) -> bytes:
    parts = (json.dumps(part, separators=(",", ":")).encode() for part in (header, claims))
    return ".".join(map(_base64url, parts)).encode()


def _compact(signed: bytes, signature: bytes) -> str:
    return f"{signed.decode()}.{_base64url(signature)}"


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
