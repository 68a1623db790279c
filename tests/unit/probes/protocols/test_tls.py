"""TLS in the SMTP and POP3 clients: anything that could be an attacker in between is refused."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols.pop3_session import Pop3Session
from probes.protocols.smtp_session import smtp_session
from probes.protocols.tls import CertificateExpiry, client_context, expiry_warning
from tests.fakes.scripted_server import (
    PASSWORD,
    Peer,
    Script,
    Step,
    dialogue,
    on_each_loop,
    scripted_server,
    server_context,
)
from tests.real_servers.dovecot import TlsFiles

USER = "canary@example.com"


async def open_smtp(server: ServerSettings) -> CertificateExpiry | None:
    """Open an SMTP session and log in; return when the certificate expires."""
    async with smtp_session(server, PhaseTimer(SystemClock()), SystemClock()) as session:
        return session.certificate_expiry


async def open_pop3(server: ServerSettings) -> CertificateExpiry | None:
    """Open a POP3 session and log in; return when the certificate expires."""
    session = await Pop3Session.open(
        server,
        username=USER,
        password=SecretStr(PASSWORD),
        phases=PhaseTimer(SystemClock()),
        clock=SystemClock(),
    )
    session.abort()
    return session.certificate_expiry


@dataclass(frozen=True)
class Protocol:
    """The steps of a protocol from the banner to TLS, and after it."""

    name: str
    open: Callable[[ServerSettings], Any]
    banner: bytes
    ask: bytes
    features: bytes  # without TLS
    offer: bytes  # with TLS
    command: bytes
    go_ahead: bytes
    refusal: bytes
    injected: bytes  # would look like the first answer after TLS
    log_in: tuple[Step, ...]

    def until_tls(self, tls: str) -> tuple[Step, ...]:
        """Return the steps before the handshake."""
        if tls == "implicit":
            return ()
        return self.banner, (self.ask, self.offer), (self.command, self.go_ahead)

    def after_tls(self, tls: str) -> tuple[Step, ...]:
        """Return the steps from the handshake to the end of the login."""
        greeting = (self.banner,) if tls == "implicit" else ()
        return *greeting, (self.ask, self.features), *self.log_in


SMTP = Protocol(
    name="smtp",
    open=open_smtp,
    banner=b"220 mail.example.com",
    ask=rb"EHLO .*",
    features=b"250-mail.example.com\r\n250 AUTH PLAIN",
    offer=b"250-mail.example.com\r\n250-AUTH PLAIN\r\n250 STARTTLS",
    command=rb"STARTTLS",
    go_ahead=b"220 go",
    refusal=b"454 4.7.0 TLS not available",
    injected=b"250-evil.example.com\r\n250 AUTH PLAIN",
    log_in=((rb"AUTH PLAIN .*", b"235 welcome"),),
)
POP3 = Protocol(
    name="pop3",
    open=open_pop3,
    banner=b"+OK ready",
    ask=rb"CAPA",
    features=b"+OK\r\nUSER\r\nSASL PLAIN\r\n.",
    offer=b"+OK\r\nUSER\r\nSTLS\r\n.",
    command=rb"STLS",
    go_ahead=b"+OK go",
    refusal=b"-ERR [SYS/TEMP] TLS not available",
    injected=b"+OK\r\nUSER\r\n.",
    log_in=((rb"AUTH PLAIN .*", b"+OK welcome"),),
)

each_protocol = pytest.mark.parametrize("protocol", [SMTP, POP3], ids=lambda protocol: protocol.name)
each_way = pytest.mark.parametrize("tls", ["starttls", "implicit"])


async def fault_of(
    protocol: Protocol, script: Script, ca: Path, **options: str
) -> tuple[ProbeFault, list[bytes]]:
    """Return the client's fault and what it sent, which must not have credentials."""
    username = USER if protocol is SMTP else None
    async with scripted_server(script, ca) as server:
        with pytest.raises(ProbeFault) as caught:
            await protocol.open(
                server.settings(protocol.name, username=username, **{"tls": "starttls", **options})
            )
        await server.peer_closed()
    assert not any(line.startswith((b"AUTH", b"USER", b"APOP")) for line in server.received)
    return caught.value, server.received


