"""Sessions of our IMAP client with a scripted server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from probes.core.faults import ProbeFault
from probes.protocols.imap_session import ImapSession
from tests.fakes.logins import Logins
from tests.fakes.scripted_server import (
    Peer,
    Script,
    dialogue,
)

_LOGINS = Logins(ImapSession, "imap")
enter, entered, fault_of_entering = _LOGINS.enter, _LOGINS.entered, _LOGINS.fault_of_entering


def greeting(*capabilities: str) -> bytes:
    return f"* OK [CAPABILITY {' '.join(['IMAP4rev1', *capabilities])}] ready".encode()


LOGIN = (rb"M1 AUTHENTICATE PLAIN \S+", b"M1 OK [CAPABILITY IMAP4rev1 IDLE UIDPLUS] in")
ENTERED = (greeting("SASL-IR", "AUTH=PLAIN"), LOGIN)
OPENED = (*ENTERED, (b'M2 SELECT "INBOX"', b"* 1 EXISTS\r\n* OK [UIDVALIDITY 7] valid\r\nM2 OK selected"))
"""Dialogues up to the login, and up to the open folder."""

Command = Callable[[ImapSession], Awaitable[Any]]


@asynccontextmanager
async def opened(script: Script, **options: Any) -> AsyncIterator[ImapSession]:
    """Yield a session with an open folder; the block must close it."""
    async with entered(dialogue(*OPENED, then=script), **options) as session:
        await session.select("INBOX")
        yield session


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
