"""Mail clients send no ALPN in TLS handshakes, whatever else the process does."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
import trustme
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from monitor.config.models import OtlpSettings
from monitor.otlp import OtlpExporter
from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols.imap_session import ImapSession
from probes.protocols.mail_session import MailSession
from probes.protocols.pop3_session import Pop3Session
from probes.protocols.smtp_session import smtp_session
from tests.fakes.https_server import https_server, page
from tests.fakes.scripted_server import Peer, Step, dialogue, scripted_server, server_context
from tests.real_servers.dovecot import TlsFiles


async def open_smtp(server: ServerSettings) -> None:
    async with smtp_session(server, PhaseTimer(SystemClock()), SystemClock()):
        pass


def open_by(kind: type[MailSession]) -> Callable[[ServerSettings], Any]:
    async def open_mailbox(server: ServerSettings) -> None:
        await kind.open(
            server,
            username="canary",
            password=SecretStr("s3cret"),
            phases=PhaseTimer(SystemClock()),
            clock=SystemClock(),
        )

    return open_mailbox


class Protocol(NamedTuple):
    """How to bring a client to its TLS handshake within a dialogue."""

    name: str
    open: Callable[[ServerSettings], Any]
    steps: tuple[Step, ...]


SMTP = Protocol(
    "smtp",
    open_smtp,
    (b"220 hi", (rb"EHLO .*", b"250-hi\r\n250 STARTTLS"), (rb"STARTTLS", b"220 go")),
)
POP3 = Protocol(
    "pop3",
    open_by(Pop3Session),
    (b"+OK hi", (rb"CAPA", b"+OK\r\nSTLS\r\n."), (rb"STLS", b"+OK go")),
)
IMAP = Protocol(
    "imap",
    open_by(ImapSession),
    (b"* OK [CAPABILITY IMAP4rev1 STARTTLS] hi", (rb"M1 STARTTLS", b"M1 OK go")),
)


@pytest.mark.parametrize(
    ("protocol", "tls"),
    [
        *((protocol, tls) for protocol in (SMTP, POP3, IMAP) for tls in ("implicit", "starttls")),
        (SMTP, "opportunistic"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
async def test_no_mail_handshake_names_a_protocol(
    protocol: Protocol, tls: str, server_tls: TlsFiles, certificate_authority: trustme.CA
) -> None:
    """A mail client sends no ALPN, even after an export over https with the same authority.

    A server that checks ALPN refuses a client that offers only HTTP (RFC 7301 section 3.2).
    """
    agreed: asyncio.Queue[str | None] = asyncio.Queue()
    context = server_context(certificate_authority, "127.0.0.1")
    context.set_alpn_protocols(["http/1.1", "h2", "smtp", "pop3", "imap"])

    async def handshake(peer: Peer) -> None:
        agreed.put_nowait((await peer.start_tls(context)).selected_alpn_protocol())
        await peer.close()

    await _export(context, server_tls)
    script = handshake if tls == "implicit" else dialogue(*protocol.steps, then=handshake)
    async with scripted_server(script, server_tls.authority) as server:
        with suppress(ProbeFault):
            await protocol.open(server.settings(protocol.name, tls=tls))
        assert await asyncio.wait_for(agreed.get(), 60) is None


async def _export(context: ssl.SSLContext, server_tls: TlsFiles) -> None:
    """Export metrics over https once."""
    async with https_server(context, lambda _: page("")) as receiver:
        settings = OtlpSettings(endpoint=f"https://127.0.0.1:{receiver.port}/v1/metrics")
        settings = settings.model_copy(update={"tls_ca": server_tls.authority})
        exporter = OtlpExporter(settings, CollectorRegistry(), SystemClock(), {})
        assert await exporter.export() is None
    assert receiver.requests == [f"127.0.0.1:{receiver.port} POST /v1/metrics"]
