"""Settings that many entries share are written once, in ``defaults``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from monitor.commands.check import check
from monitor.commands.validate import validate
from monitor.config.load import ConfigurationError, load
from monitor.config.models import Configuration
from probes.core.settings import ProbeSettings

OUT = {"protocol": "smtp", "host": "a.example", "tls": "starttls"}

HYBRID = (
    "servers:\n"
    "  out: {protocol: smtp, host: a.example, tls: starttls}\n"
    "  far: {protocol: smtp, host: b.example, tls: starttls}\n"
    "  in: {protocol: imap, host: a.example, tls: implicit}\n"
    "mailboxes:\n"
    "  a: {address: a@a.example, server: in, username: a, password: {env: A}}\n"
    "  b: {address: b@a.example, server: in, username: b, password: {env: B}}\n"
    "hybrid: {org: {on_premises: {mailbox: a, server: out}, cloud: {mailbox: b, server: far}}}\n"
)
"""A hybrid organization, with what it refers to."""


def loaded(defaults: object, **parts: object) -> Configuration:
    data = {
        "defaults": defaults,
        "servers": {"out": OUT},
        "probes": [{"name": "a", "kind": "smtp", "server": "out"}],
    }
    return Configuration.model_validate(data | parts)


def test_an_entry_s_own_setting_replaces_the_default() -> None:
    """A kind's default replaces that of all probes, and an entry's setting replaces both."""
    probes = [
        {"name": "own", "kind": "mx", "domain": "a.example", "interval": "1m"},
        {"name": "kind", "kind": "mx", "domain": "a.example"},
        {"name": "all", "kind": "smtp", "server": "out"},
    ]
    defaults = {"probes": {"interval": "3m"}, "mx": {"interval": "2m"}}
    found = loaded(defaults, probes=probes).probes
    assert [probe.interval for probe in found] == [60, 120, 180]


def test_labels_and_thresholds_add_up() -> None:
    """A mapping of names or settings is completed, not replaced."""
    defaults = {
        "probes": {"labels": {"team": "messaging", "site": "all"}, "alerts": {"down": "10m"}},
        "smtp": {"labels": {"site": "smtp"}},
    }
    probe = {"name": "a", "kind": "smtp", "server": "out", "labels": {"customer": "x"}}
    (found,) = loaded(defaults, probes=[probe]).probes
    assert found.labels == {"team": "messaging", "site": "smtp", "customer": "x"}
    assert found.alerts.down == 600


def test_a_secret_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password of an entry's own does not mix with the default's."""
    monkeypatch.setenv("COMMON", "common")
    (tmp_path / "own").write_text("own")
    path = tmp_path / "site.yaml"
    path.write_text(
        "defaults: {mailboxes: {server: in, username: me, password: {env: COMMON}}}\n"
        "servers: {in: {protocol: imap, host: a.example, tls: implicit}}\n"
        "mailboxes: {a: {address: a@a.example}, b: {address: b@a.example, password: {file: own}}}\n"
        "probes: [{name: imap, kind: imap, mailbox: a}]\n"
    )
    found = load(path).mailboxes
    assert [box.password.get_secret_value() for box in found.values() if box.password] == ["common", "own"]


def test_null_means_no_default() -> None:
    """An entry can do without a default."""
    defaults = {"servers": {"tls_server_name": "mail.example", "timeout": "5s"}}
    inner = {**OUT, "tls_server_name": None, "timeout": None}
    servers = loaded(defaults, servers={"out": OUT, "inner": inner}).servers
    assert [server.tls_server_name for server in servers.values()] == ["mail.example", None]
    assert [server.timeout for server in servers.values()] == [5, 60]


def test_a_preset_counts_more_than_defaults() -> None:
    """What a server is says more about it than what most servers are."""
    defaults = {"servers": {"tls": "implicit", "timeout": "5s", "host": "mail.example"}}
    server = {"preset": "exchange-online", "protocol": "smtp"}
    found = loaded(defaults, servers={"out": server}).servers["out"]
    assert (found.tls, found.host, found.timeout) == ("starttls", "smtp.office365.com", 5)


def round_trips(defaults: object, monkeypatch: pytest.MonkeyPatch, **own: object) -> list[ProbeSettings]:
    """Return the round trips of a hybrid organization with ``defaults`` and settings of its ``own``."""
    monkeypatch.setenv("PASSWORD", "s3cret")
    box = {"server": "in", "username": "me", "password": {"env": "PASSWORD"}}
    found = loaded(
        defaults,
        servers={"out": OUT, "far": OUT, "in": {**OUT, "protocol": "imap"}},
        mailboxes={"a": {**box, "address": "a@a.example"}, "b": {**box, "address": "b@a.example"}},
        hybrid={
            "org": {
                "on_premises": {"mailbox": "a", "server": "out"},
                "cloud": {"mailbox": "b", "server": "far"},
                **own,
            }
        },
    ).probes
    return [probe for probe in found if probe.kind == "roundtrip"]


