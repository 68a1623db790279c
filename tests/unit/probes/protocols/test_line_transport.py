"""The line transport is bounded and timed, and every fault closes it, on both event loops."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols.line_transport import LineTransport
from probes.protocols.receiver import BUFFER_LIMIT
from probes.protocols.tls import client_context
from tests.fakes.scripted_server import Peer, Script, dialogue, on_each_loop, scripted_server
from tests.real_servers.dovecot import TlsFiles


@pytest.fixture
def server_context(server_tls: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_tls.certificate, server_tls.key)
    return context


@asynccontextmanager
async def connected(script: Script, patience: float = 5.0) -> AsyncIterator[LineTransport]:
    """Yield a transport to a scripted server; the block must close it."""
    async with scripted_server(script) as server:
        wire = await LineTransport.connect("127.0.0.1", server.port, PhaseTimer(SystemClock()), 5.0)
        wire._timeout = patience
        yield wire
        await server.peer_closed()


async def pour(peer: Peer) -> None:
    await peer.flood(b"x" * 10_000)


async def stay_silent(peer: Peer) -> None:
    await peer.until_closed()


async def hang_up(peer: Peer) -> None:
    await peer.reset()


def sending(*chunks: bytes) -> Script:
    """Return a script that sends octets unchanged."""

    async def script(peer: Peer) -> None:
        await peer.chunks(*chunks)

    return script


@on_each_loop
async def test_lines_go_both_ways() -> None:
    """A line is read without its line end, and words are sent as one line."""

    async def one_to_four(peer: Peer) -> None:
        await peer.chunks(b"one\r\n", b"t", b"wo\r", b"\nthree\n")
        await peer.expect(b"FOUR 5")
        await peer.send(b"five")

    async with connected(one_to_four) as line_transport:
        assert [await line_transport.read_line(10) for _ in range(3)] == [b"one", b"two", b"three"]
        line_transport.write_line(b"FOUR", b"5")
        assert await line_transport.read_line(10) == b"five"
        line_transport.abort()


@on_each_loop
async def test_a_flood_of_lines_leaves_others_their_chance() -> None:
    """While available lines are read, other tasks run after every hundred."""
    async with connected(sending(b"x\n" * 1000)) as transport:
        while len(transport._receiver.buffer) < 2000:  # noqa: ASYNC110 # reading would take the lines
            await asyncio.sleep(0)
        chances = 0

        async def other() -> None:
            nonlocal chances
            while True:
                chances += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(other())
        for _ in range(1000):
            await transport.read_line(10)
        beside.cancel()
        transport.abort()
    assert chances >= 9


@pytest.mark.parametrize("octet", [b"\r", b"\n", b"\0"])
@on_each_loop
async def test_words_cannot_smuggle_a_second_command(octet: bytes) -> None:
    """CR, LF and NUL are refused before sending, and the error does not quote the words."""
    async with connected(stay_silent) as line_transport:
        with pytest.raises(ValueError, match="cannot hold") as caught:
            line_transport.write_line(b"USER", b"secret" + octet + b"DELE 1")
        assert "secret" not in str(caught.value)
        line_transport.abort()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (pour, Reason.LINE_TOO_LONG),
        (sending(b"x" * 101 + b"\n"), Reason.LINE_TOO_LONG),
        (stay_silent, Reason.COMMAND_TIMEOUT),
        (sending(b"half a li"), Reason.COMMAND_TIMEOUT),
        (hang_up, Reason.CONNECTION_LOST),
    ],
)
@on_each_loop
async def test_a_fault_of_reading_closes_the_connection(script: Script, reason: Reason) -> None:
    """An endless line, silence and a lost connection have their reasons; the server sees the end."""
    async with connected(script, patience=0.1) as line_transport:
        with pytest.raises(ProbeFault) as caught:
            await line_transport.read_line(100)
    assert caught.value.reason is reason


async def test_the_beginning_of_a_line_that_is_too_long_is_shown() -> None:
    """For any limit, fault and transcript show the beginning of the line, marked as cut."""
    for script in (sending(b"y" * 11 + b"\nnext"), sending(b"y" * 11)):
        async with connected(script) as line_transport:
            with pytest.raises(ProbeFault, match=r"more than 10 octets: y{11}…$"):
                await line_transport.read_line(10)
            assert line_transport._transcript.lines()[-1].endswith("S: yyyyyyyyyyy…")


@on_each_loop
async def test_a_line_of_just_the_limit_is_read() -> None:
    """A line of exactly the limit is not too long."""
    async with connected(sending(b"x" * 100 + b"\n")) as line_transport:
        assert await line_transport.read_line(100) == b"x" * 100
        line_transport.abort()


@on_each_loop
async def test_a_cancelled_wait_closes_the_connection() -> None:
    """A cancelled wait leaves no connection open."""
    async with connected(stay_silent) as line_transport:
        waiting = asyncio.create_task(line_transport.read_line(100))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


@on_each_loop
async def test_what_came_before_the_end_is_still_read() -> None:
    """Octets before the end of the connection are read first."""

    async def last_words(peer: Peer) -> None:
        await peer.send(b"-ERR too many connections")
        await peer.close()

    async with connected(last_words) as line_transport:
        while line_transport._receiver.ended is None:  # noqa: ASYNC110 # the loop's own turns are meant
            await asyncio.sleep(0)
        assert await line_transport.read_line(100) == b"-ERR too many connections"
        with pytest.raises(ProbeFault) as caught:
            line_transport.write_line(b"QUIT")
    assert caught.value.reason is Reason.CONNECTION_LOST


@on_each_loop
async def test_a_flood_stays_in_the_network() -> None:
    """Unread octets use bounded memory, and are complete when read later."""
    chunk = b"y" * 998 + b"\r\n"
    poured = asyncio.get_running_loop().create_future()
    octets = 256 * 1024 * 1024

    async def flood(peer: Peer) -> None:
        sent = idle_turns = 0
        while sent < octets and idle_turns < 1000:
            waiting = peer._writer.transport.get_write_buffer_size()
            if not waiting:
                peer._writer.write(chunk * 100)
                sent += 100 * len(chunk)
            idle_turns = idle_turns + 1 if waiting else 0
            await asyncio.sleep(0)
        poured.set_result(sent)
        await peer.send(b"end")

    async with connected(flood) as line_transport:
        sent = await poured
        assert sent < octets / 4
        assert len(line_transport._receiver.buffer) <= BUFFER_LIMIT + 256 * 1024
        count = 0
        while await line_transport.read_line(1000) != b"end":
            count += 1
        assert count * len(chunk) == sent
        line_transport.abort()


@on_each_loop
async def test_a_line_longer_than_the_buffer_is_read_if_allowed() -> None:
    """The caller's limit applies even beyond the buffer; a paused network resumes when needed."""
    line = b"z" * (BUFFER_LIMIT * 8)
    async with connected(dialogue(line)) as line_transport:
        assert await line_transport.read_line(len(line) + 1) == line
        line_transport.abort()


