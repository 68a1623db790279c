"""A site's own thresholds: in place of the shipped ones, or refused with their line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from monitor.commands import main
from monitor.config.load import ConfigurationError
from monitor.thresholds import load_thresholds

SITE = Path(__file__).parents[3] / "alerts" / "tests" / "site.yaml"


def test_own_thresholds_take_the_place_of_the_shipped_ones(tmp_path: Path) -> None:
    """What the site's file names is used, and all else is as shipped."""
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
            "\noverdue_share: 0.2",
            "ours.yaml:2: overdue_share: unknown key. Did you mean 'overdue_share_of_deadline'?",
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
        ("lag_for: 5m\nlag_for: 6m", "ours.yaml:2: lag_for: this key stands here twice"),
        ("- a list", "ours.yaml:1: must be a mapping with thresholds"),
        ("a: [", "ours.yaml:1: is not valid YAML"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, text: str, told: str) -> None:
    """An unknown key, a wrong duration, a negative number or a broken text is refused where it stands."""
    path = tmp_path / "ours.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_thresholds(path)
    assert told in str(caught.value)


def test_command_refuses_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`render alerts` writes nothing when the thresholds have a mistake, and exits 2 with it."""
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
