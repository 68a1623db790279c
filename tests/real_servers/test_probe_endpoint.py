"""Prometheus triggers probes as in the example, through a real agent and Postfix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real_servers.dovecot import TlsFiles
from tests.real_servers.process import wait_until
from tests.real_servers.prometheus import Prometheus
from tests.real_servers.site import Site

EXAMPLE = Path(__file__).parents[2] / "config/prometheus-probe.yaml"


@pytest.fixture
def site(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Site]:
    with Site(server_directory("probe"), server_tls) as running:
        text = running.config.read_text()
        text = text.replace("kind: smtp, interval: 1s,", "kind: smtp, scheduled: false,")
        running.config.write_text(
            text.replace("name: smtp,", "name: inbound-smtp,").replace("name: pop3", "name: canary-pop3")
        )
        yield running


def test_the_example_works(
    site: Site, start_prometheus: Callable[[Path], Prometheus], tmp_path: Path
) -> None:
    """Prometheus runs both probes of the example, one of them only so, and sees an outage."""
    agent = site.start_agent()
    text = EXAMPLE.read_text().replace("127.0.0.1:9725", agent.address.removeprefix("http://"))
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("60s", "1s").replace("30s", "1s"))
    prometheus = start_prometheus(config)

    def success(instance: str) -> list[float]:
        return [value for _, value in prometheus.query(f'probe_success{{instance="{instance}"}}')]

    wait_until(lambda: success("inbound-smtp") == [1.0] == success("canary-pop3"), "both probes succeed")
    phases = prometheus.query('mailsonde_probe_phase_seconds{instance="inbound-smtp"}')
    assert {"ehlo", "starttls", "auth"} <= {labels["phase"] for labels, _ in phases}
    assert agent.metric('mailsonde_probe_runs_total{kind="smtp"') == 0
    site.postfix.stop()
    wait_until(lambda: success("inbound-smtp") == [0.0], "the probe fails")
    assert success("canary-pop3") == [1.0]
