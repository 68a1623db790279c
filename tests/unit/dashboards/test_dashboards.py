"""The committed dashboards are up to date, follow the rules, and are valid for the SDK."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.config.load import load as load_configuration
from monitor.rendering import SLOWEST_SCRAPE, render_dashboards
from probes.core.setting_types import parse_duration
from tests.unit.dashboards import lint
from tests.unit.dashboards.promql import exported, parse, reads

ROOT = lint.FOLDER.parent
Rule = Callable[[lint.Board], Iterator[str]]


def _first(board: lint.Board, kind: str) -> lint.Board:
    found: lint.Board = next(panel for panel in board["panels"] if panel["type"] == kind)
    return found


def _set_expr(board: lint.Board, kind: str, promql: str) -> None:
    _first(board, kind)["targets"][0]["expr"] = promql


_CHOSEN = '{location=~"$location",probe=~"${selected:pipe}"}'
_QUIET_LINE = f"mailsonde_messages_in_flight{_CHOSEN}"

BREAKAGES: list[tuple[Rule, str, Callable[[lint.Board], Any]]] = [
    (lint.data_source_variable, "no variable", lambda b: b["templating"]["list"].pop(0)),
    (lint.filters, "no probe", lambda b: b["templating"]["list"].pop(2)),
    (lint.filters, "no selection", lambda b: b["templating"]["list"].pop(5)),
    (lint.filters, "no way to tell that all are", lambda b: b["templating"]["list"].pop(6)),
    (lint.filters, "stale", lambda b: b["templating"]["list"][1].update(refresh=1)),
    (lint.filters, "a list", lambda b: b["templating"]["list"][2].update(type="query")),
    (lint.filters, "all", lambda b: b["templating"]["list"][-1].update(allValue=".+")),
    (lint.data_source_used, "fixed panel", lambda b: _first(b, "stat")["datasource"].update(uid="abc")),
    (lint.data_source_used, "fixed query", lambda b: _first(b, "stat")["targets"][0].pop("datasource")),
    (lint.title_description_unit, "no title", lambda b: _first(b, "stat").update(title="")),
    (lint.title_description_unit, "no description", lambda b: _first(b, "stat").pop("description")),
    (lint.title_description_unit, "no advice", lambda b: _first(b, "stat").update(description="Failures.")),
    (
        lint.title_description_unit,
        "no unit",
        lambda b: _first(b, "stat")["fieldConfig"]["defaults"].pop("unit"),
    ),
    (lint.identities, "same id", lambda b: b["panels"][1].update(id=b["panels"][0]["id"])),
    (lint.identities, "no id", lambda b: b["panels"][0].pop("id")),
    (lint.identities, "no query", lambda b: b["panels"][0].update(targets=[])),
    (lint.identities, "same letter", lambda b: _first(b, "table")["targets"][1].update(refId="A")),
    (lint.grid, "past the edge", lambda b: b["panels"][0]["gridPos"].update(x=23)),
    (lint.grid, "overlap", lambda b: b["panels"][1]["gridPos"].update(x=b["panels"][0]["gridPos"]["x"])),
    (lint.known_metrics_and_labels, "metric", lambda b: _set_expr(b, "stat", "mailsonde_probe_sucess")),
    (
        lint.known_metrics_and_labels,
        "matcher",
        lambda b: _set_expr(b, "stat", 'mailsonde_probe_success{job_="x"}'),
    ),
    (
        lint.known_metrics_and_labels,
        "label",
        lambda b: _set_expr(b, "stat", "sum by (prob) (mailsonde_probe_success)"),
    ),
    (
        lint.known_metrics_and_labels,
        "value",
        lambda b: _set_expr(
            b, "stat", 'sum(increase(mailsonde_messages_total{state=~"lost|lots"}[$__range]))'
        ),
    ),
    (lint.known_metrics_and_labels, "syntax", lambda b: _set_expr(b, "stat", "sum(")),
    (
        lint.counters_are_rated,
        "bare",
        lambda b: _set_expr(b, "timeseries", f"mailsonde_messages_total{_CHOSEN}"),
    ),
    (
        lint.counters_are_rated,
        "fixed window",
        lambda b: _set_expr(b, "timeseries", f"rate(mailsonde_messages_total{_CHOSEN}[5m])"),
    ),
    (
        lint.counters_are_rated,
        "rated gauge",
        lambda b: _set_expr(b, "timeseries", f"rate({_QUIET_LINE}[$__rate_interval])"),
    ),
    (
        lint.chosen_location_and_probe,
        "every location",
        lambda b: _set_expr(b, "timeseries", 'mailsonde_messages_in_flight{probe=~"$worst"}'),
    ),
    (
        lint.chosen_location_and_probe,
        "every probe",
        lambda b: _set_expr(b, "timeseries", 'mailsonde_messages_in_flight{location=~"$location"}'),
    ),
    (
        lint.recorded_or_one_by_one,
        "both",
        lambda b: _set_expr(b, "timeseries", 'mailsonde:message_rate{location=~"$location"}'),
    ),
    (
        lint.recorded_or_one_by_one,
        "always one by one",
        lambda b: _set_expr(
            b, "timeseries", f'mailsonde:run_rate{{job!~"${{narrowed:pipe}}"}} or {_QUIET_LINE}'
        ),
    ),
    (lint.few_series, "every route", lambda b: _set_expr(b, "timeseries", _QUIET_LINE)),
    (
        lint.few_series,
        "every route of one metric",
        lambda b: _set_expr(
            b, "timeseries", f'mailsonde_messages_in_flight{{probe=~"$worst"}} / {_QUIET_LINE}'
        ),
    ),
    (
        lint.series_can_be_told_apart,
        "no text",
        lambda b: _first(b, "timeseries")["targets"][0].update(legendFormat=""),
    ),
    (
        lint.series_can_be_told_apart,
        "ambiguous",
        lambda b: _first(b, "timeseries")["targets"][0].update(legendFormat="{{probe}}"),
    ),
    (
        lint.series_can_be_told_apart,
        "a label that is gone",
        lambda b: _first(b, "stat")["targets"][0].update(legendFormat="{{probe}}"),
    ),
    (
        lint.series_can_be_told_apart,
        "hidden",
        lambda b: _first(b, "timeseries")["options"]["legend"].update(showLegend=False),
    ),
    (
        lint.links_keep_variables,
        "nowhere",
        lambda b: _first(b, "timeseries")["fieldConfig"]["defaults"]["links"][0].update(
            url="/d/mailsonde-x?a"
        ),
    ),
    (
        lint.links_keep_variables,
        "forgets",
        lambda b: _first(b, "timeseries")["fieldConfig"]["defaults"]["links"][0].update(
            url="/d/mailsonde-server"
        ),
    ),
    (
        lint.links_keep_variables,
        "no such label",
        lambda b: _first(b, "stat")["fieldConfig"]["defaults"].update(
            links=_first(b, "state-timeline")["fieldConfig"]["defaults"]["links"]
        ),
    ),
    (lint.links_keep_variables, "no navigation", lambda b: b["links"].clear()),
    (lint.alerts_annotated, "none", lambda b: b["annotations"]["list"].clear()),
    (
        lint.alerts_annotated,
        "heartbeat",
        lambda b: b["annotations"]["list"][0].update(
            expr='ALERTS{alertname=~"Mailsonde.*",alertstate="firing"}'
        ),
    ),
]


@pytest.mark.parametrize("rule", lint.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", lint.NAMES)
def test_dashboards_keep_to_the_rules(name: str, rule: Rule) -> None:
    """Every committed dashboard follows every rule."""
    assert list(rule(lint.load(name))) == []


@pytest.mark.parametrize(
    ("rule", "what", "damage"), BREAKAGES, ids=lambda value: getattr(value, "__name__", value)
)
def test_rules_see_what_is_broken(rule: Rule, what: str, damage: Callable[[lint.Board], Any]) -> None:
    """A dashboard with one defect violates the rule for it, so rules can fail."""
    board = lint.load("overview")
    damage(board)
    assert list(rule(board)) != []


def test_every_rule_is_seen_to_fail() -> None:
    """Every rule has a dashboard that violates it."""
    assert {rule for rule, _, _ in BREAKAGES} == set(lint.RULES)


def test_files_are_what_the_builders_make() -> None:
    """The committed JSON is what the builders make."""
    done = subprocess.run(
        [sys.executable, ROOT / "dashboards" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_stale_file_is_found(tmp_path: Path) -> None:
    """A dashboard that was edited by hand, or has no builder, fails the check."""
    for path in lint.FOLDER.iterdir():
        if path.suffix in {".py", ".json"}:
            (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "slo.json").write_text("{}")
    (tmp_path / "forgotten.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, tmp_path / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "forgotten.json, slo.json" in done.stderr


@pytest.mark.parametrize("name", lint.NAMES)
def test_sdk_reads_what_it_wrote(name: str) -> None:
    """Each dashboard survives a round trip through the SDK's models, which know all its keys."""
    board = lint.load(name)
    assert _through_models(board) == board


