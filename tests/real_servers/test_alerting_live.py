"""Alerts from end to end: a fault, the agent, Prometheus, Alertmanager, and the receivers."""

from __future__ import annotations

import signal
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
import yaml

from monitor.cadence import cadence
from monitor.config.load import load
from monitor.rendering import RULES, render_alerts, render_prometheus, write_files
from monitor.thresholds import load_thresholds
from probes.core.setting_types import parse_duration
from tests.real_servers import relay as treatments
from tests.real_servers.alertmanager import Alertmanager, Receiver, amtool
from tests.real_servers.dovecot import TlsFiles
from tests.real_servers.process import PATIENCE, wait_until
from tests.real_servers.prometheus import Prometheus
from tests.real_servers.relay import Relay
from tests.real_servers.site import AgentProcess, Site

ALERTS = Path(__file__).parents[2] / "alerts"
SCRAPE = 1.0
SLOWEST = 2.0
"""Seconds: the longest interval of a probe."""

OVERDUE = 2.0
"""Seconds: a fifth of the deadline of 10 s."""

QUICK = {
    "down_for": "0ms",
    "agent_down_for": "2s",
    "slow_for": "0ms",
    "certificate_for": "0ms",
    "lost_at_least": "8s",
    "slow_at_least": "8s",
    "slo_windows": ["10s", "20s"],
    "slo_fast": [{"factor": 14.4, "long": "20s", "short": "10s"}],
    "slo_slow": [],
    "slo_hold": "5s",
}

REMEMBERED = {"MailsondeRunsSkipped", "MailsondeUnexpectedMessage", "MailsondeProbeUnsteady"}
"""Warnings that last a quarter of an hour or longer: a busy machine leaves runs out or lets a few fail, and a
Postfix that is stopped within a delivery makes it again."""


@dataclass
class Whole:
    """All servers that an alert passes through."""

    site: Site
    relay: Relay
    agent: AgentProcess
    prometheus: Prometheus
    alertmanager: Alertmanager
    receiver: Receiver

    def until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> float:
        """Return how many seconds it took until ``condition`` was true."""
        begun = time.monotonic()
        try:
            wait_until(condition, what, seconds)
        except AssertionError as error:
            active = {whom: self.alertmanager.active(whom) for whom in ("on-call", "office-hours")}
            raise AssertionError(f"{error}; firing: {active}") from error
        return time.monotonic() - begun

    def is_silenced(self, alert: str, probe: str) -> None:
        """Wait until a probe's alert fires in Prometheus while Alertmanager inhibits it for on-call."""
        fires = f'ALERTS{{alertname="{alert}",probe="{probe}",alertstate="firing"}}'
        self.until(lambda: self.prometheus.query(fires), f"{alert} of {probe} fires in Prometheus")
        self.until(lambda: probe not in self.alertmanager.probes("on-call", alert), f"{alert} is silenced")
        assert self.prometheus.query(fires) != []

    def until_quiet(self) -> None:
        """Wait until on-call knows that everything is resolved, and nothing else fires that could end.

        Notifications to office-hours do not count: Alertmanager does not report the end of a warning that was
        inhibited at the time (its issue 2754).
        """
        self.until(lambda: not self.receiver.names("on-call"), "all is resolved for on-call")
        for whom in ("on-call", "office-hours"):
            self.until(
                lambda whom=whom: self.alertmanager.active(whom) <= REMEMBERED, f"nothing fires for {whom}"
            )


def _prometheus(site: Site, alertmanager: Alertmanager) -> Prometheus:
    """Start Prometheus with the rendered files and the site's own, shorter thresholds.

    Windows are for the intervals of these probes. Those of their class would last minutes.
    """
    rendered, thresholds = site.directory / "rendered", site.directory / "thresholds.yaml"
    thresholds.write_text(yaml.safe_dump(QUICK))
    configuration = load(site.config, secrets=False)
    rules = render_alerts(configuration, load_thresholds(thresholds), {SLOWEST: cadence(SLOWEST)})
    write_files(rules, rendered / RULES)
    write_files(render_prometheus(configuration, [("127.0.0.1", alertmanager.port)]), rendered)
    return Prometheus(site.directory / "prometheus", rendered / "prometheus.yml")


