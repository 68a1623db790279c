"""A list of domains in one entry: each domain is watched as if it had an entry of its own."""

from __future__ import annotations

from pathlib import Path

import dns.message
import httpx

from monitor.agent import running_agent
from monitor.config.models import Configuration
from probes.core.reasons import Reason
from tests.fakes.dns_server import dns_server, zone

DOMAINS = ["silent.test", "sound.test", "absent.test"]
SOUND = zone("sound.test. 300 IN MX 10 mx.sound.test.", "mx.sound.test. 300 IN A 192.0.2.1")


def configuration(directory: Path, port: int) -> Configuration:
    resolver = {"address": "127.0.0.1", "port": port, "timeout": "300ms"}
    probe = {"name": "ours", "kind": "mx", "interval": "1h", "domain": DOMAINS, "allow_private": True}
    return Configuration.model_validate(
        {
            "agent": {"listen": "127.0.0.1:0", "ledger": f"sqlite:{directory}/ledger.db"},
            "probes": [probe | {"resolver": resolver}],
        }
    )


def answer(query: dns.message.Message) -> list[dns.message.Message]:
    is_silent = query.question[0].name.to_text() == "silent.test."
    return (
        [] if is_silent else [message for message in SOUND(query) if isinstance(message, dns.message.Message)]
    )


async def test_each_domain_is_a_target_of_its_own(tmp_path: Path) -> None:
    """Each domain has its run, its metrics from the start, its page and its answer of /probe."""
    async with dns_server(answer) as server, running_agent(configuration(tmp_path, server.port)) as agent:
        assert set(agent.runtime.state.probes) == {("ours", domain) for domain in DOMAINS}
        results = [await agent.results.get() for _ in DOMAINS]
        assert {result.target: result.verdict.reason for result in results} == {
            "silent.test": Reason.DNS_TIMEOUT,
            "sound.test": Reason.NONE,
            "absent.test": Reason.DNS_NXDOMAIN,
        }
        assert results[-1].target == "silent.test"  # the others did not wait for it
        assert {result.probe for result in results} == {"ours"}
        async with httpx.AsyncClient(base_url=agent.address, trust_env=False) as client:
            metrics = (await client.get("/metrics")).text
            for domain, outcome in (("sound.test", "ok"), ("silent.test", "unknown")):
                (runs,) = (
                    line
                    for line in metrics.splitlines()
                    if line.startswith("mailsonde_probe_runs_total")
                    and f'target="{domain}"' in line
                    and f'outcome="{outcome}"' in line
                )
                assert float(runs.split()[-1]) == 1
            page = await client.get("/probes/ours?target=absent.test", headers={"accept": "application/json"})
            assert page.json()["target"] == "absent.test"
            probed = await client.get("/probe?module=ours&target=sound.test")
            assert (probed.status_code, "probe_success 1.0" in probed.text) == (200, True)
            assert (await client.get("/probe?module=ours")).status_code == 400
