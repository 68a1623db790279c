"""Families of metrics, and their text in Prometheus' format and in OpenMetrics.

The collector makes the families. Their text and prometheus_client's metrics, for whatever is not text, come
from the same rows. prometheus_client's own text of 10,000 probes would take many times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, ClassVar, Protocol

from prometheus_client.core import Metric

from monitor.labels import Labels, Number, label_text

ROWS_AT_ONCE = 100
"""Rows in a piece of text. Pieces of some 100 KB stay in the processor's cache and in Python's heap."""

By = Callable[[Any], Mapping[str, str]]
"""Returns the labels of one of the series that a row's mapping has."""

_SHARED = "\0"
"""Stands for the shared labels in the form of a row; no text of ours contains it."""


def named(*names: str) -> By:
    """Return what names the values of further labels: the key of a series, or the parts of its tuple."""
    return lambda key: dict(zip(names, map(str, key if len(names) > 1 else (key,)), strict=True))


class Family:
    """A metric: its name without suffix, its meaning, and a row for each probe.

    ``rows`` are read once, as the text is made, so that the metrics of many probes take little memory. A
    row has the labels that its series share and, in a subclass's own form, their values. If there is ``by``,
    these values are a mapping from what tells the series apart, and ``by`` returns the labels that say so.
    """

    type: ClassVar[str]
    suffix: ClassVar[str] = ""

    def __init__(
        self, name: str, documentation: str, rows: Iterable[tuple[Labels, Any]], *, by: By | None = None
    ) -> None:
        self.name = name
        self.documentation = documentation
        self._rows = rows
        self._by = by
        self._ends: dict[Any, str] = {}  # by key: the labels that tell a series apart, as text

    def metric(self) -> Metric:
        """Return the family as prometheus_client's."""
        metric = Metric(self.name, self.documentation, self.type)
        for labels, value in self._rows:
            for name, further, number in self._samples(value):
                metric.add_sample(name, {**labels.pairs, **further}, float(number))
        return metric

    def text(self, *, openmetrics: bool) -> Iterator[str]:
        """Yield the family's lines in pieces, with the lines of one series together."""
        yield self._head(openmetrics=openmetrics)
        rows = iter(self._rows)
        for row in rows:
            yield "".join(self._lines(chain((row,), islice(rows, ROWS_AT_ONCE - 1))))

    def _head(self, *, openmetrics: bool) -> str:
        name, kind, about = self.name, self.type, self.documentation.replace("\\", r"\\").replace("\n", r"\n")
        if openmetrics:
            about = about.replace('"', r"\"")
        else:
            name, kind = name + self.suffix, {"info": "gauge"}.get(kind, kind)
        return f"# HELP {name} {about}\n# TYPE {name} {kind}\n"

    def _lines(self, rows: Iterable[tuple[Labels, Any]]) -> list[str]:
        """Return the lines of each row. The work for a sample is what counts: there may be a million."""
        begin, by = f"{self.name}{self.suffix}{{", self._by
        if by is None:
            return [f"{begin}{labels.text}}} {value}\n" for labels, value in rows]
        lines, ends = [], self._ends
        for labels, values in rows:
            shared = f"{begin}{labels.text},"
            for key, value in {**values}.items():  # a copy, because the event loop may change it meanwhile
                if (end := ends.get(key)) is None:
                    end = ends[key] = f"{label_text(by(key).items())}}} "
                lines.append(f"{shared}{end}{value}\n")
        return lines

    def _samples(self, value: Any) -> Iterable[tuple[str, Mapping[str, str], Number]]:
        """Yield the name, further labels and number of each sample of a row."""
        name = self.name + self.suffix
        if self._by is not None:
            return [(name, self._by(key), number) for key, number in {**value}.items()]
        return [(name, {}, value)]


class Gauge(Family):
    """A value that goes up and down."""

    type = "gauge"


class Counter(Family):
    """A count that only grows."""

    type = "counter"
    suffix = "_total"


class Info(Family):
    """Labels that say something of a series, beside those that it shares; its value is always 1.

    Each row has these labels in the place of a value.
    """

    type = "info"
    suffix = "_info"

    def _lines(self, rows: Iterable[tuple[Labels, Any]]) -> list[str]:
        return [f"{self.name}_info{{{labels.text},{said.text}}} 1\n" for labels, said in rows]

    def _samples(self, value: Labels) -> Iterable[tuple[str, Mapping[str, str], Number]]:
        return [(f"{self.name}_info", value.pairs, 1.0)]


class Observed(Protocol):
    """Observations of one series."""

    sum: float

    def cumulative(self) -> Sequence[int]:
        """Return the number of observations up to each upper bound, and then of all."""


class Histogram(Family):
    """Cumulative counts of observations by their upper bound, and their sum. Each row has an `Observed`."""

    type = "histogram"

    def __init__(
        self, name: str, documentation: str, rows: Iterable[tuple[Labels, Observed]], bounds: Sequence[float]
    ) -> None:
        super().__init__(name, documentation, rows)
        self._bounds = (*map(str, bounds), "+Inf")

    def _lines(self, rows: Iterable[tuple[Labels, Any]]) -> list[str]:
        buckets = [f'{self.name}_bucket{{{_SHARED},le="{bound}"}} %d\n' for bound in self._bounds]
        form = f"{''.join(buckets)}{self.name}_count{{{_SHARED}}} %d\n{self.name}_sum{{{_SHARED}}} %s\n"
        return [
            (form % (*counts, counts[-1], observed.sum)).replace(_SHARED, labels.text)
            for labels, observed in rows
            if (counts := observed.cumulative())
        ]

    def _samples(self, value: Observed) -> Iterable[tuple[str, Mapping[str, str], Number]]:
        counts = value.cumulative()
        for bound, count in zip(self._bounds, counts, strict=True):
            yield f"{self.name}_bucket", {"le": bound}, count
        yield f"{self.name}_count", {}, counts[-1]
        yield f"{self.name}_sum", {}, value.sum


def exposition(families: Iterable[Family], *, openmetrics: bool) -> Iterator[bytes]:
    """Yield the text of the families, in OpenMetrics 1.0 or Prometheus' format 0.0.4, in pieces."""
    for family in families:
        for piece in family.text(openmetrics=openmetrics):
            yield piece.encode()
    if openmetrics:
        yield b"# EOF\n"
