"""Logins by NTLM over each protocol, at servers whose challenges are wrong; what `auto` does about it."""

from __future__ import annotations

import base64
import ssl
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.redaction import WITHHELD, Redaction
from probes.core.verdict import PhaseTimer
from probes.protocols.imap_session import ImapSession
from probes.protocols.mail_session import MailSession
from probes.protocols.pop3_session import Pop3Session
from probes.protocols.sasl import MECHANISMS
from probes.protocols.smtp_session import SmtpSession
from tests.fakes.clock import InstantClock
from tests.fakes.ntlm import CHALLENGE, SIGNATURE
from tests.fakes.scripted_server import PASSWORD, Peer, Script, scripted_server, server_context
from tests.real_servers.dovecot import TlsFiles

SESSIONS: dict[str, type[MailSession]] = {"smtp": SmtpSession, "pop3": Pop3Session, "imap": ImapSession}
OPENINGS = {
    "smtp": (b"220 mx", [(b"EHLO .*", [b"250-mx", b"250 AUTH NTLM LOGIN"])]),
    "pop3": (b"+OK", [(b"CAPA", [b"+OK", b"SASL NTLM LOGIN", b"."])]),
    "imap": (b"* OK [CAPABILITY IMAP4rev1 AUTH=NTLM] ready", []),
}
ASKS = {"smtp": b"AUTH NTLM", "pop3": b"AUTH NTLM", "imap": b"M1 AUTHENTICATE NTLM"}
CONTINUE = {"smtp": b"334 ", "pop3": b"+ ", "imap": b"+ "}
OKAY = {"smtp": b"235 ok", "pop3": b"+OK", "imap": b"M1 OK [CAPABILITY IMAP4rev1] in"}


async def open_exchange(peer: Peer, protocol: str) -> None:
    """Play a server up to the client's first message of NTLM."""
    greeting, dialogue = OPENINGS[protocol]
    await peer.send(greeting)
    for asked, answers in dialogue:
        await peer.expect(asked)
        await peer.send(*answers)
    await peer.expect(ASKS[protocol])
    await peer.send(CONTINUE[protocol] + b"ntlm supported")
    await peer.expect(SIGNATURE.encode() + b".*")


def script(protocol: str, *challenges: bytes) -> Script:
    """Return a server that sends ``challenges``, the last one again and again."""

    async def play(peer: Peer) -> None:
        await open_exchange(peer, protocol)
        for challenge in challenges:
            await peer.send(CONTINUE[protocol] + challenge)
            await peer.expect(b".*")
        while True:
            await peer.send(CONTINUE[protocol] + challenges[-1])
            await peer.expect(b".*")

    return play


async def log_in(script: Script, protocol: str, phases: PhaseTimer, **options: Any) -> None:
    """Log in once at a scripted server."""
    async with scripted_server(script) as server:
        settings = server.settings(protocol, **{"auth": "ntlm"} | options)
        session = await SESSIONS[protocol].open(
            settings,
            username="EXAMPLE\\canary",
            password=SecretStr(PASSWORD),
            phases=phases,
            clock=InstantClock(),
        )
        session.abort()
        await server.peer_closed()


GOOD = base64.b64encode(CHALLENGE)


