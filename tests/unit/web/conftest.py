"""A running agent with smtp probes of a scripted server, and a client for its pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from monitor.agent import Agent, running_agent
from monitor.config.models import Configuration
from monitor.runner import Result
from probes.core.clock import Clock
from tests.fakes.scripted_server import Script, scripted_server


@dataclass
class Watched:
    """An agent and a client for its pages."""

    agent: Agent
    client: httpx.AsyncClient

    async def result(self) -> Result:
        """Return the next finished run."""
        return await self.agent.results.get()


StartAgent = Callable[..., AbstractAsyncContextManager[Watched]]


@pytest.fixture
def start_agent(tmp_path: Path) -> StartAgent:
    """Return a function that starts an agent with ``probes`` smtp probes of a scripted server.

    ``settings`` are those of each probe.
    """

    @asynccontextmanager
    async def start(
        script: Script,
        probes: int = 1,
        interval: str = "1s",
        hosts: tuple[str, ...] = (),
        url: str | None = None,
        clock: Clock | None = None,
        **settings: object,
    ) -> AsyncIterator[Watched]:
        async with scripted_server(script) as server:
            mail = {"protocol": "smtp", "host": "127.0.0.1", "port": server.port, "tls": "none"}
            agent = {
                "listen": "127.0.0.1:0",
                "ledger": f"sqlite://{tmp_path}/ledger.db",
                "hosts": hosts,
                "url": url,
            }
            configuration = Configuration.model_validate(
                {
                    "agent": agent,
                    "servers": {"mail": mail},
                    "probes": [
                        {
                            "name": f"hq-{number}",
                            "kind": "smtp",
                            "interval": interval,
                            "server": "mail",
                            **settings,
                        }
                        for number in range(probes)
                    ],
                }
            )
            async with (
                running_agent(configuration, clock) as running,
                httpx.AsyncClient(base_url=running.address, trust_env=False, timeout=120) as client,
            ):
                yield Watched(running, client)

    return start
