"""Sessions of our POP3 client with a scripted server."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from probes.core.faults import ProbeFault
from probes.core.verdict import PhaseTimer
from probes.protocols.pop3_session import Pop3Session
from tests.fakes.clock import InstantClock
from tests.fakes.scripted_server import PASSWORD, Script, ScriptedServer, scripted_server

USER = "canary@example.test"
STAMP = "<1896.697170952@mail.test>"
PLAIN = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode())


def capa(*capabilities: str) -> tuple[bytes, bytes]:
    """Return the step of a dialogue that answers CAPA."""
    return b"CAPA", "\r\n".join(["+OK", *capabilities, "."]).encode()


ENTERED = (b"+OK ready", capa("SASL PLAIN", "TOP", "UIDL"), (b"AUTH PLAIN .*", b"+OK"))
"""A dialogue up to the login."""


async def enter(
    server: ScriptedServer,
    *,
    clock: InstantClock | None = None,
    phases: PhaseTimer | None = None,
    password: str = PASSWORD,
    **options: Any,
) -> Pop3Session:
    """Log in to ``server``, configured with ``options``."""
    clock = clock or InstantClock()
    configured = server.settings("pop3", **options)
    phases = phases or PhaseTimer(clock)
    secret = SecretStr(password)
    return await Pop3Session.open(configured, username=USER, password=secret, phases=phases, clock=clock)


@asynccontextmanager
async def entered(script: Script, **options: Any) -> AsyncIterator[Pop3Session]:
    """Yield a session that is logged in; the block must close it."""
    async with scripted_server(script) as server:
        yield await enter(server, **options)
        await server.peer_closed()


async def fault_of_entering(script: Script, **options: Any) -> ProbeFault:
    """Return the fault of a login; the connection is closed after it."""
    async with scripted_server(script) as server:
        with pytest.raises(ProbeFault) as caught:
            await enter(server, **options)
        await server.peer_closed()
    return caught.value
