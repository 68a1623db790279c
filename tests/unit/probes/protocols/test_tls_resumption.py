"""TLS sessions that are resumed: only where a mailbox is read, and never where the handshake is probed."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
import trustme
from pydantic import SecretStr

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols import tls
from probes.protocols.pop3_session import Pop3Session
from tests.fakes.pop3_dialogue import ENTERED
from tests.fakes.scripted_server import (
    PASSWORD,
    Peer,
    ScriptedServer,
    dialogue,
    on_each_loop,
    scripted_server,
    server_context,
)
from tests.real_servers.dovecot import TlsFiles


class Handshakes:
    """A script for a POP3 server with implicit TLS, and whether each handshake resumed a session."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.resumed: list[bool | None] = []

    async def __call__(self, peer: Peer) -> None:
        encrypted = await peer.start_tls(self.context)
        self.resumed.append(encrypted.session_reused)
        await dialogue(*ENTERED)(peer)


async def log_in(server: ScriptedServer, *, resumes: bool = True) -> None:
    clock = SystemClock()
    session = await Pop3Session.open(
        server.settings("pop3", tls="implicit"),
        username="canary@example.com",
        password=SecretStr(PASSWORD),
        phases=PhaseTimer(clock),
        clock=clock,
        resumes=resumes,
    )
    session.abort()


@pytest.fixture(autouse=True)
def no_sessions() -> Iterator[None]:
    """Forget the sessions with other tests' servers."""
    tls._sessions.clear()
    tls._offered_at.clear()
    yield
    tls._sessions.clear()
    tls._offered_at.clear()


@on_each_loop
async def resumed_from_the_second_on(context: ssl.SSLContext, files: TlsFiles) -> None:
    tls._sessions.clear()
    handshakes = Handshakes(context)
    async with scripted_server(handshakes, files.authority) as server:
        for _ in range(3):
            await log_in(server)
    assert handshakes.resumed == [False, True, True]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_polls_resume_the_first_session(
    version: ssl.TLSVersion, certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """With TLS 1.2 and 1.3, on either event loop, only a mailbox's first poll needs a whole handshake."""
    context = server_context(certificate_authority, "127.0.0.1")
    context.maximum_version = version
    resumed_from_the_second_on(context, server_tls)


async def test_probes_do_whole_handshakes(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A session that polls could resume is not used by a probe of the same server."""
    handshakes = Handshakes(server_context(certificate_authority, "127.0.0.1"))
    async with scripted_server(handshakes, server_tls.authority) as server:
        await log_in(server)
        await log_in(server, resumes=False)
        await log_in(server, resumes=False)
    assert handshakes.resumed == [False, False, False]


async def test_certificate_is_verified_again_after_a_while(
    certificate_authority: trustme.CA, server_tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resuming does not prolong the trust in a certificate: once it is too old, the handshake is whole."""
    handshakes = Handshakes(server_context(certificate_authority, "127.0.0.1"))
    async with scripted_server(handshakes, server_tls.authority) as server:
        await log_in(server)
        await log_in(server)
        monkeypatch.setattr("probes.protocols.tls.RESUMED_FOR", 0.0)
        await log_in(server)
    assert handshakes.resumed == [False, True, False]


async def test_unknown_session_is_no_fault(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A server that has forgotten the session does a whole handshake, which counts as any other."""
    before, after = (Handshakes(server_context(certificate_authority, "127.0.0.1")) for _ in range(2))
    for handshakes in (before, after):
        async with scripted_server(handshakes, server_tls.authority) as server:
            await log_in(server)
            await log_in(server)
        assert handshakes.resumed == [False, True]


async def test_stranger_is_refused_in_spite_of_a_session(
    certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """A server with the same name and another authority's certificate gets no password."""
    known = Handshakes(server_context(certificate_authority, "127.0.0.1"))
    stranger = Handshakes(server_context(trustme.CA(), "127.0.0.1"))
    async with scripted_server(known, server_tls.authority) as server:
        await log_in(server)
    async with scripted_server(stranger, server_tls.authority) as server:
        with pytest.raises(ProbeFault) as caught:
            await log_in(server)
    assert caught.value.reason is Reason.CERTIFICATE_UNTRUSTED
    assert server.received == []


async def test_server_that_hangs_up_on_a_session_gets_whole_handshakes(
    certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """After an offer of a session ended without an answer, whatever the reason, handshakes are whole."""
    handshakes = Handshakes(server_context(certificate_authority, "127.0.0.1"))
    connections = 0

    async def hangs_up_once(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        if connections == 2:
            await peer.close()
        else:
            await handshakes(peer)

    async with scripted_server(hangs_up_once, server_tls.authority) as server:
        await log_in(server)
        with pytest.raises(ProbeFault):
            await log_in(server)
        await log_in(server)
        await log_in(server)
    assert handshakes.resumed == [False, False, False]
