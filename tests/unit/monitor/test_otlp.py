"""OTLP exports, decoded by the receiver with OpenTelemetry's own definitions."""

from __future__ import annotations

import asyncio
import gzip
import logging
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector
from pydantic import SecretStr, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from monitor.agent import StartError, running_agent
from monitor.collector import AgentCollector
from monitor.config.models import Configuration, OtlpSettings
from monitor.ledger.counters import Counters
from monitor.otlp import OtlpExporter
from monitor.state import AgentState
from monitor.web.serving import bind, served
from tests.fakes.clock import InstantClock

TOKEN = "s3cret-collector-token"


class Receiver:
    """Answers exports as told by the test, and keeps the decoded requests."""

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
    state = AgentState(["canary"], "fra1")
    for seconds in (0.003, 0.003, 0.2, 40.0):
        state.schedule_lag.observe(seconds)
    return state


def exporter_with_token(url: str, state: AgentState) -> OtlpExporter:
    settings = OtlpSettings(endpoint=url, interval="60s")
    settings = settings.model_copy(update={"headers": {"authorization": SecretStr(TOKEN)}})
    return OtlpExporter(settings, AgentCollector(state, Counters), InstantClock(), {"location": "fra1"})


def _metrics(request: ExportMetricsServiceRequest) -> dict[str, Metric]:
    (of_resource,) = request.resource_metrics
    (of_scope,) = of_resource.scope_metrics
    return {metric.name: metric for metric in of_scope.metrics}


def _labels(point: object) -> frozenset[tuple[str, str]]:
    return frozenset((each.key, each.value.string_value) for each in point.attributes)  # type: ignore[attr-defined]


async def test_every_sample_is_there_with_its_value(receiver: Receiver) -> None:
    """Exports have the same names, labels and values as a scrape, with counters as monotonic sums."""
    state = _state()
    assert await exporter_with_token(receiver.url, state).export() is None
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
    registry.register(AgentCollector(state, Counters))
    expected = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in registry.collect()
        if family.type != "histogram"
        for sample in family.samples
    }
    assert found == expected
    assert (
        "mailsonde_mailbox_unexpected_total",
        frozenset({("location", "fra1"), ("mailbox", "canary"), ("reason", "forged")}),
    ) in found
    resource = receiver.requests[0].resource_metrics[0].resource
    assert {("service.name", "mailsonde"), ("location", "fra1")} <= _labels(resource)
    assert receiver.headers[0]["authorization"] == TOKEN


async def test_histograms_count_each_bucket_by_itself(receiver: Receiver) -> None:
    """A histogram has a separate count per bucket, one beyond its bounds, and the sum."""
    await exporter_with_token(receiver.url, _state()).export()
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
    """Only the statuses in the specification are retried before the next interval."""
    receiver.answers.append(answer)
    assert await exporter_with_token(receiver.url, _state()).export() == waits


