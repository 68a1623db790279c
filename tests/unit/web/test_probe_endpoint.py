"""Runs of configured probes at Prometheus' request: the answers, and what is refused."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitor.web.probe_endpoint import LONGEST_PAUSE, MOST_AT_ONCE, OFFSET
from probes.core.clock import SystemClock
from tests.fakes.scripted_server import Peer, dialogue
from tests.unit.web.conftest import StartAgent

SOUND = dialogue(b"220 hello", (rb"EHLO \S+", b"250 hello"), (b"QUIT", b"221 bye"))


async def refuse(peer: Peer) -> None:
    await peer.send(b"554 5.7.1 <script> no service")


async def silence(peer: Peer) -> None:
    await peer.octets()


class Standing(SystemClock):
    """A clock whose monotonic time is set by the test."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def _value(answer: httpx.Response, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(answer.text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    (value,) = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
    return float(value)


async def test_a_run_tells_what_blackbox_users_expect(start_agent: StartAgent) -> None:
    """The answer has probe_success, probe_duration_seconds, and our own metrics of this run only."""
    async with start_agent(SOUND, probes=2) as watched:
        before = (await watched.client.get("/metrics")).text
        answer = await watched.client.get("/probe", params={"module": "hq-1"})
        assert (answer.status_code, _value(answer, "probe_success")) == (200, 1)
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert 0 < _value(answer, "probe_duration_seconds") < 10
        labels = {"location": "local", "kind": "smtp", "probe": "hq-1", "target": "mail", "cadence": "15s"}
        assert _value(answer, "mailsonde_probe_success", **labels) == 1
        assert 'phase="greeting"' in answer.text
        assert "hq-0" not in answer.text
        assert 'probe="hq-1"' in before


async def test_a_failure_is_told_and_not_counted(start_agent: StartAgent) -> None:
    """A failed run has probe_success 0 and status 200, and does not change the agent's counters."""
    async with start_agent(refuse) as watched:
        await watched.result()
        runs = watched.agent.runtime.state.probes["hq-0", "mail"].runs.total()
        scheduled = watched.agent.results.qsize()
        answer = await watched.client.get("/probe?module=smtp&target=mail")
        assert (answer.status_code, _value(answer, "probe_success")) == (200, 0)
        since = watched.agent.results.qsize() - scheduled
        assert watched.agent.runtime.state.probes["hq-0", "mail"].runs.total() == runs + since


async def test_a_fault_of_ours_is_no_outage(start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in mailsonde fails the scrape, without a probe_success that would look like an outage."""

    async def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    async with start_agent(SOUND) as watched:
        monkeypatch.setattr("probes.smtp.Smtp.run", broken)
        answer = await watched.client.get("/probe?module=hq-0")
        assert answer.status_code == 503
        assert answer.text.startswith("nothing can be said of the mail system: internal: RuntimeError")


async def test_what_is_not_configured_is_refused(start_agent: StartAgent) -> None:
    """Unknown hosts and names, and ambiguous requests, are refused with the list of choices."""
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
    """If a server does not answer, the run fails before Prometheus' timeout, whatever its deadline."""
    async with start_agent(silence) as watched:
        patience = {"x-prometheus-scrape-timeout-seconds": "0.7"}
        answer = await watched.client.get("/probe?module=hq-0", headers=patience)
        assert (answer.status_code, _value(answer, "probe_success")) == (200, 0)
        assert 0.19 < _value(answer, "probe_duration_seconds") < 0.7


async def test_one_run_at_a_time(start_agent: StartAgent) -> None:
    """While a run is in progress, another request for the same probe is told to retry."""
    async with start_agent(silence) as watched:
        patience = {"x-prometheus-scrape-timeout-seconds": "1"}
        asked = [watched.client.get("/probe?module=hq-0", headers=patience) for _ in range(3)]
        statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
        assert sorted(statuses) == [200, 503, 503]


@pytest.mark.parametrize(("interval", "pause"), [("1h", 5.0), ("12s", 3.0), ("1s", 1.0)])
async def test_who_asks_again_soon_gets_the_same_answer(
    interval: str, pause: float, start_agent: StartAgent
) -> None:
    """Clients cannot cause repeated logins: for a while, a run's answer is reused."""
    clock = Standing()
    async with start_agent(SOUND, interval=interval, clock=clock) as watched:
        first = await watched.client.get("/probe?module=hq-0")
        for query in ("module=hq-0", "module=smtp&target=mail", "target=mail"):
            again = await watched.client.get(f"/probe?{query}")
            assert (again.status_code, again.text) == (200, first.text)
            assert again.headers["content-type"] == first.headers["content-type"]
        clock.now += pause
        later = await watched.client.get("/probe?module=hq-0")
        assert (later.status_code, later.text != first.text) == (200, True)


async def test_another_probe_does_not_wait(start_agent: StartAgent) -> None:
    """A run of one probe does not delay or answer requests for another."""
    async with start_agent(SOUND, probes=2, interval="1h") as watched:
        for name in ("hq-0", "hq-1"):
            assert f'probe="{name}"' in (await watched.client.get(f"/probe?module={name}")).text


async def test_probes_that_hang_leave_room_for_others(start_agent: StartAgent) -> None:
    """However many probes hang, one that does not can run beside them."""
    clock = Standing()
    async with start_agent(silence, probes=MOST_AT_ONCE + 1, clock=clock, scheduled=False) as watched:

        async def ask(number: int, seconds: float) -> str:
            patience = {"x-prometheus-scrape-timeout-seconds": str(OFFSET + seconds)}
            return (await watched.client.get(f"/probe?module=hq-{number}", headers=patience)).text

        await asyncio.gather(*(ask(number, 0.1) for number in range(MOST_AT_ONCE)))
        clock.now += LONGEST_PAUSE
        hanging = [asyncio.create_task(ask(number, 2.0)) for number in range(MOST_AT_ONCE)]
        await asyncio.wait(hanging, return_when=asyncio.FIRST_COMPLETED)
        assert "probe_success 0" in await ask(MOST_AT_ONCE, 0.1)
        told = await asyncio.gather(*hanging)
    assert "5 probes that timed out before are running; try again\n" in told


async def test_a_run_cut_short_by_one_is_no_outage_for_others(start_agent: StartAgent) -> None:
    """A timeout caused by one client's limit of 100 ms is not reported to other clients."""
    clock = Standing()

    async def late(peer: Peer) -> None:
        await asyncio.sleep(0.5)
        await SOUND(peer)

    async with start_agent(late, interval="1h", clock=clock) as watched:
        impatient = {"x-prometheus-scrape-timeout-seconds": "0.1"}
        answer = await watched.client.get("/probe?module=hq-0", headers=impatient)
        assert (answer.status_code, _value(answer, "probe_success")) == (200, 0)
        answer = await watched.client.get("/probe?module=hq-0")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        clock.now += 5.0
        answer = await watched.client.get("/probe?module=hq-0")
        assert (answer.status_code, _value(answer, "probe_success")) == (200, 1)


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-origin", 200), ("none", 200)])
async def test_a_page_of_another_site_runs_nothing(site: str, status: int, start_agent: StartAgent) -> None:
    """Requests from other sites' pages are refused; following a link or typing the address works."""
    async with start_agent(SOUND, interval="1h") as watched:
        answer = await watched.client.get("/probe?module=hq-0", headers={"sec-fetch-site": site})
        assert answer.status_code == status
        assert ("probe_success" in answer.text) == (status == 200)
