"""When maintenance windows begin and end, and for which probes they are."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner

from monitor.commands.validate import validate
from monitor.config.load import load
from monitor.config.maintenance import WindowSettings


def window(**settings: Any) -> WindowSettings:
    return WindowSettings.model_validate({"probes": ["hq"], **settings})


def at(written: str) -> float:
    return datetime.fromisoformat(written).replace(tzinfo=UTC).timestamp()


def begins(settings: WindowSettings, since: str, until: str) -> list[str]:
    """Return when windows begin in that time, in UTC, looking forwards; backwards must be the same."""
    forwards: list[float] = []
    moment = at(since)
    while (found := settings.next(moment)) is not None and found[0] <= at(until):
        forwards.append(moment := found[0])
    backwards: list[float] = []
    moment = at(until)
    while (found := settings.latest(moment)) is not None and found[0] > at(since):
        backwards.insert(0, found[0])
        moment = found[0] - 1
    assert forwards == backwards
    return [datetime.fromtimestamp(each, UTC).strftime("%d %H:%M") for each in forwards]


BERLIN = {"for": "20m", "timezone": "Europe/Berlin"}


@pytest.mark.parametrize(
    ("cron", "skipped", "doubled"),
    [
        ("30 2 * * *", ["28 01:30", "29 01:00", "30 00:30"], ["24 00:30", "25 00:30", "26 01:30"]),
        ("15 2 * * sun", ["29 01:00"], ["25 00:15"]),
        ("0 2,3 * * sun", ["29 01:00"], ["25 00:00", "25 02:00"]),
        ("*/30 2 * * sun", [], ["25 00:00", "25 00:30", "25 01:00", "25 01:30"]),
    ],
)
def test_when_the_clocks_change(cron: str, skipped: list[str], doubled: list[str]) -> None:
    """A skipped time begins when the clock has moved on, a doubled one once; `*` follows the clock."""
    settings = window(cron=cron, **BERLIN)
    assert begins(settings, "2026-03-27T12:00", "2026-03-30T12:00") == skipped
    assert begins(settings, "2026-10-23T12:00", "2026-10-26T12:00") == doubled


@pytest.mark.parametrize(
    ("cron", "skipped", "doubled"),
    [
        ("15 2 * * *", ["03 15:30"], ["04 15:45"]),
        ("45 1 * * *", ["03 15:15"], ["04 14:45"]),
        ("*/30 3 * * *", ["03 16:00", "03 16:30"], ["04 16:30", "04 17:00"]),
        ("*/30 2 * * *", ["03 15:30"], ["04 15:30", "04 16:00"]),
        ("*/30 1 * * *", ["03 14:30", "03 15:00"], ["04 14:00", "04 14:30", "04 15:00"]),
    ],
)
def test_when_a_clock_changes_by_half_an_hour(cron: str, skipped: list[str], doubled: list[str]) -> None:
    """On Lord Howe Island, 2:00 becomes 2:30 in spring, and 1:30 in autumn; no window is left out."""
    settings = window(cron=cron, timezone="Australia/Lord_Howe", **{"for": "5m"})
    assert begins(settings, "2026-10-03T12:00", "2026-10-04T12:00") == skipped
    assert begins(settings, "2026-04-04T12:00", "2026-04-05T12:00") == doubled


def test_a_window_lasts_in_real_time() -> None:
    """Two hours are two hours, also in the night in which an hour comes twice or not at all."""
    settings = window(cron="30 1 * * sun", timezone="Europe/Berlin", **{"for": "2h"})
    for noon in ("2026-03-29T12:00", "2026-10-25T12:00"):
        latest = settings.latest(at(noon))
        assert latest is not None
        assert latest[1] - latest[0] == 7200


def test_a_window_begins_at_its_very_second() -> None:
    """The first second belongs to the window, and the one before does not."""
    settings = window(cron="0 2 * * *", **{"for": "1h"})
    assert settings.latest(at("2026-12-01T02:00")) == (at("2026-12-01T02:00"), at("2026-12-01T03:00"))
    assert settings.latest(at("2026-12-01T01:59:59")) == (at("2026-11-30T02:00"), at("2026-11-30T03:00"))


@pytest.mark.parametrize(
    ("begin", "end"),
    [("2026-10-25T02:30", "25 00:30"), ("2026-10-25T02:30:00+01:00", "25 01:30")],
)
def test_one_of_two_hours(begin: str, end: str) -> None:
    """A time that comes twice is the first one, unless it has an offset."""
    settings = window(**{"from": begin}, until="2026-10-25T05:00", timezone="Europe/Berlin")
    assert begins(settings, "2026-10-24T00:00", "2026-10-26T00:00") == [end]


@pytest.mark.parametrize(
    ("cron", "length"),
    [("0 22 * * sat,sun", "30h"), ("*/5 8-17 * * *", "10m"), ("0 0 * * *", "23h"), ("* * 1-28 2 *", "1m")],
)
def test_windows_that_overlap_may_end(cron: str, length: str) -> None:
    """Windows may follow each other without a gap for a while, if there is one at last."""
    assert window(cron=cron, **{"for": length}).cron == cron


def test_zones_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many zones there are, asking windows again reads none from the disk again."""
    read = []
    monkeypatch.setattr("monitor.config.maintenance.ZoneInfo", lambda key: read.append(key) or ZoneInfo(key))
    zones = [f"Etc/GMT+{hours}" for hours in range(1, 13)]
    windows = [window(cron="0 2 * * *", timezone=zone, **{"for": "1h"}) for zone in zones]
    for settings in windows:
        settings.next(at("2026-12-01T00:00"))
    assert set(read) == set(zones)
    read.clear()
    assert [settings.latest(at("2026-12-02T00:00")) is None for settings in windows] == [False] * 12
    assert read == []


CONFIGURATION = """
include: [conf.d/*.yaml]
agent: {ledger: "sqlite:ledger.db"}
defaults: {maintenance: {timezone: Europe/Berlin}}
servers:
  out: {protocol: smtp, host: mail.example.com, tls: starttls, labels: {team: messaging}}
maintenance:
  "night-${site}": {for_each: {site: [a, b]}, cron: 0 2 * * *, for: 1h, probes: ["${site}-*"]}
probes:
  - {name: a-smtp, kind: smtp, server: out}
  - {name: b-smtp, kind: smtp, server: out, labels: {team: web}}
"""


def test_windows_of_several_files(tmp_path: Path) -> None:
    """Windows join those of included files, and have `for_each` and defaults like servers do."""
    (tmp_path / "mailsonde.yaml").write_text(CONFIGURATION)
    (tmp_path / "conf.d").mkdir()
    own = "maintenance:\n  move: {from: 2099-12-05 22:00, until: 2099-12-06, labels: {team: messaging}}\n"
    (tmp_path / "conf.d" / "move.yaml").write_text(own)
    windows = load(tmp_path / "mailsonde.yaml").maintenance
    assert list(windows) == ["night-a", "night-b", "move"]
    assert {each.timezone for each in windows.values()} == {"Europe/Berlin"}
    assert windows["night-b"].probes == ("b-*",)
    shown = CliRunner().invoke(validate, ["--explain", str(tmp_path / "mailsonde.yaml")])
    assert "maintenance.night-b: # " in shown.output
    assert "2099-12-05 22:00 CET to 2099-12-06 00:00 CET, 1 probe\n" in shown.output
