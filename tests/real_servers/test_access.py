"""The agent's web configuration, as those who must get in see it: Prometheus, curl and a browser."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest
import trustme
import yaml

from tests.real_servers.browser import chromium
from tests.real_servers.process import Daemon, free_port, require
from tests.real_servers.prometheus import Prometheus, promtool
from tests.real_servers.site import MAILSONDE

PASSWORD = "c0rrect horse"  # the test's own


class Access:
    """An agent that serves by TLS and asks for a password, with the certificates of its clients."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = directory / "ca.pem"
        self.client = directory / "client.pem"
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(self.authority))
        server = ca.issue_cert("127.0.0.1")
        server.private_key_and_cert_chain_pem.write_to_path(str(directory / "server.pem"))
        ca.issue_cert("prometheus.example.com").private_key_and_cert_chain_pem.write_to_path(str(self.client))
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.configure()
        server_settings = {"protocol": "smtp", "host": "127.0.0.1", "port": free_port(), "tls": "none"}
        config = {
            "agent": {
                "listen": f"127.0.0.1:{self.port}",
                "ledger": f"sqlite://{directory}/ledger.db",
                "web_config": "web.yml",
            },
            "servers": {"out": server_settings},
            "probes": [{"name": "out", "kind": "smtp", "server": "out", "interval": "1s"}],
        }
        (directory / "mailsonde.yaml").write_text(json.dumps(config))
        self.agent = Daemon(
            [*MAILSONDE, "run", "--config", directory / "mailsonde.yaml"],
            directory / "agent.log",
            ports=[self.port],
        )

    def configure(self, **tls: str) -> None:
        """Write the web configuration, with further settings of TLS."""
        digest = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        web = {
            "tls_server_config": {"cert_file": "server.pem", "key_file": "server.pem", **tls},
            "basic_auth_users": {"alice": digest},
        }
        (self.directory / "new").write_text(json.dumps(web))
        (self.directory / "new").replace(self.directory / "web.yml")

    def curl(self, path: str, *options: str | Path) -> str:
        """Return the status of curl's answer; ``000`` without one."""
        curl = [require("curl", "curl"), "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]
        command = [*curl, "--noproxy", "*", "--cacert", self.authority, *options, f"{self.url}{path}"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    running = Access(tmp_path_factory.mktemp("access"))
    yield running
    running.agent.stop()


def test_prometheus_scrapes_with_what_is_rendered(access: Access) -> None:
    """With the CA and the password beside the rendered configuration, it logs in and has the metrics."""
    rendered = access.directory / "prometheus.yml"
    command = [*MAILSONDE, "render", "prometheus", "--config", access.directory / "mailsonde.yaml"]
    subprocess.run([*command, "--out", access.directory], check=True, capture_output=True)
    assert PASSWORD not in rendered.read_text()
    (access.directory / "mailsonde-ca.crt").write_bytes(access.authority.read_bytes())
    (access.directory / "mailsonde-password").write_text(PASSWORD)
    checked = promtool("check", "config", rendered)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    config = yaml.safe_load(rendered.read_text())
    (scrape,) = config["scrape_configs"]
    stranger = {key: value for key, value in scrape.items() if key != "basic_auth"}
    config["scrape_configs"].append(stranger | {"job_name": "stranger"})
    rendered.write_text(json.dumps(config))
    prometheus = Prometheus(access.directory / "prometheus", rendered)
    try:
        prometheus.wait_until(lambda p: p.query('up{job="mailsonde"} == 1'), "scraped")
        prometheus.wait_until(lambda p: p.query('up{job="stranger"} == 0'), "refused without a password")
        assert prometheus.query("mailsonde_build_info")
    finally:
        prometheus.stop()


def test_a_browser_opens_the_page_with_a_password(access: Access) -> None:
    """The live page and its updates work behind the browser's own login."""
    with chromium() as browser:
        known = {"username": "alice", "password": PASSWORD}
        context = browser.new_context(ignore_https_errors=True, http_credentials=known)
        page = context.new_page()
        answer = page.goto(access.url)
        assert answer is not None
        assert answer.status == 200
        page.get_by_text("out", exact=True).first.wait_for()


def test_curl_needs_a_client_certificate_once_it_is_required(access: Access) -> None:
    """From the next connection on, nobody gets in without one; the password is needed all the same."""
    known = ("--user", f"alice:{PASSWORD}")
    assert access.curl("/metrics") == "401"
    assert access.curl("/metrics", *known) == "200"
    assert access.curl("/-/healthy") == "200"
    access.configure(client_ca_file="ca.pem", client_auth_type="RequireAndVerifyClientCert")
    assert access.curl("/metrics", *known) == "000"
    assert access.curl("/metrics", *known, "--cert", access.client) == "200"
    assert access.curl("/metrics", "--cert", access.client) == "401"


def test_every_handshake_is_answered(access: Access) -> None:
    """Whether the client's first message comes with the connection or after it, none is lost."""
    access.configure()
    assert [access.curl("/-/healthy") for _ in range(60)] == ["200"] * 60


def test_promtool_accepts_the_file(access: Access) -> None:
    """What mailsonde takes is what Prometheus and its exporters take."""
    checked = promtool("check", "web-config", access.directory / "web.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
