"""Families of metrics, and their text in Prometheus' format and in OpenMetrics.

The collector makes the families. Their text and prometheus_client's metrics, for whatever is not text, come
from the same rows. prometheus_client's own text of 10,000 probes would take many times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from prometheus_client.core import Metric

from monitor.labels import Labels, label_text

ROWS_AT_ONCE = 500
"""Rows joined at a time. More would keep other threads from the interpreter for milliseconds."""

Values = tuple[Any, ...]
"""The values of a series' labels: `Labels`, and then a text for each further name of the family."""


class Family:
    """A metric: its name without suffix, its meaning, and a row for each series.

    ``labels`` are the names of all its labels, in the order of each row's values.
    """

    type: ClassVar[str]
    suffix: ClassVar[str] = ""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self.name = name
        self.documentation = documentation
        self._names = tuple(labels)
        self._rows: list[Any] = []
        self._ends: dict[Values, str] = {}

    def add_metric(self, labels: Values, value: float) -> None:
        """Add a series with its value."""
        self._rows.append((labels, value))

    def metric(self) -> Metric:
        """Return the family as prometheus_client's."""
        metric = Metric(self.name, self.documentation, self.type)
        for name, labels, value in self._samples():
            metric.add_sample(name, labels, float(value))
        return metric

    def text(self, *, openmetrics: bool) -> Iterator[str]:
        """Yield the family's lines in pieces, with the lines of one series together."""
        yield self._head(openmetrics=openmetrics)
        for begin in range(0, len(self._rows), ROWS_AT_ONCE):
            yield "".join(self._lines(self._rows[begin : begin + ROWS_AT_ONCE]))

    def _head(self, *, openmetrics: bool) -> str:
        name, kind, about = self.name, self.type, self.documentation.replace("\\", r"\\").replace("\n", r"\n")
        if openmetrics:
            about = about.replace('"', r"\"")
        else:
            name, kind = name + self.suffix, {"info": "gauge"}.get(kind, kind)
        return f"# HELP {name} {about}\n# TYPE {name} {kind}\n"

    def _lines(self, rows: Iterable[Any]) -> Iterable[str]:
        begin, end = f"{self.name}{self.suffix}{{", self._end
        return [f"{begin}{labels[0].text}{end(labels[1:])}}} {value}\n" for labels, value in rows]

    def _samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for labels, value in self._rows:
            yield self.name + self.suffix, self._pairs(labels), value

    def _end(self, values: Values) -> str:
        """Return the text of further labels, which few combinations of values have."""
        try:
            return self._ends[values]
        except KeyError:
            text = "".join(f",{label_text([pair])}" for pair in self._further(values))
            return self._ends.setdefault(values, text)

    def _pairs(self, labels: Values) -> dict[str, str]:
        shared: Labels = labels[0]
        return {**shared.pairs, **dict(self._further(labels[1:]))}

    def _further(self, values: Values) -> list[tuple[str, str]]:
        names = self._names[len(self._names) - len(values) :]
        return [(name, str(value)) for name, value in zip(names, values, strict=True)]


class Gauge(Family):
    """A value that goes up and down."""

    type = "gauge"


class Counter(Family):
    """A count that only grows."""

    type = "counter"
    suffix = "_total"


class Info(Family):
    """Labels that say something of a series, beside those that it shares; its value is always 1."""

    type = "info"
    suffix = "_info"

    def add_info(self, labels: Values, said: Mapping[str, str]) -> None:
        """Add a series with the labels ``said``."""
        self._rows.append((labels, said))

    def _lines(self, rows: Iterable[Any]) -> Iterable[str]:
        for (shared,), said in rows:
            yield f"{self.name}_info{{{shared.text},{label_text(said.items())}}} 1\n"

    def _samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for labels, said in self._rows:
            yield f"{self.name}_info", {**self._pairs(labels), **said}, 1.0


class Summary(Family):
    """The number of observations and their sum."""

    type = "summary"

    def add_observations(self, labels: Values, count: float, total: float) -> None:
        """Add a series with the number and the sum of its observations."""
        self._rows.append((labels, count, total))

    def _lines(self, rows: Iterable[Any]) -> Iterable[str]:
        for labels, count, total in rows:
            text = labels[0].text + self._end(labels[1:])
            yield f"{self.name}_count{{{text}}} {count}\n{self.name}_sum{{{text}}} {total}\n"

    def _samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for labels, count, total in self._rows:
            pairs = self._pairs(labels)
            yield f"{self.name}_count", pairs, count
            yield f"{self.name}_sum", pairs, total


class Histogram(Family):
    """Cumulative counts of observations by their upper bound, and their sum."""

    type = "histogram"

    def add_buckets(self, labels: Values, buckets: Sequence[tuple[str, int]], total: float) -> None:
        """Add a series with the count up to each bound, the last of which is ``+Inf``, and the sum."""
        self._rows.append((labels, buckets, total))

    def _lines(self, rows: Iterable[Any]) -> Iterable[str]:
        begin = f"{self.name}_bucket{{"
        for labels, buckets, total in rows:
            text = labels[0].text + self._end(labels[1:])
            yield "".join([f'{begin}{text},le="{bound}"}} {count}\n' for bound, count in buckets])
            yield f"{self.name}_count{{{text}}} {buckets[-1][1]}\n{self.name}_sum{{{text}}} {total}\n"

    def _samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for labels, buckets, total in self._rows:
            pairs = self._pairs(labels)
            for bound, count in buckets:
                yield f"{self.name}_bucket", {**pairs, "le": bound}, count
            yield f"{self.name}_count", pairs, buckets[-1][1]
            yield f"{self.name}_sum", pairs, total


def exposition(families: Iterable[Family], *, openmetrics: bool) -> Iterator[bytes]:
    """Yield the text of the families, in OpenMetrics 1.0 or Prometheus' format 0.0.4, in pieces."""
    for family in families:
        for piece in family.text(openmetrics=openmetrics):
            yield piece.encode()
    if openmetrics:
        yield b"# EOF\n"
