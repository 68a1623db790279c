"""The text of the metrics: the same as prometheus_client's, whatever is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date
from itertools import groupby

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import exposition as plain
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from monitor.collector import AgentCollector
from monitor.exposition import exposition
from monitor.ledger.counters import Counters
from monitor.state import AgentState, Exchange
from probes.core.clock import SystemClock
from probes.messages.exchange_report import STAGES, ExchangeReport
from probes.oauth2.settings import GenericOAuth2
from probes.oauth2.tokens import TokenSource
from tests.fakes.agent_state import RouteProbe, busy_route, smtp_probe

ENTRY = GenericOAuth2.model_construct(provider="generic", credential_expires=date(2027, 5, 1))
HOSTILE = '\\ "quoted" {braces}, and=a \\n comma'


@pytest.fixture
def collector() -> AgentCollector:
    agent = AgentState(["canary"], location=HOSTILE)
    counters = Counters().updated(busy_route(agent, "trip"))
    agent.add(smtp_probe(description=HOSTILE, labels={"team": HOSTILE}), now=1_750_334_000.0)
    agent.add(RouteProbe(HOSTILE, name="odd"), now=1.0)
    source = TokenSource("contoso", ENTRY, SystemClock())
    source.requests.obtained_at, source.requests.expires_at = 1_750_334_000.25, 1_750_337_600.25
    return AgentCollector(agent, lambda: counters, lambda *_: 75.0, lambda: {HOSTILE: source})


def _text(collector: AgentCollector, *, as_openmetrics: bool) -> str:
    return b"".join(exposition(collector.families(), openmetrics=as_openmetrics)).decode()


def _parsed(families: Iterable[Metric]) -> list[object]:
    return [(f.name, f.type, f.documentation, [s[:3] for s in f.samples]) for f in families]


@pytest.mark.parametrize(
    ("as_openmetrics", "theirs", "parse"),
    [(False, plain.generate_latest, parse_plain), (True, openmetrics.generate_latest, parse_openmetrics)],
    ids=["text 0.0.4", "OpenMetrics"],
)
def test_it_says_what_the_reference_says(
    collector: AgentCollector,
    as_openmetrics: bool,
    theirs: Callable[[CollectorRegistry], bytes],
    parse: Callable[[str], Iterable[Metric]],
) -> None:
    """Names, types, help, labels and values are those of prometheus_client's own text, in the same order."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    text = _text(collector, as_openmetrics=as_openmetrics)
    found = _parsed(parse(text))
    assert found == _parsed(parse(theirs(registry).decode()))
    assert HOSTILE in {s.labels.get("description") for f in parse(text) for s in f.samples}
    assert text.endswith("# EOF\n") is as_openmetrics


def test_each_metric_comes_in_one_piece(collector: AgentCollector) -> None:
    """All series of a metric follow each other, as both formats require, however many routes there are."""
    lines = _text(collector, as_openmetrics=False).splitlines()
    heads = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    assert len(heads) == len(set(heads))
    names = [name for name, _ in groupby(lines, lambda line: line.split("{")[0]) if "#" not in name]
    assert not [n for n in names if names.count(n) > 1 and not n.endswith(("_bucket", "_sum", "_count"))]


def _samples_of_a_route(exchange: Exchange | None) -> int:
    agent = AgentState(["canary"], "fra1")
    empty = AgentCollector(agent, Counters)
    base = sum(len(family.samples) for family in empty.collect())
    counters = Counters().updated(busy_route(agent, "trip"))
    for delivery in agent.deliveries.values():
        delivery.exchange = exchange
    collector = AgentCollector(agent, lambda: counters, lambda *_: 75.0)
    return sum(len(family.samples) for family in collector.collect()) - base


def test_a_route_has_few_samples() -> None:
    """A busy round trip with an objective, hops and authentication has at most 45 samples.

    One through Exchange has at most 8 more: a sample for each stage, the total and the filter's words.
    """
    assert _samples_of_a_route(None) <= 45
    told = ExchangeReport(dict.fromkeys(STAGES, 1.0), end_to_end_seconds=6.0, scl="1", sfv="NSPM", cat="NONE")
    assert _samples_of_a_route(Exchange.of(told)) <= 45 + 8
