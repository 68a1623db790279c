"""The agent's memory does not grow with its runs."""

from __future__ import annotations

import asyncio
import gc
import sys
from itertools import pairwise
from pathlib import Path

import httpx

from monitor.agent import Agent, running_agent
from monitor.config.models import Configuration
from probes.core.verdict import MessageState
from tests.fakes.mail_site.process import MailSite, mail_site, servers_of

AT_ONCE = 20
RUNS = 100, 400, 700, 1000, 1300, 1600
PROBES = ("trip", "smtp")


def _configuration(site: MailSite, directory: Path) -> Configuration:
    (directory / "password").write_text("secret")
    servers = servers_of(site, None, allow_insecure_auth=True, logins_per_minute=60000)
    address = "canary@example.test"
    account = {"username": address, "password": {"file": str(directory / "password")}}
    trip = {"kind": "roundtrip", "from": address, "send_via": "smtp", "to": "canary"}
    return Configuration.model_validate(
        {
            "agent": {"listen": "127.0.0.1:0", "ledger": f"sqlite://{directory}/ledger.db"},
            "servers": servers,
            "mailboxes": {"canary": {"address": address, "server": "imap", **account}},
            "probes": [
                {"name": "trip", "interval": "1d", **trip},
                {"name": "smtp", "kind": "smtp", "interval": "1d", "server": "smtp"},
            ],
        }
    )


async def _ran(agent: Agent, count: int) -> None:
    """Return once each probe has run ``count`` times in all, and everything is recorded."""
    ledger, state = agent.runtime.ledger, agent.runtime.state

    async def run(name: str, until: int) -> None:
        while sum(state.probes[name, "smtp"].runs.values()) < until:
            await agent.run(agent.runtime.assembly.probes[name])

    await asyncio.gather(*(run(name, count - AT_ONCE) for name in PROBES for _ in range(AT_ONCE)))
    await asyncio.gather(*(run(name, count) for name in PROBES))
    assert ledger.counters.entered("trip", "smtp", MessageState.DELIVERED) >= 0.9 * count


async def _objects(agent: Agent) -> int:
    """Return the number of objects after a scrape and a look at the pages."""
    async with httpx.AsyncClient(base_url=agent.address, trust_env=False) as client:
        for path in ("/metrics", "/", "/probes/trip"):
            (await client.get(path)).raise_for_status()
    await agent.runtime.ledger.forget(0.0)  # the ledger's thread holds what it wrote last
    gc.collect()
    return sys.getallocatedblocks()


async def test_nothing_grows_with_the_runs(tmp_path: Path) -> None:
    """From 100 runs of a probe to 1,600, there are not as many new objects as runs.

    Caches and cancelled timers make the number of objects vary, so one of five steps has to show it.
    """
    with mail_site() as site:
        async with running_agent(_configuration(site, tmp_path)) as agent:
            counts = []
            for runs in RUNS:
                await _ran(agent, runs)
                counts.append(await _objects(agent))
    grown = [after - before for before, after in pairwise(counts)]
    assert min(grown) < 0.75 * len(PROBES) * (RUNS[1] - RUNS[0]), grown
