"""Literals, and waiting for anything to read, on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols.line_transport import LineTransport
from probes.protocols.receiver import BUFFER_LIMIT
from tests.fakes.scripted_server import Peer, Script, on_each_loop, scripted_server


@asynccontextmanager
async def connected(script: Script, patience: float = 5.0) -> AsyncIterator[LineTransport]:
    """Yield a transport to a scripted server; the block must close it."""
    async with scripted_server(script) as server:
        yield await LineTransport.connect("127.0.0.1", server.port, PhaseTimer(SystemClock()), patience)
        await server.peer_closed()


def sending(*chunks: bytes) -> Script:
    """Return a script that sends octets unchanged."""

    async def script(peer: Peer) -> None:
        await peer.chunks(*chunks)

    return script


async def closing(peer: Peer) -> None:
    await peer.chunks(b"half")
    await peer.close()


async def answering(peer: Peer) -> None:
    await peer.expect(b"GO")
    await peer.send(b"gone")


async def stay_silent(peer: Peer) -> None:
    await peer.until_closed()


@pytest.mark.parametrize("size", [1, 3, 1000])
@on_each_loop
async def test_octets_between_lines(size: int) -> None:
    """A literal is read exactly, with any content and chunks; the lines around it are intact."""
    literal = b"a\r\nb\n\0\xff" * 3
    stream = b"before\r\n" + literal + b" after\r\n"
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    async with connected(sending(*chunks)) as wire:
        assert await wire.read_line(10) == b"before"
        assert await wire.read_exactly(0) == b""
        assert await wire.read_exactly(len(literal)) == literal
        assert await wire.read_line(10) == b" after"
        wire.abort()


@on_each_loop
async def test_a_literal_larger_than_the_buffer() -> None:
    """A paused network resumes when a large literal needs it."""
    literal = b"z" * (BUFFER_LIMIT * 8)
    async with connected(sending(literal)) as wire:
        assert await wire.read_exactly(len(literal)) == literal
        wire.abort()


@pytest.mark.parametrize(
    ("script", "reason"), [(sending(b"half"), Reason.COMMAND_TIMEOUT), (closing, Reason.CONNECTION_LOST)]
)
@on_each_loop
async def test_a_literal_that_stays_incomplete(script: Script, reason: Reason) -> None:
    """Missing octets are reported and close the connection."""
    async with connected(script, patience=0.1) as wire:
        with pytest.raises(ProbeFault) as caught:
            await wire.read_exactly(100)
    assert caught.value.reason is reason


@on_each_loop
async def test_a_literal_that_drips_is_timed_as_a_whole() -> None:
    """The timeout covers the whole literal, so a slow series of octets does not extend it."""

    async def drip(peer: Peer) -> None:
        while True:
            await peer.chunks(b"x")

    async with connected(drip, patience=0.1) as wire:
        with pytest.raises(ProbeFault) as caught:
            await wire.read_exactly(2**40)
    assert caught.value.reason is Reason.COMMAND_TIMEOUT


@on_each_loop
async def test_a_cancelled_literal_closes_the_connection() -> None:
    """Cancelling in the middle of a literal leaves no connection open."""
    async with connected(stay_silent) as wire:
        reading = asyncio.create_task(wire.read_exactly(10))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


@on_each_loop
async def test_waiting_for_anything_outlives_a_cancellation() -> None:
    """A cancelled wait leaves the connection open and loses nothing."""
    async with connected(answering, patience=1.0) as wire:
        for _ in range(3):
            waiting = asyncio.create_task(wire.readable())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        wire.write_line(b"GO")
        await wire.readable()
        await wire.readable()  # unread octets are enough
        assert wire.unread.startswith(b"gone"[: len(wire.unread)])
        assert await wire.read_line(10) == b"gone"
        wire.abort()


@on_each_loop
async def test_waiting_for_anything_has_no_timeout() -> None:
    """The wait for anything may last longer than the timeout of an answer."""
    async with connected(answering, patience=0.01) as wire:
        waiting = asyncio.create_task(wire.readable())
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        wire.write_line(b"GO")
        await waiting
        wire.abort()


@on_each_loop
async def test_the_end_is_something_to_read() -> None:
    """The end of the connection ends the wait, repeatedly, and the next read reports it."""

    async def hang_up(peer: Peer) -> None:
        await peer.close()

    async with connected(hang_up) as wire:
        await wire.readable()
        await wire.readable()
        with pytest.raises(ProbeFault) as caught:
            await wire.read_line(10)
    assert caught.value.reason is Reason.CONNECTION_LOST
