"""Maintenance on the live page."""

from __future__ import annotations

import json

from monitor.ledger.pauses import Pause
from tests.fakes.scripted_server import dialogue
from tests.unit.web.conftest import StartAgent


async def test_the_pages_show_maintenance(start_agent: StartAgent) -> None:
    """Overview, probe and JSON say until when, who set it and why, with the text escaped; then no more."""
    async with start_agent(dialogue(b"554 no")) as watched:
        await watched.result()
        runtime = watched.agent.runtime
        now = runtime.clock.time()
        name = next(iter(runtime.assembly.probes))
        pause = Pause(name, now - 60, now + 3600, "new <firewall>", "root")
        await runtime.ledger.begin_pauses([pause])
        await runtime.read_pauses()
        for path in ("/", f"/probes/{name}"):
            page = (await watched.client.get(path)).text
            assert "In maintenance until <time" in page
            assert "by pause by root: new &lt;firewall&gt;" in page
        answer = await watched.client.get(f"/probes/{name}", headers={"accept": "application/json"})
        assert json.dumps(answer.json()).count('"comment": "new <firewall>"') >= 1
        assert await runtime.ledger.end_pause(name, now)
        await runtime.read_pauses()
        assert "In maintenance" not in (await watched.client.get("/")).text


async def test_a_page_that_is_open_learns_of_maintenance(start_agent: StartAgent) -> None:
    """A pause changes its probe's row, although no run ended."""
    async with start_agent(dialogue(b"554 no"), interval="1h") as watched:
        await watched.client.get("/")
        runtime, recent = watched.agent.runtime, watched.agent.recent
        ((name, _),) = runtime.state.probes
        version = recent.version
        now = runtime.clock.time()
        await runtime.ledger.begin_pauses([Pause(name, now, now + 3600, "", "root")])
        await runtime.read_pauses()
        await watched.client.get("/")
        assert recent.version > version
