"""Every query of every dashboard, with a Prometheus that scrapes an agent in trouble."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.preview import LABEL, collect, page_of, take_pictures
from tests.benchmarks.dashboard_queries import ask_all, choose, scraped, with_choices
from tests.benchmarks.many_routes import many_routes
from tests.real_servers.browser import Watch, chromium
from tests.real_servers.dovecot import TlsFiles
from tests.real_servers.prometheus import Prometheus, promtool
from tests.real_servers.troubled_site import GRAFANAS, troubled_site

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "dashboards").glob("*.json"))
MOST_SERIES = 50
"""Maximum number of series that a query may return, however many routes there are."""

_SELECTED = 'mailsonde_probe_info{location=~"$location",probe=~"${selected:pipe}",target=~"$target"}'

TROUBLE = re.compile(
    r'outcome="(failed|unknown)"|outcome!="ok"|state="lost"|result="bad"|mailsonde_arrival_issues_total'
    r"|mailsonde_hops_skewed|mailsonde_mailbox_unexpected_total|mailsonde_throttled_requests_total|ALERTS"
    r"|mailsonde_probe_success\S+ == 0"
)
"""Queries that must be above 0 here, because the site has just that trouble."""

BUDGET_LEFT = re.compile(r"(min\()?1 - ")
"""Queries that must be below 1 here, because messages came too late."""


@pytest.fixture(scope="module")
def prometheus(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Prometheus]:
    """A Prometheus and an agent with all kinds of mail trouble."""
    with troubled_site(server_directory("dashboards"), server_tls) as running:
        yield running


def _queries() -> Iterator[Any]:
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                name = f"{path.stem}: {panel['title']} {target['refId']}"
                yield pytest.param(target["expr"], id=name)
        for annotation in board["annotations"]["list"]:
            yield pytest.param(annotation["expr"], id=f"{path.stem}: {annotation['name']}")
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                kind, query = re.fullmatch(r"(label_values|query_result)\((.+)\)", variable["query"]).groups()
                if kind == "label_values":
                    query = "count by ({1}) ({0})".format(*query.rsplit(", ", 1))
                yield pytest.param(query, id=f"{path.stem}: ${variable['name']}")


@pytest.mark.parametrize("query", list(_queries()))
def test_every_query_gives_data(prometheus: Prometheus, query: str) -> None:
    """Each query gives finite numbers and, for trouble that the site has, one above 0."""
    for variable, value in GRAFANAS.items():
        query = query.replace(variable, value)
    least, most = -math.inf, math.inf
    if BUDGET_LEFT.match(query):
        most = 1.0
    elif TROUBLE.search(query):
        least = 0.0
    prometheus.wait_until(
        lambda p: (
            (values := [value for _, value in p.query(query)])
            and all(map(math.isfinite, values))
            and max(values) > least
            and min(values) < most
        ),
        query,
    )


@pytest.mark.parametrize(
    "query",
    [
        "mailsonde_no_such_metric",
        'mailsonde_probe_success{location=~".+",probe=~"no-such-probe"}',
        'sum by (probe) (rate(mailsonde_messages_total{result="lost"}[1m]))',
    ],
)
def test_a_query_of_what_is_not_there_gives_nothing(prometheus: Prometheus, query: str) -> None:
    """The check above can fail: an unknown metric, probe or label gives no series."""
    assert prometheus.query(query) == []


@pytest.fixture(scope="module")
def many(server_directory: Callable[[str], Path]) -> Iterator[Prometheus]:
    """A Prometheus and an agent with 100 routes, of which each of 20 teams has 5."""
    with many_routes(100) as (address, _), scraped(server_directory("many"), address, "5s") as running:
        running.wait_until(
            lambda p: p.query("count_over_time(mailsonde_build_info[1m]) > 2"), "scraped a few times"
        )
        yield running


def test_no_query_returns_one_series_for_each_route(many: Prometheus) -> None:
    """However many routes there are, a query of a dashboard returns few series: those of the worst routes."""

    def worst() -> list[int]:
        asked = list(ask_all(many, "", 60.0))
        assert [each for each in asked if each.title != "$selected" and each.series > MOST_SERIES] == []
        return [each.series for each in asked if each.title == "$worst" and each.dashboard != "slo"]

    many.wait_until(lambda _: worst() == [20, 20, 20], "the worst routes are known")


@pytest.mark.parametrize(
    ("labels", "count"), [("", 100), ('team="team-0"', 5), ('team=~"team-[01]",kind!="mx"', 10), ('a="b"', 0)]
)
def test_labels_select_probes(many: Prometheus, labels: str, count: int) -> None:
    """The selector of labels narrows the panels of each dashboard down to the probes with these labels."""

    def selected(board: dict[str, Any]) -> float:
        _, choices = choose(many, board, labels, 60.0)
        found = many.query(with_choices(f"count({_SELECTED}) or vector(0)", choices))
        return found[0][1]

    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        many.wait_until(lambda _, board=board: selected(board) == count, f"{count} of {path.stem}")


RECORDED = yaml.safe_load((ROOT / "alerts" / "tests" / "dashboards.yaml").read_text())
"""The tests of what the rules record for dashboards, the first with series of every metric that they read."""


def _promtool_agrees(directory: Path, expected: Mapping[str, float], rules: Sequence[str]) -> None:
    """Fail unless each expression has its value after 40 minutes of the series in `RECORDED`."""
    samples = [
        {"expr": expr, "eval_time": "40m", "exp_samples": [{"labels": "{}", "value": value}]}
        for expr, value in expected.items()
    ]
    case = {**RECORDED["tests"][0], "promql_expr_test": samples}
    files = [str(ROOT / "alerts" / "rules" / name) for name in rules]
    test = directory / "test.yaml"
    test.write_text(json.dumps({**RECORDED, "rule_files": files, "tests": [case]}))  # JSON is YAML
    tested = promtool("test", "rules", test)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_rules_record_what_all_routes_amount_to(tmp_path: Path) -> None:
    """The rules for dashboards record sums, means and maxima of all routes, and end with their data."""
    files = [str(ROOT / "alerts" / "rules" / name) for name in RECORDED["rule_files"]]
    test = tmp_path / "test.yaml"
    test.write_text(json.dumps({**RECORDED, "rule_files": files}))
    tested = promtool("test", "rules", test)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_panels_show_the_same_by_what_is_recorded_as_by_the_routes(tmp_path: Path) -> None:
    """A panel that reads what the rules record for all routes shows what it shows route by route."""
    agreeing = {}
    for query in (param.values[0] for param in _queries()):
        if "${narrowed:pipe}" in query:
            by_rules, by_routes = (
                with_choices(
                    query.replace("${narrowed:pipe}", narrowed),
                    GRAFANAS | {"$__range": "4m", "$__rate_interval": "4m"},
                )
                for narrowed in ("-", ".+")
            )
            equal = f"count(abs(({by_rules}) - ({by_routes})) < 1e-9)"
            agreeing[f"sum({equal} == bool count({by_rules})) * ({equal} == bool count({by_routes}))"] = 1.0
    assert len(agreeing) > 5
    _promtool_agrees(tmp_path, agreeing, RECORDED["rule_files"])


@pytest.mark.parametrize(
    ("choice", "rules", "reads_routes"),
    [
        ({}, RECORDED["rule_files"], False),
        ({"$probe": "smt."}, RECORDED["rule_files"], True),
        ({"$target": "nowhere"}, RECORDED["rule_files"], True),
        ({"$labels": 'team="x"'}, RECORDED["rule_files"], True),
        ({"$__range": "40m"}, RECORDED["rule_files"], True),
        ({}, [], True),
    ],
    ids=["all", "a probe", "a target", "a label", "before the rules", "without the rules"],
)
def test_panels_read_what_is_recorded_only_if_it_is_what_is_selected(
    tmp_path: Path, choice: dict[str, str], rules: list[str], reads_routes: bool
) -> None:
    """Panels read single routes if only some are selected, or the rules did not record all the time."""
    board = json.loads(DASHBOARDS[0].read_text())
    (variable,) = (one for one in board["templating"]["list"] if one["name"] == "narrowed")
    query = with_choices(variable["query"], GRAFANAS | choice)[len("query_result(") : -1]
    jobs = ".+" if reads_routes else "-"
    wanted = f'count(({query}) and on (probe) label_replace(vector(1), "probe", "{jobs}", "", ""))'
    _promtool_agrees(tmp_path, {wanted: 1.0}, rules)


HOSTILE = "</script><script>document.title = 'broken'</script>\"'<b>{{"


def test_the_preview_draws_every_panel(prometheus: Prometheus, tmp_path: Path) -> None:
    """Each panel is on the preview with its title, and data or "no data"; what it cannot draw is listed."""
    data = collect(prometheus, 20.0)
    assert [panel["unknown"] for board in data for panel in board["panels"] if panel["unknown"]] == []
    lines = {"at": [1.0, 2.0], "values": [1.0, None]}
    strange = {**data[0]["panels"][0], "type": "piechart", "unknown": ["panel type piechart"]}
    hostile = {
        **strange,
        "type": "timeseries",
        "unknown": [],
        "title": HOSTILE,
        "data": [{**lines, "name": HOSTILE}],
    }
    data.append({"name": "strange", "title": HOSTILE, "panels": [strange, hostile]})
    pictured = [board["name"] for board in data[-2:]]  # each takes a second, and shows the same
    page = tmp_path / "index.html"
    page.write_text(page_of(data))
    with chromium() as browser:
        shown = browser.new_page()
        watch = Watch(shown, "file://")
        take_pictures(shown, page.as_uri(), tmp_path, pictured)
        assert LABEL in shown.locator(".label").inner_text()
        for board in data:
            panels = shown.locator(f"#{board['name']} .panel")
            assert panels.count() == len(board["panels"])
            for number, panel in enumerate(board["panels"]):
                drawn = panels.nth(number)
                assert drawn.locator("h2").text_content() == panel["title"]
                known = drawn.locator(
                    "canvas, .stat b, .bars b, svg.whole rect, table.data td, .none, .unknown"
                )
                assert known.count() > 0, panel["title"]
        assert shown.locator("#strange .unknown").inner_text() == "not drawn: panel type piechart"
        assert HOSTILE in (shown.locator("#strange .legend").last.text_content() or "")
        assert shown.title().startswith("mailsonde's dashboards")
        assert watch.troubles == []
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in pictured)
