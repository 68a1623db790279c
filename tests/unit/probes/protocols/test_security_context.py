"""NTLM with channel bindings against pyspnego's server side, behind a small web application with TLS."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.protocols.security_context import NtlmContext, end_point_bindings
from tests.fakes.certificates import certify, in_days
from tests.fakes.extended_protection import ACCOUNT, PASSWORD, ExtendedProtection, serving
from tests.fakes.ntlm import CHALLENGE
from tests.real_servers.dovecot import TlsFiles


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
    accounts: None,
) -> None:
    """Extended Protection accepts the bindings of the connection's certificate, and no others."""
    async with serving(ExtendedProtection(server_tls.certificate), server_tls) as port:
        trusted = ssl.create_default_context(cafile=server_tls.authority)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
        try:
            received = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            other = certify("another").certificate.public_bytes(Encoding.DER)
            chosen = {"of the certificate": received, "of another": other}.get(bindings)
            exchange = context()
            status, challenge, _ = await get(reader, writer, exchange.step())
            assert status == 401
            answer = exchange.step(
                base64.b64decode(challenge), end_point_bindings(chosen) if chosen else None
            )
            status, _, body = await get(reader, writer, answer)
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
    assert end_point_bindings(certificate) == b"tls-server-end-point:" + digest


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