def handshake(context: ssl.SSLContext, *steps: Step) -> Script:
    """Return a script of a TLS handshake and what comes after it."""

    async def script(peer: Peer) -> None:
        await peer.start_tls(context)
        await dialogue(*steps)(peer)

    return script


@pytest.fixture
def context(certificate_authority: trustme.CA) -> ssl.SSLContext:
    return server_context(certificate_authority, "127.0.0.1")


@each_protocol
@each_way
@on_each_loop
async def test_verified_tls(
    protocol: Protocol, tls: str, certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """With a valid certificate, the login is over TLS, and the expiry is known."""
    not_after = datetime.now(UTC).replace(microsecond=0) + timedelta(days=40)
    context = server_context(certificate_authority, "127.0.0.1", not_after=not_after)
    script = dialogue(*protocol.until_tls(tls), then=handshake(context, *protocol.after_tls(tls)))
    async with scripted_server(script, server_tls.authority) as server:
        expiry = await protocol.open(
            server.settings(protocol.name, tls=tls, username=USER if protocol is SMTP else None)
        )
        await server.peer_closed()
    assert expiry is not None
    assert expiry.not_after == not_after.timestamp()
    assert server.received[-1].startswith(b"AUTH PLAIN ")


@each_protocol
async def test_tls_not_offered(protocol: Protocol, server_tls: TlsFiles) -> None:
    """If a server or an attacker hides STARTTLS, no credentials are sent."""
    script = dialogue(protocol.banner, (protocol.ask, protocol.features))
    fault, received = await fault_of(protocol, script, server_tls.authority)
    assert fault.reason is Reason.TLS_NOT_OFFERED
    assert len(received) == 1


@each_protocol
async def test_tls_refused(protocol: Protocol, server_tls: TlsFiles) -> None:
    """If a server offers TLS and then refuses it, no credentials are sent, and its answer is kept."""
    steps = (protocol.banner, (protocol.ask, protocol.offer), (protocol.command, protocol.refusal))
    fault, _ = await fault_of(protocol, dialogue(*steps), server_tls.authority)
    assert fault.reason is (Reason.SMTP_DEFERRED if protocol is SMTP else Reason.POP3_SYS_TEMP)
    assert "TLS not available" in fault.detail


@each_protocol
@pytest.mark.parametrize("place", ["behind the reply", "half a line", "behind the offer", "early go-ahead"])
@on_each_loop
async def test_injection_before_tls(
    protocol: Protocol, place: str, server_tls: TlsFiles, context: ssl.SSLContext
) -> None:
    """Unencrypted replies that would be read after TLS end the session."""
    offer, go_ahead, injected = protocol.offer, protocol.go_ahead, protocol.injected
    if place == "behind the reply":
        go_ahead += b"\r\n" + injected
    elif place == "half a line":
        go_ahead += b"\r\n" + injected[:3]
    elif place == "behind the offer":
        offer += b"\r\n" + go_ahead + b"\r\n" + injected
    else:
        offer, go_ahead = offer + b"\r\n" + go_ahead, injected
    steps = (protocol.banner, (protocol.ask, offer), (protocol.command, go_ahead))
    script = dialogue(*steps, then=handshake(context, *protocol.after_tls("starttls")))
    fault, _ = await fault_of(protocol, script, server_tls.authority)
    assert fault.reason is Reason.TLS_INJECTION


@each_protocol
@each_way
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("other authority", Reason.CERTIFICATE_UNTRUSTED),
        ("other name", Reason.CERTIFICATE_NAME),
        ("expired", Reason.CERTIFICATE_EXPIRED),
    ],
)
@on_each_loop
async def test_certificates_that_do_not_verify(
    protocol: Protocol,
    tls: str,
    kind: str,
    reason: Reason,
    certificate_authority: trustme.CA,
    server_tls: TlsFiles,
) -> None:
    """A certificate from another authority, for another name or expired ends the session."""
    context = server_context(
        trustme.CA() if kind == "other authority" else certificate_authority,
        "other.example.com" if kind == "other name" else "127.0.0.1",
        not_after=datetime(2020, 1, 1, tzinfo=UTC) if kind == "expired" else None,
    )
    script = dialogue(*protocol.until_tls(tls), then=handshake(context, *protocol.after_tls(tls)))
    fault, _ = await fault_of(protocol, script, server_tls.authority, tls=tls)
    assert fault.reason is reason
    assert fault.detail


