"""A domain's findings on the live page and in JSON, including after a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import dns.message
import httpx

from monitor.agent import running_agent
from monitor.config.models import Configuration
from probes.core.finding import Check
from tests.fakes.dns_server import DnsServer, Script, dns_server, response, zone
from tests.unit.web.conftest import Watched

JSON = {"accept": "application/json"}
WRONG = zone(
    r"example.com. 60 IN MX 10 <script>alert\(1\)</script>.example.com.",
    "example.com. 60 IN MX 20 mx2.example.com.",
    "mx2.example.com. 60 IN CNAME host.example.com.",
    "host.example.com. 60 IN A 10.0.0.1",
)


@asynccontextmanager
async def _agent(directory: Path, names: DnsServer, interval: str = "1h") -> AsyncIterator[Watched]:
    """Run an agent with one ``mx`` probe that queries ``names``."""
    resolver = {"address": "127.0.0.1", "port": names.port, "timeout": "2s"}
    probe = {"name": "hq-mx", "kind": "mx", "interval": interval, "domain": "example.com"}
    configuration = Configuration.model_validate(
        {
            "agent": {"listen": "127.0.0.1:0", "ledger": f"sqlite://{directory}/ledger.db"},
            "probes": [probe | {"resolver": resolver}],
        }
    )
    async with (
        running_agent(configuration) as running,
        httpx.AsyncClient(base_url=running.address, trust_env=False, timeout=120) as client,
    ):
        yield Watched(running, client)


async def test_every_finding_is_listed_and_escaped(tmp_path: Path) -> None:
    """The pages of a probe and its run list each finding as text, and so do JSON and the history."""
    async with dns_server(WRONG) as names, _agent(tmp_path, names) as watched:
        result = await watched.result()
        run = f"/probes/hq-mx/runs/{result.run}"
        for path in ("/probes/hq-mx", run):
            page = (await watched.client.get(path)).text
            assert "<script>alert" not in page
            assert "&lt;script&gt;alert" in page
            assert "mx2.example.com is an alias of host.example.com" in page
            assert "public addresses only" in page
            assert Check.MX_TARGET_CNAME.remedy in page
        told = (await watched.client.get(run, headers=JSON)).json()
        shown = (await watched.client.get("/probes/hq-mx", headers=JSON)).json()
    checks = [(one["severity"], one["check"]) for one in told["findings"]]
    assert checks == [
        ("critical", "mx_target_invalid"),
        ("critical", "mx_private_address"),
        ("warning", "mx_target_cname"),
    ]
    assert shown["findings"] == shown["last"]["findings"] == shown["runs"][0]["findings"] == told["findings"]


async def test_findings_outlast_silence_and_a_restart(tmp_path: Path) -> None:
    """While results are unknown, the page keeps the last findings, even after a restart."""
    silent = False

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        return [response(query, rcode=2)] if silent else list(WRONG(query))  # type: ignore[arg-type] # no bytes

    async with dns_server(script) as names:
        async with _agent(tmp_path, names, interval="1s") as watched:
            assert (await watched.result()).verdict.findings
            silent = True
            while (await watched.result()).verdict.findings is not None:
                pass
            page = (await watched.client.get("/probes/hq-mx")).text
            assert "mx2.example.com is an alias of host.example.com" in page
        async with _agent(tmp_path, names) as watched:
            page = (await watched.client.get("/probes/hq-mx")).text
            assert "mx2.example.com is an alias of host.example.com" in page


async def test_a_domain_in_order_has_an_empty_list(tmp_path: Path) -> None:
    """Without findings, the page says so, and JSON has an empty list."""
    sound: Script = zone("example.com. 60 IN MX 10 mx1.example.com.", "mx1.example.com. 60 IN A 9.9.9.9")
    async with dns_server(sound) as names, _agent(tmp_path, names) as watched:
        await watched.result()
        page = (await watched.client.get("/probes/hq-mx")).text
        assert "No findings." in page
        assert (await watched.client.get("/probes/hq-mx", headers=JSON)).json()["findings"] == []
