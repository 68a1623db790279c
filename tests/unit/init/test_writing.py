"""The written file is valid for any answers, fully commented, and never replaces another file."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from monitor.config.load import load
from monitor.init.endpoint import Endpoint, TlsMode
from monitor.init.writing import Files, Plan, ledger_url, written
from monitor.ledger.backend import ledger_path
from probes.protocols.dns import ResolverSettings

PLAN = Plan(
    address="canary@example.com",
    username="canary@example.com",
    credentials={"file": "mailsonde.password"},
    submission=Endpoint("smtp", "mail.example.com", 587, "starttls", "you", vouched=True),
    incoming=Endpoint("imap", "mail.example.com", 993, "implicit", "you", vouched=True),
    domain="example.com",
    location="fra1",
    listen="127.0.0.1:9725",
    ledger="sqlite:///var/lib/mailsonde/ledger.db",
)


def loaded(plan: Plan, directory: Path) -> dict[str, object]:
    (directory / "mailsonde.password").write_text("x\n")
    path = directory / "mailsonde.yaml"
    path.write_text(written(plan))
    load(path)
    data: dict[str, object] = yaml.safe_load(path.read_text())
    return data


def test_every_setting_has_a_comment(tmp_path: Path) -> None:
    """Each setting has a comment on its line, and the file is valid."""
    loaded(PLAN, tmp_path)
    settings = [line for line in written(PLAN).splitlines() if re.match(r" +(- )?\w+: ", line)]
    assert len(settings) > 30
    assert [line for line in settings if not re.search(r"  # \S.*[^.]$", line)] == []


@pytest.mark.parametrize(
    "username", ["yes", "null", "1e3", "a: b", "#x", "DOM\\user", "it's", '"', "ü@x", " x "]
)
def test_username_is_what_was_typed(tmp_path: Path, username: str) -> None:
    """A login name with a special meaning in YAML is read back as the same text."""
    plan = dataclasses.replace(PLAN, username=username)
    loaded(plan, tmp_path)
    assert load(tmp_path / "mailsonde.yaml").mailboxes["canary"].username == username


@pytest.mark.parametrize("tls", ["implicit", "starttls", "none"])
def test_each_kind_of_server_and_resolver(tmp_path: Path, tls: TlsMode) -> None:
    """POP3, a private resolver and even an unencrypted server give a valid file."""
    plan = dataclasses.replace(
        PLAN,
        submission=dataclasses.replace(PLAN.submission, tls=tls),
        incoming=Endpoint("pop3", "::1", 995, tls, "you", vouched=True),
        resolver=ResolverSettings(address="::1", port=5353),
    )
    loaded(plan, tmp_path)
    made = load(tmp_path / "mailsonde.yaml")
    assert made.servers["pop3"].tls == tls
    assert made.servers["pop3"].allow_insecure_auth is (tls == "none")
    assert [probe.kind for probe in made.probes] == ["roundtrip", "smtp", "pop3", "mx"]


def test_ledger_path_comes_back(tmp_path: Path) -> None:
    """The ledger is at the given path, with any characters."""
    path = tmp_path / "a b%20?#ü.db"
    assert ledger_path(ledger_url(path)) == path


def test_files_are_new_or_not_written(tmp_path: Path) -> None:
    """An existing file or link is not touched, and written files can be removed again."""
    files = Files()
    taken, link, new = tmp_path / "taken", tmp_path / "link", tmp_path / "new"
    taken.write_text("mine")
    link.symlink_to(tmp_path / "elsewhere")
    for path in (taken, link):
        with pytest.raises(FileExistsError):
            files.write(path, "theirs", 0o600)
    files.write(new, "secret", 0o600)
    assert new.stat().st_mode & 0o777 == 0o600
    files.discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "taken"]
    assert taken.read_text() == "mine"


def test_servers_are_named_by_their_host(tmp_path: Path) -> None:
    """Servers are named after their protocol and host, if that is a valid name."""
    assert set(loaded(PLAN, tmp_path)["servers"]) == {"submission@mail.example.com", "imap@mail.example.com"}
    long = dataclasses.replace(PLAN.incoming, host=f"{'x' * 60}.example.com")
    plan = dataclasses.replace(PLAN, incoming=long)
    assert set(loaded(plan, tmp_path)["servers"]) == {"submission@mail.example.com", "imap"}
