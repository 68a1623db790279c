"""``mailsonde pause`` and ``mailsonde resume``."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from monitor.commands import main
from monitor.ledger.pauses import Pause
from monitor.maintenance import Maintenance

CONFIGURATION = """
agent: {{ledger: "sqlite://{directory}/ledger.db"}}
servers:
  out: {{protocol: smtp, host: mail.example.com, tls: starttls, labels: {{team: messaging}},
         username: me, password: {{env: NOT_SET_HERE}}}}
probes:
  - {{name: hq-smtp, kind: smtp, server: out}}
  - {{name: hq-mx, kind: mx, interval: 5m, domain: example.com}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mailsonde.yaml"
    path.write_text(CONFIGURATION.format(directory=tmp_path))
    return path


def typed(config: Path, *arguments: str) -> Result:
    return CliRunner(env={"SUDO_USER": "root\x1b"}).invoke(main, [*arguments, "--config", str(config)])


def test_a_pause_from_beginning_to_end(config: Path) -> None:
    """Pauses need no secrets and no agent, are listed with user and comment, and end by the same words."""
    done = typed(config, "pause", "hq-*", "--for", "2h", "--comment", "new firewall")
    assert done.exit_code == 0, done.output
    tomorrow = f"{datetime.now() + timedelta(days=1):%Y-%m-%dT%H:%M}"
    assert re.match(r"Paused until 20..-..-.. ..:.. \S+: 2 probes\.\nNo agent is running ", done.output)
    assert typed(config, "pause", "--label", "team=messaging", "--until", "2098-12-01").exit_code == 2
    assert typed(config, "pause", "--label", "team=messaging", "--until", tomorrow).exit_code == 0
    by_pattern, by_label = typed(config, "pause", "--list").output.splitlines()
    assert re.fullmatch(r"hq-\*: until .*, pause by root\\x1b, new firewall", by_pattern)
    assert by_label.startswith("team=messaging: until ")
    wrong = typed(config, "resume", "hq-smtp")
    assert (wrong.exit_code, wrong.output) == (
        2,
        "Not paused: hq-smtp.\nPaused are: hq-*; team=messaging.\n",
    )
    assert typed(config, "resume", "hq-*").output == "Resumed: hq-*.\n"
    assert typed(config, "resume", "--all").output == "Resumed: team=messaging.\n"
    assert typed(config, "resume", "--all").output == "Nothing is paused.\n"
    assert typed(config, "pause", "--list").output == "No probe is in maintenance.\n"


def test_a_pause_of_a_probe_that_is_gone_can_be_ended(config: Path) -> None:
    """Whatever is listed can be named, also if the configuration no longer has it."""
    assert typed(config, "pause", "hq-mx", "--for", "2h").exit_code == 0
    config.write_text(config.read_text().replace("hq-mx", "fra1-mx"))
    assert typed(config, "pause", "--list").output.startswith("hq-mx: until ")
    assert typed(config, "resume", "hq-mx").output == "Resumed: hq-mx.\n"


def test_labels_narrow_what_names_choose(config: Path) -> None:
    """Names and labels together pause what has both, and the same words end it."""
    words = ("hq-*", "--label", "team=messaging")
    assert typed(config, "pause", *words, "--for", "2h").output.splitlines()[0].endswith(": 1 probe.")
    assert typed(config, "pause", "--list").output.startswith("hq-*, team=messaging: until ")
    paused = Pause(Pause.selections(["hq-*"], {"team": "messaging"})[0], 0.0, 9.0, "", "me")
    probes = {"hq-smtp": {"team": "messaging"}, "hq-mx": {}, "fra1-smtp": {"team": "messaging"}}
    made = Maintenance(probes, pauses=[paused])
    assert [each for each in probes if made.current(each, 1.0)] == ["hq-smtp"]
    assert typed(config, "resume", "hq-*").exit_code == 2
    assert typed(config, "resume", *words).output == "Resumed: hq-*, team=messaging.\n"


def test_a_pause_that_is_not_there_keeps_no_other_going(config: Path) -> None:
    """What is paused ends, and what is not is named, as the exit status says."""
    assert typed(config, "pause", "hq-*", "hq-mx", "--for", "2h").exit_code == 0
    done = typed(config, "resume", "x", "hq-*")
    assert done.exit_code == 2
    assert done.output == "Resumed: hq-*.\nNot paused: x.\nPaused are: hq-mx.\n"
    assert typed(config, "resume", "x", "hq-mx").output == (
        "Resumed: hq-mx.\nNot paused: x.\nNothing else is paused.\n"
    )


@pytest.mark.parametrize(
    ("today", "until", "ends"),
    [
        ("2026-10-24T23:00+02:00", "04:00", "2026-10-25T04:00+01:00"),
        ("2026-10-25T01:00+02:00", "22:00", "2026-10-25T22:00+01:00"),
        ("2026-10-25T02:30+01:00", "03:00", "2026-10-25T03:00+01:00"),
        ("2026-03-29T01:00+01:00", "22:00", "2026-03-29T22:00+02:00"),
        ("2026-03-29T01:00+01:00", "2026-03-29T03:15", "2026-03-29T03:15+02:00"),
    ],
)
def test_until_on_the_day_of_a_clock_change(
    config: Path, monkeypatch: pytest.MonkeyPatch, today: str, until: str, ends: str
) -> None:
    """The time is the one that the machine's clock will show then."""
    now = datetime.fromisoformat(today).timestamp()
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        monkeypatch.setattr("monitor.commands.pause.time.time", lambda: now)
        done = typed(config, "pause", "hq-mx", "--until", until)
        shown = datetime.fromtimestamp(datetime.fromisoformat(ends).timestamp()).astimezone()
    finally:
        monkeypatch.undo()
        time.tzset()
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"Paused until {shown:%Y-%m-%d %H:%M %Z}: ")