async def test_a_failure_is_logged_once_and_without_secrets(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says when exports begin to fail and when they work again, without the token."""
    caplog.set_level(logging.INFO, "mailsonde.otlp")
    receiver.answers += [Response(status_code=401), Response(TOKEN, status_code=503)]
    exporting = exporter_with_token(receiver.url, _state())
    for _ in range(4):
        await exporting.export()
    told = [record.getMessage() for record in caplog.records if record.name == "mailsonde.otlp"]
    assert told == [
        f"cannot export metrics to {receiver.url}: status 401",
        f"exporting metrics to {receiver.url} works again",
    ]
    assert TOKEN not in caplog.text


REDIRECT = b"HTTP/1.1 307 T\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"
NO_GZIP = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"


@asynccontextmanager
async def raw_receiver(*answers: bytes, then: bytes = b"") -> AsyncIterator[tuple[str, asyncio.Queue[int]]]:
    """Answer each connection with the octets of one of ``answers``, and close it.

    After an answer, ``then`` is sent repeatedly until the exporter hangs up. Without an answer, the receiver
    stays silent. Yields the URL, and a queue of how many octets of ``then`` each connection took.
    """
    left, ended = list(answers), asyncio.Queue[int]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        answer, sent = left.pop(0) if left else None, 0
        with suppress(OSError):
            writer.write(answer or b"")
            while (then or answer is None) and not (writer.is_closing() or reader.at_eof()):
                writer.write(then)
                sent += len(then)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()
        ended.put_nowait(sent)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/metrics", ended


def exporter_to(url: str, collector: Collector | None = None) -> OtlpExporter:
    return OtlpExporter(
        OtlpSettings(endpoint=url), collector or AgentCollector(_state(), Counters), InstantClock(), {}
    )


@pytest.mark.parametrize(
    "answer",
    [
        *(
            REDIRECT % place
            for place in (b"javascript:x", b"http://xn--/", b"http://a:99999999/", b"//\xff/")
        ),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"\x00\xff\r\n\r\n",
        b"",
    ],
)
async def test_no_answer_ends_the_exports(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """After any answer, the failure is logged and the next export follows."""
    async with raw_receiver(answer, answer) as (url, ended):
        task = asyncio.create_task(exporter_to(url).run())
        for _ in range(2):
            await asyncio.wait_for(ended.get(), 60)
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert f"cannot export metrics to {url}: " in caplog.text


@pytest.mark.parametrize(
    ("piece", "limit", "said"),
    [
        (
            b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100,
            10.0,
            "response_too_large: more than 65536 octets before a body",
        ),
        (b"", 0.3, "command_timeout: no answer within 0.3 s"),
    ],
    ids=["1xx", "silence"],
)
async def test_an_answer_without_end_is_given_up(
    piece: bytes, limit: float, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An endless answer or a silent receiver delays an export only until a limit."""
    monkeypatch.setattr("monitor.otlp.EXPORT_SECONDS", limit)
    async with raw_receiver(then=piece) as (url, ended):
        assert await asyncio.wait_for(exporter_to(url).export(), 60) == 0.0
        await asyncio.wait_for(ended.get(), 60)
    assert f"cannot export metrics to {url}: {said}" in caplog.text


async def test_an_answer_without_end_is_not_read() -> None:
    """Only a few buffers of a long answer are read, and its connection is closed."""
    async with raw_receiver(ENDLESS, then=b"x" * 65536) as (url, ended):
        assert await asyncio.wait_for(exporter_to(url).export(), 60) is None
        assert await asyncio.wait_for(ended.get(), 60) < 32 * 2**20


async def test_an_answer_is_not_decompressed() -> None:
    """Compressed answers are not unpacked, because a small one may expand to gigabytes."""
    async with raw_receiver(NO_GZIP) as (url, _):
        assert await exporter_to(url).export() is None


class _BrokenOnce(Collector):
    """Raises at the first collection."""

    def __init__(self) -> None:
        self.collections = 0

    def collect(self) -> Iterator[Metric]:  # type: ignore[override] # there is none
        self.collections += 1
        if self.collections == 1:
            raise RuntimeError("a defect of ours")
        yield from ()


async def test_a_defect_is_one_lost_export(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """If collecting fails once, this is logged, and the next export has the metrics."""
    exporting = exporter_to(receiver.url, _BrokenOnce())
    assert await exporting.export() == 0.0
    assert await exporting.export() is None
    assert f"cannot export metrics to {receiver.url}: RuntimeError: a defect of ours" in caplog.text


async def test_a_token_in_the_url_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Anything after the path of the endpoint is left out of the log."""
    async with raw_receiver(b"") as (url, _):
        await exporter_to(f"{url}?token={TOKEN}").export()
    assert f"cannot export metrics to {url}: " in caplog.text
    assert TOKEN not in caplog.text


async def test_a_token_that_is_repeated_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A token that the receiver repeats in place of a status line is not logged."""
    async with raw_receiver(f"{TOKEN}\r\n\r\n".encode()) as (url, _):
        assert await exporter_with_token(url, _state()).export() == 0.0
    assert f"cannot export metrics to {url}: protocol_error: " in caplog.text
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("place", "is_taken"),
    [
        ("collector.example.com", True),
        ("otel_collector:4318", True),
        ("[2001:db8::1]:4318", True),
        ("hé.example:65535", True),
        ("127.0.0.1:0", False),
        ("127.0.0.1:65536", False),
        ("exa mple", False),
        ("a..b", False),
        ("xn--a", False),
        ("a" * 64 + ".example", False),
        ("[::1%25lo]", False),
    ],
)
def test_endpoint_must_be_an_address(place: str, is_taken: bool) -> None:
    """Invalid hosts and ports are found when the configuration is read."""
    with nullcontext() if is_taken else pytest.raises(ValidationError, match="its host must be a host name"):
        OtlpSettings(endpoint=f"https://{place}/v1/metrics")


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
    """An agent exports at the start, and once more, with the latest metrics, when it stops."""
    async with running_agent(_configuration(tmp_path, receiver.url)) as agent:
        await asyncio.wait_for(receiver.arrived.wait(), 60)
        await agent.results.get()
    runs = _metrics(receiver.requests[-1])["mailsonde_probe_runs_total"].sum.data_points
    assert sum(point.as_double for point in runs) >= 1
    assert len(receiver.requests) == 2


async def test_a_receiver_that_hangs_holds_up_nothing(receiver: Receiver, tmp_path: Path) -> None:
    """While an export waits for its answer, probes run, and the agent still stops cleanly."""
    receiver.hangs = True
    async with running_agent(_configuration(tmp_path, receiver.url)) as agent:
        await asyncio.wait_for(receiver.arrived.wait(), 60)
        for _ in range(2):
            result = await asyncio.wait_for(agent.results.get(), 60)
            assert result.verdict.reason == "connect_refused"
        assert sum(each.total() for each in agent.runtime.state.skipped.values()) == 0


async def test_without_the_extra_the_start_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package, the agent does not start, and says how to install it."""
    monkeypatch.delitem(sys.modules, "monitor.otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.collector.metrics.v1.metrics_service_pb2", None)
    with pytest.raises(StartError, match=r"pip install 'mailsonde\[otlp\]'"):
        async with running_agent(_configuration(tmp_path, "http://127.0.0.1:1/v1/metrics")):
            pass