def test_probes_of_hybrid_have_defaults_of_round_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form of round trips follows their defaults, unless it says otherwise itself."""
    defaults = {"roundtrip": {"interval": "2m", "deadline": "9m"}}
    found = round_trips(defaults, monkeypatch, deadline="7m")
    assert {(probe.interval, probe.deadline) for probe in found} == {(120, 420)}


def test_hybrid_can_do_without_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """``null`` drops a default there too, also one of many labels."""
    defaults = {"roundtrip": {"interval": "2m", "labels": {"team": "mail", "site": "a"}}}
    found = round_trips(defaults, monkeypatch, interval=None, labels={"site": None})
    assert {probe.interval for probe in found} == {60}
    assert {"team": "mail", "hybrid": "org"}.items() <= found[0].labels.items()
    assert "site" not in found[0].labels


def test_a_wrong_default_of_hybrid_is_told_once(tmp_path: Path) -> None:
    """All ways have it, and so does the entry; it is one mistake in one line."""
    path = tmp_path / "site.yaml"
    path.write_text("defaults:\n  roundtrip: {interval: soon}\n" + HYBRID)
    with pytest.raises(ConfigurationError) as caught:
        load(path, secrets=False)
    told = str(caught.value)
    assert told.startswith(f"{path}:2: defaults.roundtrip.interval: 'soon' is not a duration")
    assert "\n" not in told


def test_labels_of_hybrid_itself_are_no_defaults_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A default must not say which way is the opposite one."""
    with pytest.raises(ValidationError, match="hybrid sets the label 'opposite' itself"):
        round_trips({"roundtrip": {"labels": {"opposite": "other"}}}, monkeypatch)


def test_keys_are_names_whatever_they_look_like(tmp_path: Path) -> None:
    """A site in Norway is `no`, and a customer is 404; neither is quoted, and each keeps its name."""
    path = tmp_path / "site.yaml"
    path.write_text(
        "x-base: &base {on: yes}\n"
        "servers:\n  no: {protocol: smtp, host: a.example, tls: starttls}\n"
        "  404: {protocol: smtp, host: b.example, tls: starttls}\n"
        "probes: [{name: a, kind: smtp, server: 'no', labels: {<<: *base, null: x}}]\n"
    )
    text = path.read_text().replace("yes", "'yes'")
    path.write_text(text)
    found = load(path)
    assert set(found.servers) == {"no", "404"}
    assert found.probes[0].labels == {"on": "yes", "null": "x"}


def test_servers_with_labels_are_keys() -> None:
    """Hosts and connections are found by their server's settings; other labels make another server."""
    servers = loaded(
        {}, servers={"out": {**OUT, "labels": {"site": "a"}}, "same": {**OUT, "labels": {"site": "a"}}}
    )
    out, same = servers.servers.values()
    assert {out: 1}[same] == 1
    assert same.model_copy(update={"labels": {}}) not in {out}


def test_a_probe_that_is_not_enabled_is_checked_and_left_out() -> None:
    """It needs no capacity either: no run of it ever starts."""
    probes = [
        {"name": "on", "kind": "mx", "domain": "a.example"},
        {"name": "idle", "kind": "mx", "domain": "a.example", "enabled": False},
    ]
    configuration = loaded({}, probes=probes)
    assert [probe.name for probe in configuration.enabled_probes] == ["on"]
    with pytest.raises(ValidationError, match="not a domain name"):
        loaded({}, probes=[probes[0], {**probes[1], "domain": "a..example"}])


def explained(path: Path) -> str:
    return CliRunner().invoke(validate, [str(path), "--explain", "--no-secrets"]).stdout


def test_explain_names_the_source_of_each_setting(tmp_path: Path) -> None:
    """What a file says, also through a merge key, is told apart from defaults and from presets."""
    path = tmp_path / "site.yaml"
    path.write_text(
        "x-base: &base {tls: implicit, port: 999}\n"
        "defaults: {servers: {preset: gmail, host: our.example, port: 26, timeout: 5s}}\n"
        "servers: {out: {<<: *base, protocol: smtp}}\n"
        "probes: [{name: a, kind: smtp, server: out}]\n"
    )
    sources = dict(re.findall(r"^  (\w+): .* # (.*)$", explained(path), re.MULTILINE))
    written = {"tls": "this file", "port": "this file", "host": "defaults", "timeout": "defaults"}
    assert sources.items() >= (written | {"messages_per_minute": "preset gmail"}).items()


def test_explain_shows_defaults_of_hybrid(tmp_path: Path) -> None:
    """The probes of the short form are shown as they run."""
    path = tmp_path / "site.yaml"
    path.write_text("defaults: {roundtrip: {interval: 2m}, probes: {labels: {team: mail}}}\n" + HYBRID)
    shown = explained(path)
    assert shown.count("interval: 2m") == 3
    assert shown.count("team: mail") == 3


def test_mistakes_of_merged_keys_name_their_line(tmp_path: Path) -> None:
    """A value that comes through a merge key is told where it is written, not where its default is."""
    path = tmp_path / "site.yaml"
    path.write_text(
        "x-base: &base\n  port: 99999\n"
        "defaults: {servers: {port: 25}}\n"
        "servers: {out: {<<: *base, protocol: smtp, host: a.example, tls: starttls}}\n"
        "probes: [{name: a, kind: smtp, server: out}]\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:2: servers.out.port: must be")


def test_a_probe_that_is_not_enabled_is_told_apart_from_none(tmp_path: Path) -> None:
    """Whoever asks for it by name learns what to do."""
    path = tmp_path / "site.yaml"
    path.write_text(
        "probes:\n  - {name: a, kind: mx, domain: a.example}\n"
        "  - {name: b, kind: mx, domain: a.example, enabled: false}\n"
    )
    shown = CliRunner().invoke(check, ["--config", str(path), "b"])
    assert "the probe 'b' is not enabled; remove enabled: false" in shown.output
