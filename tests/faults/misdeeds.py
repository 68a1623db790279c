"""What a server can do instead of a correct answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from probes.core.reasons import Reason
from tests.fakes.scripted_server import Peer

Misdeed = Callable[[Peer], Awaitable[None]]
"""What a server does in place of a sound answer; the latest line it received is `Peer.received`'s last."""


def says(*lines: bytes) -> Misdeed:
    """Return a misdeed that sends these lines."""

    async def misdeed(peer: Peer) -> None:
        await peer.send(*lines)

    return misdeed


def says_tagged(answer: bytes, *, before: bytes = b"") -> Misdeed:
    """Return a misdeed that answers the latest IMAP command, after an untagged response."""

    async def misdeed(peer: Peer) -> None:
        tag = peer.received[-1].partition(b" ")[0]
        await peer.send(*filter(None, [before]), tag + b" " + answer)

    return misdeed


def breaks_off(octets: bytes) -> Misdeed:
    """Return a misdeed that sends these octets and closes the connection."""

    async def misdeed(peer: Peer) -> None:
        await peer.chunks(octets)
        await peer.close()

    return misdeed


def flood(chunk: bytes, first: bytes = b"") -> Misdeed:
    """Return a misdeed that sends ``first``, and then the same chunk endlessly."""

    async def misdeed(peer: Peer) -> None:
        await peer.chunks(first)
        await peer.flood(chunk)

    return misdeed


async def close(peer: Peer) -> None:
    """Close the connection."""
    await peer.close()


async def reset(peer: Peer) -> None:
    """Reset the connection."""
    await peer.reset()


async def silence(peer: Peer) -> None:
    """Never answer."""
    await peer.until_closed()


async def drip(peer: Peer) -> None:
    """Send octets so slowly that no line is ever complete in time."""
    while True:
        await peer.chunks(b"2")
        await asyncio.sleep(0.05)


endless_line = flood(b"2" * 65536)

ANYWHERE: dict[str, tuple[Misdeed, Reason]] = {
    "close": (close, Reason.CONNECTION_LOST),
    "close within a line": (breaks_off(b"2"), Reason.CONNECTION_LOST),
    "reset": (reset, Reason.CONNECTION_LOST),
    "silence": (silence, Reason.COMMAND_TIMEOUT),
    "one octet at a time": (drip, Reason.COMMAND_TIMEOUT),
    "a line without end": (endless_line, Reason.LINE_TOO_LONG),
    "what is no answer": (says(b"\x00\x01 what?"), Reason.PROTOCOL_ERROR),
    "an empty line": (says(b""), Reason.PROTOCOL_ERROR),
}
"""Faults that are faults in every protocol and state, and what they mean where nothing makes them good."""
