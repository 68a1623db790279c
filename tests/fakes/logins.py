"""Logins of our POP3 and IMAP clients at a scripted server."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pytest
from pydantic import SecretStr

from probes.core.faults import ProbeFault
from probes.core.verdict import PhaseTimer
from probes.protocols.mail_session import MailSession
from tests.fakes.clock import InstantClock
from tests.fakes.scripted_server import PASSWORD, Script, ScriptedServer, scripted_server

USER = "canary@example.test"
PLAIN = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode())
"""What SASL PLAIN sends for it."""

SessionT = TypeVar("SessionT", bound=MailSession)


@dataclass(frozen=True)
class Logins(Generic[SessionT]):
    """How a test logs in by one protocol; ``options`` are settings of the server."""

    session: type[SessionT]
    protocol: str

    async def enter(
        self,
        server: ScriptedServer,
        *,
        clock: InstantClock | None = None,
        phases: PhaseTimer | None = None,
        password: str = PASSWORD,
        **options: Any,
    ) -> SessionT:
        """Return a session that is logged in to ``server``."""
        clock = clock or InstantClock()
        return await self.session.open(
            server.settings(self.protocol, **options),
            username=USER,
            password=SecretStr(password),
            phases=phases or PhaseTimer(clock),
            clock=clock,
        )

    @asynccontextmanager
    async def entered(self, script: Script, **options: Any) -> AsyncIterator[SessionT]:
        """Yield a session that is logged in; the block must close it."""
        async with scripted_server(script) as server:
            yield await self.enter(server, **options)
            await server.peer_closed()

    async def fault_of_entering(self, script: Script, **options: Any) -> ProbeFault:
        """Return the fault of a login; the connection is closed after it."""
        async with scripted_server(script) as server:
            with pytest.raises(ProbeFault) as caught:
                await self.enter(server, **options)
            await server.peer_closed()
        return caught.value
