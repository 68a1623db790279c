"""The files rendered for Prometheus from a configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from monitor.cadence import CADENCES
from monitor.commands import main
from monitor.config.models import Configuration
from monitor.config.web_config import WebConfig
from monitor.rendering import render_alerts, render_prometheus
from monitor.scrape_access import scrape_access
from monitor.shipped import shipped
from monitor.thresholds import load_thresholds
from probes.core.setting_types import parse_duration
from tests.fakes.certificates import certify


def _job(agent: dict[str, str], interval: str = "60s") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the global section, and the agent's target."""
    probe = {"name": "hq-mx", "kind": "mx", "domain": "example.com", "interval": interval}
    text = render_prometheus(Configuration.model_validate({"agent": agent, "probes": [probe]}))
    document = yaml.safe_load(text["prometheus.yml"])
    ((target,),) = [job["static_configs"] for job in document["scrape_configs"]]
    return document["global"], target


@pytest.mark.parametrize(("location", "address"), [("fra1", "127.0.0.1:9800"), ("local", "[::1]:9725")])
def test_an_agent_is_scraped_under_its_address(location: str, address: str) -> None:
    """The instance stays the agent's address, because every series of the agent has its location."""
    _, target = _job({"location": location, "listen": address})
    assert target == {"targets": [address]}


@pytest.mark.parametrize(("interval", "scrape"), [("60s", "15s"), ("5s", "5s"), ("1s", "1s")])
def test_a_quick_probe_is_scraped_as_often_as_it_runs(interval: str, scrape: str) -> None:
    """The scrape interval misses no run of a frequent probe, and is never above 15 s."""
    shared, _ = _job({}, interval)
    assert shared == {"scrape_interval": scrape, "evaluation_interval": scrape}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text("probes: [{name: hq-mx, kind: mx, domain: example.com}]\n")
    return path


def _render(site: Path, what: str, *options: str) -> tuple[int, str]:
    out = str(site.parent / ("rules" if what == "alerts" else "."))
    done = CliRunner().invoke(main, ["render", what, "--config", str(site), "--out", out, *options])
    return done.exit_code, done.stderr


def test_prometheus_sends_alerts_to_every_named_alertmanager(site: Path) -> None:
    """Prometheus sends to all Alertmanagers on the command line, including IPv6 addresses."""
    assert _render(site, "prometheus", "--alertmanager", "a:9093", "--alertmanager", "[::1]:9093")[0] == 0
    document = yaml.safe_load((site.parent / "prometheus.yml").read_text())
    assert document["alerting"]["alertmanagers"] == [
        {"static_configs": [{"targets": ["a:9093", "[::1]:9093"]}]}
    ]


def test_a_prometheus_that_would_stay_silent_is_warned_of(site: Path) -> None:
    """Missing rules and a missing Alertmanager give a warning each, until they exist."""
    _, warned = _render(site, "prometheus")
    assert "there are no alert rules yet; run mailsonde render alerts --config" in warned
    assert "add --alertmanager HOST:PORT" in warned
    _render(site, "alerts")
    assert _render(site, "prometheus", "--alertmanager", "a:9093") == (0, "")


def _with_web_config(site: Path, *, tls: str = "", users: str = "") -> None:
    """Give the site a web configuration, with a certificate for 127.0.0.1 and localhost."""
    leaf = certify("agent", is_ca=False)
    key = leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    site.with_name("server.pem").write_bytes(leaf.pem + key)
    served = f"tls_server_config: {{cert_file: server.pem, key_file: server.pem{tls}}}\n" if tls else ""
    site.with_name("web.yml").write_text(f"{served}basic_auth_users: {{{users}}}\n")
    site.write_text("agent: {listen: '192.0.2.1:9725', web_config: web.yml}\n" + site.read_text())