@on_each_loop
async def test_tls_in_the_middle(server_context: ssl.SSLContext, server_tls: TlsFiles) -> None:
    """After `start_tls`, lines go both ways, and the certificate's expiry is known."""

    async def upgrade(peer: Peer) -> None:
        await dialogue((b"STLS", b"+OK begin"))(peer)
        await peer.start_tls(server_context)
        await dialogue((b"NOOP", b"+OK in secret"))(peer)

    async with connected(upgrade) as line_transport:
        line_transport.write_line(b"STLS")
        assert await line_transport.read_line(100) == b"+OK begin"
        await line_transport.start_tls(client_context(server_tls.authority), "127.0.0.1")
        line_transport.write_line(b"NOOP")
        assert await line_transport.read_line(100) == b"+OK in secret"
        line_transport.abort()
    decoded = ssl._ssl._test_decode_cert(str(server_tls.certificate))  # type: ignore[attr-defined] # the only reader
    assert line_transport.certificate_expiry is not None
    assert line_transport.certificate_expiry.not_after == ssl.cert_time_to_seconds(decoded["notAfter"])


@on_each_loop
async def test_octets_before_tls_are_an_attack() -> None:
    """Unread octets when TLS begins were injected: they are shown, and the connection is closed."""
    async with connected(dialogue((b"STLS", b"+OK begin\r\n+OK injected"))) as line_transport:
        line_transport.write_line(b"STLS")
        await line_transport.read_line(100)
        with pytest.raises(ProbeFault) as caught:
            await line_transport.start_tls(client_context(None), "127.0.0.1")
    assert caught.value.reason is Reason.TLS_INJECTION
    assert "+OK injected" in caught.value.detail