class Certified(socketserver.ThreadingTCPServer):
    """A POP3 server with implicit TLS that only sends a greeting, with the test's certificate."""

    daemon_threads = True

    def __init__(self, authority: trustme.CA) -> None:
        super().__init__(("127.0.0.1", 0), _Greeting)
        self._authority = authority
        self.port = self.server_address[1]
        self.certify(timedelta(days=365))
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    def certify(self, lasts: timedelta) -> None:
        """From the next connection, use a certificate that expires after that time."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ends = datetime.now(UTC) + lasts
        self._authority.issue_cert("localhost", not_after=ends).configure_cert(self.context)

    def close(self) -> None:
        """End the server."""
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Greeting(socketserver.BaseRequestHandler):
    server: Certified

    def handle(self) -> None:
        with (
            suppress(ssl.SSLError),  # a client that refuses the certificate
            self.server.context.wrap_socket(self.request, server_side=True) as connection,
        ):
            connection.sendall(b"+OK ready\r\n")
            for answer in (b"+OK\r\nTOP\r\n.\r\n", b"+OK bye\r\n"):
                connection.recv(1000)
                connection.sendall(answer)


@pytest.fixture(scope="module")
def certified(certificate_authority: trustme.CA) -> Iterator[Certified]:
    server = Certified(certificate_authority)
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(
    server_tls: TlsFiles, server_directory: Callable[[str], Path], certified: Certified
) -> Iterator[Whole]:
    directory = server_directory("live")
    with ExitStack() as stack:
        site = stack.enter_context(Site(directory, server_tls, relayed=True))
        assert site.relay is not None
        document = yaml.safe_load(site.config.read_text())
        document["alerts"] = {"stale_intervals": 60}
        for probe in document["probes"]:
            probe["interval"] = f"{min(SLOWEST, parse_duration(probe['interval'])):g}s"
        document["probes"][0]["slo"] = {"objective": "99%", "within": "5s"}
        document["servers"]["certified"] = {**document["servers"]["pop"], "port": certified.port}
        document["probes"].append(
            {"name": "certificate", "kind": "pop3", "interval": "1s", "server": "certified"}
        )
        site.config.write_text(yaml.safe_dump(document))
        receiver = Receiver()
        stack.callback(receiver.close)
        alertmanager = Alertmanager(directory / "alertmanager", ALERTS / "alertmanager.yaml", receiver)
        stack.callback(alertmanager.stop)
        agent = site.start_agent()
        prometheus = _prometheus(site, alertmanager)
        stack.callback(prometheus.stop)
        made = Whole(site, site.relay, agent, prometheus, alertmanager, receiver)
        made.until(lambda: receiver.firing("heartbeat", "MailsondeHeartbeat"), "the heartbeat beats")
        made.until(
            lambda: agent.metric('mailsonde_messages_total{probe="trip",state="delivered"') > 3,
            "mail",
        )
        yield made


def test_queue_that_holds_mail_back(whole: Whole) -> None:
    """A deferred queue fires overdue within its threshold and two scrapes and evaluations."""
    whole.until_quiet()
    whole.site.postfix.hold()
    begun = time.monotonic()
    whole.until(lambda: whole.receiver.firing("on-call", "MailsondeMessageOverdue"), "overdue is told")
    took = time.monotonic() - begun
    (labels,) = whole.receiver.firing("on-call", "MailsondeMessageOverdue")
    assert (labels["probe"], labels["target"]) == ("trip", "submission")
    print(f"from fault to overdue: {took:.1f} s; allowed {OVERDUE + 2 * 2 * SCRAPE:.1f} s and the webhook")
    whole.site.postfix.release()
    whole.until_quiet()


def test_mailbox_server_that_stops(whole: Whole) -> None:
    """The probe of a stopped POP3 server alerts, its routes are inhibited, and all is resolved later."""
    whole.until_quiet()
    whole.site.dovecot.stop()
    whole.until(
        lambda: (
            {labels["probe"] for labels in whole.receiver.firing("on-call", "MailsondeProbeDown")} >= {"pop3"}
        ),
        "the POP3 probe is told as down",
    )
    down = {labels["target"] for labels in whole.receiver.firing("on-call", "MailsondeProbeDown")}
    assert "pop" in down
    whole.is_silenced("MailsondeMessageOverdue", "trip")
    whole.site.dovecot.restart()
    whole.relay.excuse_failures()
    whole.until_quiet()


def test_message_that_a_filter_drops(whole: Whole) -> None:
    """Mail that disappears behind the queue is reported as lost."""
    whole.until_quiet()
    whole.relay.treatment = treatments.dropped
    whole.until(lambda: whole.receiver.firing("on-call", "MailsondeMessageLost"), "the loss is told")
    (labels,) = whole.receiver.firing("on-call", "MailsondeMessageLost")
    assert (labels["probe"], labels["target"]) == ("trip", "submission")
    whole.is_silenced("MailsondeProbeDown", "trip")
    whole.is_silenced("MailsondeErrorBudgetBurningFast", "trip")
    whole.relay.treatment = treatments.untouched
    whole.until_quiet()


def test_certificate_that_ends(whole: Whole, certified: Certified) -> None:
    """An expiring certificate alerts office-hours; its last hours and its expiry alert on-call."""
    whole.until_quiet()
    certified.certify(timedelta(days=9))
    whole.until(lambda: whole.receiver.firing("office-hours", "MailsondeCertificateExpiring"), "the warning")
    assert whole.receiver.firing("on-call", "MailsondeCertificateExpiring") == []
    certified.certify(timedelta(hours=9))
    whole.until(lambda: whole.receiver.firing("on-call", "MailsondeCertificateExpiring"), "the last hours")
    (labels,) = whole.receiver.firing("on-call", "MailsondeCertificateExpiring")
    assert (labels["probe"], labels["target"]) == ("certificate", "certified")
    whole.until(
        lambda: "MailsondeCertificateExpiring" not in whole.alertmanager.active("office-hours"),
        "the warning is silent beside what is critical",
    )
    both = whole.prometheus.query('ALERTS{alertname="MailsondeCertificateExpiring",alertstate="firing"}')
    assert {labels["severity"] for labels, _ in both} == {"warning", "critical"}
    certified.certify(timedelta(seconds=-1))
    whole.until(lambda: whole.receiver.firing("on-call", "MailsondeCertificateExpired"), "the end")
    (labels,) = whole.receiver.firing("on-call", "MailsondeCertificateExpired")
    assert (labels["probe"], labels["target"]) == ("certificate", "certified")
    whole.is_silenced("MailsondeProbeDown", "certificate")
    whole.is_silenced("MailsondeCertificateExpiring", "certificate")
    certified.certify(timedelta(days=365))
    whole.until_quiet()


def test_junk(whole: Whole) -> None:
    """Mail that a filter marks is reported as junk."""
    whole.until_quiet()
    whole.relay.treatment = treatments.marked_as_spam
    whole.until(lambda: whole.receiver.firing("on-call", "MailsondeMessageJunked"), "the junk is told")
    (labels,) = whole.receiver.firing("on-call", "MailsondeMessageJunked")
    assert (labels["probe"], labels["target"]) == ("trip", "submission")
    whole.relay.treatment = treatments.untouched
    whole.until_quiet()


def test_submission_server_that_stops(whole: Whole) -> None:
    """The probe of a stopped SMTP server alerts, and its routes' alerts are inhibited."""
    whole.until_quiet()
    whole.site.postfix.stop()
    whole.until(
        lambda: (
            {labels["kind"] for labels in whole.receiver.firing("on-call", "MailsondeProbeDown")} == {"smtp"}
        ),
        "only the SMTP probe is told as down",
    )
    whole.is_silenced("MailsondeProbeDown", "trip")
    assert {labels["kind"] for labels in whole.receiver.firing("on-call", "MailsondeProbeDown")} == {"smtp"}
    whole.site.postfix.restart()
    whole.until_quiet()


def test_agent_that_is_killed(whole: Whole) -> None:
    """A killed agent alerts within its threshold, and its return resolves the alert."""
    whole.until_quiet()
    whole.agent.stop(signal.SIGKILL)
    whole.until(lambda: whole.receiver.firing("on-call", "MailsondeAgentDown"), "the agent is told as down")
    (labels,) = whole.receiver.firing("on-call", "MailsondeAgentDown")
    assert f"http://{labels['instance']}" == whole.agent.address
    whole.agent = whole.site.start_agent()
    whole.until_quiet()


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ("alertname=MailsondeMessageLost severity=critical", "on-call"),
        ("alertname=MailsondeDeliverySlow severity=warning", "office-hours"),
        ("alertname=MailsondeHeartbeat severity=none", "dead-mans-switch"),
        ("alertname=SomethingElse severity=critical", "office-hours"),
    ],
)
def test_routes_of_the_example(labels: str, receiver: str) -> None:
    """The Alertmanager example is valid, and sends each alert to the right receivers."""
    example = ALERTS / "alertmanager.yaml"
    checked = amtool("check-config", example)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    routed = amtool("config", "routes", "test", f"--config.file={example}", *labels.split())
    assert routed.stdout.strip() == receiver
