"""The shipped rules, tested by promtool: before, during and after a fault, and without data."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
import yaml

from monitor.cadence import CADENCES
from monitor.config.load import load
from monitor.rendering import render_alerts
from monitor.thresholds import load_thresholds
from tests.real_servers.prometheus import promtool
from tests.unit.dashboards.promql import exported, parse, reads, strange

ALERTS = Path(__file__).parents[2] / "alerts"
TESTS = sorted(path for path in (ALERTS / "tests").glob("Mailsonde*.yaml"))
RULES = sorted((ALERTS / "rules").glob("*.rules.yaml"))

ONE_IS_ENOUGH = {
    *("MailsondeMessageOverdue", "MailsondeMessageLost", "MailsondeMessageBounced"),
    *("MailsondeMessageJunked", "MailsondeMessageAltered", "MailsondeUnexpectedMessage"),
    *("MailsondeCertificateExpiring", "MailsondeOAuth2CredentialExpires"),
    *("MailsondeExchangeCertificateExpires", "MailsondeExchangeAuthCertificateExpires"),
    *("MailsondeAgentDown", "MailsondeHeartbeat", "MailsondeVersionBlocked"),
}
"""Alerts that are not about a number of runs: one message, or one certificate, is to be told."""

ABOUT_EVERY_PROBE = {
    *("mailsonde:probe_info", "mailsonde:known_probe", "mailsonde:uncounted_probe"),
    *("mailsonde:own_limit_reached", "mailsonde:still_down"),
    *("mailsonde:delivery_subject", "mailsonde:late_subject", "mailsonde:server_subject"),
    *("mailsonde:declining_subject", "mailsonde:schedule_subject"),
    *("mailsonde:critical_finding_subject", "mailsonde:warning_finding_subject"),
}
"""Recorded metrics from which alerts have their labels and exceptions."""

_NAMES = re.compile(r"\bMailsonde\w+|\bmailsonde:\w+")
"""Alerts and recorded metrics."""

_PROBE = re.compile(r"mailsonde_probe_info{(.*)}")
_IDENTITY = re.compile(r'(?:job|instance|location|probe|kind|target)="[^"]*"')
_COUNTERS = re.compile(r"_(total|bucket|count)\b")


Files = Mapping[str, Any]
"""The data of YAML files by their names."""


@pytest.fixture(scope="module")
def rules() -> Files:
    """Return the rules in the files that are shipped."""
    return _data({path.name: path.read_text() for path in RULES})


def _tested(directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a test with the shipped rules for the classes of intervals that it has series of."""
    used = {label for label in CADENCES.values() if f'cadence="{label}"' in text}
    return promtool("test", "rules", _write(directory, text, _shipped(frozenset(used or {"1m"}))))


@cache
def _shipped(cadences: frozenset[str]) -> Files:
    """Return the shipped rules with windows for these classes of intervals."""
    used = {longest: label for longest, label in CADENCES.items() if label in cadences}
    return _data(render_alerts(cadences=used))


def _data(texts: Mapping[str, str]) -> Files:
    return {name: _read(text) for name, text in texts.items()}


def _read(text: str) -> Any:
    """Return the data of a YAML file, ten times as fast as by `yaml.safe_load`."""
    return yaml.load(text, Loader=yaml.CSafeLoader)  # a safe loader too


def _dump(data: Any) -> str:
    """Return data as YAML, ten times as fast as by `yaml.safe_dump`."""
    return yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False, width=1000)


def _write(directory: Path, text: str, files: Files) -> Path:
    """Write a test with the rules that it needs, and return its path.

    These are the rules of its alerts and of what they read; with all, promtool takes many times as long.
    """
    needed = _needed(set(_NAMES.findall(text)), _rules(files))
    for name, file in files.items():
        groups = [
            {**group, "rules": [rule for rule in group["rules"] if _name(rule) in needed]}
            for group in file["groups"]
        ]
        (directory / name).write_text(_dump({"groups": groups}))
    test = directory / "test.yaml"
    test.write_text(text)
    return test


