"""Exports the metrics by OTLP over HTTP, for sites whose collector cannot scrape the agent.

The export uses the same collector as `/metrics`, so that both show the same values.
Needs the extra ``mailsonde[otlp]``: OpenTelemetry's own protobuf definitions.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from prometheus_client import core
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from monitor.config.models import OtlpSettings
from probes.core.clock import Clock
from probes.core.faults import ProbeFault, legible
from probes.core.header_fields import withhold
from probes.core.verdict import PhaseTimer
from probes.protocols.https import HttpClient, Response, http_context, origin_of

EXPORT_SECONDS = 10.0
"""Time limit of one export in seconds, from connecting to the end of the answer."""

LAST_WORDS = 1.0
"""Time limit of the last export, when the agent stops, in seconds."""

RETRYABLE = frozenset({429, 502, 503, 504})
"""Statuses that allow an early retry (OTLP 1.x, section "Failures")."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the first retry after a temporary failure; the pause doubles each time."""

ANSWER_LIMIT = 4096
"""Maximum octets to read of an answer, whose content is ignored."""

_CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
_FAILURE_LIMIT = 200

_log = logging.getLogger("mailsonde.otlp")


class Times(NamedTuple):
    """Start of counting and time of observation, in unix nanoseconds."""

    started: int
    now: int


class OtlpExporter:
    """Sends all metrics each interval: one export at a time, on its own task, without a queue."""

    def __init__(
        self, settings: OtlpSettings, collector: Collector, clock: Clock, resource: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._collector = collector
        self._clock = clock
        self._resource = {"service.name": "mailsonde", "service.version": version("mailsonde"), **resource}
        self._started = clock.time()
        self._failing = False
        self._headers = {
            **{name.lower(): secret.get_secret_value() for name, secret in settings.headers.items()},
            "content-type": "application/x-protobuf",
            "content-encoding": "gzip",
        }
        if origin_of(settings.endpoint).scheme == "https":
            with suppress(ProbeFault):  # if this fails, the first export will report it
                http_context(settings.tls_ca)  # takes 20 ms, which should not delay probes later

    async def run(self) -> None:
        """Export until cancelled, and then once more."""
        try:
            pause = FIRST_PAUSE
            while True:
                wait = await self.export()
                if wait is None:
                    pause = FIRST_PAUSE
                    await self._clock.sleep(self._settings.interval)
                else:
                    await self._clock.sleep(min(max(wait, pause), self._settings.interval))
                    pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await self.export()

    async def export(self) -> float | None:
        """Send all metrics once; return the minimum seconds to wait if an early retry is allowed.

        An error is logged and ends only this export, because nothing restarts the exporting task.
        """
        try:
            answer = await self._answer_to(await asyncio.to_thread(self._body))
        except ProbeFault as fault:
            self._tell(str(fault))
            return 0.0
        except Exception as error:  # a defect of ours
            self._tell(f"{type(error).__name__}: {error}")
            return 0.0
        if answer.is_success:
            self._tell(None)
            return None
        self._tell(f"status {answer.status}")
        if answer.status not in RETRYABLE:
            return None
        after = answer.header("retry-after")
        return float(after) if after.isascii() and after.isdecimal() and len(after) < 6 else 0.0

    async def _answer_to(self, body: bytes) -> Response:
        settings, phases = self._settings, PhaseTimer(self._clock)
        for name, secret in settings.headers.items():  # a receiver may repeat them where no answer is
            withhold(name, secret, phases.transcript.redaction)
        async with HttpClient(phases, seconds=EXPORT_SECONDS, ca=settings.tls_ca) as client:
            return await client.request(
                "POST", settings.endpoint, headers=self._headers, content=body, limit=ANSWER_LIMIT
            )

    def _tell(self, failure: str | None) -> None:
        """Log only when exports begin to fail and when they work again."""
        endpoint = self._settings.endpoint.partition("?")[0]  # a token may follow
        if failure is not None and not self._failing:
            _log.warning("cannot export metrics to %s: %s", endpoint, legible(failure, _FAILURE_LIMIT))
        elif failure is None and self._failing:
            _log.info("exporting metrics to %s works again", endpoint)
        self._failing = failure is not None

    def _body(self) -> bytes:
        request = request_of(self._collector.collect(), self._resource, self._started, self._clock.time())
        return gzip.compress(request.SerializeToString(), 5)


def request_of(
    families: Iterable[core.Metric], resource: Mapping[str, str], started: float, now: float
) -> ExportMetricsServiceRequest:
    """Return an export request with ``families``; timestamps in unix seconds.

    Counters become monotonic cumulative sums under their Prometheus names, histograms have separate counts
    per bucket, and everything else is a gauge (OTLP data model, "Metric points").
    """
    times = Times(int(started * 1e9), int(now * 1e9))
    metrics = []
    for family in families:
        if family.type == "histogram":
            metrics.append(_histogram(family, times))
        else:
            metrics += _numbers(family, times)
    scope = ScopeMetrics(
        scope=InstrumentationScope(name="mailsonde", version=version("mailsonde")), metrics=metrics
    )
    about = Resource(attributes=_attributes(resource))
    return ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=about, scope_metrics=[scope])]
    )


def _numbers(family: core.Metric, times: Times) -> list[Metric]:
    by_name: dict[str, list[NumberDataPoint]] = defaultdict(list)
    for sample in family.samples:
        point = NumberDataPoint(
            attributes=_attributes(sample.labels),
            as_double=sample.value,
            start_time_unix_nano=times.started,
            time_unix_nano=times.now,
        )
        by_name[sample.name].append(point)
    metrics = []
    for name, points in by_name.items():
        if family.type == "counter":
            total = Sum(data_points=points, aggregation_temporality=_CUMULATIVE, is_monotonic=True)
            metrics.append(Metric(name=name, description=family.documentation, sum=total))
        else:
            gauge = Gauge(data_points=points)
            metrics.append(Metric(name=name, description=family.documentation, gauge=gauge))
    return metrics


def _histogram(family: core.Metric, times: Times) -> Metric:
    series: dict[tuple[tuple[str, str], ...], list[Sample]] = defaultdict(list)
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        series[tuple(labels.items())].append(sample)
    points = [_histogram_point(dict(labels), samples, times) for labels, samples in series.items()]
    histogram = Histogram(data_points=points, aggregation_temporality=_CUMULATIVE)
    return Metric(name=family.name, description=family.documentation, unit="s", histogram=histogram)


def _histogram_point(
    labels: Mapping[str, str], samples: Iterable[Sample], times: Times
) -> HistogramDataPoint:
    """Return a point with separate counts per bucket: Prometheus' counts are cumulative."""
    bounds, counts, total, below = [], [], 0.0, 0
    for sample in samples:
        if sample.name.endswith("_sum"):
            total = sample.value
        elif sample.name.endswith("_bucket"):
            counts.append(int(sample.value) - below)
            below = int(sample.value)
            if sample.labels["le"] != "+Inf":
                bounds.append(float(sample.labels["le"]))
    return HistogramDataPoint(
        attributes=_attributes(labels),
        count=below,
        sum=total,
        bucket_counts=counts,
        explicit_bounds=bounds,
        start_time_unix_nano=times.started,
        time_unix_nano=times.now,
    )


def _attributes(labels: Mapping[str, str]) -> list[KeyValue]:
    return [KeyValue(key=name, value=AnyValue(string_value=value)) for name, value in labels.items()]
