"""Sessions of our SMTP client with a scripted server."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols.smtp_session import SmtpSession, smtp_session
from tests.fakes.scripted_server import PASSWORD, Peer, Script, scripted_server

USER = "canary@example.com"
BANNER = b"220 mail.example.com ESMTP"
EHLO = rb"EHLO \[127\.0\.0\.1\]"
PLAIN = b"\0" + USER.encode() + b"\0" + PASSWORD.encode()
INITIAL = base64.b64encode(PLAIN)

SUBMISSION: tuple[tuple[bytes, bytes], ...] = (
    (EHLO, b"250-mail.example.com\r\n250 AUTH PLAIN LOGIN CRAM-MD5"),
    (rb"AUTH CRAM-MD5", b"334 " + base64.b64encode(b"<1.2@mail.example.com>")),
    (rb"[A-Za-z0-9+/=]+", b"235 2.7.0 welcome"),
    (rb"MAIL FROM:<a@example.com>", b"250 2.1.0 ok"),
    (rb"RCPT TO:<b@example.com>", b"250 2.1.5 ok"),
    (rb"DATA", b"354 go on"),
)
"""A dialogue up to the message's content, in clear."""

CONTENT = b"Subject: x\r\n\r\n.dot\r\n..\r\nend\r\n"


class Attempt:
    """One submission and its result."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.phases = PhaseTimer(SystemClock())
        self.session: SmtpSession | None = None

    async def run(self, server: ServerSettings) -> None:
        """Submit the message."""
        async with smtp_session(server, self.phases, SystemClock()) as session:
            self.session = session
            await session.mail("a@example.com", len(self.content))
            await session.rcpt("b@example.com")
            await session.data(self.content)
            await session.quit()

    async def fault(self, server: ServerSettings) -> ProbeFault:
        """Submit the message, which must fail, and return the fault."""
        with pytest.raises(ProbeFault) as caught:
            await self.run(server)
        assert PASSWORD not in str(caught.value)
        assert INITIAL.decode() not in str(caught.value)
        return caught.value


async def fault_of(script: Script, **settings: Any) -> ProbeFault:
    """Return the fault of a client of ``script``, which must see the connection closed."""
    async with scripted_server(script) as server:
        fault = await Attempt().fault(server.settings("smtp", **settings))
        await server.peer_closed()
    return fault


async def until_dot(peer: Peer) -> None:
    """Read the content of a message."""
    while await peer.expect(rb".*") != b".":
        pass


async def close(peer: Peer) -> None:
    """Hang up."""
    await peer.close()