@pytest.mark.parametrize("protocol", SESSIONS)
@pytest.mark.parametrize(
    ("challenges", "reasons"),
    [
        ([base64.b64encode(CHALLENGE[:40])], {Reason.PROTOCOL_ERROR}),
        ([base64.b64encode(CHALLENGE[:-20])], {Reason.PROTOCOL_ERROR}),
        ([base64.b64encode(b"NTLMSSP\0\1" + bytes(40))], {Reason.PROTOCOL_ERROR}),
        ([b"no base64!"], {Reason.PROTOCOL_ERROR}),
        ([GOOD], {Reason.PROTOCOL_ERROR}),  # for ever
        ([base64.b64encode(CHALLENGE + bytes(64 * 1024))], {Reason.LINE_TOO_LONG}),
    ],
    ids=["cut short", "cut in the target", "not a challenge", "no base64", "endless", "64 KiB"],
)
async def test_challenge_that_makes_no_sense(
    protocol: str, challenges: list[bytes], reasons: set[Reason]
) -> None:
    """Each has its reason at once; what proves the password is shown nowhere."""
    phases = PhaseTimer(InstantClock())
    with pytest.raises(ProbeFault) as caught:
        await log_in(script(protocol, *challenges), protocol, phases)
    assert caught.value.reason in reasons, caught.value.detail
    shown = "\n".join([caught.value.detail, *phases.transcript.lines()])
    assert PASSWORD not in shown
    assert f"C: {SIGNATURE}" not in shown


@pytest.mark.parametrize("protocol", SESSIONS)
async def test_challenge_without_an_end(protocol: str) -> None:
    """A challenge that never ends is read only up to the limit of a line."""

    async def play(peer: Peer) -> None:
        await open_exchange(peer, protocol)
        await peer.chunks(CONTINUE[protocol])
        await peer.flood(b"A" * 4096)

    with pytest.raises(ProbeFault) as caught:
        await log_in(play, protocol, PhaseTimer(InstantClock()))
    assert caught.value.reason is Reason.LINE_TOO_LONG


def test_responses_are_withheld() -> None:
    """Both messages, and any server text with a piece of one, are withheld."""
    redaction = Redaction()
    exchange = MECHANISMS["NTLM"]("EXAMPLE\\canary", PASSWORD, redaction)
    for answer in (exchange.answer(b"ntlm supported"), exchange.answer(GOOD)):
        assert answer.decode().startswith(SIGNATURE)
        assert redaction.text(f"535 what is {answer.decode()}") == f"535 {WITHHELD}"
        assert redaction.text(f"535 what is {answer[-30:].decode()}") == f"535 {WITHHELD}"
    assert redaction.text("535 5.7.3 Authentication unsuccessful").endswith("unsuccessful")


ANSWERS = {
    b"NTLM": [b"334 ", b"535 5.7.3 Authentication unsuccessful"],
    b"LOGIN": [b"334 ", b"334 ", b"235 in"],
}


def refusing(methods: list[bytes], context: ssl.SSLContext) -> Script:
    """Return a server with TLS that refuses NTLM and accepts LOGIN; it adds each login to ``methods``."""

    async def play(peer: Peer) -> None:
        await peer.send(b"220 mx")
        await peer.expect(b"EHLO .*")
        await peer.send(b"250-mx", b"250 STARTTLS")
        await peer.expect(b"STARTTLS")
        await peer.send(b"220 go")
        await peer.start_tls(context)
        await peer.expect(b"EHLO .*")
        await peer.send(b"250-mx", b"250 AUTH NTLM LOGIN")
        while True:
            methods.append((await peer.expect(b"AUTH .*")).removeprefix(b"AUTH "))
            for answer in ANSWERS[methods[-1]]:
                await peer.send(answer)
                if answer == b"334 ":
                    await peer.expect(b".*")
            if methods[-1] == b"LOGIN":
                return

    return play


async def test_no_refused_login_every_time(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """Where NTLM was refused and the password accepted, later logins begin with the password."""
    methods: list[bytes] = []
    script = refusing(methods, server_context(certificate_authority, "127.0.0.1"))
    async with scripted_server(script, server_tls.authority) as server:
        for _ in range(2):
            clock = InstantClock()
            session = await SmtpSession.open(
                server.settings("smtp", tls="starttls", timeout="10s"),
                username="canary",
                password=SecretStr(PASSWORD),
                phases=PhaseTimer(clock),
                clock=clock,
            )
            session.abort()
    assert methods == [b"NTLM", b"LOGIN", b"LOGIN"]
