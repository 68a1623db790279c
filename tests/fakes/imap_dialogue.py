"""Sessions of our IMAP client with a scripted server."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from probes.core.faults import ProbeFault
from probes.core.verdict import PhaseTimer
from probes.protocols.imap_session import ImapSession
from tests.fakes.clock import InstantClock
from tests.fakes.scripted_server import (
    PASSWORD,
    Peer,
    Script,
    ScriptedServer,
    dialogue,
    scripted_server,
)

USER = "canary@example.test"
PLAIN = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode())


def greeting(*capabilities: str) -> bytes:
    return f"* OK [CAPABILITY {' '.join(['IMAP4rev1', *capabilities])}] ready".encode()


LOGIN = (rb"M1 AUTHENTICATE PLAIN \S+", b"M1 OK [CAPABILITY IMAP4rev1 IDLE UIDPLUS] in")
ENTERED = (greeting("SASL-IR", "AUTH=PLAIN"), LOGIN)
OPENED = (*ENTERED, (b'M2 SELECT "INBOX"', b"* 1 EXISTS\r\n* OK [UIDVALIDITY 7] valid\r\nM2 OK selected"))
"""Dialogues up to the login, and up to the open folder."""

Command = Callable[[ImapSession], Awaitable[Any]]


async def enter(
    server: ScriptedServer,
    *,
    clock: InstantClock | None = None,
    phases: PhaseTimer | None = None,
    password: str = PASSWORD,
    **options: Any,
) -> ImapSession:
    """Log in to ``server``, configured with ``options``."""
    clock = clock or InstantClock()
    configured, secret = server.settings("imap", **options), SecretStr(password)
    phases = phases or PhaseTimer(clock)
    return await ImapSession.open(configured, username=USER, password=secret, phases=phases, clock=clock)


@asynccontextmanager
async def entered(script: Script, **options: Any) -> AsyncIterator[ImapSession]:
    """Yield a session that is logged in; the block must close it."""
    async with scripted_server(script) as server:
        yield await enter(server, **options)
        await server.peer_closed()


@asynccontextmanager
async def opened(script: Script, **options: Any) -> AsyncIterator[ImapSession]:
    """Yield a session with an open folder; the block must close it."""
    async with entered(dialogue(*OPENED, then=script), **options) as session:
        await session.select("INBOX")
        yield session


async def fault_of_entering(script: Script, **options: Any) -> ProbeFault:
    """Return the fault of a login; the connection is closed after it."""
    async with scripted_server(script) as server:
        with pytest.raises(ProbeFault) as caught:
            await enter(server, **options)
        await server.peer_closed()
    return caught.value


async def fault_of(command: Command, script: Script, **options: Any) -> ProbeFault:
    """Return the fault of a command in an open folder; the connection is closed after it."""
    async with opened(script, **options) as session:
        with pytest.raises(ProbeFault) as caught:
            await command(session)
    return caught.value


async def close(peer: Peer) -> None:
    await peer.close()


def answer(*lines: bytes) -> Script:
    """Return a script that reads one command, and answers with lines and an OK."""
    return dialogue((b"M3 .*", b"\r\n".join([*lines, b"M3 OK"])))


NOOP: Command = ImapSession.noop
THROTTLED = b"Request is throttled. Suggested Backoff Time: 299910 milliseconds"
