"""CA files that change while mailsonde runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.verdict import PhaseTimer
from probes.protocols.https import HttpClient
from probes.protocols.pop3_session import Pop3Session
from probes.protocols.tls import client_context
from tests.fakes.https_server import https_server, page
from tests.fakes.scripted_server import PASSWORD, Peer, dialogue, scripted_server, server_context

OLD, NEW = trustme.CA(organization_name="old"), trustme.CA(organization_name="new")


async def log_in(authority: trustme.CA, file: Path) -> None:
    """Log in with TLS verified by ``file``, to a server with a certificate from ``authority``."""
    context = server_context(authority, "127.0.0.1")

    async def script(peer: Peer) -> None:
        await peer.start_tls(context)
        features = (rb"CAPA", b"+OK\r\nSASL PLAIN\r\n.")
        await dialogue(b"+OK ready", features, (rb"AUTH PLAIN .*", b"+OK welcome"))(peer)

    async with scripted_server(script, file) as server:
        session = await Pop3Session.open(
            server.settings("pop3", tls="implicit"),
            username="canary",
            password=SecretStr(PASSWORD),
            phases=PhaseTimer(SystemClock()),
            clock=SystemClock(),
        )
        session.abort()


def write_over(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def put_in_place(file: Path, content: bytes) -> None:
    beside = file.with_suffix(".new")
    beside.write_bytes(content)
    beside.rename(file)


def swap_directory(file: Path, content: bytes) -> None:
    """Do as Kubernetes does: ``ca.pem -> ..data/ca.pem``, where ``..data`` is a link that is replaced."""
    data = file.parent / "..data"
    version = file.parent / f"..{len(list(file.parent.iterdir()))}"
    version.mkdir()
    (version / file.name).write_bytes(content)
    (beside := file.parent / "..data_tmp").symlink_to(version.name)
    beside.rename(data)
    if not file.is_symlink():
        file.symlink_to(Path("..data") / file.name)


@pytest.mark.parametrize("put", [write_over, put_in_place, swap_directory])
async def test_renewed_authority(put: Callable[[Path, bytes], None], tmp_path: Path) -> None:
    """However a CA file is replaced, the next session trusts the new authority and not the old one."""
    file = tmp_path / "ca.pem"
    put(file, OLD.cert_pem.bytes())
    await log_in(OLD, file)
    with pytest.raises(ProbeFault) as caught:
        await log_in(NEW, file)
    assert caught.value.reason is Reason.CERTIFICATE_UNTRUSTED
    put(file, NEW.cert_pem.bytes())
    await log_in(NEW, file)
    with pytest.raises(ProbeFault) as caught:
        await log_in(OLD, file)
    assert caught.value.reason is Reason.CERTIFICATE_UNTRUSTED


async def test_renewed_authority_of_an_https_server(tmp_path: Path) -> None:
    """The next HTTP client trusts the new authority too."""
    file = tmp_path / "ca.pem"
    for authority in (OLD, NEW):
        file.write_bytes(authority.cert_pem.bytes())
        async with https_server(server_context(authority, "127.0.0.1"), lambda _: page("hello")) as server:
            client = HttpClient(PhaseTimer(SystemClock()), seconds=5, ca=file)
            async with client:
                answer = await client.request("GET", f"https://127.0.0.1:{server.port}/")
        assert answer.body == b"hello"


@pytest.mark.parametrize("content", [None, b"", b"no certificate", OLD.cert_pem.bytes()[:300]])
async def test_a_broken_file_costs_no_session(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While a CA file is missing or broken, its last good content is used, which is logged once."""
    file = tmp_path / "ca.pem"
    file.write_bytes(OLD.cert_pem.bytes())
    await log_in(OLD, file)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    for _ in range(3):
        await log_in(OLD, file)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    (warning,) = warnings
    assert warning.startswith(f"CA file {file} cannot be used; its last good content stays trusted: ")
    file.write_bytes(NEW.cert_pem.bytes())
    await log_in(NEW, file)


async def test_without_any_authority_no_server_is_blamed(tmp_path: Path) -> None:
    """A CA file that was never readable is our own fault, which ends when the file exists."""
    file = tmp_path / "ca.pem"
    with pytest.raises(ProbeFault) as caught:
        await log_in(OLD, file)
    assert caught.value.reason is Reason.LOCAL_RESOURCES
    assert caught.value.reason.outcome is Outcome.UNKNOWN
    assert str(file) in caught.value.detail
    file.write_bytes(OLD.cert_pem.bytes())
    await log_in(OLD, file)


def test_nothing_is_loaded_twice(tmp_path: Path) -> None:
    """Without changes, neither the system's authorities nor a file are loaded again."""
    file = tmp_path / "ca.pem"
    file.write_bytes(OLD.cert_pem.bytes())
    for ca in (file, None):
        assert client_context(ca) is client_context(ca)
        assert client_context(ca) is not client_context(ca, ("http/1.1",))
