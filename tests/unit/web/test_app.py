"""What the agent answers over HTTP besides its pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from monitor.assembly import assembled
from monitor.collector import AgentCollector
from monitor.config.models import Configuration
from monitor.recent import Recent
from monitor.web.app import web_app
from monitor.web.pages import Pages
from monitor.web.probe_endpoint import ProbeEndpoint
from monitor.web.serving import bind, served
from monitor.web.views import Views
from tests.fakes.clock import InstantClock


class Switch:
    on = True


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    configuration = Configuration.model_validate(
        {
            "agent": {"ledger": f"sqlite://{tmp_path}/ledger.db"},
            "probes": [{"name": "hq-mx", "kind": "mx", "domain": "example.com"}],
        }
    )
    bound = bind("127.0.0.1", 0)
    base = f"http://127.0.0.1:{bound.getsockname()[1]}"
    async with assembled(configuration, InstantClock(), "test") as assembly:
        pages = Pages(Views(assembly, Recent(0.0)), assembly.ledger)
        collector = AgentCollector(assembly.state, lambda: assembly.ledger.tally)
        app = web_app(collector, lambda: Switch.on, pages, ProbeEndpoint(assembly))
        async with served(app, bound), httpx.AsyncClient(base_url=base, trust_env=False) as made:
            yield made
    bound.close()


async def test_metrics_in_prometheus_text(client: httpx.AsyncClient) -> None:
    """A scraper that asks for text gets Prometheus' text format."""
    answer = await client.get("/metrics", headers={"accept": "text/plain;version=0.0.4"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE mailsonde_build_info gauge" in answer.text


async def test_metrics_in_openmetrics(client: httpx.AsyncClient) -> None:
    """A scraper that asks for OpenMetrics gets it, with its end mark."""
    answer = await client.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


async def test_ready_follows_the_agent(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """/-/healthy says that the process lives, /-/ready whether probes are run."""
    assert (await client.get("/-/healthy")).status_code == 200
    assert (await client.get("/-/ready")).status_code == 200
    monkeypatch.setattr(Switch, "on", False)
    assert (await client.get("/-/ready")).status_code == 503
    assert (await client.get("/-/healthy")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/%3Cscript%3E", "/probes/%3Cscript%3E", "/probes/hq-mx/runs/../../x", "/static/../app.py"]
)
async def test_unknown_address_is_a_clean_404(path: str, client: httpx.AsyncClient) -> None:
    """What is not there is said without a traceback and without markup from the address."""
    answer = await client.get(path)
    assert answer.status_code == 404
    assert "<script>" not in answer.text


@pytest.mark.parametrize("run", ["0" * 32, "x", "%00", "a" * 5000, "' OR 1=1"])
async def test_unknown_run_is_a_clean_404(run: str, client: httpx.AsyncClient) -> None:
    """A run id that does not exist is told in a sentence, as HTML or JSON."""
    answer = await client.get(f"/probes/hq-mx/runs/{run}")
    assert answer.status_code == 404
    assert "no such run" in answer.text
    answer = await client.get(f"/probes/hq-mx/runs/{run}", headers={"accept": "application/json"})
    assert (answer.status_code, "no such run" in answer.json()["error"]) == (404, True)


async def test_pages_before_the_first_run(client: httpx.AsyncClient) -> None:
    """A probe that has not run yet has its row and its page, which say so."""
    for path in ("/", "/probes/hq-mx"):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert "No run has ended yet." in answer.text
