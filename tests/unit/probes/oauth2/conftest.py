"""Keys for tokens."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

NOT_AFTER = datetime(2031, 5, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def key() -> rsa.RSAPrivateKey:
    """Return a private key, made once."""
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def key_pem(key: rsa.RSAPrivateKey) -> bytes:
    """Return it in PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture(scope="session")
def certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    """Return the key's certificate."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mailsonde")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOT_AFTER - timedelta(days=3650))
        .not_valid_after(NOT_AFTER)
        .sign(key, hashes.SHA256())
    )


@pytest.fixture
def app_pem(tmp_path: Path, key_pem: bytes, certificate: x509.Certificate) -> Path:
    """Return a file with certificate and key."""
    path = tmp_path / "app.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + key_pem)
    return path


@pytest.fixture
def service_account(tmp_path: Path, key_pem: bytes) -> Path:
    """Return a service account's key file."""
    path = tmp_path / "key.json"
    entries = {"client_email": "sonde@p.iam.example", "private_key_id": "k1", "private_key": key_pem.decode()}
    path.write_text(json.dumps(entries))
    return path
