"""End to end: Postfix accepts, Dovecot stores, mailsonde polls by POP3S, Prometheus alerts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.real_servers.dovecot import TlsFiles
from tests.real_servers.prometheus import Prometheus
from tests.real_servers.site import AgentProcess, Site


@pytest.fixture(scope="module")
def site(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Site]:
    with Site(server_directory("site"), server_tls) as running:
        yield running


@pytest.fixture(scope="module")
def agent(site: Site) -> AgentProcess:
    return site.start_agent()


@pytest.fixture(scope="module")
def prometheus(site: Site, agent: AgentProcess) -> Prometheus:
    return site.start_prometheus()


def _delivered(prometheus: Prometheus) -> float:
    return sum(value for _, value in prometheus.query('mailsonde_messages_total{state="delivered"}'))


def test_mail_flows_and_alerts_stay_quiet(prometheus: Prometheus) -> None:
    """While mail flows, Prometheus has its latency and error, and no alert fires."""
    prometheus.wait_until(lambda p: _delivered(p) >= 3, "three messages delivered")
    ((labels, latency),) = prometheus.query("mailsonde_delivery_last_seconds")
    assert (labels["probe"], labels["target"]) == ("trip", "submission")
    ((_, uncertainty),) = prometheus.query("mailsonde_delivery_uncertainty_seconds")
    assert 0 < latency < 5
    assert 0 < uncertainty < 1
    prometheus.wait_until(
        lambda p: (
            {labels["probe"] for labels, value in p.query("mailsonde_probe_success == 1")}
            == {"trip", "smtp", "pop3"}
        ),
        "every probe is ok",
    )
    ((_, expiry),) = prometheus.query(
        'mailsonde_tls_certificate_not_after_timestamp_seconds{probe="pop3"} - time()'
    )
    assert expiry > 0
    prometheus.wait_until(lambda p: not p.alerts("pending"), "no alert is pending")
    assert prometheus.alerts().keys() == {"MailsondeHeartbeat"}


def test_held_queue_fires_overdue_and_release_resolves(site: Site, prometheus: Prometheus) -> None:
    """If Postfix holds its queue, the overdue alert fires before any loss, and resolves on release."""
    site.postfix.hold()
    prometheus.wait_until(lambda p: "MailsondeMessageOverdue" in p.alerts(), "the overdue alert fires")
    fired = prometheus.alerts()["MailsondeMessageOverdue"]
    assert fired["labels"]["probe"] == "trip"
    assert fired["labels"]["severity"] == "critical"
    assert "Mail of trip is overdue" in fired["annotations"]["summary"]
    ((_, lost),) = prometheus.query('mailsonde_messages_total{state="lost"}')
    assert lost == 0
    site.postfix.release()
    prometheus.wait_until(lambda p: "MailsondeMessageOverdue" not in p.alerts(), "the overdue alert resolves")
