"""Metrics by OTLP, as a receiver decodes them with OpenTelemetry's own definitions."""

from __future__ import annotations

import asyncio
import gzip
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from monitor.agent import StartError, running_agent
from monitor.collector import AgentCollector
from monitor.config.models import Configuration, OtlpSettings
from monitor.ledger.tally import Tally
from monitor.otlp import OtlpExporter
from monitor.state import AgentState
from monitor.web.serving import bind, served
from tests.fakes.clock import InstantClock

TOKEN = "s3cret-collector-token"


class Receiver:
    """Answers exports as it is told to, and keeps what it decodes."""

    def __init__(self) -> None:
        self.bound = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.bound.getsockname()[1]}/v1/metrics"
        self.requests: list[ExportMetricsServiceRequest] = []
        self.headers: list[Mapping[str, str]] = []
        self.answers: list[Response] = []
        self.arrived = asyncio.Event()
        self.hangs = False

    async def take(self, request: Request) -> Response:
        body = gzip.decompress(await request.body())
        self.requests.append(ExportMetricsServiceRequest.FromString(body))
        self.headers.append(request.headers)
        self.arrived.set()
        if self.hangs:
            await asyncio.Event().wait()
        return self.answers.pop(0) if self.answers else Response()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = Starlette(routes=[Route("/v1/metrics", made.take, methods=["POST"])])
    async with served(app, made.bound):
        yield made
    made.bound.close()


def _state() -> AgentState:
    state = AgentState(["canary"])
    for seconds in (0.003, 0.003, 0.2, 40.0):
        state.schedule_lag.observe(seconds)
    return state


@asynccontextmanager
async def exporter(receiver: Receiver, state: AgentState) -> AsyncIterator[OtlpExporter]:
    settings = OtlpSettings(endpoint=receiver.url, interval="60s")
    settings = settings.model_copy(update={"headers": {"authorization": SecretStr(TOKEN)}})
    made = OtlpExporter(settings, AgentCollector(state, Tally), InstantClock(), {"location": "fra1"})
    yield made
    await made._client.aclose()


def _metrics(request: ExportMetricsServiceRequest) -> dict[str, Metric]:
    (of_resource,) = request.resource_metrics
    (of_scope,) = of_resource.scope_metrics
    return {metric.name: metric for metric in of_scope.metrics}


def _labels(point: object) -> frozenset[tuple[str, str]]:
    return frozenset((each.key, each.value.string_value) for each in point.attributes)  # type: ignore[attr-defined]


async def test_every_sample_is_there_with_its_value(receiver: Receiver) -> None:
    """What a scrape would give arrives under the same names and labels, counters as monotonic sums."""
    state = _state()
    async with exporter(receiver, state) as exporting:
        assert await exporting.export() is None
    found = {}
    for name, metric in _metrics(receiver.requests[0]).items():
        kind = metric.WhichOneof("data")
        if kind == "histogram":
            continue
        if kind == "sum":
            assert (metric.sum.is_monotonic, metric.sum.aggregation_temporality) == (True, 2)
        for point in getattr(metric, kind).data_points:
            found[name, _labels(point)] = point.as_double
    registry = CollectorRegistry(auto_describe=False)
    registry.register(AgentCollector(state, Tally))
    expected = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in registry.collect()
        if family.type != "histogram"
        for sample in family.samples
    }
    assert found == expected
    assert (
        "mailsonde_mailbox_unexpected_total",
        frozenset({("mailbox", "canary"), ("reason", "forged")}),
    ) in found
    resource = receiver.requests[0].resource_metrics[0].resource
    assert {("service.name", "mailsonde"), ("location", "fra1")} <= _labels(resource)
    assert receiver.headers[0]["authorization"] == TOKEN


