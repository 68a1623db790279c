"""The table ``hybrid``: the probes that an entry amounts to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from monitor.commands import main
from monitor.config.hybrid import HybridSettings
from monitor.config.load import load
from monitor.config.models import Configuration
from probes.roundtrip import RoundtripSettings

ENTRY = {
    "on_premises": {"mailbox": "local", "server": "hub"},
    "cloud": {"mailbox": "online", "server": "graph"},
}
WAYS = {
    "contoso-inside": ("local@example.com", "hub", "local"),
    "contoso-to-cloud": ("local@example.com", "hub", "online"),
    "contoso-to-on-premises": ("online@example.com", "graph", "local"),
}


def site(**settings: Any) -> dict[str, Any]:
    oauth2 = {
        "provider": "generic",
        "token_url": "https://login.example.com/token",
        "client_id": "app",
        "client_secret": {"file": "secret"},
    }
    return {
        "oauth2": {"app": oauth2},
        "servers": {
            "hub": {"protocol": "smtp", "host": "mail.example.com", "tls": "starttls"},
            "imap": {"protocol": "imap", "host": "mail.example.com", "tls": "implicit"},
            "graph": {"protocol": "graph", "host": "graph.example.com", "oauth2": "app"},
        },
        "mailboxes": {
            "local": {
                "address": "local@example.com",
                "server": "imap",
                "username": "local",
                "password": {"file": "secret"},
            },
            "online": {
                "address": "online@example.com",
                "server": "graph",
                "username": "online@example.com",
                "oauth2": "app",
            },
        },
        "hybrid": {"contoso": ENTRY | settings},
    }


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return a file with an entry of `hybrid` and no other probes."""
    (tmp_path / "secret").write_text("tr0mbone")
    path = tmp_path / "site.yaml"
    path.write_text(
        yaml.safe_dump(site(outside={"from": "canary@example.net"}, labels={"team": "messaging"}))
    )
    return path


def ways(configuration: Configuration) -> dict[str, tuple[str, str, str]]:
    probes = [probe for probe in configuration.probes if isinstance(probe, RoundtripSettings)]
    return {probe.name: (probe.sender, probe.send_via, probe.to) for probe in probes}


def test_ways(written: Path) -> None:
    """Each way is a round trip from one side's mailbox, through its server, and the outside reaches both."""
    assert ways(load(written)) == WAYS | {
        "contoso-outside-into-on-premises": ("canary@example.net", "mx", "local"),
        "contoso-outside-into-cloud": ("canary@example.net", "mx", "online"),
    }


def test_labels_tell_opposites_and_connectors(written: Path) -> None:
    """Opposite ways name each other; what passes the same connector has its name, and a site's own labels."""
    probes = {probe.name.removeprefix("contoso-"): probe for probe in load(written).probes}
    labels = {name: dict(probe.labels) for name, probe in probes.items()}
    assert all(one.pop("hybrid") == "contoso" and one.pop("team") == "messaging" for one in labels.values())
    out, back = {"connector": "Outbound to Office 365"}, {"connector": "Outbound to on-premises"}
    assert labels == {
        "inside": {},
        "to-cloud": {**out, "opposite": "contoso-to-on-premises"},
        "to-on-premises": {**back, "opposite": "contoso-to-cloud"},
        "outside-into-on-premises": back,
        "outside-into-cloud": {},
    }


def test_mail_from_outside_passes_the_connector_to_the_side_without_mx_records(written: Path) -> None:
    """If the MX records point on premises, mail from outside into the cloud passes the connector there."""
    outside = {"from": "canary@example.net", "mx_at": "on_premises"}
    written.write_text(yaml.safe_dump(site(outside=outside, connector_to_cloud="To the cloud")))
    labels = {probe.name: probe.labels for probe in load(written).probes}
    assert labels["contoso-outside-into-cloud"]["connector"] == "To the cloud"
    assert "connector" not in labels["contoso-outside-into-on-premises"]


def test_shared_settings_reach_every_way(written: Path) -> None:
    """Severity, objective, interval and the like are given once, and written probes stay beside."""
    shared = {"severity": "warning", "interval": "5m", "slo": {"objective": "99%", "within": "30s"}}
    own = {"probes": [{"name": "mx", "kind": "mx", "domain": "example.com"}]}
    written.write_text(yaml.safe_dump(site(**shared) | own))
    first, *probes = load(written).probes
    assert first.name == "mx"
    assert [probe.name for probe in probes] == list(WAYS)
    for probe in probes:
        assert isinstance(probe, RoundtripSettings)
        assert (probe.severity, probe.interval) == ("warning", 300.0)
        assert probe.slo is not None
        assert probe.slo.objective == 0.99


def test_what_is_explained_can_be_written(written: Path) -> None:
    """``--explain`` prints probes that amount to the same in place of the entry, and no secret."""
    shown = CliRunner().invoke(main, ["validate", "--explain", str(written)])
    assert shown.exit_code == 0, shown.output
    assert "tr0mbone" not in shown.output
    lines = shown.output.partition("hybrid.contoso:\n")[2].splitlines()
    probes = yaml.safe_load("\n".join(line for line in lines if line.startswith("  - ")))
    configuration = load(written)
    by_hand = {key: value for key, value in site().items() if key != "hybrid"}
    written.write_text(yaml.safe_dump(by_hand | {"probes": probes}))
    assert load(written).probes == configuration.probes


@pytest.mark.parametrize("mailbox", [["local"], {"local": 1}, 7, None])
def test_odd_references_are_mistakes(written: Path, mailbox: object) -> None:
    """Whatever stands in place of a mailbox's name, it is told with its line."""
    odd = {"on_premises": {"mailbox": mailbox, "server": "hub"}}
    written.write_text(yaml.safe_dump(site(**odd)))
    shown = CliRunner().invoke(main, ["validate", str(written)])
    assert shown.exit_code == 2
    assert "hybrid.contoso.on_premises.mailbox: must be text; a number needs quotes" in shown.output


def test_schema_knows_the_table() -> None:
    """Editors complete the keys of an entry, and accept a file with `hybrid` and without `probes`."""
    schema = Configuration.model_json_schema(by_alias=True)
    assert {"on_premises", "cloud", "outside", "slo", "labels"} <= HybridSettings.model_fields.keys()
    (entries,) = schema["properties"]["hybrid"]["patternProperties"].values()
    assert entries == {"$ref": "#/$defs/HybridSettings"}
    assert not {"anyOf", "required"} & schema.keys()
