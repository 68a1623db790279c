"""SMTP replies that are unexpected, malformed or endless, and servers without EHLO or with SIZE."""

from __future__ import annotations

import asyncio

import pytest

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols.smtp import REPLY_LIMIT
from probes.protocols.smtp_session import SmtpSession, smtp_session
from tests.fakes.scripted_server import Peer, Script, Step, dialogue, on_each_loop, scripted_server
from tests.fakes.smtp_dialogue import BANNER, CONTENT, EHLO, SUBMISSION, USER, Attempt, fault_of, until_dot

OPEN: tuple[Step, ...] = (BANNER, (EHLO, b"250 mail.example.com"))
MAIL = (rb"MAIL FROM:<a@example.com>", b"250 2.1.0 ok")
RCPT = (rb"RCPT TO:<b@example.com>", b"250 2.1.5 ok")
CLOSING = b"421 4.3.2 shutting down"


def texts(phases: PhaseTimer) -> list[str]:
    return [line[9:] for line in phases.transcript.lines()]


def with_stray(position: int, stray: bytes) -> Script:
    """Return a submission with ``stray`` after the reply at ``position``, and nothing more."""
    steps = (BANNER, *SUBMISSION)[: position + 1]
    *before, last = steps
    last = last + b"\r\n" + stray if isinstance(last, bytes) else (last[0], last[1] + b"\r\n" + stray)
    return dialogue(*before, last)


@pytest.mark.parametrize("stray", [b"250 2.0.0 whatever comes", b"550 5.1.1 no", b"hello", b"42", b"", b"\0"])
@pytest.mark.parametrize("position", range(1 + len(SUBMISSION)))
async def test_nothing_is_taken_for_the_next_reply(position: int, stray: bytes) -> None:
    """Anything after a reply ends the session before the next command, and is quoted."""
    async with scripted_server(with_stray(position, stray)) as server:
        attempt = Attempt()
        fault = await attempt.fault(server.settings("smtp", username=USER))
        await server.peer_closed()
    assert fault.reason is Reason.PROTOCOL_ERROR
    assert fault.reply_code is None
    assert len(server.received) == position
    shown = stray.decode().replace("\0", "\\x00")
    assert f"a reply before its command: {shown}".removesuffix(": ") in fault.detail
    assert texts(attempt.phases)[-1] == f"S: {shown}"


@on_each_loop
async def test_a_reply_that_comes_between_two_commands() -> None:
    """A line that arrives later but before the next command is not its reply either."""
    said: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def later(peer: Peer) -> None:
        await said
        await peer.send(b"250 2.1.5 recipient ok")

    async with scripted_server(dialogue(*OPEN, MAIL, then=later)) as server:
        async with smtp_session(server.settings("smtp"), PhaseTimer(SystemClock()), SystemClock()) as session:
            await session.mail("a@example.com")
            said.set_result(None)
            await session._transport.readable()
            with pytest.raises(ProbeFault, match=r"before its command: 250 2\.1\.5 recip") as caught:
                await session.rcpt("b@example.com")
        await server.peer_closed()
    assert caught.value.reason is Reason.PROTOCOL_ERROR
    assert len(server.received) == 2


@pytest.mark.parametrize("position", range(1 + len(SUBMISSION)))
async def test_a_server_that_closes_unasked(position: int) -> None:
    """An unsolicited 421 means that the server is closing, not a protocol error."""
    async with scripted_server(with_stray(position, CLOSING)) as server:
        attempt = Attempt()
        fault = await attempt.fault(server.settings("smtp", username=USER))
        await server.peer_closed()
    assert (fault.reason, fault.reply_code) == (Reason.SMTP_UNAVAILABLE, 421)
    assert fault.enhanced_status_code == "4.3.2"
    assert texts(attempt.phases)[-1] == f"S: {CLOSING.decode()}"


