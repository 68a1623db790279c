"""What the agent answers over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from monitor.collector import AgentCollector
from monitor.ledger.tally import Tally
from monitor.state import AgentState
from monitor.web.app import web_app
from monitor.web.serving import bind, served


class Switch:
    on = True


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    bound = bind("127.0.0.1", 0)
    app = web_app(AgentCollector(AgentState(), Tally), lambda: Switch.on)
    base = f"http://127.0.0.1:{bound.getsockname()[1]}"
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


async def test_unknown_address_is_a_clean_404(client: httpx.AsyncClient) -> None:
    """What is not there is said without a traceback."""
    answer = await client.get("/%3Cscript%3E")
    assert (answer.status_code, answer.text) == (404, "Not Found")
