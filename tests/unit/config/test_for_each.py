"""One entry stands for many, with ``for_each``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from monitor.commands.schema import schema
from monitor.commands.validate import validate
from monitor.config.load import load

CONFIG = Path(__file__).parents[3] / "config"
FLEET = """
defaults:
  probes: {labels: {team: messaging}}
  imap: {interval: 2m}
  mailboxes: {username: me, password: {env: PASSWORD}}
servers:
  "${protocol}-${site}":
    for_each: {protocol: [smtp, imap], port: [465], site: [a, b]}
    protocol: "${protocol}"
    host: "${site}.example"
    port: "${port}"
    tls: implicit
    labels: {site: "${site}"}
mailboxes:
  "${site}": {for_each: {site: [a, b]}, address: "me@${site}.example", server: "imap-${site}"}
probes:
  - {name: "smtp-${site}", for_each: {site: [a, b]}, kind: smtp, server: "smtp-${site}"}
  - {name: "imap-${site}", for_each: {site: [a, b]}, kind: imap, mailbox: "${site}", labels: {team: "$${x}"}}
"""


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PASSWORD", "s3cret")
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    return path


def test_each_combination_makes_an_entry(fleet: Path) -> None:
    """Variables fill names and all texts; a text that is one variable keeps a number a number."""
    configuration = load(fleet)
    assert list(configuration.servers) == ["smtp-a", "smtp-b", "imap-a", "imap-b"]
    assert configuration.servers["imap-b"].host == "b.example"
    assert configuration.servers["imap-b"].port == 465
    assert [probe.name for probe in configuration.probes] == ["smtp-a", "smtp-b", "imap-a", "imap-b"]
    assert configuration.mailboxes["b"].address == "me@b.example"


def test_two_dollars_are_one_before_a_brace(fleet: Path) -> None:
    """A text can contain what looks like a variable."""
    assert load(fleet).probes[2].labels == {"team": "${x}"}


def test_texts_of_other_entries_are_left_alone(tmp_path: Path) -> None:
    """Without ``for_each``, nothing is a variable."""
    path = tmp_path / "site.yaml"
    path.write_text('probes: [{name: mx, kind: mx, domain: a.example, description: "${x} $${x}"}]')
    assert load(path).probes[0].description == "${x} $${x}"


def test_explain_shows_every_entry_and_its_item(fleet: Path) -> None:
    """A person sees what the short form amounts to, and which line and item made it."""
    shown = CliRunner().invoke(validate, [str(fleet), "--explain"]).stdout
    assert f"servers.imap-b: # {fleet}:7, protocol=imap, port=465, site=b" in shown
    assert f"probes.imap-b: # {fleet}:18, site=b" in shown
    assert "interval: 2m" in shown
    assert "s3cret" not in shown


def test_a_large_fleet_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 domains, 20 sites with three kinds of probe and 300 routes are the 24 lines that the guide shows."""
    monkeypatch.setenv("CANARY_PASSWORD", "s3cret")
    path = Path(__file__).parent / "fleet.yaml"
    configuration = load(path)
    assert len(path.read_text().splitlines()) == 24
    assert (len(configuration.servers), len(configuration.mailboxes)) == (60, 20)
    kinds = Counter(probe.kind for probe in configuration.probes)
    assert kinds == {"mx": 50, "smtp": 20, "pop3": 20, "imap": 20, "roundtrip": 300}


def problems(data: object) -> list[str]:
    printed = json.loads(CliRunner().invoke(schema).stdout)
    Draft202012Validator.check_schema(printed)
    return [error.message for error in Draft202012Validator(printed).iter_errors(data)]


def test_the_schema_accepts_what_is_valid(fleet: Path) -> None:
    """Editors mark nothing in the shipped examples, in a fleet's file, or in a part that others include."""
    examples = [(CONFIG / name).read_text() for name in ("minimal.yaml", "example.yaml")]
    for text in (FLEET, *examples):
        assert problems(yaml.safe_load(text)) == []
    assert problems({"servers": {"out": {"protocol": "smtp"}}}) == []
    kinds = {"for_each": {"kind": ["pop3", "imap"]}, "name": "a-${kind}", "kind": "${kind}", "mailbox": "x"}
    assert problems({"probes": [kinds]}) == []


@pytest.mark.parametrize(
    "part",
    [
        {"defaults": {"mx": {"intervall": "5m"}}},
        {"probes": [{"for_each": {"a": ["b"]}, "name": "${a}", "kind": "mx", "domian": "a.example"}]},
        {"probes": [{"name": "a", "kind": "mx", "domian": "a.example"}]},
        {"probes": [{"for_each": {"a": []}, "name": "${a}", "kind": "mx", "domain": "a.example"}]},
        {"servers": {"${a}": {"for_each": {"a": ["b"]}, "hsot": "${a}"}}},
        {"include": "conf.d/*.yaml"},
    ],
)
def test_the_schema_marks_mistakes(part: object) -> None:
    """Editors mark an unknown key, also where values are variables."""
    assert len(problems(part)) == 1