async def test_a_server_that_closes_before_tls() -> None:
    """A 421 after the answer to STARTTLS is not an injection, because it cannot help an attacker."""
    offer = (EHLO, b"250-mail.example.com\r\n250 STARTTLS\r\n" + CLOSING)
    assert (await fault_of(dialogue(BANNER, offer), tls="starttls")).reason is Reason.SMTP_UNAVAILABLE


@pytest.mark.parametrize(
    ("stray", "reason"), [(b"550 5.1.1 no", Reason.PROTOCOL_ERROR), (CLOSING, Reason.SMTP_UNAVAILABLE)]
)
async def test_a_reply_too_many_before_quit(stray: bytes, reason: Reason) -> None:
    """A recipient with a doubtful reply does not count as accepted because the session ends."""
    doubtful = (RCPT[0], RCPT[1] + b"\r\n" + stray)
    async with scripted_server(dialogue(*OPEN, MAIL, doubtful)) as server:
        async with smtp_session(server.settings("smtp"), PhaseTimer(SystemClock()), SystemClock()) as session:
            await session.mail("a@example.com")
            await session.rcpt("b@example.com")
            with pytest.raises(ProbeFault) as caught:
                await session.quit()
        await server.peer_closed()
    assert caught.value.reason is reason


@pytest.mark.parametrize("stray", [b"250 2.0.0 again", CLOSING])
async def test_an_accepted_message_stays_accepted(stray: bytes) -> None:
    """Anything after the reply to the final dot changes no result, and is in the transcript."""

    async def accept(peer: Peer) -> None:
        await until_dot(peer)
        await peer.send(b"250 2.0.0 queued", stray)

    attempt = Attempt()
    async with scripted_server(dialogue(BANNER, *SUBMISSION, then=accept)) as server:
        await attempt.run(server.settings("smtp", username=USER))
        await server.peer_closed()
    assert texts(attempt.phases)[-1] == f"S: {stray.decode()}"


