"""NTLM with channel bindings against pyspnego's server side, behind a small web application with TLS."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import spnego
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from spnego.channel_bindings import GssChannelBindings
from spnego.exceptions import SpnegoError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.protocols.security_context import NtlmContext, end_point_bindings
from tests.fakes.certificates import certify, in_days
from tests.fakes.ntlm import CHALLENGE
from tests.real_servers.dovecot import TlsFiles

PASSWORD = "canary-Pa55word"
ACCOUNT = "FABRIKAM\\canary"


class ExtendedProtection:
    """A page for those who log in by NTLM on a connection that ends here, as with Windows' setting."""

    def __init__(self, certificate: Path) -> None:
        self._accepting: dict[object, spnego.ContextProxy] = {}
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).digest()
        self._bindings = GssChannelBindings(application_data=b"tls-server-end-point:" + digest)

    async def page(self, request: Request) -> Response:
        """Answer a request: 401 with a challenge, 401 without one, or the name of the user."""
        _, _, token = request.headers.get("authorization", "").partition(" ")
        context = self._accepting.get(request.client)
        if context is None:
            context = self._accepting[request.client] = spnego.server(
                protocol="ntlm",
                options=spnego.NegotiateOptions.use_ntlm,
                channel_bindings=self._bindings,
            )
        try:
            answer = context.step(base64.b64decode(token))
        except SpnegoError as error:
            return PlainTextResponse(type(error).__name__, 401)
        if context.complete:
            return PlainTextResponse(context.client_principal or "")
        challenge = base64.b64encode(answer or b"").decode()
        return PlainTextResponse("", 401, {"WWW-Authenticate": f"NTLM {challenge}"})


@asynccontextmanager
async def serving(page: ExtendedProtection, tls: TlsFiles) -> AsyncIterator[int]:
    """Serve ``page`` over TLS; yield the port."""
    app = Starlette(routes=[Route("/", page.page)])
    config = uvicorn.Config(app, port=0, http="h11", log_config=None, lifespan="off")
    config.ssl_certfile, config.ssl_keyfile = tls.certificate, tls.key
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


async def get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: bytes
) -> tuple[int, str, str]:
    """Send a request with an NTLM token; return status, the server's token, and the body."""
    authorization = base64.b64encode(token).decode()
    writer.write(f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: NTLM {authorization}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines if line)
    body = await reader.readexactly(int(fields["content-length"]))
    challenge = next((line.split(" ")[2] for line in lines if line.lower().startswith("www-auth")), "")
    return int(status.split()[1]), challenge, body.decode()


@pytest.mark.parametrize(
    ("bindings", "outcome"),
    [
        ("of the certificate", (200, ACCOUNT)),
        ("of another", (401, "BadBindingsError")),
        ("none", (401, "BadBindingsError")),
    ],
)
async def test_channel_bindings(
    bindings: str,
    outcome: tuple[int, str],
    server_tls: TlsFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Extended Protection accepts the bindings of the connection's certificate, and no others."""
    accounts = tmp_path / "accounts"
    accounts.write_text(f"FABRIKAM:canary:{PASSWORD}\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(accounts))
    async with serving(ExtendedProtection(server_tls.certificate), server_tls) as port:
        trusted = ssl.create_default_context(cafile=server_tls.authority)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
        try:
            received = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            other = certify("another").certificate.public_bytes(Encoding.DER)
            chosen = {"of the certificate": received, "of another": other}.get(bindings)
            context = NtlmContext(
                ACCOUNT,
                PASSWORD,
                service="HTTP",
                host="localhost",
                bindings=end_point_bindings(chosen) if chosen else None,
            )
            status, challenge, _ = await get(reader, writer, context.step())
            assert status == 401
            status, _, body = await get(reader, writer, context.step(base64.b64decode(challenge)))
        finally:
            writer.close()
            await writer.wait_closed()
    assert (status, body) == outcome


def signed(algorithm: hashes.HashAlgorithm | None) -> x509.Certificate:
    """Return a certificate whose signature has this hash, or none."""
    key = (
        ed25519.Ed25519PrivateKey.generate() if algorithm is None else ec.generate_private_key(ec.SECP256R1())
    )
    name = x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(7)
    valid = builder.not_valid_before(in_days(-1)).not_valid_after(in_days(1))
    return valid.public_key(key.public_key()).sign(key, algorithm)


@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_hash_of_the_signature(algorithm: hashes.HashAlgorithm) -> None:
    """The bindings have the certificate's hash by the algorithm of its signature (RFC 5929 section 4.1)."""
    certificate = signed(algorithm).public_bytes(Encoding.DER)
    digest = hashlib.new(algorithm.name, certificate).digest()
    assert end_point_bindings(certificate).application_data == b"tls-server-end-point:" + digest


@pytest.mark.parametrize("certificate", [b"", b"no certificate", signed(None).public_bytes(Encoding.DER)])
def test_no_bindings(certificate: bytes) -> None:
    """What is no certificate has no bindings, nor one that is signed without a hash."""
    with pytest.raises(ValueError, match=r"."):
        end_point_bindings(certificate)


def context() -> NtlmContext:
    return NtlmContext(ACCOUNT, PASSWORD, service="HTTP", host="localhost")


@pytest.mark.parametrize("challenge", [b"", b"x" * 100, CHALLENGE[:50], CHALLENGE + bytes(64 * 1024)])
def test_challenge_that_makes_no_sense(challenge: bytes) -> None:
    """A challenge that is malformed or too long is the server's fault."""
    exchange = context()
    exchange.step()
    with pytest.raises(ProbeFault) as caught:
        exchange.step(challenge)
    assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_second_challenge() -> None:
    """There is one challenge; what follows it is the server's fault."""
    exchange = context()
    exchange.step()
    exchange.step(CHALLENGE)
    with pytest.raises(ProbeFault) as caught:
        exchange.step(CHALLENGE)
    assert caught.value.reason is Reason.PROTOCOL_ERROR
