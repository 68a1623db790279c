"""The agent's HTTP answers other than its pages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from monitor.collector import AgentCollector
from monitor.config.models import Configuration
from monitor.exposition import Family, Gauge
from monitor.labels import Labels
from monitor.recent import Recent
from monitor.runtime import open_runtime
from monitor.web.app import web_app
from monitor.web.metrics import Families
from monitor.web.pages import Pages
from monitor.web.probe_endpoint import ProbeEndpoint
from monitor.web.serving import bind, served
from monitor.web.views import Views
from tests.fakes.clock import InstantClock


class Switch:
    on = True


Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Return a function that serves an application with one probe that never runs, and makes a client."""
    configuration = Configuration.model_validate(
        {
            "agent": {"ledger": f"sqlite://{tmp_path}/ledger.db"},
            "probes": [{"name": "hq-mx", "kind": "mx", "domain": "example.com"}],
        }
    )

    @asynccontextmanager
    async def serve(collector: Families | None = None) -> AsyncIterator[httpx.AsyncClient]:
        bound = bind("127.0.0.1", 0)
        base = f"http://127.0.0.1:{bound.getsockname()[1]}"
        async with open_runtime(configuration, InstantClock(), "test") as runtime:
            pages = Pages(Views(runtime, Recent(0.0)), runtime.ledger)
            collector = collector or AgentCollector(runtime.state, lambda: runtime.ledger.counters)
            app = web_app(
                collector, lambda: Switch.on, pages, ProbeEndpoint(runtime), ["Agent.Example.com", "fd00::1"]
            )
            async with served(app, bound), httpx.AsyncClient(base_url=base, trust_env=False) as made:
                yield made
        bound.close()

    return serve


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    async with serve() as made:
        yield made


