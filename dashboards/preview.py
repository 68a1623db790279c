"""``python -m dashboards.preview``: pictures of the dashboards' panels, without Grafana.

Prometheus scrapes the agent of a site in trouble for a while. Its answers to all panels' queries are put
into one page, and Chromium takes a picture of each dashboard. The page says that it is an approximation.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from playwright.sync_api import Page

from tests.benchmarks.processes import workplace
from tests.real_servers.browser import chromium
from tests.real_servers.prometheus import Prometheus
from tests.real_servers.troubled_site import GRAFANAS, troubled_site

HERE = Path(__file__).parent
STATIC = HERE.parent / "monitor/web/static"
LABEL = "An approximation: not drawn by Grafana"
KINDS = {"timeseries", "stat", "state-timeline", "table", "bargauge", "heatmap"}
UNITS = {"short", "s", "percentunit", "bool", "bytes", "cps", "d"}
TRANSFORMATIONS = {"merge", "organize"}
POINTS = 120
"""Number of points in a line."""

_REFERENCE = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def boards() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the file name and model of each dashboard, the overview first."""
    paths = sorted(HERE.glob("*.json"), key=lambda path: (path.stem != "overview", path.stem))
    for path in paths:
        yield path.stem, json.loads(path.read_text())


def panel_of(panel: Mapping[str, Any], prometheus: Prometheus, window: float) -> dict[str, Any]:
    """Return the panel's data for the page, and a list of what the page cannot draw."""
    defaults = panel["fieldConfig"]["defaults"]
    overrides = panel["fieldConfig"]["overrides"]
    return {
        "title": panel["title"],
        "type": panel["type"],
        "grid": panel["gridPos"],
        "unit": defaults.get("unit", "short"),
        "steps": defaults.get("thresholds", {}).get("steps", []),
        "texts": _texts(defaults.get("mappings", [])),
        "decimals": defaults.get("decimals"),
        "max": defaults.get("max"),
        "stacked": defaults.get("custom", {}).get("stacking", {}).get("mode", "none") != "none",
        "units": {each["matcher"]["options"]: _property(each, "unit") for each in overrides},
        "columnDecimals": {each["matcher"]["options"]: _property(each, "decimals") for each in overrides},
        "columnTexts": {
            each["matcher"]["options"]: _texts(_property(each, "mappings") or []) for each in overrides
        },
        "unknown": sorted(_unknown(panel, defaults)),
        "data": _table(panel, prometheus)
        if panel["type"] == "table"
        else [series for target in panel["targets"] for series in _series(target, prometheus, window)],
    }