@pytest.mark.parametrize("comes_first", ["greeting", "handshake"])
@pytest.mark.parametrize("greeting", [b"220 mail.test ESMTP", b"+OK", b"* OK ready", b"421 too many"])
@on_each_loop
async def test_a_greeting_in_clear_where_tls_comes_first(comes_first: str, greeting: bytes) -> None:
    """An unencrypted port is never an attack, whichever of greeting and handshake is first."""

    async def greet(peer: Peer) -> None:
        if comes_first == "handshake":
            await peer.octets()
        await peer.send(greeting)

    async with connected(greet) as line_transport:
        if comes_first == "greeting":
            await line_transport.readable()
        with pytest.raises(ProbeFault) as caught:
            await line_transport.start_tls(client_context(None), "localhost")
    assert caught.value.reason is Reason.TLS_HANDSHAKE
    assert caught.value.detail == "the server speaks in clear on this port"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (stay_silent, Reason.TLS_HANDSHAKE),
        (sending(b"+OK this is no TLS record\r\n"), Reason.TLS_HANDSHAKE),
        (hang_up, Reason.CONNECTION_LOST),
    ],
)
@on_each_loop
async def test_a_fault_of_the_handshake_closes_the_connection(script: Script, reason: Reason) -> None:
    """A handshake that hangs, is cut off or is not TLS is reported, and the connection closed."""

    async def after_hello(peer: Peer) -> None:
        assert await peer._reader.read(1) == b"\x16"  # a TLS handshake record
        await peer._reader.read(65536)
        await script(peer)

    async with connected(after_hello, patience=0.2) as line_transport:
        with pytest.raises(ProbeFault) as caught:
            await line_transport.start_tls(client_context(None), "localhost")
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("names", "trusted", "reason"),
    [
        (["other.test"], True, Reason.CERTIFICATE_NAME),
        (["localhost"], False, Reason.CERTIFICATE_UNTRUSTED),
    ],
)
@on_each_loop
async def test_a_wrong_certificate_closes_the_connection(
    names: list[str],
    trusted: bool,
    reason: Reason,
    certificate_authority: trustme.CA,
    server_tls: TlsFiles,
) -> None:
    """A certificate for another name, or from an unknown authority, has its own reason."""
    authority = certificate_authority if trusted else trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)

    async def upgrade(peer: Peer) -> None:
        await peer.start_tls(context)

    async with connected(upgrade) as line_transport:
        with pytest.raises(ProbeFault) as caught:
            await line_transport.start_tls(client_context(server_tls.authority), "localhost")
    assert caught.value.reason is reason
    assert line_transport.certificate_expiry is None


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@on_each_loop
async def test_lines_do_not_depend_on_how_they_are_cut(size: int) -> None:
    """The lines are the same for any division of the stream into chunks."""
    lines = [b"", b"+OK", b".", b"..", b"a\rb", b"x" * 60]
    stream = b"".join(line + b"\r\n" for line in lines)
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]

    async with connected(sending(*chunks)) as line_transport:
        assert [await line_transport.read_line(100) for _ in lines] == lines
        line_transport.abort()
