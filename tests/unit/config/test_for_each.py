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
from monitor.config.composition import compose
from monitor.config.defaults import completed
from monitor.config.load import ConfigurationError, load

CONFIG = Path(__file__).parents[3] / "config"
GUIDE = Path(__file__).parents[3] / "docs" / "large-configurations.md"
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
    assert len(written_out(path).splitlines()) == 3783
    assert "24 lines. Written out, one setting a line, it is 3,783." in " ".join(GUIDE.read_text().split())


def written_out(path: Path) -> str:
    """Return what the entries of a file would be without ``for_each`` and ``defaults``."""
    data = compose(path).data
    defaults = data["defaults"]
    entries = {
        part: {name: completed(part, entry, defaults) for name, entry in data[part].items()}
        for part in ("servers", "mailboxes")
    }
    probes = [completed("probes", entry, defaults) for entry in data["probes"]]
    # JSON makes plain texts of those that know their directory.
    return yaml.safe_dump(json.loads(json.dumps({**entries, "probes": probes})), sort_keys=False)


def told(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    return str(caught.value).replace(f"{path}:", "")


def test_numbers_can_be_names_and_labels(tmp_path: Path) -> None:
    """Where a text is due, a whole number is a text."""
    path = tmp_path / "site.yaml"
    path.write_text(
        'servers: {"${n}": {for_each: {n: [1, 2]}, protocol: smtp, host: a.example, tls: starttls}}\n'
        'probes: [{for_each: {n: [1, 2]}, name: "${n}", kind: smtp, server: "1", labels: {rack: "${n}"}}]\n'
    )
    configuration = load(path)
    assert list(configuration.servers) == ["1", "2"]
    assert [(probe.name, probe.labels["rack"]) for probe in configuration.probes] == [("1", "1"), ("2", "2")]


def test_the_limits_hold_for_all_entries_together(tmp_path: Path) -> None:
    """Many short lines do not make millions of probes, nor texts of gigabytes."""
    many = "a: &a [" + ", ".join(map(str, range(1000))) + "]"
    entry = '- {{for_each: {0}, name: "{1}", kind: mx, domain: a.example, description: "{2}"}}\n'
    probes = [entry.format(f"{{{many}}}", "a${a}", "x"), entry.format("{a: *a, b: *a}", "b${a}${b}", "x")]
    shown = told(tmp_path / "site.yaml", "probes:\n" + "".join(probes))
    assert shown == (
        "3: probes[1].for_each: makes 1,000,000 entries (1,000 of a × 1,000 of b); a configuration can have "
        "100,000 in all"
    )
    long = entry.format(f"{{{many}}}", "a${a}", "x" * 101_000)
    assert "2: probes[0].for_each: makes entries of more than" in told(
        tmp_path / "site.yaml", f"probes:\n{long}"
    )
    item = f"{{a: [{'x' * 300}]}}"
    shown = told(tmp_path / "site.yaml", "probes:\n" + entry.format(item, "a${a}", "x"))
    assert shown == "2: probes[0].for_each.a: item 1 is longer than 255 characters"


def test_paths_among_the_items_of_a_file_are_beside_it(tmp_path: Path) -> None:
    """A file of items may begin with a byte order mark. Its paths are relative to the file that names it."""
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "files.txt").write_bytes(b"\xef\xbb\xbfsecret\r\n")
    (tmp_path / "team" / "secret").write_text("inner")
    (tmp_path / "secret").write_text("outer")
    (tmp_path / "team" / "a.yaml").write_text(
        "servers: {in: {protocol: imap, host: a.example, tls: implicit}}\n"
        'mailboxes: {"${f}": {for_each: {f: {file: files.txt}}, address: a@a.example, server: in,'
        ' username: me, password: {file: "${f}"}}}\n'
        "probes: [{name: imap, kind: imap, mailbox: secret}]\n"
    )
    path = tmp_path / "site.yaml"
    path.write_text("include: [team/a.yaml]\n")
    password = load(path).mailboxes["secret"].password
    assert password is not None
    assert password.get_secret_value() == "inner"


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