def test_sdk_drops_what_it_does_not_know() -> None:
    """The round trip can fail: a misspelt key of a panel, query or position is lost."""
    for misspell in (
        lambda b: b["panels"][0].update(gridpos={}),
        lambda b: b["panels"][0]["gridPos"].update(width=3),
        lambda b: b["panels"][0]["targets"][0].update(legend="x"),
        lambda b: _first(b, "timeseries")["options"].update(legends={}),
    ):
        board = lint.load("overview")
        misspell(board)
        assert _through_models(board) != board


def _through_models(board: lint.Board) -> lint.Board:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the SDK uses a newer schema
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
        from grafana_foundation_sdk.cog.plugins import register_default_plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard

        register_default_plugins()
    again: lint.Board = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    return again


def test_uids_are_stable_and_titles_differ() -> None:
    """Links and bookmarks stay valid: a dashboard's uid follows from its file name."""
    boards = {name: lint.load(name) for name in lint.NAMES}
    assert {name: board["uid"] for name, board in boards.items()} == {
        name: f"mailsonde-{name}"
        for name in ("agent", "delivery", "exchange", "overview", "server", "slo", "windows")
    }
    assert len({board["title"] for board in boards.values()}) == len(boards)


def test_overview_leads_to_deliveries_and_servers() -> None:
    """A failing probe on the overview links to its deliveries and to its server."""
    table = _first(lint.load("overview"), "table")
    urls = [link["url"] for link in table["fieldConfig"]["defaults"]["links"]]
    assert [url.partition("?")[0] for url in urls] == ["/d/mailsonde-delivery", "/d/mailsonde-server"]
    assert all("var-probe=${__data.fields.probe}" in url for url in urls)
    assert table["options"]["sortBy"] == [{"displayName": "State", "desc": False}]


