"""Every query of every dashboard, with a Prometheus that scrapes 1,000 and 10,000 routes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.many_routes import many_routes
from tests.benchmarks.processes import workplace
from tests.real_servers.prometheus import Prometheus

FOLDER = Path(__file__).parents[2] / "dashboards"
ROUTES = (1000, 10_000)
SCRAPED_EVERY = 15.0
WATCHED = 180.0
"""Seconds of data that each query reads."""

POINTS = 90
"""Points of a line: three hours, one every two minutes."""

LABELS = {"every route": "", "one team": 'team="team-7"'}

CHOICES = {
    "$__rate_interval": f"{4 * SCRAPED_EVERY:g}s",
    "$location": ".+",
    "$probe": ".+",
    "$target": ".+",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A query of a dashboard, how many seconds it took, and how many series it returned."""

    dashboard: str
    title: str
    seconds: float
    series: int


def ask_all(prometheus: Prometheus, labels: str = "", window: float = WATCHED) -> Iterator[Asked]:
    """Ask what Grafana asks to show each dashboard with all locations and probes: variables, then panels."""
    for path in sorted(FOLDER.glob("*.json")):
        board = json.loads(path.read_text())
        variables, choices = choose(prometheus, board, labels, window)
        yield from (replace(each, dashboard=path.stem) for each in variables)
        for panel in board["panels"]:
            for target in panel["targets"]:
                query, begun = with_choices(target["expr"], choices), time.monotonic()
                found = (
                    prometheus.query_range(query, window, window / POINTS)
                    if target["range"]
                    else prometheus.query(query)
                )
                yield Asked(path.stem, panel["title"], time.monotonic() - begun, len(found))


def choose(
    prometheus: Prometheus, board: Mapping[str, Any], labels: str, window: float
) -> tuple[list[Asked], dict[str, str]]:
    """Return a dashboard's queries for the values of its variables, and the choice of all of them."""
    asked, choices = [], {**CHOICES, "$__range": f"{window:g}s", "$labels": labels}
    for variable in board["templating"]["list"]:
        if variable["type"] != "query":
            continue
        begun = time.monotonic()
        values = _values(prometheus, variable, choices)
        name = variable["name"]
        asked.append(Asked("", f"${name}", time.monotonic() - begun, len(values)))
        if "allValue" not in variable:
            choices[f"${{{name}:pipe}}"] = "|".join(values)
            choices[f"${name}"] = "|".join(map(re.escape, values)).replace("\\", r"\\")
    return asked, choices


def _values(prometheus: Prometheus, variable: Mapping[str, Any], choices: Mapping[str, str]) -> list[str]:
    kind, _, query = with_choices(variable["query"], choices).removesuffix(")").partition("(")
    if kind == "label_values":
        metric, label = query.rsplit(", ", 1)
        return sorted({labels[label] for labels, _ in prometheus.query(f"count by ({label}) ({metric})")})
    pattern = re.compile(variable["regex"].strip("/"))
    lines = (json.dumps(labels).replace('": "', '="') for labels, _ in prometheus.query(query))
    return sorted({match[1] for line in lines if (match := pattern.search(line))})


def with_choices(query: str, choices: Mapping[str, str]) -> str:
    """Return a query with the values of Grafana's variables."""
    for variable, value in choices.items():
        query = query.replace(variable, value)
    return query


@contextmanager
def scraped(directory: Path, address: str, every: str) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes this address."""
    config = directory / "prometheus.yml"
    job = {"job_name": "mailsonde", "static_configs": [{"targets": [address]}]}
    times = {"scrape_interval": every, "scrape_timeout": every}
    config.write_text(json.dumps({"global": times, "scrape_configs": [job]}))  # JSON is YAML
    prometheus = Prometheus(directory, config)
    try:
        yield prometheus
    finally:
        prometheus.stop()


def main() -> None:
    """Print the slowest queries, those with the most series, and what each dashboard takes as a whole."""
    for routes in ROUTES:
        with (
            workplace() as (directory, _),
            many_routes(routes) as (address, _),
            scraped(directory, address, f"{SCRAPED_EVERY:g}s") as prometheus,
        ):
            prometheus.wait_until(lambda p: p.query("up == 1"), "scraped", 120.0)
            time.sleep(WATCHED)
            for name, labels in LABELS.items():
                print(f"{routes} routes, {name}, {WATCHED:g} s of data, {POINTS} points a line:")
                _tell(list(ask_all(prometheus, labels)))


def _tell(queries: Sequence[Asked]) -> None:
    for dashboard in sorted({each.dashboard for each in queries}):
        mine = [each for each in queries if each.dashboard == dashboard]
        print(f"  {dashboard:9} {sum(each.seconds for each in mine):6.2f} s")
        for each in mine:
            print(f"    {each.seconds:6.3f} s {each.series:4} series  {each.title}")
