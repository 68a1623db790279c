"""The SMTP client with misbehaving servers."""

from __future__ import annotations

import asyncio
import base64
import hmac
from typing import Any

import pytest

from probes.core.clock import SystemClock
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols.smtp_session import smtp_session
from tests.fakes.scripted_server import (
    PASSWORD,
    Peer,
    Script,
    Step,
    dialogue,
    on_each_loop,
    scripted_server,
)
from tests.fakes.smtp_dialogue import (
    BANNER,
    EHLO,
    INITIAL,
    SUBMISSION,
    USER,
    Attempt,
    close,
    fault_of,
    until_dot,
)


@pytest.mark.parametrize(
    ("banner", "reason", "code", "enhanced"),
    [
        (b"554 5.7.1 no service here", Reason.SMTP_REJECTED, 554, "5.7.1"),
        (b"421 4.3.2 closing", Reason.SMTP_UNAVAILABLE, 421, "4.3.2"),
        (b"450 later", Reason.SMTP_DEFERRED, 450, None),
        (b"250 out of turn", Reason.PROTOCOL_ERROR, 250, None),
    ],
)
async def test_refusing_banner(banner: bytes, reason: Reason, code: int, enhanced: str | None) -> None:
    """A banner other than 220 ends the session with its reply code and enhanced status code."""
    fault = await fault_of(dialogue(banner))
    assert (fault.reason, fault.reply_code, fault.enhanced_status_code) == (reason, code, enhanced)
    assert banner.decode() in fault.detail


@pytest.mark.parametrize(
    "line",
    [
        b"SSH-2.0-OpenSSH_9.6",
        b"",
        b"\xff\xfe\x00\x01",
        b"+OK POP3 ready",
        b"099 too small",
        b"-12 x",
        b"2_0 x",
    ],
)
async def test_banner_that_is_not_smtp(line: bytes) -> None:
    """Anything but an SMTP reply is a protocol error, with a text without control characters."""
    fault = await fault_of(dialogue(line))
    assert fault.reason is Reason.PROTOCOL_ERROR
    assert fault.detail.isprintable()


@pytest.mark.parametrize("chunk", [b"2" * 65536, b"220-and so on\r\n" * 100], ids=["line", "lines"])
async def test_endless_reply(chunk: bytes) -> None:
    """An endless reply closes the connection."""

    async def flood(peer: Peer) -> None:
        await peer.flood(chunk)

    assert (await fault_of(flood)).reason is Reason.LINE_TOO_LONG


DROPS: list[tuple[Step, ...]] = [(), (BANNER,)]
for step in SUBMISSION:
    DROPS.append((*DROPS[-1], step))


@on_each_loop
async def test_dropped_connection_at_each_step() -> None:
    """If the server hangs up at any step, the connection is lost, and no dot counts as sent."""
    for steps in DROPS[:-1]:
        attempt = Attempt()
        async with scripted_server(dialogue(*steps, then=close)) as server:
            fault = await attempt.fault(server.settings("smtp", username=USER))
            await server.peer_closed()
        assert fault.reason is Reason.CONNECTION_LOST, steps
        assert attempt.session is None or attempt.session.dot_sent_at is None


@on_each_loop
async def test_silence_at_each_step() -> None:
    """If the server does not answer at any step, its timeout closes the connection."""
    for steps in DROPS[:-1]:
        attempt = Attempt()
        async with scripted_server(dialogue(*steps)) as server:
            async with asyncio.timeout(30):
                fault = await attempt.fault(server.settings("smtp", username=USER, timeout="100ms"))
            await server.peer_closed()
        assert fault.reason is Reason.COMMAND_TIMEOUT, steps
        assert attempt.session is None or attempt.session.dot_sent_at is None


@pytest.mark.parametrize(
    ("then", "reason"),
    [(close, Reason.CONNECTION_LOST), (None, Reason.COMMAND_TIMEOUT)],
    ids=["drop", "silence"],
)
async def test_no_reply_to_the_final_dot(then: Script | None, reason: Reason) -> None:
    """A fault after the final dot leaves ``dot_sent_at`` set: the server may have the message."""

    async def script(peer: Peer) -> None:
        await dialogue(BANNER, *SUBMISSION, then=until_dot)(peer)
        if then is not None:
            await then(peer)

    attempt = Attempt()
    before = SystemClock().monotonic()
    async with scripted_server(script) as server:
        fault = await attempt.fault(server.settings("smtp", username=USER, timeout="100ms"))
        await server.peer_closed()
    assert fault.reason is reason
    assert attempt.session is not None
    assert attempt.session.dot_sent_at is not None
    assert before < attempt.session.dot_sent_at < SystemClock().monotonic()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"451 4.3.0 try again", Reason.SMTP_DEFERRED),
        (b"552 5.3.4 too big", Reason.SMTP_REJECTED),
        (b"421 4.3.2 going down", Reason.SMTP_UNAVAILABLE),
        (b"354 again", Reason.PROTOCOL_ERROR),
    ],
)
@pytest.mark.parametrize("to", ["DATA", "dot"])
async def test_content_refused(to: str, reply: bytes, reason: Reason) -> None:
    """A refusal of DATA or of the content keeps its codes; only the latter is after the dot."""

    async def refuse_content(peer: Peer) -> None:
        await until_dot(peer)
        await peer.send(reply)

    steps = SUBMISSION if to == "dot" else (*SUBMISSION[:-1], (rb"DATA", reply))
    if to == "DATA" and reply.startswith(b"354"):
        steps = (*SUBMISSION[:-1], (rb"DATA", b"250 no 354"))
    attempt = Attempt()
    async with scripted_server(
        dialogue(BANNER, *steps, then=refuse_content if to == "dot" else None)
    ) as server:
        fault = await attempt.fault(server.settings("smtp", username=USER))
        await server.peer_closed()
    assert fault.reason is reason
    assert attempt.session is not None
    assert (attempt.session.dot_sent_at is not None) == (to == "dot")