def test_every_metric_is_on_a_dashboard() -> None:
    """Every exported metric is on some dashboard."""
    shown = {
        read.metric
        for name in lint.NAMES
        for _, target in lint.targets(lint.load(name))
        for read in reads(parse(target["expr"]))
    }
    parts = ("_bucket", "_count", "_sum")
    histograms = {name.removesuffix("_bucket") for name in exported() if name.endswith("_bucket")}
    of_shown = {f"{name}{part}" for name in histograms for part in parts if {name + p for p in parts} & shown}
    assert exported().keys() - of_shown - shown == set()


def test_rendered_dashboards_are_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's dashboards refresh as often as its probes run (slower if over days), with its location."""
    monkeypatch.setenv("CANARY_PASSWORD", "x")
    configuration = load_configuration(ROOT / "config" / "minimal.yaml")
    boards = {name: json.loads(text) for name, text in render_dashboards(configuration).items()}
    assert set(boards) == {f"mailsonde-{name}.json" for name in lint.NAMES}
    fastest = min(probe.interval for probe in configuration.probes)
    for name, board in boards.items():
        assert board["tags"][-1] == configuration.agent.location
        expected = 300.0 if name == "mailsonde-slo.json" else max(5.0, min(60.0, fastest))
        assert parse_duration(board["refresh"]) == expected


def test_provisioning_fits_the_dashboards() -> None:
    """Grafana is provisioned with one Prometheus, scraped as rendered, and a dashboard folder."""
    folder = lint.FOLDER / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "mailsonde.yaml").read_text())
    providers = yaml.safe_load((folder / "dashboards" / "mailsonde.yaml").read_text())
    assert sources["apiVersion"] == providers["apiVersion"] == 1
    (source,) = sources["datasources"]
    assert source["type"] == "prometheus"
    assert parse_duration(source["jsonData"]["timeInterval"]) == SLOWEST_SCRAPE
    (provider,) = providers["providers"]
    assert provider["type"] == "file"
    assert Path(provider["options"]["path"]).is_absolute()
