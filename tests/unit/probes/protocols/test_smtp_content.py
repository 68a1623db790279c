"""Large messages by SMTP: complete, at the server's pace, and with an exact time of the end."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme

from probes.core.clock import SystemClock
from probes.core.reasons import Reason
from probes.protocols.line_transport import LineTransport
from probes.protocols.smtp_session import CONTENT_CHUNK
from tests.fakes.scripted_server import Peer, Script, dialogue, on_each_loop, scripted_server, server_context
from tests.fakes.smtp_dialogue import BANNER, EHLO, SUBMISSION, Attempt, until_dot
from tests.real_servers.dovecot import TlsFiles

LINES = [b"Subject: large", b"", *([b"x" * 900, b".dot", b"..", b""] * 2000), b"end"]
LARGE = b"\r\n".join([*LINES, b""])
HUGE = b"Subject: huge\r\n\r\n" + (b"y" * 998 + b"\r\n") * 25_000
"""More than the buffers of both kernels and of the server take."""


@pytest.fixture
def context(certificate_authority: trustme.CA) -> ssl.SSLContext:
    return server_context(certificate_authority, "127.0.0.1")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list of the chunks written of messages."""
    chunks: list[bytes] = []
    write = LineTransport.write_octets

    async def noting(transport: LineTransport, octets: bytes) -> None:
        chunks.append(octets)
        await write(transport, octets)

    monkeypatch.setattr(LineTransport, "write_octets", noting)
    return chunks


def up_to_content(tls: str, context: ssl.SSLContext, then: Script) -> Script:
    """Return a dialogue without a login, up to the reply to DATA."""
    hello = (EHLO, b"250 mail.example.com")

    async def script(peer: Peer) -> None:
        if tls == "implicit":
            await peer.start_tls(context)
        await dialogue(BANNER, hello, *SUBMISSION[-3:], then=then)(peer)

    return script


each_way = pytest.mark.parametrize("tls", ["none", "implicit"])


@each_way
@on_each_loop
async def test_a_large_message_arrives_whole(tls: str, server_tls: TlsFiles, context: ssl.SSLContext) -> None:
    """A message in any chunks arrives with every line, stuffed, and one end."""

    async def accept(peer: Peer) -> None:
        await until_dot(peer)
        await dialogue(b"250 queued", (rb"QUIT", b"221 bye"))(peer)

    assert len(LARGE) > 10 * CONTENT_CHUNK
    attempt = Attempt(LARGE)
    async with scripted_server(up_to_content(tls, context, accept), server_tls.authority) as server:
        await attempt.run(server.settings("smtp", tls=tls, timeout="20s"))
        await server.peer_closed()
    sent = server.received[server.received.index(b"DATA") + 1 :]
    stuffed = [b"." + line if line.startswith(b".") else line for line in LINES]
    assert sent == [*stuffed, b".", b"QUIT"]


@pytest.mark.parametrize("length", [CONTENT_CHUNK - 3, CONTENT_CHUNK - 2, CONTENT_CHUNK, CONTENT_CHUNK + 1])
async def test_no_chunk_is_empty_or_lost(length: int, written: list[bytes]) -> None:
    """The end is sent once, wherever the last chunk begins."""
    content = b"z" * (length - 2) + b"\r\n"
    done: asyncio.Queue[bytes] = asyncio.Queue()

    async def accept(peer: Peer) -> None:
        done.put_nowait(await peer._reader.readexactly(length + 3))
        await dialogue(b"250 queued", (rb"QUIT", b"221 bye"))(peer)

    script = dialogue(BANNER, (EHLO, b"250 mail.example.com"), *SUBMISSION[-3:], then=accept)
    async with scripted_server(script) as server:
        await Attempt(content).run(server.settings("smtp"))
        await server.peer_closed()
    assert done.get_nowait() == content + b".\r\n" == b"".join(written)
    assert all(written)