def _unknown(panel: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    if panel["type"] not in KINDS:
        yield f"panel type {panel['type']}"
    if defaults.get("unit", "short") not in UNITS:
        yield f"unit {defaults['unit']}"
    for transformation in panel.get("transformations", []):
        if transformation["id"] not in TRANSFORMATIONS:
            yield f"transformation {transformation['id']}"


def _texts(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {value: shown for mapping in mappings for value, shown in mapping["options"].items()}


def _property(override: Mapping[str, Any], name: str) -> Any:
    return next((each["value"] for each in override["properties"] if each["id"] == name), None)


def _asked(target: Mapping[str, Any]) -> str:
    query = str(target["expr"])
    for variable, value in GRAFANAS.items():
        query = query.replace(variable, value)
    return query


def _series(target: Mapping[str, Any], prometheus: Prometheus, window: float) -> Iterator[dict[str, Any]]:
    if target["range"]:
        found = prometheus.query_range(_asked(target), window, window / POINTS)
    else:
        found = [(labels, [(time.time(), value)]) for labels, value in prometheus.query(_asked(target))]
    for labels, points in found:
        name = _REFERENCE.sub(lambda match, labels=labels: labels.get(match[1], ""), target["legendFormat"])
        shown = name if name and name != "__auto" else ", ".join(f"{key}={labels[key]}" for key in labels)
        yield {
            "name": shown,
            "at": [at for at, _ in points],
            "values": [_finite(value) for _, value in points],
        }


def _finite(value: float) -> float | None:
    """Return the number, or None if JSON cannot represent it."""
    return value if math.isfinite(value) else None


def _table(panel: Mapping[str, Any], prometheus: Prometheus) -> dict[str, Any]:
    """Return columns and rows: merge results whose labels agree, then rename and hide columns."""
    rows: list[dict[str, Any]] = []
    alone = len(panel["targets"]) == 1
    for target in panel["targets"]:
        column = "Value" if alone else f"Value #{target['refId']}"
        for labels, value in prometheus.query(_asked(target)):
            known = {key: text for key, text in labels.items() if key != "__name__"}
            row = next((row for row in rows if column not in row and _agree(row, known)), None)
            if row is None:
                rows.append(row := {})
            row |= {**known, column: _finite(value)}
    options: dict[str, Any] = {}
    for transformation in panel.get("transformations", []):
        if transformation["id"] == "organize":
            options = transformation["options"]
    columns = [
        column
        for column in dict.fromkeys(column for row in rows for column in row)
        if not options.get("excludeByName", {}).get(column)
    ]
    columns.sort(key=lambda column: options.get("indexByName", {}).get(column, len(columns)))
    renamed = options.get("renameByName", {})
    heads = [renamed.get(column) or column for column in columns]
    lines = [[row.get(column) for column in columns] for row in rows]
    for order in reversed(panel["options"].get("sortBy") or []):
        if order["displayName"] not in heads:
            continue  # no row has a value in it yet
        place = heads.index(order["displayName"])
        lines.sort(key=lambda line, at=place: _rank(line[at]), reverse=order.get("desc", False))
    return {"columns": heads, "rows": lines}


def _agree(row: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether the labels equal those that the row already has."""
    return all(row.get(key, text) == text for key, text in labels.items())


def _rank(value: Any) -> tuple[bool, float, str]:
    """Return the sort key of a cell; an unknown value sorts lowest."""
    number = float(value) if isinstance(value, float) else 0.0
    return value is not None, number, value if isinstance(value, str) else ""


def page_of(data: Iterable[Mapping[str, Any]]) -> str:
    """Return the page, with everything inlined."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True)
    inlined = {
        "uplot": STATIC / "uPlot.iife.min.js",
        "uplot_style": STATIC / "uPlot.min.css",
        "script": HERE / "preview.js",
        "style": HERE / "preview.css",
    }
    shown = list(data)
    return environment.get_template("preview.html.j2").render(
        label=LABEL,
        boards=shown,
        # tojson escapes the data; these files are our own.
        **{name: Markup(path.read_text()) for name, path in inlined.items()},  # noqa: S704
    )


def collect(prometheus: Prometheus, window: float) -> list[dict[str, Any]]:
    """Return each dashboard with the data of its panels, over the last ``window`` seconds."""
    return [
        {
            "name": name,
            "title": board["title"],
            "panels": [panel_of(panel, prometheus, window) for panel in board["panels"]],
        }
        for name, board in boards()
    ]


def take_pictures(page: Page, address: str, directory: Path, names: Iterable[str]) -> None:
    """Write one PNG per dashboard into ``directory``."""
    page.set_viewport_size({"width": 1500, "height": 900})
    page.goto(address)
    page.wait_for_selector("html[data-drawn]")
    for name in names:
        page.locator(f"#{name}").screenshot(path=directory / f"{name}.png")


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/preview"), help="default: build/preview")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the site is watched")
    parser.add_argument("--picture", type=Path, help="also put the overview's picture here")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with workplace() as (directory, tls), troubled_site(directory, tls) as prometheus:
        for left in range(int(arguments.seconds), 0, -10):
            print(f"the site is watched for {left} s more", flush=True)
            time.sleep(min(10, left))
        data = collect(prometheus, arguments.seconds)
    page = arguments.out / "index.html"
    page.write_text(page_of(data))
    with chromium() as browser:
        take_pictures(browser.new_page(), page.resolve().as_uri(), arguments.out, [b["name"] for b in data])
    if arguments.picture is not None:
        arguments.picture.write_bytes((arguments.out / "overview.png").read_bytes())
    print(f"written: {page} and {len(data)} pictures beside it")


if __name__ == "__main__":
    main()
