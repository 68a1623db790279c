"""One run of a configured probe when Prometheus asks: what it tells, and what it refuses."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from tests.fakes.scripted_server import Peer, dialogue
from tests.unit.web.conftest import StartAgent

SOUND = dialogue(b"220 hello", (rb"EHLO \S+", b"250 hello"), (b"QUIT", b"221 bye"))


async def refuse(peer: Peer) -> None:
    await peer.send(b"554 5.7.1 <script> no service")


async def silence(peer: Peer) -> None:
    await peer.octets()


def _value(answer: httpx.Response, name: str) -> float:
    (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", answer.text, re.MULTILINE)
    return float(value)


async def test_a_run_tells_what_blackbox_users_expect(start_agent: StartAgent) -> None:
    """The answer has probe_success and probe_duration_seconds, and our own metrics of that run alone."""
    async with start_agent(SOUND, probes=2) as watched:
        before = (await watched.client.get("/metrics")).text
        answer = await watched.client.get("/probe", params={"module": "hq-1"})
        assert (answer.status_code, _value(answer, "probe_success")) == (200, 1)
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert 0 < _value(answer, "probe_duration_seconds") < 10
        labels = '{kind="smtp",probe="hq-1",target="mail"}'
        assert _value(answer, f"mailsonde_probe_success{labels}") == 1
        assert 'phase="greeting"' in answer.text
        assert "hq-0" not in answer.text
        assert 'probe="hq-1"' in before


async def test_a_failure_is_told_and_not_counted(start_agent: StartAgent) -> None:
    """A failed run is probe_success 0 with status 200, and the agent's own counters do not move by it."""
    async with start_agent(refuse) as watched:
        await watched.result()
        runs = watched.agent.assembly.state.probes["hq-0", "mail"].runs.total()
        scheduled = watched.agent.results.qsize()
        answer = await watched.client.get("/probe?module=smtp&target=mail")
        assert (answer.status_code, _value(answer, "probe_success")) == (200, 0)
        since = watched.agent.results.qsize() - scheduled
        assert watched.agent.assembly.state.probes["hq-0", "mail"].runs.total() == runs + since


async def test_a_fault_of_ours_is_no_outage(start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in mailsonde fails the scrape, and has no probe_success that would read as an outage."""

    async def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    async with start_agent(SOUND) as watched:
        monkeypatch.setattr("probes.smtp.Smtp.run", broken)
        answer = await watched.client.get("/probe?module=hq-0")
        assert answer.status_code == 503
        assert answer.text.startswith("nothing can be said of the mail system: internal: RuntimeError")


async def test_what_is_not_configured_is_refused(start_agent: StartAgent) -> None:
    """Another host, an unknown name, or what fits several probes is refused with what there is."""
    async with start_agent(SOUND, probes=2) as watched:
        for query in (
            "",
            "?module=smtp",
            "?target=mail",
            "?module=hq-0&target=127.0.0.1:25",
            "?module=%3Cb%3E",
        ):
            answer = await watched.client.get(f"/probe{query}")
            assert answer.status_code == 400, query
            assert "  module=hq-0 (or smtp), target=mail\n" in answer.text
            assert answer.headers["content-type"].startswith("text/plain")
            assert "<b>" not in answer.text


async def test_a_run_ends_before_prometheus_gives_up(start_agent: StartAgent) -> None:
    """A server that says nothing is a failed run in time for the answer, whatever its own deadline is."""
    async with start_agent(silence) as watched:
        patience = {"x-prometheus-scrape-timeout-seconds": "0.7"}
        answer = await watched.client.get("/probe?module=hq-0", headers=patience)
        assert (answer.status_code, _value(answer, "probe_success")) == (200, 0)
        assert 0.19 < _value(answer, "probe_duration_seconds") < 0.7


async def test_one_run_at_a_time(start_agent: StartAgent) -> None:
    """While a run is under way another of the same probe is told to try again."""
    async with start_agent(silence) as watched:
        patience = {"x-prometheus-scrape-timeout-seconds": "1"}
        asked = [watched.client.get("/probe?module=hq-0", headers=patience) for _ in range(3)]
        statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
        assert sorted(statuses) == [200, 503, 503]