class Slow:
    """Metrics that wait for permission to finish, and count how often and how many at once were made."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = self.going_on = self.most_at_once = 0

    def families(self) -> Iterator[Family]:
        self.begun += 1
        self.going_on += 1
        self.most_at_once = max(self.most_at_once, self.going_on)
        assert self.go_on.wait(30)
        self.going_on -= 1
        yield Gauge("begun", "How often they were made.", [(Labels({"location": "here"}), self.begun)])


async def test_metrics_in_prometheus_text(client: httpx.AsyncClient) -> None:
    """A scraper that accepts text gets Prometheus' text format."""
    answer = await client.get("/metrics", headers={"accept": "text/plain;version=0.0.4"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE mailsonde_build_info gauge" in answer.text


async def test_metrics_in_openmetrics(client: httpx.AsyncClient) -> None:
    """A scraper that accepts OpenMetrics gets it, with its end mark."""
    answer = await client.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize("media_type", ["application/openmetrics-text", "text/plain"])
@pytest.mark.parametrize("version", ["abc", "1.x", "", "9" * 5000, "=;,"])
async def test_a_format_that_nobody_knows_is_answered_in_the_plain_one(
    media_type: str, version: str, client: httpx.AsyncClient
) -> None:
    """A malformed version in Accept is answered with plain metrics."""
    accept = f"{media_type}; version={version}; escaping=values"
    answer = await client.get("/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    assert "mailsonde_build_info{" in answer.text


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip", "gzip"), ("identity", None), ("br", None)])
async def test_metrics_are_compressed_for_those_that_accept_it(
    accepted: str, encoding: str | None, client: httpx.AsyncClient
) -> None:
    """A scraper gets gzip if it accepts it, and the same text otherwise."""
    answer = await client.get("/metrics", headers={"accept-encoding": accepted})
    assert answer.headers.get("content-encoding") == encoding
    assert "mailsonde_build_info{" in answer.text


async def test_who_asks_at_the_same_time_gets_the_same_text(serve: Serve) -> None:
    """Thirty concurrent scrapers share one rendering; a later one gets a new rendering."""
    slow = Slow()
    async with serve(slow) as client:
        asked = [asyncio.create_task(client.get("/metrics")) for _ in range(30)]
        while not slow.begun:
            await client.get("/-/healthy")
        slow.go_on.set()
        answers = await asyncio.gather(*asked)
        assert {
            (answer.status_code, '\nbegun{location="here"} 1\n' in answer.text) for answer in answers
        } == {(200, True)}
        async with asyncio.timeout(60):
            while '\nbegun{location="here"} 1\n' in (answer := await client.get("/metrics")).text:
                pass
        assert '\nbegun{location="here"} 2\n' in answer.text


async def test_two_texts_are_made_at_once_and_a_few_wait(serve: Serve) -> None:
    """Of forty requests in different formats, two run, twenty wait, and the others get 503."""
    slow = Slow()
    async with serve(slow) as client:
        accepts = [f"application/openmetrics-text; version=1.0.{number}" for number in range(40)]
        asked = [
            asyncio.create_task(client.get("/metrics", headers={"accept": accept})) for accept in accepts
        ]
        for _, first in zip(range(18), asyncio.as_completed(asked), strict=False):
            answer = await first
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        slow.go_on.set()
        statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
        assert (statuses.count(200), slow.most_at_once) == (22, 2)


async def test_ready_follows_the_agent(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """/-/healthy says that the process is alive, /-/ready whether probes run."""
    assert (await client.get("/-/healthy")).status_code == 200
    assert (await client.get("/-/ready")).status_code == 200
    monkeypatch.setattr(Switch, "on", False)
    assert (await client.get("/-/ready")).status_code == 503
    assert (await client.get("/-/healthy")).status_code == 200


PAGES = ["/", "/probes/hq-mx", "/probes/hq-mx/runs/x", "/events", "/static/live.js", "/nothing"]


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9725", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1"],
)
async def test_a_name_that_is_not_the_agents_shows_nothing(
    path: str, host: str, client: httpx.AsyncClient
) -> None:
    """The pages are refused under an unknown host name, with the setting that would allow it."""
    answer = await client.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert "add the name to agent.hosts" in answer.text
    assert "evil" not in answer.text
    assert "hq-mx" not in answer.text


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "127.0.0.1:9725",
            "192.0.2.7:80",
            "[::1]:9725",
            "[fd00::1]",
            "localhost",
            "LOCALHOST:1",
        ),
        *("agent.example.com", "AGENT.example.com.:9725"),
    ],
)
async def test_the_agents_own_names_show_its_pages(host: str, client: httpx.AsyncClient) -> None:
    """IP addresses, localhost and the configured names open the pages, with any port and case."""
    assert (await client.get("/", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/-/ready", "/probe"])
async def test_programs_may_call_the_agent_what_they_like(path: str, client: httpx.AsyncClient) -> None:
    """Prometheus in a cluster may use the service's name without any setting."""
    answer = await client.get(path, headers={"host": "mailsonde.monitoring.svc:9725"})
    assert answer.status_code == (400 if path == "/probe" else 200)  # the answer lists the choices


@pytest.mark.parametrize("path", ["/metrics/", "/-/ready/", "/probes/hq-mx/", "/static/"])
async def test_nobody_is_sent_elsewhere(path: str, client: httpx.AsyncClient) -> None:
    """A trailing slash is 404, because a redirect would lead to any host in the request."""
    answer = await client.get(path, headers={"host": "localhost"})
    assert answer.status_code == 404
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    "path", ["/%3Cscript%3E", "/probes/%3Cscript%3E", "/probes/hq-mx/runs/../../x", "/static/../app.py"]
)
async def test_unknown_address_is_a_clean_404(path: str, client: httpx.AsyncClient) -> None:
    """An unknown path is 404 without a traceback or markup from the path."""
    answer = await client.get(path)
    assert answer.status_code == 404
    assert "<script>" not in answer.text


@pytest.mark.parametrize("run", ["0" * 32, "x", "%00", "a" * 5000, "' OR 1=1"])
async def test_unknown_run_is_a_clean_404(run: str, client: httpx.AsyncClient) -> None:
    """An unknown run id is 404 with a sentence, as HTML or JSON."""
    answer = await client.get(f"/probes/hq-mx/runs/{run}")
    assert answer.status_code == 404
    assert "no such run" in answer.text
    answer = await client.get(f"/probes/hq-mx/runs/{run}", headers={"accept": "application/json"})
    assert (answer.status_code, "no such run" in answer.json()["error"]) == (404, True)


async def test_pages_before_the_first_run(client: httpx.AsyncClient) -> None:
    """A probe that has not run yet has a row and a page, which say so."""
    for path in ("/", "/probes/hq-mx"):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert "No run has finished yet." in answer.text