async def drop(peer: Peer) -> None:
    await peer.close()


@each_protocol
@each_way
@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (None, Reason.TLS_HANDSHAKE),
        (drop, Reason.CONNECTION_LOST),
        (dialogue(b"220 no TLS here"), Reason.TLS_HANDSHAKE),
    ],
    ids=["silence", "drop", "clear"],
)
@on_each_loop
async def test_handshake_without_partner(
    protocol: Protocol, tls: str, then: Script | None, reason: Reason, server_tls: TlsFiles
) -> None:
    """Silence, a hang-up or plain text instead of the handshake has its own fault."""

    async def after_hello(peer: Peer) -> None:
        await peer.octets()
        if then is not None:
            await then(peer)

    script = dialogue(*protocol.until_tls(tls), then=after_hello)
    async with asyncio.timeout(30):
        fault, _ = await fault_of(protocol, script, server_tls.authority, tls=tls, timeout="100ms")
    assert fault.reason is reason


@each_protocol
@on_each_loop
async def test_implicit_tls_to_a_port_in_clear(protocol: Protocol, server_tls: TlsFiles) -> None:
    """An unencrypted greeting instead of TLS is reported as such, and no credentials are sent."""
    for _ in range(5):  # the greeting and the handshake race
        fault, _ = await fault_of(protocol, dialogue(protocol.banner), server_tls.authority, tls="implicit")
        assert fault.reason is Reason.TLS_HANDSHAKE
        assert fault.detail == "the server speaks in clear on this port"


@each_protocol
@each_way
@on_each_loop
async def test_cancellation_during_the_handshake(protocol: Protocol, tls: str, server_tls: TlsFiles) -> None:
    """A run cancelled during the TLS handshake leaves no connection open."""
    reached = asyncio.Event()

    async def hang(peer: Peer) -> None:
        await peer.octets()
        reached.set()

    script = dialogue(*protocol.until_tls(tls), then=hang)
    async with scripted_server(script, server_tls.authority) as server:
        task = asyncio.create_task(protocol.open(server.settings(protocol.name, tls=tls)))
        await reached.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        await server.peer_closed()


def test_old_tls_is_not_spoken(server_tls: TlsFiles) -> None:
    """No client context allows versions before TLS 1.2, or skips verification (RFC 8996)."""
    for context in (client_context(None), client_context(server_tls.authority)):
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname


def test_own_authority_replaces_the_systems(server_tls: TlsFiles) -> None:
    """A configured authority replaces all others."""
    assert len(client_context(server_tls.authority).get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        (14 * 86400.0, Reason.NONE),
        (14 * 86400.0 - 1, Reason.CERTIFICATE_EXPIRING),
        (None, Reason.NONE),
    ],
)
def test_warning_before_expiry(left: float | None, reason: Reason) -> None:
    """A certificate warns once less than the configured time is left, and never without one."""
    now = 1_700_000_000.0
    expiry = None if left is None else CertificateExpiry(now + left, "CN=mail.example.com")
    detail = "CN=mail.example.com ends on 2023-11-28 22:13 UTC" if reason is not Reason.NONE else ""
    assert expiry_warning(expiry, now, 14 * 86400.0) == (reason, detail)