def _scrape(site: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Return the rendered settings of the scrape, and the warnings."""
    status, warned = _render(site, "prometheus", "--alertmanager", "a:9093", *options)
    assert status == 0
    (scrape,) = yaml.safe_load((site.parent / "prometheus.yml").read_text())["scrape_configs"]
    return scrape, warned


HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"


def test_prometheus_gets_in_by_the_web_configuration(site: Path) -> None:
    """TLS, a client certificate and a user are in the scrape's settings, and each missing file is named."""
    mutual = ", client_ca_file: server.pem, client_auth_type: RequireAndVerifyClientCert"
    _with_web_config(site, tls=mutual, users=f"alice: {HASH}, prometheus: {HASH}")
    scrape, warned = _scrape(site)
    assert scrape["scheme"] == "https"
    assert scrape["tls_config"] == {
        "ca_file": "mailsonde-ca.crt",
        "server_name": "localhost",  # because the certificate is not for 192.0.2.1
        "cert_file": "mailsonde-client.crt",
        "key_file": "mailsonde-client.key",
    }
    assert scrape["basic_auth"] == {"username": "prometheus", "password_file": "mailsonde-password"}
    for name in ("ca.crt", "client.crt", "client.key", "password"):
        assert f"there is no {site.parent}/mailsonde-{name} yet" in warned
    assert "it must contain the password of prometheus" in warned
    site.with_name("mailsonde-password").touch()
    assert "mailsonde-password" not in _scrape(site)[1]


def test_users_without_tls_are_scraped_by_http(site: Path) -> None:
    """Only what the web configuration asks for is in the scrape's settings; any user will do."""
    _with_web_config(site, users=f"alice: {HASH}")
    scrape, _ = _scrape(site)
    assert scrape.keys() == {"job_name", "static_configs", "basic_auth"}
    assert scrape["basic_auth"]["username"] == "alice"


def test_the_scrape_is_the_same_without_secrets(site: Path) -> None:
    """With --no-secrets, the agent's private key is not read, and the same is rendered."""
    _with_web_config(site, tls=", min_version: TLS13", users=f"alice: {HASH}")
    scrape, _ = _scrape(site)
    text = site.with_name("web.yml").read_text()
    site.with_name("web.yml").write_text(text.replace("key_file: server.pem", "key_file: absent.pem"))
    assert _scrape(site, "--no-secrets")[0] == scrape
    assert _render(site, "prometheus")[0] == 2


def test_a_broken_web_configuration_is_not_rendered(site: Path) -> None:
    """Its mistakes are listed with their lines, and no scrape without the password is written."""
    _with_web_config(site, users="alice: hunter2")
    status, told = _render(site, "prometheus", "--no-secrets")
    assert status == 2
    assert "web.yml:1: basic_auth_users.alice: is no bcrypt hash" in told
    assert not site.with_name("prometheus.yml").exists()


@pytest.mark.parametrize(
    ("names", "host", "expected"),
    [
        (["127.0.0.1"], "127.0.0.1", None),
        (["mail.example.com", "10.0.0.1"], "10.0.0.1", None),
        (["mail.example.com"], "10.0.0.1", "mail.example.com"),
        (["*.example.com"], "0.0.0.0", "mailsonde.example.com"),  # noqa: S104 # not bound
        (["10.0.0.1"], "::", "10.0.0.1"),
    ],
)
def test_prometheus_looks_for_a_name_of_the_certificate(
    names: list[str], host: str, expected: str | None
) -> None:
    """The name to verify is given only if the certificate is not for the address that is scraped."""
    leaf = trustme.CA().issue_cert(*names)
    chain, key = leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()
    tls = {"cert": chain.decode(), "key": key.decode()}
    found = scrape_access(WebConfig.model_validate({"tls_server_config": tls}), host)
    assert found.settings["tls_config"].get("server_name") == expected


def test_runbook_links_that_lead_nowhere_are_warned_of(site: Path) -> None:
    """Runbook links without a base address give a warning; with an address they do not."""
    assert "runbook" in _render(site, "alerts")[1]
    ours = site.with_name("ours.yaml")
    ours.write_text("runbooks: https://example.com/runbooks\n")
    assert _render(site, "alerts", "--thresholds", str(ours)) == (0, "")


def test_runbooks_are_those_of_the_agent_or_of_the_site(site: Path) -> None:
    """With agent.url, the links lead to the agent's own runbooks; the site's own come first."""
    site.write_text("agent: {url: 'https://mail.example.com/'}\n" + site.read_text())
    ours = site.with_name("ours.yaml")
    ours.write_text("runbooks: https://example.com/runbooks\n")
    for options, begins in (
        ((), "https://mail.example.com/runbooks/Mailsonde"),
        (("--thresholds", str(ours)), "https://example.com/runbooks/Mailsonde"),
    ):
        assert _render(site, "alerts", *options) == (0, "")
        file = yaml.safe_load((site.parent / "rules" / "mailsonde-servers.rules.yaml").read_text())
        alerts = [rule for group in file["groups"] for rule in group["rules"] if "alert" in rule]
        assert all(alert["annotations"]["runbook_url"].startswith(begins) for alert in alerts)


def test_alerts_about_runs_link_to_the_latest_one(site: Path) -> None:
    """Alerts that runs cause link to the latest such run; the others, which no run explains, do not."""
    site.write_text("agent: {url: 'https://mail.example.com'}\n" + site.read_text())
    _render(site, "alerts")
    links = {}
    for path in (site.parent / "rules").iterdir():
        for group in yaml.safe_load(path.read_text())["groups"]:
            alerts = [rule for rule in group["rules"] if "alert" in rule]
            links |= {rule["alert"]: rule["annotations"].get("run_url") for rule in alerts}
    begins = "https://mail.example.com/probes/{{ $labels.probe }}/runs/latest?outcome="
    assert str(links["MailsondeProbeDown"]).startswith(f"{begins}failed{{{{ with $labels.target }}}}")
    assert str(links["MailsondeProbeUnknown"]).startswith(f"{begins}unknown{{{{ with $labels.target }}}}")
    assert links["MailsondeProbeStale"] is None


@pytest.mark.parametrize(
    ("what", "value", "why"),
    [
        ("prometheus", "localhost", "must be HOST:PORT"),
        ("alerts", "localhost:9093", "--alertmanager is for prometheus, not for alerts"),
    ],
)
def test_an_alertmanager_that_cannot_be_used_is_refused(site: Path, what: str, value: str, why: str) -> None:
    """An address without a port, or an Alertmanager without a use, exits 2 with the reason."""
    status, told = _render(site, what, "--alertmanager", value)
    assert status == 2
    assert why in told


def test_alerts_link_to_the_live_page(site: Path) -> None:
    """With the live page's address, each alert links to its probe there; without it, to none."""
    _render(site, "alerts")
    rules = site.parent / "rules" / "mailsonde-servers.rules.yaml"
    assert "live_url" not in rules.read_text()
    site.write_text("agent: {url: 'https://mail.example.com/sonde/'}\n" + site.read_text())
    _render(site, "alerts")
    groups = yaml.safe_load(rules.read_text())["groups"]
    for alert in (rule for group in groups for rule in group["rules"] if "alert" in rule):
        assert alert["annotations"]["live_url"].startswith(
            "https://mail.example.com/sonde/{{ with $labels.probe }}probes/{{ . }}"
        )


@pytest.mark.parametrize(("longest", "label"), CADENCES.items())
def test_windows_hold_the_runs_that_they_count(longest: float, label: str) -> None:
    """A probe is unsteady if every third run fails, and a budget burns if every other one is bad."""
    thresholds = load_thresholds()
    files = render_alerts(cadences={longest: label})
    (unsteady,) = _windows(files["mailsonde-servers.rules.yaml"], "mailsonde:unsteady", "runs_total")
    assert unsteady >= 3 * thresholds.unsteady_failures * longest
    budgets = _windows(files["mailsonde-slo.rules.yaml"], "mailsonde:slo_bad_runs", 'result="bad"')
    assert len(budgets) == len(thresholds.slo_windows)
    assert min(budgets) >= 4 * longest


def _windows(file: str, name: str, counter: str) -> list[float]:
    """Return the window in seconds over which each rule of that name counts."""
    rules = [rule for group in yaml.safe_load(file)["groups"] for rule in group["rules"]]
    named = [rule["expr"] for rule in rules if name in (rule.get("alert"), rule.get("record"))]
    found = [
        re.search(rf"increase\(\w+{{?[^\[]*{counter}[^\[]*\[(\w+)\]", expression) for expression in named
    ]
    return [
        sum(parse_duration(part) for part in re.findall(r"\d+[a-z]+", match[1]))
        for match in found
        if match is not None
    ]


def test_rules_are_the_same_for_every_site(site: Path) -> None:
    """A site without addresses and thresholds of its own gets the shipped rules, whatever its probes are."""
    _render(site, "alerts")
    shipped_rules = {path.name: path.read_text() for path in (shipped("alerts") / "rules").iterdir()}
    assert {path.name: path.read_text() for path in (site.parent / "rules").iterdir()} == shipped_rules
