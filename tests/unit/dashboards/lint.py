"""Rules for dashboards, many of them from grafana/dashboard-linter. Each yields its violations."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.unit.dashboards.promql import (
    counters,
    given,
    is_top,
    parse,
    readable,
    reads,
    recorded,
    strange,
)

FOLDER = Path(__file__).parents[3] / "dashboards"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))

Board = dict[str, Any]

_GRAPHS = {"timeseries", "statetimeline"}
_OBJECTIVE_WINDOWS = {"1h", "6h", "3d", "30d"}
"""Windows that belong to an error budget, whatever the time range is."""


def load(name: str) -> Board:
    """Return a committed dashboard."""
    board: Board = json.loads((FOLDER / f"{name}.json").read_text())
    return board


def targets(board: Board) -> Iterator[tuple[Board, Board]]:
    """Yield each panel with each of its queries."""
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel, target


def data_source_variable(board: Board) -> Iterator[str]:
    """The first variable selects a Prometheus."""
    first = board["templating"]["list"][0]
    if (first["name"], first["type"], first["query"]) != ("datasource", "datasource", "prometheus"):
        yield f"the first variable is {first['name']}"


def filters(board: Board) -> Iterator[str]:
    """Locations can be selected from a list, and probes, targets and labels by a text.

    Lists with names of probes hold only the selected or the worst ones, and follow the time range.
    """
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    texts = {"probe": ".+", "target": ".+", "labels": ""}
    for name in {"location", "selected", "narrowed", *texts} - variables.keys():
        yield f"there is no ${name}"
    for name, variable in variables.items():
        if name in texts:
            if (variable["type"], variable["query"]) != ("textbox", texts[name]):
                yield f"${name} is not a text: {variable}"
        elif variable["type"] == "query":
            wanted = {"multi": True, "includeAll": True, "refresh": 2}
            if any(variable.get(key) != value for key, value in wanted.items()):
                yield f"${name} is not as it should be: {variable}"
            if variable["datasource"]["uid"] != "$datasource":
                yield f"${name} asks another data source"
            if ("allValue" in variable) != (name == "location"):
                yield f"all values of ${name} are not those in its list"


def data_source_used(board: Board) -> Iterator[str]:
    """Every panel, query and annotation uses the selected data source."""
    for asking in (
        *board["panels"],
        *(target for _, target in targets(board)),
        *board["annotations"]["list"],
    ):
        if asking.get("datasource") != {"type": "prometheus", "uid": "$datasource"}:
            yield f"{asking.get('title') or asking.get('expr')} asks {asking.get('datasource')}"


def title_description_unit(board: Board) -> Iterator[str]:
    """Every panel has a title, a unit, and a description of its content and what to do."""
    for panel in board["panels"]:
        if not panel.get("title"):
            yield f"panel {panel['id']} has no title"
        if not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"{panel['title']} has no unit"
        if len(re.findall(r"[.:;] |\.$", panel.get("description", ""))) < 2:
            yield f"{panel['title']} does not say what to do"


def identities(board: Board) -> Iterator[str]:
    """Panels have unique ids and titles, and the queries of a panel unique letters."""
    ids = [panel.get("id") or 0 for panel in board["panels"]]
    titles = [panel["title"] for panel in board["panels"]]
    if min(ids) < 1 or len(set(ids)) < len(ids) or len(set(titles)) < len(titles):
        yield f"ids {ids}, titles {titles}"
    for panel in board["panels"]:
        letters = [target["refId"] for target in panel["targets"]]
        if not letters or len(set(letters)) < len(letters):
            yield f"{panel['title']} has queries {letters}"


def grid(board: Board) -> Iterator[str]:
    """Panels are within the 24 columns and do not overlap."""
    for panel in board["panels"]:
        place = panel["gridPos"]
        if min(place["x"], place["y"]) < 0 or min(place["w"], place["h"]) < 1 or place["x"] + place["w"] > 24:
            yield f"{panel['title']} is at {place}"
    for one, other in itertools.combinations(board["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        if (
            a["x"] < b["x"] + b["w"]
            and b["x"] < a["x"] + a["w"]
            and a["y"] < b["y"] + b["h"]
            and b["y"] < a["y"] + a["h"]
        ):
            yield f"{one['title']} and {other['title']} overlap"


def known_metrics_and_labels(board: Board) -> Iterator[str]:
    """Queries are valid PromQL, with only metrics, labels and label values that exist."""
    for panel, target in targets(board):
        try:
            expression = parse(target["expr"])
        except ValueError as error:
            yield f"{panel['title']}: {error}"
            continue
        for what in strange(expression, readable()):
            yield f"{panel['title']} {what}"


def counters_are_rated(board: Board) -> Iterator[str]:
    """Counters, and only counters, are read by rate or increase, with the right window.

    A line over time uses $__rate_interval, a number $__range; objectives have their own windows.
    """
    for panel, target in targets(board):
        for read in reads(parse(target["expr"])):
            windows = {"$__range"} if target["instant"] else {"$__rate_interval"}
            if read.metric == "mailsonde_slo_runs_total":
                windows |= _OBJECTIVE_WINDOWS
            if (read.metric in counters()) != (read.function in {"rate", "increase"}):
                yield f"{panel['title']} reads {read.metric} by {read.function}"
            elif read.window is not None and read.window not in windows:
                yield f"{panel['title']} reads {read.metric} over {read.window}"


def chosen_location_and_probe(board: Board) -> Iterator[str]:
    """Every selector filters by the selected locations and, if it can, probes."""
    for panel, target in targets(board):
        for read in reads(parse(target["expr"])):
            matchers = {(name, op): value.removesuffix("|") for name, op, value in read.matchers}
            labels = {"location": {"$location"}} if "location" in readable()[read.metric] else {}
            if "probe" in readable()[read.metric]:
                labels["probe"] = {"${selected:pipe}", "$worst"}
            if read.metric == "ALERTS":  # some are about no probe
                labels["probe"] = {"$probe"}
            for label, wanted in labels.items():
                if matchers.get((label, "Re")) not in wanted:
                    yield f"{panel['title']} has no {label}=~{wanted} at {read.metric}"


def recorded_or_one_by_one(board: Board) -> Iterator[str]:
    """A query with a metric recorded for all routes reads it or its routes, as $narrowed says, not both."""
    for panel, target in targets(board):
        found = list(reads(parse(target["expr"])))
        for read in found if any(read.metric in recorded() for read in found) else ():
            op = "NotRe" if read.metric in recorded() else "Re"
            if ("job", op, "${narrowed:pipe}") not in read.matchers:
                yield f"{panel['title']} reads {read.metric} whatever $narrowed says"


def few_series(board: Board) -> Iterator[str]:
    """A query that returns a series for each route reads only the worst routes, or returns only the top."""
    for panel, target in targets(board):
        expression = parse(target["expr"])
        if "probe" in given(expression) and not is_top(expression):
            for read in reads(expression):
                if ("probe", "Re", "$worst") not in read.matchers:
                    yield f"{panel['title']} has a series for each probe of {read.metric}"


def series_can_be_told_apart(board: Board) -> Iterator[str]:
    """If there may be several series, the legend has every label that distinguishes them.

    A probe and its target have only one kind and cadence, and a location one agent and job.
    """
    for panel, target in targets(board):
        labels = given(parse(target["expr"]))
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        if panel["type"] == "table":
            continue
        if not legend <= labels:
            yield f"{panel['title']} names {legend - labels}, which its series do not have"
        missing = (
            labels
            - {"job", "cadence", *({"instance"} if "location" in labels else ())}
            - legend
            - ({"kind"} if {"probe", "target"} <= labels else set())
        )
        if missing or not target["legendFormat"]:
            yield f"{panel['title']} does not tell series apart by {missing}"
        if panel["type"] in _GRAPHS and not panel["options"].get("legend", {}).get("showLegend"):
            yield f"{panel['title']} has no legend"


def links_keep_variables(board: Board) -> Iterator[str]:
    """Links lead to existing dashboards, and keep the variables and the time range."""
    for panel in board["panels"]:
        given_labels = frozenset[str]().union(*(given(parse(t["expr"])) for t in panel["targets"]))
        for link in panel["fieldConfig"]["defaults"].get("links", []):
            path, _, query = link["url"].partition("?")
            kept = {f"${{{name}:queryparam}}" for name in ("datasource", "location", "labels")}
            wanted = {*kept, "${__url_time_range}"}
            parts = set(query.split("&"))
            routes = parts - wanted
            if path.removeprefix("/d/mailsonde-") not in NAMES or not wanted <= parts or len(routes) != 2:
                yield f"{panel['title']} links to {link['url']}"
            elif routes != {"${probe:queryparam}", "${target:queryparam}"} and not (
                {"probe", "target"} <= given_labels
            ):
                yield f"{panel['title']} links to a route that its series do not have"
    navigation = [link for link in board["links"] if link["tags"] == ["mailsonde"]]
    if not navigation or not (navigation[0]["includeVars"] and navigation[0]["keepTime"]):
        yield "no links to the other dashboards that keep the variables"


def alerts_annotated(board: Board) -> Iterator[str]:
    """Firing alerts are drawn over the graphs, except the heartbeat, which always fires."""
    wanted = {
        ("alertname", "Re", "Mailsonde.*"),
        ("alertname", "NotEqual", "MailsondeHeartbeat"),
        ("alertstate", "Equal", "firing"),
    }
    found = [read for a in board["annotations"]["list"] for read in reads(parse(a["expr"]))]
    if not any(read.metric == "ALERTS" and wanted <= read.matchers for read in found):
        yield "alerts are not annotated"


RULES = (
    data_source_variable,
    filters,
    data_source_used,
    title_description_unit,
    identities,
    grid,
    known_metrics_and_labels,
    counters_are_rated,
    chosen_location_and_probe,
    recorded_or_one_by_one,
    few_series,
    series_can_be_told_apart,
    links_keep_variables,
    alerts_annotated,
)
