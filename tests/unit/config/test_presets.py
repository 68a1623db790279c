"""Presets: what they set, and that everything can be set otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from monitor.commands import main
from monitor.config.load import load
from monitor.config.models import Configuration
from probes.core.presets import PRESETS
from probes.core.settings import ServerSettings

NEEDED = {"graph": {"oauth2": "contoso"}}
KNOWN = [(preset, protocol) for preset, protocols in PRESETS.items() for protocol in protocols]


@pytest.mark.parametrize(("preset", "protocol"), KNOWN)
def test_values_are_defaults(preset: str, protocol: str) -> None:
    """A preset's values are those of the server, and a site's own values come first."""
    own = {"host": "mail.example.com"} | NEEDED.get(protocol, {})
    values = PRESETS[preset][protocol]
    server = ServerSettings.model_validate({"protocol": protocol, "preset": preset} | own | dict(values))
    given = ServerSettings.model_validate({"protocol": protocol, "preset": preset} | own)
    assert {key: getattr(given, key) for key in values.keys() - own.keys()} == {
        key: values[key] for key in values.keys() - own.keys()
    }
    assert given.host == "mail.example.com"
    assert given.port == server.port


def test_hosts_of_services_are_known() -> None:
    """Exchange Online and Gmail need no host, and each protocol has its usual port."""
    servers = {
        (preset, protocol): ServerSettings.model_validate(
            {"protocol": protocol, "preset": preset} | NEEDED.get(protocol, {})
        )
        for preset, protocol in KNOWN
        if preset in {"exchange-online", "gmail"}
    }
    assert {server.port for (_, protocol), server in servers.items() if protocol == "imap"} == {993}
    assert servers["exchange-online", "smtp"].host == "smtp.office365.com"
    assert servers["exchange-online", "smtp"].port == 587
    assert servers["exchange-online", "graph"].host == "graph.microsoft.com"
    assert servers["exchange-online", "graph"].port == 443


def test_explanation(tmp_path: Path) -> None:
    """``--explain`` shows each setting with its source, and no secret."""
    (tmp_path / "password").write_text("tr0mbone")
    path = tmp_path / "site.yaml"
    path.write_text(
        "servers:\n"
        "  out: {protocol: smtp, preset: exchange-online, timeout: 30s, username: canary,\n"
        "        password: {file: password}, max_connections: 2}\n"
        "probes: [{name: out, kind: smtp, server: out}]\n"
    )
    shown = CliRunner().invoke(main, ["validate", "--explain", str(path)])
    assert shown.exit_code == 0, shown.output
    found = {line.split(":")[0].strip(): line for line in shown.output.splitlines()}
    assert found["host"].split() == ["host:", "smtp.office365.com", "#", "preset", "exchange-online"]
    assert found["max_connections"].split() == ["max_connections:", "2", "#", "this", "file"]
    assert found["timeout"].split() == ["timeout:", "30s", "#", "this", "file"]
    assert found["port"].split() == ["port:", "587", "#", "default"]
    assert "tr0mbone" not in shown.output


def test_a_mailbox_with_tokens_needs_no_username(tmp_path: Path) -> None:
    """It logs in by its address, which ``--explain`` shows; a name of its own comes first."""
    (tmp_path / "secret").write_text("tr0mbone")
    path = tmp_path / "site.yaml"
    path.write_text(
        "oauth2: {contoso: {provider: microsoft, tenant: contoso.example, client_id: app,\n"
        "                   client_secret: {file: secret}}}\n"
        "servers: {in: {protocol: imap, preset: exchange-online}}\n"
        "mailboxes:\n"
        "  canary: {address: canary@contoso.com, server: in, oauth2: contoso}\n"
        "  own: {address: own@contoso.com, server: in, oauth2: contoso, username: upn@contoso.com}\n"
        "probes: [{name: look, kind: imap, mailbox: canary}]\n"
    )
    mailboxes = load(path).mailboxes
    assert {name: one.username for name, one in mailboxes.items()} == {
        "canary": "canary@contoso.com",
        "own": "upn@contoso.com",
    }
    shown = CliRunner().invoke(main, ["validate", "--explain", str(path)])
    assert "  username:              canary@contoso.com               # default" in shown.output
    assert "upn@contoso.com" not in shown.output


@pytest.mark.parametrize(
    ("cloud", "host"),
    [
        ({}, "graph.microsoft.com"),
        ({"cloud": "usgov"}, "graph.microsoft.us"),
        ({"cloud": "china"}, "microsoftgraph.chinacloudapi.cn"),
    ],
)
def test_graph_is_where_its_cloud_is(
    cloud: dict[str, str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Graph server without a host has that of the cloud of its tokens; a host of its own comes first."""
    monkeypatch.setenv("APP_SECRET", "s3cret")
    entry = {
        "provider": "microsoft",
        "tenant": "contoso.example",
        "client_id": "app",
        "client_secret": {"env": "APP_SECRET"},
    }
    found = Configuration.model_validate(
        {
            "oauth2": {"contoso": entry | cloud},
            "servers": {
                "graph": {"protocol": "graph", "oauth2": "contoso"},
                "own": {"protocol": "graph", "oauth2": "contoso", "host": "graph.example.com"},
            },
            "probes": [{"name": "example", "kind": "mx", "domain": "example.com"}],
        }
    )
    assert (found.servers["graph"].host, found.servers["graph"].port) == (host, 443)
    assert found.servers["own"].host == "graph.example.com"
