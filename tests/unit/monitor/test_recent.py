"""The latest runs of each route in memory, and the removal of routes that are gone."""

from __future__ import annotations

import asyncio
import gc
import re
from collections import Counter
from pathlib import Path

import dns.message
import httpx
import pytest

from monitor.agent import running_agent
from monitor.config.models import Configuration
from monitor.ledger.counters import RouteCounts
from monitor.recent import POINTS_KEPT, Recent
from monitor.state import AgentState
from tests.fakes.agent_state import RouteProbe
from tests.fakes.dns_server import DnsServer, dns_server, zone
from tests.fakes.visits import Visited


def a_run(target: str, probe: str = "trip") -> dict[str, object]:
    at = "2027-01-15T08:00:00.000000+00:00"
    return {
        "run": "0" * 32,
        "probe": probe,
        "kind": "smtp",
        "target": target,
        "outcome": "ok",
        "reason": "none",
        "started_at": at,
        "duration_seconds": 0.25,
        "transcript": ["   0.000 S: 220 hello"],
    }


def test_what_is_kept_of_a_route_is_bounded() -> None:
    """Only the latest runs are kept, without their transcripts."""
    recent = Recent(now=0.0)
    for _ in range(3 * POINTS_KEPT):
        recent.take_in(a_run("mail"))
    (route,) = recent.routes.values()
    assert len(route.points) == POINTS_KEPT
    assert route.last is not None
    assert "transcript" not in route.last


def test_forgetting_targets_does_not_walk_through_the_routes() -> None:
    """After a run for a domain, its hosts that are gone are found without a look at other probes' routes."""
    recent, agent = Recent(now=0.0), AgentState()
    recent.routes, agent.probes = Visited(), Visited()
    for number in range(300):
        recent.take_in(a_run("mail", probe=f"other-{number}"))
        agent.add(RouteProbe(name=f"other-{number}"), now=1.0)
    for hosts in (("old", "mx"), ("mx", "new")):
        domain = RouteProbe("domain", tuple(RouteProbe(host) for host in hosts))
        for target in domain.targets:
            recent.take_in(a_run(target))
        recent.routes.visits = agent.probes.visits = 0
        recent.keep_only("trip", domain.targets)
        agent.keep_sub_probes(domain, now=1.0)
        assert (recent.routes.visits, agent.probes.visits) == (0, 0)
    assert {target for probe, target in recent.routes if probe == "trip"} == {"domain", "mx", "new"}
    assert {target for probe, target in agent.probes if probe == "trip"} == {"mx", "new"}
    assert len(recent.routes) == 303


def test_findings_stay_until_a_run_can_judge_again() -> None:
    """An unknown or failed run without a judgement leaves the listed findings unchanged."""
    recent, found = Recent(now=0.0), [{"check": "mx_missing"}]
    recent.take_in(a_run("mail") | {"findings": found})
    recent.take_in(a_run("mail") | {"outcome": "unknown", "reason": "dns_timeout", "findings": []})
    recent.take_in(a_run("mail") | {"outcome": "failed", "reason": "timeout"})
    (route,) = recent.routes.values()
    assert route.findings == found
    recent.take_in(a_run("mail") | {"findings": []})
    assert route.findings == []


def test_since_when_a_route_fails() -> None:
    """It is the start of the first failed run. Without a good run before it, others may have failed."""

    def taken(*outcomes: str) -> tuple[float | None, bool]:
        recent = Recent(now=0.0)
        for minute, outcome in enumerate(outcomes):
            of_minute = {"outcome": outcome, "started_at": f"2027-01-15T08:{minute:02}:00+00:00"}
            recent.take_in(a_run("mail") | of_minute)
        (route,) = recent.routes.values()
        at = route.failing_since
        return None if at is None else (at - 1_800_000_000.0) / 60, route.failed_earlier

    assert taken("ok", "failed", "failed", "unknown", "failed") == (1.0, False)
    assert taken("ok", "unknown", "failed") == (2.0, False)
    assert taken("failed", "failed") == (0.0, True)
    assert taken("unknown", "failed") == (1.0, True)
    assert taken("failed", "ok")[0] is None
    assert taken("failed", "ok", "failed") == (2.0, False)
    assert taken("failed", "unknown") == (0.0, True)
    assert taken("unknown")[0] is None


def test_routes_that_are_gone_are_forgotten() -> None:
    """Only a probe's current targets are kept; other probes' routes are not touched."""
    recent = Recent(now=0.0)
    for target in ("example.com", "mx1", "mx2"):
        recent.take_in(a_run(target))
    recent.take_in(a_run("mx1", probe="other"))
    recent.keep_only("trip", {"example.com", "mx2"})
    assert set(recent.routes) == {("trip", "example.com"), ("trip", "mx2"), ("other", "mx1")}


def _configuration(directory: Path, names: DnsServer) -> Configuration:
    """Return an agent with one probe that sends to the MX hosts of example.test, which fails."""
    (directory / "password").write_text("secret")
    pop = {"protocol": "pop3", "host": "127.0.0.1", "port": 1, "tls": "implicit"}
    account = {"username": "canary", "password": {"file": str(directory / "password")}}
    trip = {"name": "trip", "kind": "roundtrip", "interval": "1s", "deadline": "2s", "to": "canary"}
    mx = {"port": 1, "resolver": {"address": "127.0.0.1", "port": names.port}}
    return Configuration.model_validate(
        {
            "agent": {"listen": "127.0.0.1:0", "ledger": f"sqlite://{directory}/ledger.db"},
            "servers": {"pop": pop},
            "mailboxes": {"canary": {"address": "canary@example.test", "server": "pop", **account}},
            "probes": [{**trip, "from": "canary@example.net", "send_via": "mx", "mx": mx}],
        }
    )


async def test_an_agent_forgets_mx_hosts_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many hosts DNS names over time, the agent keeps only those of the latest run."""
    monkeypatch.setattr("monitor.web.events.PAUSE", 0.02)
    asked: Counter[str] = Counter()

    def changing(query: dns.message.Message) -> list[bytes | dns.message.Message]:
        """Name another host each time."""
        question = query.question[0]
        asked[question.rdtype.name] += question.rdtype.name == "MX"
        host = f"mx{asked['MX']}.example.test."
        answer = zone(f"example.test. 1 IN MX 10 {host}", f"{host} 1 IN A 127.0.0.1")
        return list(answer(query))

    async with (
        dns_server(changing) as names,
        running_agent(_configuration(tmp_path, names)) as agent,
        httpx.AsyncClient(base_url=agent.address, trust_env=False) as client,
        client.stream("GET", "/events?since=1") as stream,
    ):
        told: list[str] = []

        async def watch() -> None:
            async for line in stream.aiter_lines():
                told.extend(re.findall(r"mx\d+\.example\.test", line))

        watching = asyncio.create_task(watch())
        gone: set[str] = set()
        async with asyncio.timeout(60):
            while not gone:
                await agent.results.get()
                gone = set(told) - {target for _, target in agent.runtime.state.probes}
            while gone & {target for _, target in agent.recent.routes}:
                await agent.results.get()
        watching.cancel()
        # Mappings to counts belong to the ledger, which keeps its totals for ever.
        keys = {
            key
            for each in gc.get_objects()
            if type(each) is dict
            for key, value in list(each.items())
            if not isinstance(value, dict | RouteCounts)
        }
        assert ("trip", "example.test") in keys
        assert keys.isdisjoint({("trip", target) for target in gone})
