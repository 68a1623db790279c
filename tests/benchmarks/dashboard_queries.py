"""Every query of every dashboard, with a Prometheus that has three hours of 1,000 and of 10,000 routes."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from probes.core.setting_types import parse_duration
from tests.benchmarks.many_routes import many_routes
from tests.benchmarks.past_hours import write_past_hours
from tests.benchmarks.processes import workplace
from tests.real_servers.prometheus import Prometheus

FOLDER = Path(__file__).parents[2] / "dashboards"
RULES = FOLDER.parent / "alerts" / "rules" / "mailsonde-dashboards.rules.yaml"
ROUTES = (1000, 10_000)
SCRAPED_EVERY = 15.0
PAST = 3 * 3600.0
"""Seconds of data that Prometheus has: the default time range of all dashboards but *SLO*."""

GOAL = 3.0
"""Seconds that a query may take."""

PIXELS = 900
"""Width of a panel on half a screen: Grafana asks for no more points than that."""

LABELS = {"every route": "", "one team": 'team="team-7"'}

CHOICES = {
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


def ask_all(prometheus: Prometheus, labels: str = "", window: float | None = None) -> Iterator[Asked]:
    """Ask what Grafana asks to show each dashboard with all locations and probes: variables, then panels.

    ``window`` is the time range in seconds, instead of each dashboard's own.
    """
    for path in sorted(FOLDER.glob("*.json")):
        board = json.loads(path.read_text())
        seconds = window or parse_duration(board["time"]["from"].removeprefix("now-"))
        variables, choices = choose(prometheus, board, labels, seconds)
        yield from (replace(each, dashboard=path.stem) for each in variables)
        for panel in board["panels"]:
            step = min(seconds, max(parse_duration(panel.get("interval", "15s")), seconds / PIXELS))
            rated = {"$__rate_interval": f"{max(step + SCRAPED_EVERY, 4 * SCRAPED_EVERY):.0f}s"}
            for target in panel["targets"]:
                query, begun = with_choices(target["expr"], choices | rated), time.monotonic()
                found = (
                    prometheus.query_range(query, seconds, step)
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
    config.write_text(_scraping(address, every))
    prometheus = Prometheus(directory, config)
    try:
        yield prometheus
    finally:
        prometheus.stop()


@contextmanager
def _scraped_for_hours(directory: Path, address: str) -> Iterator[Prometheus]:
    """Run a Prometheus that has scraped this address, and recorded for dashboards, for `PAST` seconds."""
    config, begun = directory / "prometheus.yml", time.time()
    config.write_text("{}")
    in_head, writable = "--storage.tsdb.min-block-duration=12h", "--web.enable-remote-write-receiver"
    prometheus = Prometheus(directory, config, in_head, writable)
    try:
        write_past_hours(prometheus, address, begun, PAST, SCRAPED_EVERY)
        config.write_text(_scraping(address, f"{SCRAPED_EVERY:g}s", [RULES]))
        prometheus.reload()
        prometheus.wait_until(lambda p: p.query("mailsonde:run_rate"), "the rules recorded", 180.0)
        prometheus.record(RULES, begun - PAST)
        yield prometheus
    finally:
        prometheus.stop()


def _scraping(address: str, every: str, rules: Sequence[Path] = ()) -> str:
    """Return a configuration of Prometheus."""
    job = {"job_name": "mailsonde", "static_configs": [{"targets": [address]}]}
    times = {"scrape_interval": every, "scrape_timeout": every}
    document = {"global": times, "rule_files": list(map(str, rules)), "scrape_configs": [job]}
    return json.dumps(document)  # JSON is YAML


def main(arguments: Sequence[str] = ()) -> bool:
    """Print what each query takes, and each dashboard as a whole; return whether all are quick enough."""
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks dashboards")
    options.add_argument("--routes", default=",".join(map(str, ROUTES)), help="such as 1000,10000")
    return all([_asked(int(routes)) for routes in options.parse_args(arguments).routes.split(",")])  # noqa: C419 # each is printed


def _asked(routes: int) -> bool:
    with workplace() as (directory, _), many_routes(routes) as (agent, _):
        print(f"{routes} routes: Prometheus gets {PAST / 3600:g} hours of them", flush=True)
        begun = time.monotonic()
        with _scraped_for_hours(directory, agent) as prometheus:
            print(f"  after {time.monotonic() - begun:.0f} s", flush=True)
            return _asked_all(prometheus, routes)


def _asked_all(prometheus: Prometheus, routes: int) -> bool:
    slowest = 0.0
    for name, labels in LABELS.items():
        asked = list(ask_all(prometheus, labels))
        print(f"{routes} routes, {name}, each dashboard over its default time range:")
        _tell(asked)
        slowest = max(slowest, *(each.seconds for each in asked))
    print(f"  the slowest query: {slowest:.2f} s; goal: at most {GOAL:g}")
    return slowest <= GOAL


def _tell(queries: Sequence[Asked]) -> None:
    for dashboard in sorted({each.dashboard for each in queries}):
        mine = [each for each in queries if each.dashboard == dashboard]
        print(f"  {dashboard:9} {sum(each.seconds for each in mine):6.2f} s")
        for each in mine:
            print(f"    {each.seconds:6.3f} s {each.series:4} series  {each.title}")
