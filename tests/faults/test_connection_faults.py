"""Faults before a dialogue: no connection, no TLS, an invalid certificate.

No credentials are sent on a connection that is not encrypted and verified as configured.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from probes.core.reasons import Reason
from tests.fakes.black_hole import black_hole
from tests.fakes.scripted_server import Peer, Script, scripted_server, server_context
from tests.faults.dialogues import DIALOGUES
from tests.faults.misdeeds import Misdeed, close, reset, says, silence
from tests.faults.running import (
    PATIENCE,
    TIMEOUT,
    hold_to_promises,
    probe_of,
    refusing,
    run,
    server_settings,
)

KINDS = pytest.mark.parametrize("kind", [*DIALOGUES])
HOUR = timedelta(hours=1)

OFFERED = {
    "smtp": ((rb"EHLO .*", b"250-hi\r\n250 STARTTLS"), rb"STARTTLS", b"220 go"),
    "pop3": ((rb"CAPA", b"+OK\r\nSTLS\r\nUSER\r\n."), rb"STLS", b"+OK go"),
    "imap": ((rb"M1 CAPABILITY", b"* CAPABILITY IMAP4rev1 STARTTLS\r\nM1 OK"), rb"M2 STARTTLS", b"M2 OK go"),
}
"""How each protocol offers STARTTLS, begins it, and agrees to it."""
GREETINGS = {"smtp": b"220 hi", "pop3": b"+OK hi", "imap": b"* OK hi"}
REFUSALS = {"smtp": b"454 4.7.0 no", "pop3": b"-ERR no", "imap": b"M2 NO no"}
REFUSED = {"smtp": Reason.SMTP_DEFERRED, "pop3": Reason.POP3_ERROR, "imap": Reason.IMAP_NO}


def up_to_tls(kind: str, tls: str, then: Callable[[Peer], Awaitable[None]]) -> Script:
    """Return a script that does ``then`` at the start of TLS."""
    offer, command, agreed = OFFERED[kind]

    async def script(peer: Peer) -> None:
        if tls == "starttls":
            await peer.send(GREETINGS[kind])
            await peer.expect(offer[0])
            await peer.send(offer[1])
            await peer.expect(command)
            await peer.send(agreed)
        await then(peer)

    return script


def has_no_secrets(received: list[bytes]) -> bool:
    """Return whether a server got no more than the commands up to TLS."""
    return all(
        line.split()[-1] in (b"CAPA", b"STLS", b"STARTTLS", b"CAPABILITY", b"[127.0.0.1]")
        for line in received
    )


@KINDS
async def test_a_refused_connection(kind: str) -> None:
    """A refused connection is reported as such."""
    with refusing() as port:
        ran = await run(probe_of(kind, server_settings(kind, port)))
    hold_to_promises(ran)
    assert ran.result.verdict.reason is Reason.CONNECT_REFUSED


@KINDS
async def test_a_black_hole(kind: str) -> None:
    """A server that does not answer connection attempts affects only its own probe."""
    with black_hole() as port:
        ran = await run(probe_of(kind, server_settings(kind, port, timeout=TIMEOUT)))
    hold_to_promises(ran)
    assert ran.result.verdict.reason is Reason.CONNECT_TIMEOUT


@KINDS
async def test_starttls_that_was_stripped(kind: str) -> None:
    """If STARTTLS is not offered, the run ends before any credentials."""
    state = "auth" if kind == "smtp" else "login"
    async with scripted_server(DIALOGUES[kind].committing(says(b"what?"), state)) as server:
        ran = await run(probe_of(kind, server_settings(kind, server.port, tls="starttls")))
    hold_to_promises(ran)
    assert ran.result.verdict.reason is Reason.TLS_NOT_OFFERED
    assert has_no_secrets(server.received)


@KINDS
async def test_starttls_that_is_refused(kind: str) -> None:
    """If STARTTLS is offered and then refused, the run ends before any credentials."""
    offer, command, _ = OFFERED[kind]

    async def script(peer: Peer) -> None:
        await peer.send(GREETINGS[kind])
        await peer.expect(offer[0])
        await peer.send(offer[1])
        await peer.expect(command)
        await peer.send(REFUSALS[kind])

    async with scripted_server(script) as server:
        ran = await run(probe_of(kind, server_settings(kind, server.port, tls="starttls")))
    hold_to_promises(ran)
    assert ran.result.verdict.reason is REFUSED[kind]
    assert has_no_secrets(server.received)


@KINDS
async def test_octets_injected_before_tls(kind: str) -> None:
    """Unencrypted octets after the answer to STARTTLS end the run before any credentials."""
    offer, command, agreed = OFFERED[kind]

    async def script(peer: Peer) -> None:
        await peer.send(GREETINGS[kind])
        await peer.expect(offer[0])
        await peer.send(offer[1])
        await peer.expect(command)
        await peer.send(agreed, b"250 injected")

    async with scripted_server(script) as server:
        ran = await run(probe_of(kind, server_settings(kind, server.port, tls="starttls")))
    hold_to_promises(ran)
    assert ran.result.verdict.reason is Reason.TLS_INJECTION
    assert has_no_secrets(server.received)


async def _garbled(peer: Peer) -> None:
    await peer.octets()
    await peer.chunks(b"\x16\x03\x03\x00\x20" + b"\xff" * 32)


async def _alert(peer: Peer) -> None:
    await peer.octets()
    await peer.chunks(b"\x15\x03\x03\x00\x02\x02\x28")  # handshake_failure (RFC 8446 section 6)
    await peer.close()


HANDSHAKES: dict[str, tuple[Misdeed, Reason]] = {
    "close": (close, Reason.CONNECTION_LOST),
    "reset": (reset, Reason.CONNECTION_LOST),
    "silence": (silence, Reason.TLS_HANDSHAKE),
    "garbage": (_garbled, Reason.TLS_HANDSHAKE),
    "an alert": (_alert, Reason.TLS_HANDSHAKE),
}


@KINDS
@pytest.mark.parametrize("tls", ["implicit", "starttls"])
@pytest.mark.parametrize("handshake", [*HANDSHAKES])
async def test_a_handshake_that_fails(kind: str, tls: str, handshake: str) -> None:
    """A failed TLS handshake ends the run before any credentials, and never continues unencrypted."""
    commit, reason = HANDSHAKES[handshake]
    timeout = TIMEOUT if handshake == "silence" else PATIENCE
    async with scripted_server(up_to_tls(kind, tls, commit)) as server:
        ran = await run(probe_of(kind, server_settings(kind, server.port, tls=tls, timeout=timeout)))
    hold_to_promises(ran)
    verdict = ran.result.verdict
    assert verdict.reason is reason, f"{verdict.reason}: {verdict.detail}"
    assert verdict.detail.removeprefix("in phase tls: ")
    assert server.connections == 1
    assert has_no_secrets(server.received)


@KINDS
async def test_a_server_in_clear_where_tls_comes_first(kind: str) -> None:
    """An unencrypted port is reported as such, however early its greeting is."""
    async with scripted_server(says(GREETINGS[kind])) as server:
        ran = await run(probe_of(kind, server_settings(kind, server.port, tls="implicit")))
    hold_to_promises(ran)
    verdict = ran.result.verdict
    assert verdict.reason is Reason.TLS_HANDSHAKE
    assert verdict.detail == "in phase tls: the server speaks in clear on this port"


@KINDS
@pytest.mark.parametrize("tls", ["implicit", "starttls"])
@pytest.mark.parametrize(
    ("name", "ends_in", "is_trusted", "reason"),
    [
        ("127.0.0.1", -HOUR, True, Reason.CERTIFICATE_EXPIRED),
        ("other.example.test", HOUR, True, Reason.CERTIFICATE_NAME),
        ("127.0.0.1", HOUR, False, Reason.CERTIFICATE_UNTRUSTED),
    ],
)
async def test_a_certificate_that_does_not_verify(
    kind: str, tls: str, name: str, ends_in: timedelta, is_trusted: bool, reason: Reason, tmp_path: Path
) -> None:
    """An invalid certificate ends the run before anything is sent on the connection."""
    authority, trusted = trustme.CA(), tmp_path / "ca.pem"
    (authority if is_trusted else trustme.CA()).cert_pem.write_to_path(str(trusted))
    context = server_context(authority, name, not_after=datetime.now(UTC) + ends_in)

    async def encrypt(peer: Peer) -> None:
        await peer.start_tls(context)
        await peer.send(DIALOGUES[kind].greeting)

    async with scripted_server(up_to_tls(kind, tls, encrypt)) as server:
        settings = server_settings(kind, server.port, tls=tls, tls_ca=trusted)
        ran = await run(probe_of(kind, settings))
    hold_to_promises(ran)
    assert ran.result.verdict.reason is reason
    assert has_no_secrets(server.received)
