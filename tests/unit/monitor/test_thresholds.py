"""A site's own thresholds: they override the shipped ones, or are refused with their line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from monitor.commands import main
from monitor.config.load import ConfigurationError, load
from monitor.rendering import render_alerts
from monitor.thresholds import load_thresholds
from tests.unit.dashboards.promql import parse, reads

UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
SITE = Path(__file__).parents[3] / "alerts" / "tests" / "site.yaml"


def test_own_thresholds_take_the_place_of_the_shipped_ones(tmp_path: Path) -> None:
    """The site's values are used, and the shipped ones for everything else."""
    path = tmp_path / "ours.yaml"
    path.write_text("certificate_warning: 30d\nslow_observations: 9\n")
    ours, shipped = load_thresholds(path), load_thresholds()
    assert (ours.certificate_warning, ours.slow_observations) == (30 * 86400.0, 9)
    assert ours.model_copy(update={"certificate_warning": 0, "slow_observations": 0}) == shipped.model_copy(
        update={"certificate_warning": 0, "slow_observations": 0}
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "\nskipped_run: 2",
            "ours.yaml:2: skipped_run: unknown key. Did you mean 'skipped_runs'?",
        ),
        ("down_for: soon", "ours.yaml:1: down_for: 'soon' is not a duration; write a number with its unit"),
        ("down_for: 30s\nlag_seconds: -1", "ours.yaml:2: lag_seconds: must be greater than 0"),
        ("slo_fast: [{factor: 2, long: 1h, short: 90s}]", "the window 90s is not one of slo_windows"),
        (
            "slo_fast: [{factor: 2, long: 1h, short: x}]",
            "ours.yaml:1: slo_fast[0].short: 'x' is not a duration",
        ),
        ('runbooks: "a\'{{ b }}"', "ours.yaml:1: runbooks: must match pattern"),
        (
            "dashboards: 'grafana.example.com'",
            "ours.yaml:1: dashboards: is not the address of dashboards; write",
        ),
        (
            "dashboards: 'https://{{ x }}/d'",
            "ours.yaml:1: dashboards: is not the address of dashboards; write",
        ),
        (
            "lag_seconds: 2\noverdue_share_of_deadline: 0.5",
            "ours.yaml:2: overdue_share_of_deadline: has moved to the agent's configuration; write `alerts: "
            "{overdue_share_of_deadline: …}` there",
        ),
        ("stale_intervals: 4\nlag_seconds: -1", "ours.yaml:2: lag_seconds: must be greater than 0"),
        (
            "certificate_critical: 30d",
            "ours.yaml:1: certificate_critical: must be shorter than certificate_warning",
        ),
        ("job: 'a\"b'", "ours.yaml:1: job: must match pattern"),
        ("lag_for: 5m\nlag_for: 6m", "ours.yaml:2: lag_for: this key appears twice; keep one"),
        ("- a list", "ours.yaml:1: must be a mapping with thresholds"),
        ("a: [", "ours.yaml:1: is not valid YAML"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, text: str, told: str) -> None:
    """An unknown key, an invalid duration, a negative number or invalid YAML is refused with its line."""
    path = tmp_path / "ours.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_thresholds(path)
    assert told in str(caught.value)


def _rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> list[dict[str, Any]]:
    """Return all rules for a site's thresholds."""
    monkeypatch.setenv("TEST_SECRET", "x")
    path = tmp_path / "ours.yaml"
    path.write_text(text)
    files = render_alerts(load(SITE), load_thresholds(path))
    return [
        rule for text in files.values() for group in yaml.safe_load(text)["groups"] for rule in group["rules"]
    ]


def _alerts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> list[dict[str, Any]]:
    return [rule for rule in _rendered(tmp_path, monkeypatch, text) if "alert" in rule]


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        ("slo_fast: []", "MailsondeErrorBudgetBurningFast"),
        ("slo_slow: []", "MailsondeErrorBudgetBurningSlowly"),
        ("job: ''", "MailsondeAgentDown"),
    ],
)
def test_what_is_left_empty_has_no_alert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, left_out: str
) -> None:
    """Without burn rates, or without a job that scrapes agents, only that alert is missing."""
    names = {rule["alert"] for rule in _alerts(tmp_path, monkeypatch, text)}
    all_names = {rule["alert"] for rule in _alerts(tmp_path, monkeypatch, "{}")}
    assert all_names - names == {left_out}


@pytest.mark.parametrize("begins", ["*x", "&x", "[x", "%x", "|", "#x", "https://wiki.example.com/a?b=c#d"])
def test_an_address_of_runbooks_comes_out_as_it_went_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    """Characters that are special in YAML are preserved in runbook_url."""
    rules = _alerts(tmp_path, monkeypatch, f"runbooks: '{begins}'")
    assert {rule["annotations"]["runbook_url"] for rule in rules} == {
        f"{begins}/{rule['alert']}.md" for rule in rules
    }


def test_no_window_is_shorter_than_four_scrapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if Prometheus scrapes every ten minutes, each window contains scrapes."""
    rules = _rendered(tmp_path, monkeypatch, "scrape_interval: 10m")
    named = [rule for rule in rules if "cadence=" in rule["expr"]]
    assert len(named) > 5
    windows = {read.window for rule in named for read in reads(parse(rule["expr"])) if read.window}
    seconds = {sum(float(n) * UNITS[unit] for n, unit in re.findall(r"(\d+)([dhms])", w)) for w in windows}
    assert min(seconds) == 2400.0


def test_the_job_is_the_sites_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AgentDown queries only the job that the site named."""
    (rule,) = [
        rule
        for rule in _alerts(tmp_path, monkeypatch, "job: mail-canaries")
        if rule["alert"] == "MailsondeAgentDown"
    ]
    assert rule["expr"].strip() == 'up{job="mail-canaries"} == 0 or absent(up{job="mail-canaries"})'


def test_command_refuses_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`render alerts` writes nothing if the thresholds have a mistake, and exits 2 with it."""
    monkeypatch.setenv("TEST_SECRET", "x")
    path = tmp_path / "ours.yaml"
    path.write_text("down_intervals: none")
    command = ["render", "alerts", "--config", str(SITE), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*command, "--thresholds", str(path)])
    assert done.exit_code == 2
    assert "ours.yaml:1: down_intervals:" in done.output
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(main, command).exit_code == 0
    assert (
        CliRunner().invoke(main, ["render", "prometheus", *command[2:], "--thresholds", str(path)]).exit_code
        == 2
    )
