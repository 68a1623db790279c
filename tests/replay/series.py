"""The results of scrapes, kept as runs of equal values, and written as promtool's input series."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import Metric

AGENT = 'job="mailsonde",instance="agent.example.com:9725"'
"""The labels that Prometheus gives every series of the agent."""


class _Series:
    """The values of one series, one per scrape: runs of equal values, and gaps."""

    __slots__ = ("_parts", "_run", "_value", "until")

    def __init__(self, missed: int) -> None:
        self._parts = [f"_x{missed}"] if missed else []
        self._value = 0.0
        self._run = 0
        self.until = missed  # number of scrapes so far

    def put(self, value: float, scrape: int) -> None:
        """Record the value of a scrape; after a gap, the series had a staleness marker."""
        if self.until < scrape:
            self._end_run()
            self._parts.append("stale")
            if scrape - self.until > 1:
                self._parts.append(f"_x{scrape - self.until - 1}")
        if self._run and value == self._value:
            self._run += 1
        else:
            self._end_run()
            self._value, self._run = value, 1
        self.until = scrape + 1

    def _end_run(self) -> None:
        if self._run:
            self._parts.append(f"{self._value:.10g}" + (f"x{self._run - 1}" if self._run > 1 else ""))
        self._run = 0

    def text(self, scrapes: int) -> str:
        """Return all values as promtool reads them."""
        self._end_run()
        return " ".join([*self._parts, *(["stale"] if self.until < scrapes else [])])


class Recorder:
    """Records scrapes, but only the named metrics."""

    def __init__(self, metrics: Iterable[str]) -> None:
        self._metrics = frozenset(metrics)
        self._series: dict[tuple[str, str], _Series] = {}
        self.scrapes = 0

    def scrape(self, answers: Mapping[str, Iterable[Metric] | None]) -> None:
        """Record a scrape of each target by its labels; ``None`` if there was no answer."""
        for target, families in answers.items():
            self._put("up", target, float(families is not None))
            for sample in (sample for family in families or () for sample in family.samples):
                if sample.name in self._metrics:
                    own = (f'{label}="{value}"' for label, value in sample.labels.items())
                    self._put(sample.name, ",".join((target, *own)), sample.value)
        self.scrapes += 1

    def _put(self, name: str, labels: str, value: float) -> None:
        series = self._series.get((name, labels))
        if series is None:
            series = self._series[name, labels] = _Series(self.scrapes)
        series.put(value, self.scrapes)

    def written(self) -> Iterator[dict[str, str]]:
        """Yield each series as an entry of ``input_series``."""
        for (name, labels), series in self._series.items():
            yield {"series": f"{name}{{{labels}}}", "values": series.text(self.scrapes)}