@each_way
@on_each_loop
async def test_a_server_that_stops_reading(tls: str, server_tls: TlsFiles, context: ssl.SSLContext) -> None:
    """Content waits in bounded memory, and if a server stops reading, the end is never sent."""
    attempt = Attempt(HUGE)
    async with scripted_server(up_to_content(tls, context, _read_no_more), server_tls.authority) as server:
        fault = await attempt.fault(server.settings("smtp", tls=tls, timeout="300ms"))
    assert fault.reason is Reason.COMMAND_TIMEOUT
    assert attempt.session is not None
    assert attempt.session.dot_sent_at is None


async def _read_no_more(peer: Peer) -> None:
    await asyncio.Event().wait()


@each_way
@on_each_loop
async def test_the_dot_counts_when_it_goes_out(
    tls: str, server_tls: TlsFiles, context: ssl.SSLContext
) -> None:
    """The time of the final dot is its own, however long the content before it takes."""
    reading = asyncio.Event()

    async def accept(peer: Peer) -> None:
        await reading.wait()
        await until_dot(peer)
        await dialogue(b"250 queued", (rb"QUIT", b"221 bye"))(peer)

    attempt = Attempt(HUGE)
    async with scripted_server(up_to_content(tls, context, accept), server_tls.authority) as server:
        running = asyncio.create_task(attempt.run(server.settings("smtp", tls=tls, timeout="20s")))
        while attempt.session is None or not attempt.session._transport._receiver.is_congested:  # noqa: ASYNC110 # the loop's own turns are meant
            await asyncio.sleep(0)
        begins = SystemClock().monotonic()
        assert attempt.session.dot_sent_at is None
        reading.set()
        await running
        await server.peer_closed()
    assert attempt.session.dot_sent_at is not None
    assert attempt.session.dot_sent_at > begins


@pytest.mark.parametrize(
    ("reply", "reason", "code"),
    [
        (b"421 4.3.2 closing", Reason.SMTP_UNAVAILABLE, 421),
        (b"250 2.0.0 queued", Reason.PROTOCOL_ERROR, None),
        (b"552 5.3.4 too big", Reason.PROTOCOL_ERROR, None),
    ],
)
@pytest.mark.parametrize("then", ["reads no more", "ends"])
@on_each_loop
async def test_a_reply_before_the_final_dot(
    reply: bytes, reason: Reason, code: int | None, then: str, written: list[bytes]
) -> None:
    """A reply in the middle of the content ends it, and never means that the server has the message."""

    async def interrupt(peer: Peer) -> None:
        await peer.expect(rb"Subject: huge")
        await peer.send(reply)
        if then == "ends":
            peer._writer.write_eof()
        await _read_no_more(peer)

    attempt = Attempt(HUGE)
    script = dialogue(BANNER, (EHLO, b"250 mail.example.com"), *SUBMISSION[-3:], then=interrupt)
    async with scripted_server(script) as server:
        fault = await attempt.fault(server.settings("smtp"))
    assert (fault.reason, fault.reply_code) == (reason, code)
    assert reply.decode() in fault.detail
    assert attempt.session is not None
    assert attempt.session.dot_sent_at is None
    assert sum(map(len, written)) < len(HUGE) - 2 * CONTENT_CHUNK
    written.clear()


@on_each_loop
async def test_cancellation_in_the_middle_of_the_content() -> None:
    """If a run is cancelled while sending, no connection and no message are left."""
    attempt, reading = Attempt(HUGE), asyncio.Event()

    async def read_later(peer: Peer) -> None:
        await reading.wait()

    script = dialogue(BANNER, (EHLO, b"250 mail.example.com"), *SUBMISSION[-3:], then=read_later)
    async with scripted_server(script) as server:
        running = asyncio.create_task(attempt.run(server.settings("smtp")))
        while attempt.session is None or not attempt.session._transport._receiver.is_congested:  # noqa: ASYNC110 # the loop's own turns are meant
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        reading.set()
        await server.peer_closed()
    assert attempt.session.dot_sent_at is None
