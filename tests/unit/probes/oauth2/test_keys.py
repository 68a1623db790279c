"""Keys and the assertions that they sign, verified by the public key."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from probes.oauth2.keys import (
    client_assertion,
    delegated_assertion,
    read_certificate,
    read_service_account,
)
from tests.unit.probes.oauth2.conftest import NOT_AFTER


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_application_proves_who_it_is(
    app_pem: Path, key: rsa.RSAPrivateKey, certificate: x509.Certificate
) -> None:
    """The assertion is for this client and endpoint only, expires in minutes, and its signature is valid."""
    found = read_certificate(app_pem)
    assert found.not_after == NOT_AFTER.timestamp()
    assertion = client_assertion(found, "app-1", "https://login.example/token", 1000.9)
    header, claims, signature = assertion.split(".")
    thumbprint = decoded(json.loads(decoded(header))["x5t#S256"])
    assert thumbprint == certificate.fingerprint(hashes.SHA256())
    said = json.loads(decoded(claims))
    assert said["iss"] == said["sub"] == "app-1"
    assert (said["aud"], said["nbf"], said["exp"]) == ("https://login.example/token", 1000, 1300)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    key.public_key().verify(decoded(signature), f"{header}.{claims}".encode(), pss, hashes.SHA256())


def test_each_assertion_is_new(app_pem: Path) -> None:
    """Two assertions of the same second differ, so that none looks like a replay."""
    found = read_certificate(app_pem)
    assert len({client_assertion(found, "app-1", "https://login.example", 1000.0) for _ in range(2)}) == 2


def test_service_account_acts_as_a_mailbox(service_account: Path, key: rsa.RSAPrivateKey) -> None:
    """The assertion names the account, the mailbox and the scope, and its signature is valid."""
    account = read_service_account(service_account)
    assertion = delegated_assertion(account, "canary@example.com", "s", "https://tokens.example", 1000.0)
    header, claims, signature = assertion.split(".")
    assert json.loads(decoded(header)) == {"alg": "RS256", "typ": "JWT", "kid": "k1"}
    said = json.loads(decoded(claims))
    assert (said["iss"], said["sub"], said["scope"]) == ("sonde@p.iam.example", "canary@example.com", "s")
    signed = f"{header}.{claims}".encode()
    key.public_key().verify(decoded(signature), signed, padding.PKCS1v15(), hashes.SHA256())


def _pem(private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, passphrase: bytes = b"") -> bytes:
    hidden = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)


def test_files_that_cannot_be_used(tmp_path: Path, key_pem: bytes, certificate: x509.Certificate) -> None:
    """Each error says what the file lacks, and quotes nothing of it."""
    path, cert = tmp_path / "app.pem", certificate.public_bytes(serialization.Encoding.PEM)
    other = rsa.generate_private_key(65537, 2048)
    contents = {
        "contains no private key in PEM; add it to the certificate": cert,
        "contains no PEM certificate; add the one of its key": key_pem,
        ": its certificate is for another private key": cert + _pem(other),
        ": its private key has a passphrase; store it without one": cert + _pem(other, b"secret"),
        ": its private key is not an RSA key": cert + _pem(ec.generate_private_key(ec.SECP256R1())),
        "is longer than 65536 bytes": b"x" * 70_000,
    }
    for told, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^file /") as caught:
            read_certificate(path)
        assert told in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_certificate(tmp_path / "none.pem")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"client_email": 1}', b"[" * 20_000])
def test_file_that_is_no_service_account(tmp_path: Path, content: bytes) -> None:
    """Anything but a service account's key is refused with what it must have."""
    path = tmp_path / "key.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a service account's key in JSON, with client_email"):
        read_service_account(path)