def _name(rule: dict[str, str]) -> str:
    return rule.get("alert") or rule["record"]


def _needed(asked: set[str], rules: list[dict[str, str]]) -> set[str]:
    """Return the names of rules that are asked for, and of those that these name, also in annotations."""
    named = defaultdict(set)
    for rule in rules:
        named[_name(rule)] |= set(_NAMES.findall(str(rule)))
    needed, waiting = set[str](), asked & named.keys()
    while waiting:
        needed |= waiting
        waiting = set().union(*(named[name] for name in waiting)) & named.keys() - needed
    return needed


def _rules(files: Files) -> list[dict[str, str]]:
    return [rule for file in files.values() for group in file["groups"] for rule in group["rules"]]


def test_rules_are_valid() -> None:
    """The shipped rules are valid for promtool."""
    checked = promtool("check", "rules", *RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alert_behaves(tmp_path: Path, path: Path) -> None:
    """Each alert fires exactly when it should, with its labels and annotations."""
    tested = _tested(tmp_path, path.read_text())
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_its_tests_and_its_runbook(rules: Files) -> None:
    """Each alert has tests of its life and of what must not fire it, and a runbook with four parts."""
    names = {rule["alert"] for rule in _rules(rules) if "alert" in rule}
    assert names == {path.stem for path in TESTS}
    cases = 0
    for name in names:
        document = _read((ALERTS / "tests" / f"{name}.yaml").read_text())
        cases += len(document["tests"])
        _check_cases(name, document["tests"], _metrics(rules, name))
        runbook = (ALERTS / "runbooks" / f"{name}.md").read_text()
        for part in ("## Meaning", "## Impact", "## Where the mail is", "## Remedy"):
            assert part in runbook
    print(f"{len(names)} alerts, all with every applicable test; {cases} cases")


def _check_cases(alert: str, cases: list[dict[str, Any]], metrics: set[str]) -> None:
    """Fail unless the cases cover the alert's whole life and everything that must not fire it."""
    life, gone = cases[0], next(case for case in cases if case["name"].startswith("the data is gone"))
    assert life["name"].startswith("before, ")
    checks, checks_gone = _fired(life), _fired(gone)
    assert any(checks)
    if alert != "MailsondeHeartbeat":
        assert (checks[0], checks[-1]) == (False, False)
        assert checks_gone[-1] is (alert == "MailsondeAgentDown")
        assert "stale" in _values(gone)
    needed = set()
    if metrics:
        needed.add("a restart")
    if _COUNTERS.search(" ".join(metrics)):
        needed.add("a counter begins again")
    if any("probe" in exported()[metric] for metric in metrics & exported().keys()):
        needed.add("the probe is removed")
    if alert not in ONE_IS_ENOUGH:
        needed.add("one bad")
    for wanted in needed:
        found = [case for case in cases if case["name"].startswith(wanted)]
        assert found, f"{alert} has no case of: {wanted}"
        for case in found:
            assert not any(_fired(case)), f"{alert} fires in: {case['name']}"
            assert _shows(wanted, case), f"nothing of the kind happens in: {alert}, {case['name']}"


def _fired(case: dict[str, Any]) -> list[bool]:
    """Return for each evaluation whether the alert must fire with all its labels and annotations."""
    fired = []
    for check in case["alert_rule_test"]:
        for alert in check["exp_alerts"]:
            assert alert["exp_labels"]["severity"]
            assert {"summary", "description", "runbook_url"} <= alert["exp_annotations"].keys()
        fired.append(bool(check["exp_alerts"]))
    return fired


def _values(case: dict[str, Any]) -> str:
    return " ".join(series["values"] for series in case["input_series"] or [])


def _shows(wanted: str, case: dict[str, Any]) -> bool:
    """Whether the input of a case matches its name."""
    if wanted == "a restart":
        return re.search(r"_|stale|\b0x", _values(case)) is not None
    if wanted == "the probe is removed":
        return all(series["values"].endswith("stale") for series in case["input_series"])
    if wanted == "a counter begins again":
        return any(re.search(r"[1-9]\S* 0", series["values"]) for series in case["input_series"])
    return True


def _recorded(files: Files) -> dict[str, list[str]]:
    """Return the expressions of each recorded metric."""
    recorded: dict[str, list[str]] = defaultdict(list)
    for rule in (rule for rule in _rules(files) if "record" in rule):
        recorded[rule["record"]].append(rule["expr"])
    return recorded


@cache
def _metrics_read(expression: str) -> frozenset[str]:
    return frozenset(read.metric for read in reads(parse(expression)))


def _metrics(files: Files, alert: str) -> set[str]:
    """Return the exported metrics that an alert reads, directly or through recorded ones."""
    recorded = _recorded(files)
    labels = {name for name in recorded if name in ABOUT_EVERY_PROBE}
    found, asked = set[str](), [rule["expr"] for rule in _rules(files) if rule.get("alert") == alert]
    while asked:
        for name in _metrics_read(asked.pop()) - labels - found:
            found.add(name)
            asked += recorded.get(name, [])
    return found - recorded.keys()


def test_alerts_open_their_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a Grafana, each alert links to a dashboard for its subject, with agent and probe selected."""
    monkeypatch.setenv("TEST_SECRET", "x")
    ours = tmp_path / "ours.yaml"
    ours.write_text("dashboards: https://grafana.example.com/d/")
    used = {60.0: "1m", 300.0: "5m"}  # by the first test of each alert
    files = _data(render_alerts(load(ALERTS / "tests" / "site.yaml"), load_thresholds(ours), used))
    uids = _dashboards_of_alerts(files)
    tests = []
    for path in TESTS:
        document = _read(_with_odd_location(path.read_text()))
        life = document["tests"][0]
        check = next(check for check in life["alert_rule_test"] if check["exp_alerts"])
        document["tests"] = [life | {"alert_rule_test": [check]}]
        for expected in check["exp_alerts"]:
            labels = expected["exp_labels"]
            query = "".join(
                f"{begin}={quote_plus(labels[label])}"
                for begin, label in (("var-location", "location"), ("&var-probe", "probe"))
                if label in labels
            )
            url = f"https://grafana.example.com/d/{uids[path.stem]}?{query}"
            expected["exp_annotations"]["dashboard_url"] = url
        own = tmp_path / path.stem
        own.mkdir()
        tests.append(_write(own, _dump(document), files))
    tested = promtool("test", "rules", *tests)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def _with_odd_location(text: str) -> str:
    """Return a test with an agent whose location has characters that are special in links."""
    text = re.sub('location="(fra1|a)"', 'location="a b&c=é#"', text)
    verbs = "is|has|start|down|asks|gets|stalls|stalled|takes|runs|comes|uses|lacks|refuses"
    text = re.sub(f"(agent|agent at|at) (fra1|a) ({verbs})", r"\1 a b&c=é# \3", text)
    return re.sub("location: (fra1|a),", 'location: "a b&c=é#",', text)


def _dashboards_of_alerts(files: Files) -> dict[str, str]:
    """Return the uid that each alert links to; its dashboard has the variables and the alert's metrics."""
    texts = [path.read_text() for path in (ALERTS.parent / "dashboards").glob("*.json")]
    dashboards = {json.loads(text)["uid"]: text for text in texts}
    uids = {}
    for rule in (rule for rule in _rules(files) if "alert" in rule):
        uid = (
            rule["annotations"]["dashboard_url"].removeprefix("https://grafana.example.com/d/").split("?")[0]
        )
        variables = {one["name"] for one in json.loads(dashboards[uid])["templating"]["list"]}
        assert {"location", "probe"} <= variables
        about = _metrics(files, rule["alert"])
        assert not about or any(metric in dashboards[uid] for metric in about), rule["alert"]
        uids[rule["alert"]] = uid
    return uids


def test_rules_name_only_metrics_and_labels_that_exist(rules: Files) -> None:
    """No rule is silent because of a misspelt metric, label, or label value."""
    known = dict(exported())
    for name, expressions in 2 * list(_recorded(rules).items()):  # some read what a later file records
        from_where = {read.metric for expression in expressions for read in reads(parse(expression))}
        own = (rule.get("labels", ()) for rule in _rules(rules) if rule.get("record") == name)
        known[name] = frozenset().union(*own, *(known.get(metric, ()) for metric in from_where))
    wrong = {rule["expr"]: list(strange(parse(rule["expr"]), known)) for rule in _rules(rules)}
    assert {expression: what for expression, what in wrong.items() if what} == {}


@pytest.mark.parametrize(
    "expression",
    [
        "mailsonde_probe_sucess == 0",
        'mailsonde_messages_total{status="lost"}',
        'mailsonde_messages_total{state="vanished"}',
        'mailsonde_probe_reasons_total{reason=~"bounced_.*"}',
        "sum by (probe, host) (mailsonde_probe_success)",
    ],
)
def test_a_misspelt_rule_would_be_found(expression: str) -> None:
    """The check above can fail: for a metric, a label, a value, a pattern of values, and an aggregation."""
    assert list(strange(parse(expression), exported())) != []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_whatever_labels_a_target_has(tmp_path: Path, path: Path) -> None:
    """Labels that a site or Kubernetes adds to a target's series silence no alert."""
    document = _read(path.read_text())
    life = document["tests"][0]
    checks = life.pop("alert_rule_test")
    for series in life["input_series"] or ():
        series["series"] = series["series"].replace("}", ',namespace="mail",pod="mailsonde-0"}')
    query = f'count(count by (severity) (ALERTS{{alertname="{path.stem}",alertstate="firing"}}))'
    expected = [(check["eval_time"], len(check["exp_alerts"])) for check in checks]
    life["promql_expr_test"] = [
        {"expr": query, "eval_time": at, "exp_samples": [{"labels": "{}", "value": count}] if count else []}
        for at, count in expected
    ]
    tested = _tested(tmp_path, _dump(document | {"tests": [life]}))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def _first_alert(case: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first check of a test at which an alert that names a probe fires."""
    for check in case["alert_rule_test"]:
        if any("probe" in alert["exp_labels"] for alert in check["exp_alerts"]):
            found: dict[str, Any] = check
            return found
    return None


LIVES = {path: _read(path.read_text())["tests"][0] for path in TESTS}
"""The test of each alert's whole life."""


@pytest.mark.parametrize(
    "path", [path for path, life in LIVES.items() if _first_alert(life)], ids=lambda path: path.stem
)
def test_alert_is_quiet_in_maintenance(tmp_path: Path, path: Path) -> None:
    """Each alert that names a probe fires without maintenance, as its own test shows, and not with it."""
    life = LIVES[path]
    probes = [match[1] for series in life["input_series"] if (match := _PROBE.match(series["series"]))]
    paused = [
        {"series": f'mailsonde_probe_in_maintenance{{{labels},source="pause"}}', "values": "1x2000"}
        for labels in sorted({",".join(_IDENTITY.findall(labels)) for labels in probes})
    ]
    check = {**_first_alert(life), "exp_alerts": []}  # type: ignore[dict-item] # there is one, see above
    case = {**life, "input_series": [*life["input_series"], *paused], "alert_rule_test": [check]}
    tested = _tested(tmp_path, _dump({**_read(path.read_text()), "tests": [case]}))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_no_name_can_break_the_rules(tmp_path: Path) -> None:
    """The longest and oddest names allowed give the alert that they must, with all that it tells."""
    text = (ALERTS / "tests" / "MailsondeProbeDown.yaml").read_text()
    text = "  - name: ".join(text.split("  - name: ")[:2])  # the alert's whole life
    text = text.replace('probe="smtp"', f'probe="a._-{"." * 59}"').replace("submission", f"a@._-{'@' * 58}")
    text = text.replace("probe: smtp,", f"probe: a._-{'.' * 59},").replace(
        "probe smtp", f"probe a._-{'.' * 59}"
    )
    text = text.replace("runs of smtp", f"runs of a._-{'.' * 59}")
    tested = _tested(tmp_path, text)
    assert tested.returncode == 0, tested.stdout + tested.stderr
