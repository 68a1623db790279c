"""Chains of certificates with any validity and keys."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_FAR = timedelta(days=400)


def in_days(days: float) -> datetime:
    """Return that time from now, in whole seconds as in certificates."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


@dataclass(frozen=True)
class Certified:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


def certify(
    name: str,
    issuer: Certified | None = None,
    *,
    is_ca: bool = True,
    subject: str | None = None,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    key: Key | None = None,
) -> Certified:
    """Return a certificate, self-signed without an issuer; a leaf is for 127.0.0.1.

    Its common name is ``name``, or ``subject`` if given.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    common_name = name if subject is None else subject
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    signing = issuer.key if issuer is not None else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(issuer.certificate.subject if issuer is not None else own)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before or in_days(0) - _FAR)
        .not_valid_after(not_after or in_days(0) + _FAR)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False
        )
    )
    if not is_ca:
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Certified(builder.sign(signing, hashes.SHA256()), key)


def chain_context(folder: Path, leaf: Certified, *intermediates: Certified) -> ssl.SSLContext:
    """Return the context of a server that sends this chain."""
    certificates, key = folder / "chain.pem", folder / "chain-key.pem"
    certificates.write_bytes(b"".join(each.pem for each in (leaf, *intermediates)))
    key.write_bytes(leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # otherwise OpenSSL refuses to use a weak key
    context.load_cert_chain(certificates, key)
    return context
