"""What the queries of dashboards and rules read and return, from their parsed expressions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

import promql_parser
import yaml

from monitor.cadence import CADENCES
from monitor.state import DELIVERY_BUCKETS
from probes.core.finding import Check, Severity
from probes.core.histogram import LAG_BUCKETS
from probes.core.reasons import Outcome, Reason
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Unexpected
from probes.delivery.message_life import ArrivalIssue

_DOCS = Path(__file__).parents[3] / "docs"
_REFERENCES = (_DOCS / "reference" / "metrics.md", _DOCS / "windows.md")
_RECORDING = _DOCS.parent / "alerts" / "rules" / "mailsonde-dashboards.rules.yaml"
_STAND_INS = {"$__rate_interval": timedelta(minutes=1017), "$__range": timedelta(minutes=1019)}
"""Times that take the place of Grafana's variables, because PromQL itself knows none."""

_VALUES: dict[str, set[str]] = {
    "state": set(MessageState),
    "outcome": set(Outcome),
    "reason": {*Reason, *Unexpected, "missed", "overrun", "overload"},
    "issue": set(ArrivalIssue),
    "check": set(Check),
    "severity": set(Severity),
    "result": {"good", "bad", "issued", "refused", "unavailable"},
    "alertstate": {"firing"},
    "cadence": set(CADENCES.values()),
    "threshold": {"overdue", "slow", "stale", "down"},
    "le": {*map(str, DELIVERY_BUCKETS + LAG_BUCKETS), "+Inf"},
}
"""What labels of a few values may be asked for."""


@dataclass(frozen=True)
class Read:
    """A selector: the metric, its matchers, and the function and window that read it, if any."""

    metric: str
    matchers: frozenset[tuple[str, str, str]]
    function: str | None
    window: str | None


def parse(promql: str) -> promql_parser.Expr:
    """Return the parsed expression; raises ValueError if it is not PromQL."""
    for variable, time in _STAND_INS.items():
        promql = promql.replace(variable, promql_parser.display_duration(time))
    return promql_parser.parse(promql)


def reads(node: object, function: str | None = None) -> Iterator[Read]:
    """Yield each selector of an expression."""
    if isinstance(node, promql_parser.MatrixSelector):
        yield _read(node.vector_selector, function, node.range)
    elif isinstance(node, promql_parser.VectorSelector):
        yield _read(node, None, None)
    else:
        name = node.func.name if isinstance(node, promql_parser.Call) else function
        for child in _children(node):
            yield from reads(child, name)


def _read(node: promql_parser.VectorSelector, function: str | None, window: timedelta | None) -> Read:
    matchers = frozenset((m.name, str(m.op).rpartition(".")[2], m.value) for m in node.matchers.matchers)
    variables = {time: variable for variable, time in _STAND_INS.items()}
    shown = None if window is None else variables.get(window, promql_parser.display_duration(window))
    return Read(node.name, matchers, function, shown)


def aggregated(node: object) -> Iterator[str]:
    """Yield each label that an expression aggregates by; `without` is harmless if a label is not there."""
    if (
        isinstance(node, promql_parser.AggregateExpr)
        and node.modifier
        and node.modifier.type == promql_parser.AggModifierType.By
    ):
        yield from node.modifier.labels
    for child in _children(node):
        yield from aggregated(child)


def _children(node: object) -> list[object]:
    children = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "param")]
    return [child for child in (*children, *(getattr(node, "args", None) or [])) if child is not None]


def given(node: object) -> frozenset[str]:
    """Return the labels of an expression's series; none if it returns one number."""
    if isinstance(node, promql_parser.VectorSelector):
        return labels_of(node.name)
    if isinstance(node, promql_parser.MatrixSelector):
        return labels_of(node.vector_selector.name)
    if isinstance(node, promql_parser.AggregateExpr):
        if is_top(node):
            return given(node.expr)
        return frozenset(node.modifier.labels if node.modifier else ())
    if isinstance(node, promql_parser.Call):
        labels = frozenset[str]().union(*map(given, node.args))
        return labels - {"le"} if node.func.name == "histogram_quantile" else labels
    if isinstance(node, promql_parser.BinaryExpr):
        return given(node.lhs) | given(node.rhs)
    return given(node.expr) if hasattr(node, "expr") else frozenset()


def is_top(node: object) -> bool:
    """Return whether an expression returns only its greatest or least values."""
    return isinstance(node, promql_parser.AggregateExpr) and str(node.op) in {"topk", "bottomk"}


def labels_of(metric: str) -> frozenset[str]:
    """Return the labels of a metric; raises KeyError if it is neither exported nor recorded for panels."""
    return readable()[metric]


def strange(expression: promql_parser.Expr, known: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """Yield the unknown metrics, labels and label values in an expression."""
    labels = set[str]()
    for read in reads(expression):
        labels |= known.get(read.metric, frozenset())
        if read.metric not in known or not {name for name, _, _ in read.matchers} <= known[read.metric]:
            yield f"reads {read}"
        for name, _, value in read.matchers:
            possible = _VALUES.get(name)
            for each in value.split("|") if possible is not None else ():
                if not any(re.fullmatch(each, one) for one in possible or ()):
                    yield f"asks for {name} {each!r}"
    if not set(aggregated(expression)) <= labels:
        yield f"aggregates by a label that is not there: {sorted(set(aggregated(expression)) - labels)}"


def counters() -> set[str]:
    """Return the names of all counters."""
    return {name for name in exported() if name.endswith(("_total", "_bucket", "_count", "_sum"))}


@cache
def recorded() -> dict[str, frozenset[str]]:
    """Return the labels of every metric that the rules record for dashboards, from exported ones."""
    (group,) = yaml.safe_load(_RECORDING.read_text())["groups"]
    return {
        rule["record"]: frozenset({*aggregated(parse(rule["expr"])), *rule.get("labels", ())})
        for rule in group["rules"]
    }


@cache
def readable() -> dict[str, frozenset[str]]:
    """Return the labels of every metric that panels may read."""
    return exported() | recorded()


@cache
def exported() -> dict[str, frozenset[str]]:
    """Return the labels of every metric, from the generated reference and, of other exporters, the docs."""
    scraped = {"job", "instance"}
    alert = {*scraped, "location", "alertname", "alertstate", "probe", "kind", "target"}
    known = {"up": frozenset(scraped), "ALERTS": frozenset(alert)}
    for line in "\n".join(path.read_text() for path in _REFERENCES).splitlines():
        if line.startswith(("| `mailsonde_", "| `process_", "| `windows_")):
            name, kind, cell = (cell.strip(" `") for cell in line.split("|")[1:4])
            labels = frozenset(cell.split(", ") if cell else ()) | scraped
            if kind == "histogram":
                known |= {f"{name}_bucket": labels | {"le"}, f"{name}_count": labels, f"{name}_sum": labels}
            elif kind == "summary":
                known |= {f"{name}_count": labels, f"{name}_sum": labels}
            else:
                known[name] = labels
    return known