async def test_histograms_count_each_bucket_by_itself(receiver: Receiver) -> None:
    """A histogram has one count for each bucket, one beyond its bounds, and their sum."""
    async with exporter(receiver, _state()) as exporting:
        await exporting.export()
    metric = _metrics(receiver.requests[0])["mailsonde_schedule_lag_seconds"]
    (point,) = metric.histogram.data_points
    assert metric.histogram.aggregation_temporality == 2
    assert (point.count, point.sum) == (4, pytest.approx(40.206))
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    by_bound = dict(zip((*point.explicit_bounds, float("inf")), point.bucket_counts, strict=True))
    assert {bound: count for bound, count in by_bound.items() if count} == {
        0.005: 2,
        0.25: 1,
        float("inf"): 1,
    }
    assert point.time_unix_nano >= point.start_time_unix_nano > 0


@pytest.mark.parametrize(
    ("answer", "waits"),
    [
        (Response(), None),
        (Response(status_code=503), 0.0),
        (Response(status_code=429, headers={"retry-after": "7"}), 7.0),
        (Response(status_code=429, headers={"retry-after": "Fri, 31 Dec 2027"}), 0.0),
        (Response(status_code=400), None),
        (Response(status_code=401), None),
    ],
)
async def test_what_is_tried_again_soon(answer: Response, waits: float | None, receiver: Receiver) -> None:
    """Only the answers that the specification names are tried again before the next interval."""
    receiver.answers.append(answer)
    async with exporter(receiver, _state()) as exporting:
        assert await exporting.export() == waits


async def test_a_failure_is_logged_once_and_without_secrets(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells when exports begin to fail and when they work again, and never the token."""
    caplog.set_level(logging.INFO, "mailsonde.otlp")
    receiver.answers += [Response(status_code=401), Response(TOKEN, status_code=503)]
    async with exporter(receiver, _state()) as exporting:
        for _ in range(4):
            await exporting.export()
    told = [record.getMessage() for record in caplog.records if record.name == "mailsonde.otlp"]
    assert told == [
        f"metrics do not reach {receiver.url}: status 401",
        f"metrics reach {receiver.url} again",
    ]
    assert TOKEN not in caplog.text


def _configuration(tmp_path: Path, endpoint: str) -> Configuration:
    otlp = {"endpoint": endpoint, "interval": "1h"}
    return Configuration.model_validate(
        {
            "agent": {"listen": "127.0.0.1:0", "ledger": f"sqlite://{tmp_path}/l.db", "otlp": otlp},
            "servers": {"gone": {"protocol": "smtp", "host": "127.0.0.1", "port": 1, "tls": "none"}},
            "probes": [{"name": "gone", "kind": "smtp", "interval": "1s", "server": "gone"}],
        }
    )


async def test_the_agent_exports_and_says_its_last_words(receiver: Receiver, tmp_path: Path) -> None:
    """An agent sends its metrics at its start, and once more when it stops, with what came between."""
    async with running_agent(_configuration(tmp_path, receiver.url)) as agent:
        await asyncio.wait_for(receiver.arrived.wait(), 10)
        await agent.results.get()
    runs = _metrics(receiver.requests[-1])["mailsonde_probe_runs_total"].sum.data_points
    assert sum(point.as_double for point in runs) >= 1
    assert len(receiver.requests) == 2


async def test_a_receiver_that_hangs_holds_up_nothing(receiver: Receiver, tmp_path: Path) -> None:
    """While an export waits for its answer, probes run, and the agent still stops in order."""
    receiver.hangs = True
    async with running_agent(_configuration(tmp_path, receiver.url)) as agent:
        await asyncio.wait_for(receiver.arrived.wait(), 10)
        for _ in range(2):
            result = await asyncio.wait_for(agent.results.get(), 10)
            assert result.verdict.reason == "connect_refused"
        assert sum(agent.assembly.state.skipped.values()) == 0


async def test_without_the_extra_the_start_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the package is missing, the agent does not start, and the command that helps is told."""
    monkeypatch.delitem(sys.modules, "monitor.otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.collector.metrics.v1.metrics_service_pb2", None)
    with pytest.raises(StartError, match=r"pip install 'mailsonde\[otlp\]'"):
        async with running_agent(_configuration(tmp_path, "http://127.0.0.1:1/v1/metrics")):
            pass