@pytest.mark.parametrize(
    ("said", "quoted"),
    [
        (b"22 mx ESMTP", "22 mx ESMTP"),
        (b"250\0\0 ok", r"250\x00\x00 ok"),
        (b"250-mail.example.com\r\n220 ready", r"250-mail.example.com\n220 ready"),
        (b"220-mail.example.com\r\nready", r"220-mail.example.com\nready"),
    ],
)
async def test_what_is_no_reply_is_quoted(said: bytes, quoted: str) -> None:
    """The fault and the transcript have the server's own octets."""
    attempt = Attempt()
    async with scripted_server(dialogue(said)) as server:
        fault = await attempt.fault(server.settings("smtp"))
        await server.peer_closed()
    assert (fault.reason, fault.detail) == (Reason.PROTOCOL_ERROR, f"not an SMTP reply: {quoted}")
    assert texts(attempt.phases)[1:] == [f"S: {line}" for line in quoted.split(r"\n")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@on_each_loop
async def test_replies_do_not_depend_on_how_they_are_cut(size: int) -> None:
    """With any chunks, a reply is read to its end, and a malformed one no further."""

    async def greet(peer: Peer, greeting: bytes) -> None:
        await peer.chunks(*[greeting[at : at + size] for at in range(0, len(greeting), size)])

    async def sound(peer: Peer) -> None:
        await greet(peer, b"220-mail.example.com\r\n220-\n220 ESMTP\r\n")
        await dialogue(*OPEN[1:], MAIL)(peer)

    async def broken(peer: Peer) -> None:
        await greet(peer, b"220-mail.example.com\r\n220-\n250-what\r\n")

    session, _ = await opened(sound)
    assert session.greeting.text == "mail.example.com\n\nESMTP"
    fault = await fault_of(broken, timeout="5s")
    assert fault.detail == r"not an SMTP reply: 220-mail.example.com\n220-\n250-what"


@pytest.mark.parametrize("chunk", [b"220-\r\n", b"220-and so on\r\n" * 50, b"220-" + b"x" * 8000 + b"\r\n"])
async def test_a_reply_without_end(chunk: bytes) -> None:
    """With any chunks, a reply of more than 32 KiB ends the session."""

    async def flood(peer: Peer) -> None:
        await peer.flood(chunk)

    attempt = Attempt()
    async with scripted_server(flood) as server:
        fault = await attempt.fault(server.settings("smtp"))
        await server.peer_closed()
    assert fault.reason is Reason.LINE_TOO_LONG
    assert fault.detail.startswith(f"more than {REPLY_LIMIT} octets: 220-")
    assert fault.detail.endswith("…")
    assert texts(attempt.phases)[-1].endswith("…")


async def test_a_long_reply_that_is_there_at_once() -> None:
    """A reply beyond the limit is refused, whether or not it is complete."""
    fault = await fault_of(dialogue(b"220-and so on\r\n" * 3000 + b"220 ESMTP"))
    assert fault.reason is Reason.LINE_TOO_LONG


async def test_the_lines_before_one_that_is_too_long_are_shown() -> None:
    """A reply is shown from its beginning, whichever of its lines is endless."""
    attempt = Attempt()
    async with scripted_server(dialogue(b"220-hello\r\n220 " + b"x" * 9000)) as server:
        fault = await attempt.fault(server.settings("smtp"))
        await server.peer_closed()
    assert fault.detail.startswith(r"more than 8192 octets: 220-hello\n220 xxx")
    assert texts(attempt.phases)[1] == "S: 220-hello"


async def test_a_reply_that_stays_unfinished_is_shown() -> None:
    """The beginning of an unfinished reply is in the transcript."""
    attempt = Attempt()
    async with scripted_server(dialogue(b"220-hello\r\n220-more")) as server:
        fault = await attempt.fault(server.settings("smtp", timeout="100ms"))
        await server.peer_closed()
    assert fault.reason is Reason.COMMAND_TIMEOUT
    assert texts(attempt.phases)[1:] == ["S: 220-hello", "S: 220-more…"]


@on_each_loop
async def test_a_reply_that_drips_is_timed_as_a_whole() -> None:
    """The timeout covers the whole reply, so a slow series of lines does not extend it."""

    async def drip(peer: Peer) -> None:
        while True:
            await peer.send(b"220-")
            await asyncio.sleep(0.01)

    async with asyncio.timeout(30):
        fault = await fault_of(drip, timeout="100ms")
    assert fault.reason is Reason.COMMAND_TIMEOUT


async def opened(
    script: Script, envelope_id: str | None = None, **settings: object
) -> tuple[SmtpSession, list[bytes]]:
    """Open a session and end it; return it and what the server received."""
    async with scripted_server(script) as server:
        async with smtp_session(
            server.settings("smtp", **settings), PhaseTimer(SystemClock()), SystemClock()
        ) as session:
            await session.mail("a@example.com", 1000, envelope_id)
        await server.peer_closed()
    return session, server.received


@pytest.mark.parametrize("code", [b"500", b"502"])
async def test_helo_for_a_server_that_does_not_know_ehlo(code: bytes) -> None:
    """If EHLO is unknown, HELO follows with the same name; it offers no extensions."""
    helo = (rb"HELO \[127\.0\.0\.1\]", b"250-mail.example.com\r\n250 SIZE 10")
    session, received = await opened(dialogue(BANNER, (EHLO, code + b" 5.5.1 what?"), helo, MAIL))
    assert [line[:4] for line in received] == [b"EHLO", b"HELO", b"MAIL"]
    assert not session.extensions.features


@pytest.mark.parametrize(
    ("ehlo", "helo", "code"),
    [
        (b"504 5.5.2 not with that name", None, 504),
        (b"550 5.7.1 not you", None, 550),
        (b"421 4.3.2 closing", None, 421),
        (b"502 5.5.1 what?", b"550 5.7.1 not you", 550),
    ],
)
async def test_a_refused_greeting(ehlo: bytes, helo: bytes | None, code: int) -> None:
    """Any other refusal of EHLO is final, and so is one of HELO."""
    steps: list[Step] = [BANNER, (EHLO, ehlo)]
    steps += [(rb"HELO .*", helo)] if helo else []
    assert (await fault_of(dialogue(*steps))).reply_code == code


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"tls": "starttls"}, Reason.TLS_NOT_OFFERED), ({"username": USER}, Reason.AUTH_NOT_OFFERED)],
)
async def test_helo_is_no_way_around_tls_or_the_login(settings: dict[str, str], reason: Reason) -> None:
    """A server with HELO only, perhaps an attacker, gets neither credentials nor mail unencrypted."""
    script = dialogue(BANNER, (EHLO, b"500 what?"), (rb"HELO .*", b"250 mail.example.com"))
    assert (await fault_of(script, **settings)).reason is reason


