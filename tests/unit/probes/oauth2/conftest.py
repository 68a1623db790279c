"""A token endpoint that answers as a test scripts it, and keys."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.fakes.scripted_server import Peer, scripted_server

NOT_AFTER = datetime(2031, 5, 1, tzinfo=UTC)


class TokenEndpoint:
    """An open endpoint."""

    def __init__(self, port: int, forms: list[dict[str, str]]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.forms = forms
        """The requests."""


def answer(content: object, status: int = 200, *fields: str) -> bytes:
    """Return an HTTP answer with JSON, or with bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Connection: close", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body


OpenEndpoint = Callable[..., AbstractAsyncContextManager[TokenEndpoint]]


@pytest.fixture
def endpoint() -> OpenEndpoint:
    """Return a function that opens an endpoint.

    It answers each request with the next of the given answers, and the last one again and again; without any,
    it stays silent.
    """

    @asynccontextmanager
    async def opened(*answers: bytes) -> AsyncIterator[TokenEndpoint]:
        forms: list[dict[str, str]] = []

        async def script(peer: Peer) -> None:
            length = 0
            while line := await peer.expect(rb".*"):
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            body = b""
            while len(body) < length:
                body += await peer.octets()
            forms.append(dict(parse_qsl(body.decode())))
            if not answers:
                await peer.until_closed()
                return
            await peer.chunks(answers[min(len(forms), len(answers)) - 1])
            await peer.close()

        async with scripted_server(script) as server:
            yield TokenEndpoint(server.port, forms)

    return opened


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