def test_root_acts_as_the_agent_s_user(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent could not use a ledger, or its locks, if root had made them."""
    if os.geteuid() == 0:
        os.chown(config.parent, 65534, 65533)
    owner, became = config.parent.stat(), []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "setegid", lambda group: became.append(group))
    monkeypatch.setattr(os, "seteuid", lambda user: became.append(user))
    assert typed(config, "pause", "hq-mx", "--for", "2h").exit_code == 0
    assert became == [owner.st_gid, owner.st_uid]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pause", "hq-smpt", "--for", "2h"], "no probe is named 'hq-smpt'. Did you mean 'hq-smtp'?\n"),
        (["pause", "lon-*", "--for", "2h"], "the name of no probe matches 'lon-*'\n"),
        (
            ["pause", "hq-mx", "--label", "team=messaging", "--for", "2h"],
            "no probe that 'hq-mx' names has these labels: team=messaging\n",
        ),
        (["resume", "hq-mx", "--all"], "say either which probes, or --all\n"),
        (["resume"], 'say which probes: their names, "*" for all, or --label team=messaging\n'),
        (["pause", "--label", "team=web", "--for", "2h"], "no probe has these labels: team=web\n"),
        (["pause", "--for", "2h"], 'say which probes: their names, "*" for all, or --label team=messaging\n'),
        (["pause", "hq-mx"], "say how long: --for 2h, or --until 22:00\n"),
        (["pause", "hq-mx", "--for", "2h", "--until", "22:00"], "say how long: --for 2h, or --until 22:00\n"),
        (
            ["pause", "hq-mx", "--for", "31d"],
            "a pause lasts from 1 minute to 30 days; enabled: false leaves a probe out for longer\n",
        ),
        (["pause", "hq-mx", "--for", "2"], "'2' is not a duration"),
        (["pause", "hq-mx", "--until", "late"], "'late' is not a time"),
        (
            ["pause", "--label", "messaging", "--for", "2h"],
            "'messaging' is not a label",
        ),
        (["pause", "hq-mx", "--for", "2h", "--comment", "a\nb"], "write one line"),
    ],
)
def test_mistakes(config: Path, arguments: list[str], told: str) -> None:
    """Each mistake says what to do, and pauses nothing."""
    done = typed(config, *arguments)
    assert done.exit_code == 2
    assert told in done.output
    assert typed(config, "pause", "--list").output == "No probe is in maintenance.\n"


def test_a_ledger_that_cannot_be_used(config: Path, tmp_path: Path) -> None:
    """A fault of the ledger is no mistake of the person who pauses."""
    (tmp_path / "ledger.db").write_bytes(b"something else" * 100)
    done = typed(config, "pause", "hq-mx", "--for", "2h")
    assert done.exit_code == 3
    assert "no SQLite database" in done.output