@pytest.mark.parametrize(
    ("offer", "declared"),
    [(b"SIZE 35882577", b" SIZE=1000"), (b"size", b" SIZE=1000"), (b"SIZE 10", b" SIZE=1000"), (b"DSN", b"")],
)
async def test_size_is_declared_where_it_is_offered(offer: bytes, declared: bytes) -> None:
    """If SIZE is offered (RFC 1870), MAIL FROM declares the message's size, for any limit."""
    ehlo = (EHLO, b"250-mail.example.com\r\n250 " + offer)
    _, received = await opened(dialogue(BANNER, ehlo, (rb"MAIL FROM:.*", b"250 ok")))
    assert received[-1] == b"MAIL FROM:<a@example.com>" + declared


@pytest.mark.parametrize(
    ("offer", "declared"),
    [(b"DSN", b" ENVID=a1:2"), (b"SIZE\r\n250 dsn", b" SIZE=1000 ENVID=a1:2"), (b"HELP", b"")],
)
async def test_envelope_id_is_given_where_it_is_taken(offer: bytes, declared: bytes) -> None:
    """MAIL FROM has the envelope id only if DSN is offered (RFC 3461 section 4.4)."""
    ehlo = (EHLO, b"250-mail.example.com\r\n250-" + offer.replace(b"\n250 ", b"\n250-") + b"\r\n250 HELP")
    _, received = await opened(dialogue(BANNER, ehlo, (rb"MAIL FROM:.*", b"250 ok")), "a1:2")
    assert received[-1] == b"MAIL FROM:<a@example.com>" + declared


@pytest.mark.parametrize("reply", [b"501 5.5.4 what?", b"504 not here", b"555 5.5.4 unsupported option"])
async def test_parameters_that_are_offered_and_not_known(reply: bytes) -> None:
    """If a server refuses the parameters that it offers, the command is repeated without them."""
    ehlo = (EHLO, b"250-mail.example.com\r\n250-SIZE\r\n250 DSN")
    _, received = await opened(dialogue(BANNER, ehlo, (rb"MAIL FROM:\S+ .*", reply), MAIL), "a1:2")
    assert received[-2:] == [b"MAIL FROM:<a@example.com> SIZE=1000 ENVID=a1:2", b"MAIL FROM:<a@example.com>"]


async def test_a_sender_that_is_refused_is_not_named_again() -> None:
    """A refusal that is not about the parameters is final."""
    ehlo = (EHLO, b"250-mail.example.com\r\n250 DSN")
    with pytest.raises(ProbeFault) as caught:
        await opened(dialogue(BANNER, ehlo, (rb"MAIL FROM:.*", b"550 5.7.1 not you")), "a1:2")
    assert caught.value.reply_code == 550


async def test_a_message_that_is_too_large_is_refused_before_it_is_sent() -> None:
    """The declared size is that of the message, and a refusal of it precedes DATA."""
    ehlo = (EHLO, b"250-mail.example.com\r\n250 SIZE 10")
    size = len(CONTENT)
    mail = (b"MAIL FROM:<a@example.com> SIZE=%d" % size, b"552 5.3.4 too big")
    attempt = Attempt()
    async with scripted_server(dialogue(BANNER, ehlo, mail)) as server:
        fault = await attempt.fault(server.settings("smtp"))
        await server.peer_closed()
    assert (fault.reason, fault.reply_code) == (Reason.SMTP_REJECTED, 552)
