"""The rendered rules, judged by promtool: before, while, after, and when the data is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import promql_parser
import pytest
import yaml

from monitor.config.load import load
from monitor.rendering import render_alerts, write_files
from tests.real_servers.prometheus import promtool

ALERTS = Path(__file__).parents[2] / "alerts"
TESTS = sorted(path for path in (ALERTS / "tests").glob("Mailsonde*.yaml"))


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Render the rules of the tests' site."""
    monkeypatch.setenv("TEST_SECRET", "x")
    write_files(render_alerts(load(ALERTS / "tests" / "site.yaml")), tmp_path)
    return tmp_path


def _rules(directory: Path) -> list[dict[str, str]]:
    files = (yaml.safe_load(path.read_text()) for path in directory.glob("*.rules.yaml"))
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def test_rules_are_valid(rules: Path) -> None:
    """The rendered rules are without fault to promtool."""
    checked = promtool("check", "rules", *sorted(rules.glob("*.rules.yaml")))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alert_behaves(rules: Path, path: Path) -> None:
    """Each alert fires when it should and only then, with its labels and annotations."""
    test = shutil.copy(path, rules)
    tested = promtool("test", "rules", test)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_its_tests_and_its_runbook(rules: Path) -> None:
    """No alert lacks tests of its end and of vanished data, or a runbook with its four parts."""
    names = {rule["alert"] for rule in _rules(rules) if "alert" in rule}
    assert names == {path.stem for path in TESTS}
    for name in names:
        cases = [
            case["name"] for case in yaml.safe_load((ALERTS / "tests" / f"{name}.yaml").read_text())["tests"]
        ]
        assert cases[0].startswith("before, ")
        assert any(case.startswith("the data is gone") for case in cases)
        runbook = (ALERTS / "runbooks" / f"{name}.md").read_text()
        for part in ("## Meaning", "## Impact", "## Where the mail is", "## Remedy"):
            assert part in runbook


def test_rules_name_only_metrics_and_labels_that_exist(rules: Path) -> None:
    """No rule can be silent for ever because of a misspelt metric or label."""
    known = _exported()
    recorded = {rule["record"] for rule in _rules(rules) if "record" in rule}
    known |= {name: {"probe", "target", "window"} for name in recorded}
    for rule in _rules(rules):
        for name, labels in _selectors(promql_parser.parse(rule["expr"])):
            if name != "up":
                assert name in known, rule
                assert labels <= known[name] | {"job", "instance"}, rule


def _exported() -> dict[str, set[str]]:
    """Return the labels of every metric that the reference page, made from the code, knows."""
    known: dict[str, set[str]] = {}
    for line in (ALERTS.parent / "docs" / "reference" / "metrics.md").read_text().splitlines():
        if line.startswith("| `mailsonde_"):
            name, kind, labels = (cell.strip(" `") for cell in line.split("|")[1:4])
            for suffix in ("_bucket", "_count", "_sum") if kind == "histogram" else ("",):
                known[name + suffix] = set(labels.split(", ")) | {"le"}
    return known


def _selectors(node: object) -> list[tuple[str, set[str]]]:
    """Return name and labels of every selector in a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        return [(node.name, {matcher.name for matcher in node.matchers.matchers})]
    children = [getattr(node, name, None) for name in ("lhs", "rhs", "expr", "vector_selector", "param")]
    children += list(getattr(node, "args", None) or [])
    return [found for child in children if child is not None for found in _selectors(child)]


def test_no_probe_name_can_break_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest and oddest names that the configuration allows give valid rules."""
    monkeypatch.setenv("TEST_SECRET", "x")
    site = (ALERTS / "tests" / "site.yaml").read_text()
    (tmp_path / "site.yaml").write_text(site.replace("name: smtp", f"name: a._-{'.' * 59}"))
    write_files(render_alerts(load(tmp_path / "site.yaml")), tmp_path)
    checked = promtool("check", "rules", *sorted(tmp_path.glob("*.rules.yaml")))
    assert checked.returncode == 0, checked.stdout + checked.stderr
