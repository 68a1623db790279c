"""Waiting for changes by IDLE, and what a server sends between two commands."""

from __future__ import annotations

import asyncio

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.redaction import WITHHELD
from probes.protocols.imap_session import ImapSession
from tests.fakes.imap_dialogue import (
    NOOP,
    Command,
    close,
    fault_of,
    opened,
)
from tests.fakes.scripted_server import (
    PASSWORD,
    Peer,
    Script,
    dialogue,
    on_each_loop,
)

IDLE = (b"M3 IDLE", b"+ idling")


@on_each_loop
async def test_idle() -> None:
    """A change ends the wait; the next command ends IDLE first, and handles responses meanwhile."""

    async def idling(peer: Peer) -> None:
        await peer.expect(b"M3 IDLE")
        await peer.chunks(b"* OK still he", b"re\r\n+ idling\r\n* 2 EX", b"ISTS\r\n")
        await dialogue(
            (b"DONE", b"* 3 EXISTS\r\nM3 OK"), (b"M4 NOOP", b"M4 OK"), (b"M5 IDLE", b"* 1 EXPUNGE")
        )(peer)

    async with opened(idling) as session:
        await session.news()
        await session.news()  # nobody has handled the change yet
        assert session.exists == 2
        session.changed = False
        await session.noop()
        assert (session.exists, session.changed) == (3, True)
        session.changed = False
        await session.news()
        assert session.exists == 2
        session.abort()


@on_each_loop
async def test_a_password_in_unasked_news_is_withheld() -> None:
    """A response between two commands cannot put the password into a fault either."""
    script = dialogue(b"* BYE [UNAVAILABLE] not you, " + PASSWORD.encode())
    fault = await fault_of(ImapSession.news, script)
    assert (fault.reason, fault.detail) == (Reason.IMAP_UNAVAILABLE, f"[UNAVAILABLE] {WITHHELD}")


async def test_news_are_cancelled_at_any_moment() -> None:
    """A wait cancelled at any step loses no octet, and IDLE ends correctly."""
    said = b"+ idling\r\n* 2 EXISTS\r\n"
    for cut in range(len(said) + 1):
        cancelled = asyncio.Event()

        async def idling(peer: Peer, cut: int = cut, cancelled: asyncio.Event = cancelled) -> None:
            await peer.expect(b"M3 IDLE")
            await peer.chunks(*([said[:cut]] if cut else []))
            await cancelled.wait()
            await peer.chunks(*([said[cut:]] if cut < len(said) else []))
            await dialogue((b"DONE", b"M3 OK"), (b"M4 NOOP", b"M4 OK"))(peer)

        async with opened(idling) as session:
            news = asyncio.create_task(session.news())
            if cut:
                await session._transport.readable()
            await asyncio.sleep(0)  # the waiting task notices it too
            news.cancel()
            await asyncio.wait([news])
            cancelled.set()
            await session.noop()
            assert session.exists == 2
            session.abort()


@pytest.mark.parametrize("said", [b"M3 NO not here", b"M3 BAD what?", b"M3 OK at once"])
async def test_idle_refused(said: bytes) -> None:
    """If IDLE is offered but refused, it is not tried again; unsolicited responses still count."""

    async def refusing(peer: Peer) -> None:
        await dialogue((b"M3 IDLE", said), (b"M4 NOOP", b"M4 OK\r\n* 2 EXISTS"), (b"M5 NOOP", b"M5 OK"))(peer)

    async with opened(refusing) as session:
        news = asyncio.create_task(session.news())
        while session._idle_usable:  # noqa: ASYNC110 # the loop's own turns are meant
            await asyncio.sleep(0)
        news.cancel()
        await asyncio.wait([news])
        assert not session.start_idle()
        await session.noop()
        await session.news()
        assert session.exists == 2
        await session.noop()
        session.abort()


async def test_a_refusal_of_idle_that_comes_late() -> None:
    """DONE is sent only after the server's go-ahead: after a refusal it would be another command."""
    script = dialogue((b"M3 IDLE", b"* OK soon\r\nM3 NO not here"), (b"M4 NOOP", b"M4 OK"))
    async with opened(script) as session:
        assert session.start_idle()
        await session.noop()
        session.abort()


async def test_without_idle() -> None:
    """Without the capability nothing is sent, and an unsolicited response ends the wait."""
    cancelled = asyncio.Event()

    async def telling(peer: Peer) -> None:
        await dialogue((b"M3 NOOP", b"* CAPABILITY IMAP4rev1\r\nM3 OK"))(peer)
        await cancelled.wait()
        await dialogue(b"* 2 EXISTS", (b"M4 NOOP", b"M4 OK"))(peer)

    async with opened(telling) as session:
        await session.noop()
        assert not session.start_idle()
        news = asyncio.create_task(session.news())
        await asyncio.sleep(0)
        news.cancel()
        await asyncio.wait([news])
        cancelled.set()
        await session.news()
        await session.noop()
        session.abort()


async def drip_of_empty_literals(peer: Peer) -> None:
    """Send a response that never ends, but never pauses for long either."""
    await peer.chunks(b"* LIST () NIL {0}\r\n")
    while True:
        await peer.chunks(b"{0}\r\n")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (dialogue(b"* BYE Autologout; idle for too long", then=close), Reason.IMAP_BYE),
        (close, Reason.CONNECTION_LOST),
        (dialogue(b"M2 OK again"), Reason.PROTOCOL_ERROR),
        (dialogue(b"* LIST () NIL {1}"), Reason.RESPONSE_TOO_LARGE),
        (lambda peer: peer.flood(b"* OK still here\r\n" * 1000), Reason.RESPONSE_TOO_LARGE),
        (lambda peer: peer.chunks(b"* half a li"), Reason.COMMAND_TIMEOUT),
        (drip_of_empty_literals, Reason.COMMAND_TIMEOUT),
    ],
)
@pytest.mark.parametrize("idle", [True, False])
async def test_the_session_ends_while_waiting(last: Script, reason: Reason, idle: bool) -> None:
    """The end of a session ends the wait with its reason, with or without IDLE."""

    async def ending(peer: Peer) -> None:
        if idle:
            await dialogue(IDLE)(peer)
        await last(peer)

    async with opened(ending, timeout="500ms") as session:
        session._idle_usable = idle
        with pytest.raises(ProbeFault) as caught:
            await session.news()
        with pytest.raises(ProbeFault):
            await session.noop()
    assert caught.value.reason is reason


@pytest.mark.parametrize("command", [NOOP, ImapSession.news])
async def test_last_words_are_heard(command: Command) -> None:
    """A BYE between two commands explains why nothing more can be sent."""
    async with opened(dialogue(b"* BYE [UNAVAILABLE] going down", then=close)) as session:
        while session._transport._receiver.ended is None:  # noqa: ASYNC110 # the loop's own turns are meant
            await asyncio.sleep(0)
        with pytest.raises(ProbeFault) as caught:
            await command(session)
    assert caught.value.reason is Reason.IMAP_UNAVAILABLE