async def test_content_is_dot_stuffed_and_ended() -> None:
    """A line that begins with a dot gets another, and the content ends with a single dot."""

    async def accept(peer: Peer) -> None:
        await until_dot(peer)
        await peer.send(b"250 2.0.0 queued as 1")
        await peer.expect(rb"QUIT")
        await peer.send(b"221 bye")

    async with scripted_server(dialogue(BANNER, *SUBMISSION, then=accept)) as server:
        await Attempt().run(server.settings("smtp", username=USER))
        await server.peer_closed()
    sent = server.received[server.received.index(b"DATA") + 1 :]
    assert sent == [b"Subject: x", b"", b"..dot", b"...", b"end", b".", b"QUIT"]


@pytest.mark.parametrize("then", [close, None], ids=["drop", "silence"])
async def test_quit_without_answer_changes_nothing(
    then: Script | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accepted message stays accepted, whatever happens at QUIT."""
    monkeypatch.setattr("probes.protocols.smtp_session.QUIT_TIMEOUT", 0.05)

    async def accept(peer: Peer) -> None:
        await until_dot(peer)
        await peer.send(b"250 ok")
        await peer.expect(rb"QUIT")
        if then is not None:
            await then(peer)

    async with scripted_server(dialogue(BANNER, *SUBMISSION, then=accept)) as server:
        async with asyncio.timeout(30):
            await Attempt().run(server.settings("smtp", username=USER))
        await server.peer_closed()


@pytest.mark.parametrize("wait_at", range(len(DROPS)))
async def test_cancellation_closes_the_connection(wait_at: int) -> None:
    """A cancellation at any wait leaves no connection open."""
    reached = asyncio.Event()

    async def there(peer: Peer) -> None:
        reached.set()

    async with scripted_server(dialogue(*DROPS[wait_at], then=there)) as server:
        task = asyncio.create_task(Attempt().run(server.settings("smtp", username=USER)))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.peer_closed()


@pytest.mark.parametrize("early", [3, 4, 5])
async def test_reply_that_came_before_its_command(early: int) -> None:
    """A reply sent before its command is not accepted: all later replies would be off by one."""
    pattern, reply = SUBMISSION[early]
    steps = (*SUBMISSION[:early], (pattern, reply + b"\r\n250 2.0.0 ok, whatever comes"))
    fault = await fault_of(dialogue(BANNER, *steps), username=USER)
    assert fault.reason is Reason.PROTOCOL_ERROR
    assert "whatever comes" in fault.detail


@pytest.mark.parametrize(
    ("reply", "reason", "enhanced"),
    [
        (b"535 5.7.8 bad credentials", Reason.AUTH_FAILED, "5.7.8"),
        (b"454 4.7.0 directory is down", Reason.SMTP_DEFERRED, "4.7.0"),
        (b"421 4.3.2 closing", Reason.SMTP_UNAVAILABLE, "4.3.2"),
        (b"504 5.5.4 no such mechanism", Reason.SMTP_REJECTED, "5.5.4"),
    ],
)
@pytest.mark.parametrize("mechanism", ["plain", "login", "cram-md5"])
async def test_auth_refused(mechanism: str, reply: bytes, reason: Reason, enhanced: str) -> None:
    """Refused credentials and temporary failures have different reasons, with their codes."""
    rounds: dict[str, tuple[tuple[bytes, bytes], ...]] = {
        "plain": ((rb"AUTH PLAIN .*", reply),),
        "login": ((rb"AUTH LOGIN", b"334 VXNlcm5hbWU6"), (rb".*", b"334 UGFzc3dvcmQ6"), (rb".*", reply)),
        "cram-md5": ((rb"AUTH CRAM-MD5", b"334 PHg+"), (rb".*", reply)),
    }
    script = dialogue(BANNER, SUBMISSION[0], *rounds[mechanism])
    fault = await fault_of(script, username=USER, auth=mechanism)
    assert fault.reason is reason
    assert fault.reply_code == int(reply[:3])
    assert fault.enhanced_status_code == enhanced


async def mechanism_used(offer: bytes, **settings: Any) -> list[bytes]:
    """Return the lines of a client's login if the server offers ``offer``."""

    async def log_in(peer: Peer) -> None:
        line = await peer.expect(rb"AUTH .*")
        if line == b"AUTH LOGIN":
            await peer.send(b"334 VXNlcm5hbWU6")
            await peer.expect(rb".*")
            await peer.send(b"334 UGFzc3dvcmQ6")
            await peer.expect(rb".*")
        elif line in (b"AUTH CRAM-MD5", b"AUTH PLAIN"):
            await peer.send(b"334 PHg+" if line == b"AUTH CRAM-MD5" else b"334 ")
            await peer.expect(rb".*")
        await peer.send(b"235 2.7.0 welcome")

    script = dialogue(BANNER, (EHLO, b"250-mail.example.com\r\n250 " + offer), then=log_in)
    settings = {"username": USER, **settings}
    async with scripted_server(script) as server:
        async with smtp_session(
            server.settings("smtp", **settings),
            PhaseTimer(SystemClock()),
            SystemClock(),
        ):
            pass
        await server.peer_closed()
    return server.received[1:]


async def test_plain_sends_the_initial_response() -> None:
    """PLAIN takes one line, with NUL before username and password (RFC 4616)."""
    assert await mechanism_used(b"AUTH PLAIN") == [b"AUTH PLAIN " + INITIAL]


async def test_login_sends_user_and_password() -> None:
    """LOGIN answers both questions, and an offer in the old form with ``=`` counts."""
    sent = await mechanism_used(b"AUTH=LOGIN")
    assert sent == [b"AUTH LOGIN", base64.b64encode(USER.encode()), base64.b64encode(PASSWORD.encode())]


async def test_cram_md5_comes_first_in_clear() -> None:
    """Without TLS, the mechanism that hides the password is chosen."""
    sent = await mechanism_used(b"AUTH PLAIN LOGIN CRAM-MD5")
    digest = hmac.new(PASSWORD.encode(), b"<x>", "md5").hexdigest()
    assert sent == [b"AUTH CRAM-MD5", base64.b64encode(f"{USER} {digest}".encode())]


async def test_configured_mechanism_wins() -> None:
    """A configured mechanism is used even if another would come first."""
    assert (await mechanism_used(b"AUTH CRAM-MD5 PLAIN LOGIN", auth="login"))[0] == b"AUTH LOGIN"


async def test_long_credentials_come_after_the_command() -> None:
    """An initial response that would make the line too long is sent after the 334 (RFC 4954)."""
    password = "p" * 500
    sent = await mechanism_used(b"AUTH PLAIN", password=password)
    assert sent == [b"AUTH PLAIN", base64.b64encode(f"\0{USER}\0{password}".encode())]


@pytest.mark.parametrize(
    ("offer", "auth"),
    [(b"AUTH GSSAPI XOAUTH2", "auto"), (b"PIPELINING", "auto"), (b"AUTH PLAIN", "cram-md5")],
)
async def test_no_usable_mechanism(offer: bytes, auth: str) -> None:
    """Without a common mechanism, no credentials are sent."""
    script = dialogue(BANNER, (EHLO, b"250-mail.example.com\r\n250 " + offer))
    fault = await fault_of(script, username=USER, auth=auth)
    assert fault.reason is Reason.AUTH_NOT_OFFERED


@pytest.mark.parametrize("challenge", [b"not base64!", b"PHg", b"\xff\xfe"])
async def test_challenge_that_is_not_base64(challenge: bytes) -> None:
    """An undecodable CRAM-MD5 challenge is the server's fault and gets no answer."""
    script = dialogue(BANNER, SUBMISSION[0], (rb"AUTH CRAM-MD5", b"334 " + challenge))
    fault = await fault_of(script, username=USER)
    assert fault.reason is Reason.PROTOCOL_ERROR


@pytest.mark.parametrize("form", [b"501 what is %s", b"%s: unknown command"], ids=["reply", "no reply"])
@pytest.mark.parametrize("mechanism", ["plain", "login"])
async def test_echoed_credentials_are_withheld(mechanism: str, form: bytes) -> None:
    """If a server repeats the password, the fault does not show it."""
    encoded = base64.b64encode(PASSWORD.encode())

    async def echo(peer: Peer) -> None:
        line = await peer.expect(rb"AUTH .*")
        if mechanism == "login":
            await peer.send(b"334 VXNlcm5hbWU6")
            await peer.expect(rb".*")
            await peer.send(b"334 UGFzc3dvcmQ6")
            line = await peer.expect(rb".*")
        await peer.send(form % (line + b" that is " + PASSWORD.encode()))

    fault = await fault_of(dialogue(BANNER, SUBMISSION[0], then=echo), username=USER, auth=mechanism)
    assert encoded.decode() not in str(fault)
    assert fault.reply_code == (501 if form.startswith(b"501") else None)
    assert "withheld" in fault.detail
