"""Every certificate of the chain counts, and a fault says which one it is about."""

from __future__ import annotations

import ssl
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols.line_transport import LineTransport
from probes.protocols.tls import CertificateExpiry, certificate_expiry, client_context, opportunistic_context
from tests.fakes.certificates import certify, chain_context, in_days
from tests.fakes.scripted_server import Peer, on_each_loop, scripted_server

CHAIN = ("leaf", "intermediate", "root")

each_certificate = pytest.mark.parametrize("which", CHAIN)


async def expiry(
    folder: Path, which: str, *, is_verified: bool = True, **options: Any
) -> CertificateExpiry | None:
    """Return the expiry that a client sees for a chain of three, one of which has ``options``."""
    own = {name: options if name == which else {} for name in CHAIN}
    root = certify("root", **own["root"])
    intermediate = certify("intermediate", root, **own["intermediate"])
    leaf = certify("leaf", intermediate, is_ca=False, **own["leaf"])
    (folder / "ca.pem").write_bytes(root.pem)
    context = chain_context(folder, leaf, intermediate)

    async def script(peer: Peer) -> None:
        await peer.start_tls(context)

    async with scripted_server(script) as server:
        wire = await LineTransport.connect("127.0.0.1", server.port, PhaseTimer(SystemClock()), 5.0)
        try:
            trusted = client_context(folder / "ca.pem") if is_verified else opportunistic_context()
            await wire.start_tls(trusted, "127.0.0.1")
        finally:
            wire.abort()
        await server.peer_closed()
    return wire.certificate_expiry


async def fault_of(folder: Path, which: str, **options: Any) -> ProbeFault:
    with pytest.raises(ProbeFault) as caught:
        await expiry(folder, which, **options)
    return caught.value


def shown(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


@each_certificate
@on_each_loop
async def test_the_earliest_end_in_the_chain_counts(which: str, tmp_path: Path) -> None:
    """The earliest expiry of leaf, intermediate and root counts."""
    ends = in_days(3)
    assert await expiry(tmp_path, which, not_after=ends) == (ends.timestamp(), f"CN={which}")


@pytest.mark.parametrize("which", ["leaf", "intermediate"])
async def test_without_verification_only_the_own_certificate_counts(which: str, tmp_path: Path) -> None:
    """For an unverified chain, only the server's own certificate counts."""
    ends = in_days(3)
    found = await expiry(tmp_path, which, is_verified=False, not_after=ends)
    assert found is not None
    assert found.subject == "CN=leaf"
    assert (found.not_after == ends.timestamp()) is (which == "leaf")


@each_certificate
@on_each_loop
async def test_an_expired_certificate_is_named(which: str, tmp_path: Path) -> None:
    """If a certificate of the chain has expired, the detail has its name and expiry."""
    ended = in_days(-1)
    fault = await fault_of(tmp_path, which, not_after=ended)
    assert fault.reason is Reason.CERTIFICATE_EXPIRED
    assert fault.detail == f"certificate has expired: CN={which} ended on {shown(ended)}"


@each_certificate
@on_each_loop
async def test_a_certificate_that_is_not_valid_yet(which: str, tmp_path: Path) -> None:
    """A certificate that is valid from tomorrow is named, and not called untrusted."""
    begins = in_days(1)
    fault = await fault_of(tmp_path, which, not_before=begins)
    assert fault.reason is Reason.CERTIFICATE_NOT_YET_VALID
    assert fault.detail == f"certificate is not yet valid: CN={which} begins on {shown(begins)}"


@each_certificate
async def test_a_weak_key(which: str, tmp_path: Path) -> None:
    """A key that is too short for OpenSSL is not called untrusted."""
    fault = await fault_of(tmp_path, which, key=rsa.generate_private_key(65537, 1024))  # noqa: S505 # weak on purpose
    assert fault.reason is Reason.CERTIFICATE_WEAK
    assert "key too weak" in fault.detail


async def test_subjects_are_foreign_text(tmp_path: Path) -> None:
    """A subject is escaped and cut; a certificate without one is named by its serial number."""
    found = await expiry(tmp_path, "leaf", not_after=in_days(3), subject="a\x1b[31m" + "b" * 50)
    assert found is not None
    assert found.subject.isprintable()
    assert "\\x1b[31m" in found.subject
    found = await expiry(tmp_path, "leaf", not_after=in_days(3), subject="")
    assert found is not None
    assert found.subject.startswith("the certificate ")


def test_a_broken_certificate_is_no_defect() -> None:
    """A certificate that OpenSSL accepts but cannot be parsed has no known expiry."""

    class Connection:
        context = opportunistic_context()

        def getpeercert(self, *, binary_form: bool) -> bytes:
            return b"\x30\x03\x02\x01\x00" if binary_form else b""

    assert certificate_expiry(cast("ssl.SSLObject", Connection())) is None
