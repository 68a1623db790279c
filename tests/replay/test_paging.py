"""The model of Alertmanager compared with a real one: notifications, groups, and inhibition."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.real_servers.alertmanager import Alertmanager, Receiver
from tests.real_servers.process import HTTP, wait_until
from tests.replay.judgement import Alert
from tests.replay.paging import Matcher, Pager, Policy
from tests.replay.replay import ALERTMANAGER

AGENT = {"job": "mailsonde", "location": "fra1"}


def alert(name: str, severity: str = "critical", **labels: str) -> Alert:
    return frozenset({**AGENT, "alertname": f"Mailsonde{name}", "severity": severity, **labels}.items())


DOWN_SMTP = alert("ProbeDown", kind="smtp", probe="smtp-a", target="a")
QUIET_SMTP = alert("ProbeDown", "warning", kind="smtp", probe="smtp-a", target="a")
DOWN_TRIP = alert("ProbeDown", kind="roundtrip", probe="trip", target="a")
OVERDUE = alert("MessageOverdue", probe="trip", target="a")
OVERDUE_B = alert("MessageOverdue", probe="other", target="b")
BURNING = alert("ErrorBudgetBurningFast", probe="trip", target="a")
BURNING_SLOWLY = alert("ErrorBudgetBurningSlowly", "warning", probe="trip", target="a")
SLOW = alert("DeliverySlow", "warning", probe="trip", target="a")
SLOW_B = alert("DeliverySlow", "warning", probe="other", target="b")
LAG = alert("ScheduleLag", "warning")
LAG_ELSEWHERE = frozenset({*LAG - {("location", AGENT["location"])}, ("location", "ams1")})
STALE = alert("ProbeStale", "warning", kind="smtp", probe="smtp-a", target="a")
AGENT_DOWN = alert("AgentDown")
OVERLOADED = alert("AgentOverloaded", "warning", shortage="machine")
LOGINS_SHORT = alert("AgentOverloaded", "warning", shortage="logins")
OVERLOADED_ELSEWHERE = frozenset({*OVERLOADED - {("location", AGENT["location"])}, ("location", "ams1")})
UNKNOWN = alert("ProbeUnknown", "warning", kind="smtp", probe="smtp-a", target="a")
MISSED = alert("RunsSkipped", "warning", kind="smtp", probe="smtp-a", target="a", reason="missed")
OVERRUN = alert("RunsSkipped", "warning", kind="smtp", probe="smtp-a", target="a", reason="overrun")
CERTIFICATE = alert("CertificateExpiring", kind="pop3", probe="pop", target="pop")
CERTIFICATE_SOON = alert("CertificateExpiring", "warning", kind="pop3", probe="pop", target="pop")
DOWN_MX = alert("ProbeDown", kind="mx", probe="mx", target="example.com")
THROTTLED = alert("Throttled", "warning", protocol="smtp", server="a", target="a")
THROTTLED_B = alert("Throttled", "warning", protocol="smtp", server="b", target="b")
THROTTLED_POLLS = alert(
    "Throttled", "warning", protocol="imap", server="m", mailbox_server="m", mailbox="canary"
)
UNREAD = alert("ProbeUnknown", "warning", kind="roundtrip", probe="trip", target="a", mailbox_server="m")
OLD_SERVER = alert("VersionBlocked", kind="roundtrip", probe="trip", target="a")
SHORT = alert("BackPressure", "warning", kind="smtp", probe="smtp-a", target="a")
UNSTEADY = alert("ProbeUnsteady", "warning", kind="smtp", probe="smtp-a", target="a")
LOST = alert("MessageLost", probe="trip", target="a", state="lost")
JUNKED = alert("MessageJunked", probe="trip", target="a")
TO_CLOUD = {"hybrid": "contoso", "connector": "out", "opposite": "back"}
ONE_WAY = alert("HybridOneWay", probe="trip", target="a", **TO_CLOUD)
OVERDUE_ONE_WAY = alert("MessageOverdue", probe="trip", target="a", **TO_CLOUD)
LOST_FROM_OUTSIDE = alert("MessageLost", probe="mx", target="mx1", hybrid="contoso", connector="out")
LOST_ELSEWHERE = alert("MessageLost", probe="mx", target="mx1", hybrid="fabrikam", connector="out")
FINDING = alert("FindingCritical", probe="domain", target="example.com", check="no_spf")
FINDING_MINOR = alert("FindingWarning", "warning", probe="domain", target="example.com", check="no_spf")
FINDING_OTHER = alert("FindingWarning", "warning", probe="domain", target="example.com", check="no_dmarc")
UNSTEADY_TRIP = alert("ProbeUnsteady", "warning", kind="roundtrip", probe="trip", target="a")
UNSTEADY_POP = alert("ProbeUnsteady", "warning", kind="pop3", probe="pop", target="pop")
SECRET = alert("OAuth2CredentialExpires", oauth2="cloud")
SECRET_SOON = alert("OAuth2CredentialExpires", "warning", oauth2="cloud")
SECRET_SOON_B = alert("OAuth2CredentialExpires", "warning", oauth2="other")
NO_TOKEN = alert("TokenRefreshFailing", "warning", oauth2="cloud")
THROTTLED_TOKENS = alert("Throttled", "warning", protocol="oauth2", server="a", target="a")
UNEXPECTED = alert("UnexpectedMessage", "warning", mailbox="canary", reason="forged")


def exchange(name: str, node: str, directory: str, severity: str = "critical", probe: str = "ex") -> Alert:
    """Return an alert about one virtual directory of one node."""
    labels = {"kind": "exchange", "probe": probe, "target": f"{directory}@{node}"}
    return alert(name, severity, **labels, exchange_node=node, exchange_directory=directory)


OWA1, EWS1, EWS2 = (exchange("ProbeDown", *of) for of in (("ex1", "owa"), ("ex1", "ews"), ("ex2", "ews")))
EWS1_ELSEWHERE = exchange("ProbeDown", "ex1", "ews", probe="other")
EXPIRED1, EXPIRED2 = (exchange("CertificateExpired", node, "ews") for node in ("ex1", "ex2"))
NODE1 = alert("ExchangeNodeDown", kind="exchange", probe="ex", exchange_node="ex1")
NODE2_RESTS = alert("ExchangeNodeInMaintenance", "warning", kind="exchange", probe="ex", exchange_node="ex2")
OLD_BUILDS = alert("ExchangeBuildBelowMinimum", "warning", kind="exchange", probe="ex")
EWS_DOWN = alert("ExchangeDirectoryDown", kind="exchange", probe="ex", exchange_directory="ews")
AUTH = {"kind": "exchange", "probe": "ex", "target": "auth-certificate"}
AUTH_ENDS = alert("ExchangeAuthCertificateExpires", **AUTH)
AUTH_FAILS = alert("ProbeDown", **AUTH)
HEARTBEAT = alert("Heartbeat", "none")


def exchange(name: str, server: str, severity: str = "warning", **labels: str) -> Alert:
    """Return an alert on what windows_exporter shows of an Exchange server."""
    about = {"alertname": f"MailsondeExchange{name}", "instance": f"{server}:9182", "server": server}
    return frozenset({"job": "exchange", "severity": severity, **about, **labels}.items())


EXCHANGE_CERTIFICATE = exchange("CertificateExpires", "mbx1", "critical", use="IMAP")
EXCHANGE_CERTIFICATE_SOON = exchange("CertificateExpires", "mbx1", use="IMAP")
EXCHANGE_CERTIFICATE_SMTP = exchange("CertificateExpires", "mbx1", use="SMTP")
EXCHANGE_CERTIFICATE_B = exchange("CertificateExpires", "mbx2", use="IMAP")
EXCHANGE_QUEUE = exchange("QueueLong", "mbx1", queue="poison")
EXCHANGE_COPY = exchange("DatabaseCopyUnhealthy", "mbx2", database="db9")
FOREIGN = frozenset({("alertname", "DiskFull"), ("severity", "critical")})


class Log(Receiver):
    """Records notifications in order: receiver and firing alerts."""

    def __init__(self) -> None:
        self.told: list[tuple[str, frozenset[Alert]]] = []
        self._told_lock = threading.Lock()
        super().__init__()

    def take(self, whom: str, told: dict[str, Any]) -> None:
        """Record a webhook's body."""
        firing = frozenset(
            frozenset(one["labels"].items()) for one in told["alerts"] if one["status"] == "firing"
        )
        with self._told_lock:
            self.told.append((whom, firing))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Path], tuple[str, Log]]]:
    with ExitStack() as stack:

        def started(example: Path) -> tuple[str, Log]:
            log = Log()
            stack.callback(log.close)
            alertmanager = Alertmanager(tmp_path / "alertmanager", example, log)
            stack.callback(alertmanager.stop)
            return f"http://127.0.0.1:{alertmanager.port}/api/v2", log

        yield started


def post(api: str, alerts: frozenset[Alert], *, ends: timedelta = timedelta(hours=1)) -> None:
    """Tell Alertmanager which alerts fire, as Prometheus does; a past ``ends`` resolves an alert."""
    now = datetime.now(UTC)
    body = [
        {
            "labels": dict(one),
            "startsAt": (now - timedelta(minutes=5)).isoformat(),
            "endsAt": (now + ends).isoformat(),
        }
        for one in alerts
    ]
    HTTP.post(
        f"{api}/alerts", content=json.dumps(body), headers={"content-type": "application/json"}
    ).raise_for_status()


@pytest.mark.parametrize(
    "alerts",
    [
        [DOWN_SMTP, DOWN_TRIP, BURNING, OVERDUE_B],
        [OVERDUE, DOWN_TRIP, BURNING, BURNING_SLOWLY, SLOW, SLOW_B],
        [DOWN_TRIP, BURNING],
        [AGENT_DOWN, LAG, STALE, SLOW_B],
        [CERTIFICATE, CERTIFICATE_SOON, DOWN_MX, OVERDUE_B, FOREIGN],
        [LOST, JUNKED, DOWN_TRIP, DOWN_SMTP],
        [QUIET_SMTP, DOWN_TRIP, OVERDUE_B],
        [OVERLOADED, UNKNOWN, LAG, MISSED, OVERRUN, OVERDUE_B, LOST],
        [OLD_SERVER, DOWN_TRIP, OVERDUE, BURNING, OVERDUE_B, SHORT, UNSTEADY],
        [UNKNOWN, UNREAD, THROTTLED, THROTTLED_B, THROTTLED_POLLS],
        [OVERLOADED_ELSEWHERE, UNKNOWN, LAG, MISSED, OVERDUE_B],
        [ONE_WAY, OVERDUE_ONE_WAY, LOST_FROM_OUTSIDE, LOST_ELSEWHERE, OVERDUE_B],
        [EXCHANGE_CERTIFICATE, EXCHANGE_CERTIFICATE_SOON, EXCHANGE_QUEUE, EXCHANGE_COPY, SECRET, NO_TOKEN],
        [NODE1, OWA1, EWS1, EWS2, EWS1_ELSEWHERE, EXPIRED2, NODE2_RESTS, OLD_BUILDS],
        [AUTH_ENDS, AUTH_FAILS, EXPIRED1, NODE1, EWS1],
    ],
    ids=lambda alerts: "-".join(dict(one)["alertname"].removeprefix("Mailsonde") for one in alerts),
)
def test_groups_and_inhibition_are_those_of_alertmanager(
    start: Callable[[Path], tuple[str, Log]], alerts: list[Alert]
) -> None:
    """The same alerts are inhibited, and the others go to the same receivers in the same groups."""
    _compare(start, ALERTMANAGER, alerts)


@pytest.mark.parametrize(
    ("cause", "silent", "told"),
    [
        (
            EXCHANGE_CERTIFICATE,
            {EXCHANGE_CERTIFICATE_SOON},
            {EXCHANGE_CERTIFICATE_SMTP, EXCHANGE_CERTIFICATE_B, EXCHANGE_QUEUE, EXCHANGE_COPY, LAG},
        ),
        (CERTIFICATE, {CERTIFICATE_SOON}, {UNSTEADY_POP, SECRET_SOON, SLOW}),
        (FINDING, {FINDING_MINOR}, {FINDING_OTHER}),
        (SECRET, {SECRET_SOON}, {SECRET_SOON_B, NO_TOKEN, LAG}),
        (AGENT_DOWN, {LAG, STALE, THROTTLED_POLLS, NO_TOKEN}, {UNEXPECTED, SECRET_SOON, EXCHANGE_QUEUE}),
        (LOST, {SLOW, BURNING_SLOWLY}, {SLOW_B, UNEXPECTED, THROTTLED, EXCHANGE_QUEUE}),
        (UNKNOWN, {THROTTLED}, {THROTTLED_B, THROTTLED_TOKENS, THROTTLED_POLLS}),
        (OLD_SERVER, {BURNING_SLOWLY, UNSTEADY_TRIP}, {UNREAD, OVERDUE_B, SLOW}),
    ],
    ids=lambda what: dict(what)["alertname"].removeprefix("Mailsonde") if isinstance(what, frozenset) else "",
)
def test_an_alert_inhibits_only_what_it_explains(cause: Alert, silent: set[Alert], told: set[Alert]) -> None:
    """No alert on one subject keeps back an alert on another, nor one that it does not explain."""
    policy = Policy(ALERTMANAGER)
    firing = [dict(one) for one in (cause, *silent, *told)]
    assert {one for one in silent | told if policy.inhibited(dict(one), firing)} == silent


@pytest.mark.parametrize("lasting", [CERTIFICATE, FINDING, OLD_SERVER, AUTH_ENDS])
def test_what_lasts_for_days_hides_no_other_fault(lasting: Alert) -> None:
    """While such an alert fires, a fault in the flow of mail opens a group of its own, which pages."""
    pager = Pager(Policy(ALERTMANAGER))
    pager.advance(0.0, frozenset({lasting}))
    (first,) = pager.advance(600.0, frozenset({lasting, OVERDUE_B}))
    (second,) = pager.advance(1200.0, frozenset({lasting, OVERDUE_B}))
    assert [(one.receiver, one.opens, one.firing) for one in (first, second)] == [
        ("on-call", True, {lasting}),
        ("on-call", True, {OVERDUE_B}),
    ]


def test_alerts_that_are_source_and_target_are_those_of_alertmanager(
    start: Callable[[Path], tuple[str, Log]], tmp_path: Path
) -> None:
    """An alert that inhibits others of its kind is not inhibited by them."""
    document = yaml.safe_load(ALERTMANAGER.read_text())
    document["inhibit_rules"] = [
        {"source_matchers": ["severity = critical"], "target_matchers": ['probe =~ ".+"'], "equal": ["job"]}
    ]
    example = tmp_path / "both.yaml"
    example.write_text(yaml.safe_dump(document))
    _compare(start, example, [OVERDUE, OVERDUE_B, SLOW])


def _compare(start: Callable[[Path], tuple[str, Log]], example: Path, alerts: list[Alert]) -> None:
    """Fail unless the model groups and inhibits the alerts as Alertmanager does."""
    api, _ = start(example)
    post(api, frozenset(alerts))
    policy = Policy(example)
    expected: dict[tuple[str, frozenset[tuple[str, str]]], set[tuple[Alert, bool]]] = {}
    for one in alerts:
        labels = dict(one)
        route = policy.route(labels)
        group = frozenset((name, labels[name]) for name in route.group_by if name in labels)
        silent = policy.inhibited(labels, [dict(other) for other in alerts])
        expected.setdefault((route.receiver, group), set()).add((one, silent))
    wanted = {(*key, frozenset(members)) for key, members in expected.items()}
    with suppress(AssertionError):  # the comparison below shows what differs
        wait_until(lambda: _grouped(api) == wanted, "grouped and inhibited alike", seconds=20.0)
    assert _grouped(api) == wanted


def _grouped(api: str) -> set[tuple[str, frozenset[tuple[str, str]], frozenset[tuple[Alert, bool]]]]:
    """Return Alertmanager's groups: receiver, labels, and alerts, each with whether it is inhibited.

    Its inhibition learns of an alert later than its groups do.
    """
    return {
        (
            group["receiver"]["name"],
            frozenset(group["labels"].items()),
            frozenset(
                (frozenset(one["labels"].items()), bool(one["status"]["inhibitedBy"]))
                for one in group["alerts"]
            ),
        )
        for group in HTTP.get(f"{api}/alerts/groups").json()
    }


def test_what_is_told_over_time_is_what_alertmanager_tells(
    start: Callable[[Path], tuple[str, Log]], tmp_path: Path
) -> None:
    """New alerts, updates, inhibition, the end, and a second page are the same as Alertmanager's."""
    document = yaml.safe_load(ALERTMANAGER.read_text())
    example = tmp_path / "example.yaml"
    example.write_text(yaml.safe_dump(document))
    api, log = start(example)
    document["route"] |= {"group_wait": "0s", "group_interval": "1s"}
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(document))
    pager = Pager(Policy(tmp_path / "quick.yaml"))
    steps = [
        frozenset({OVERDUE}),
        frozenset({OVERDUE, OVERDUE_B}),
        frozenset({OVERDUE, OVERDUE_B, BURNING, SLOW}),  # neither notifies
        frozenset({OVERDUE_B}),
        frozenset(),
        frozenset({DOWN_TRIP, BURNING}),
        frozenset({LAG, LAG_ELSEWHERE}),
    ]
    modelled: list[tuple[str, frozenset[Alert]]] = []
    before: frozenset[Alert] = frozenset()
    for step, firing in enumerate(steps):
        modelled += [(n.receiver, n.firing) for n in pager.advance(10.0 * step, firing)]
        post(api, firing)
        post(api, before - firing, ends=timedelta(seconds=-1))
        before = firing
        later = [(n.receiver, n.firing) for n in pager.advance(10.0 * step + 9.0, firing)]
        modelled += later
        wait_until(lambda: len(log.told) >= len(modelled), f"step {step}: {log.told} as {modelled}")  # noqa: B023
        time.sleep(1.5)  # more than group_interval: there is no event to await for the absence of others
        assert Counter(log.told) == Counter(modelled), f"step {step}"


def test_what_does_not_page_silences_no_page() -> None:
    """If a server's probe has severity: warning, its outage does not inhibit pages for mail through it."""
    policy = Policy(ALERTMANAGER)
    assert policy.inhibited(dict(OVERDUE), [dict(DOWN_SMTP)])
    assert not policy.inhibited(dict(OVERDUE), [dict(QUIET_SMTP)])


def test_a_connector_is_told_instead_of_the_mail_through_it() -> None:
    """Its alert inhibits those about mail through the same connector, also from outside, and no others."""
    policy = Policy(ALERTMANAGER)
    for explained in (OVERDUE_ONE_WAY, LOST_FROM_OUTSIDE):
        assert policy.inhibited(dict(explained), [dict(ONE_WAY)])
    for other in (OVERDUE, LOST, LOST_ELSEWHERE, DOWN_SMTP, ONE_WAY):
        assert not policy.inhibited(dict(other), [dict(ONE_WAY)])


def test_an_exchange_server_is_told_instead_of_its_directories() -> None:
    """A node, a directory or a certificate that fails is one alert, and hides no fault of another."""
    policy = Policy(ALERTMANAGER)
    for source, explained, others in (
        (NODE1, (OWA1, EWS1), (EWS2, EWS1_ELSEWHERE, NODE2_RESTS, OLD_BUILDS)),
        (EWS_DOWN, (EWS1, EWS2), (OWA1, EWS1_ELSEWHERE, NODE2_RESTS, OLD_BUILDS)),
        (EXPIRED1, (NODE1, EWS1), (EWS2, OWA1)),
        (EXPIRED2, (EWS2,), (NODE1, EWS1)),
        (AUTH_ENDS, (AUTH_FAILS,), (EXPIRED1, OWA1, NODE1, CERTIFICATE)),
    ):
        for one in explained:
            assert policy.inhibited(dict(one), [dict(source)])
        for one in others:
            assert not policy.inhibited(dict(one), [dict(source)])


def test_an_overloaded_agent_is_told_instead_of_what_follows_from_it() -> None:
    """Its alert inhibits what its own delays explain. Another agent's does not, and lost mail is told."""
    policy = Policy(ALERTMANAGER)
    for explained in (UNKNOWN, LAG, MISSED, OVERDUE):
        assert policy.inhibited(dict(explained), [dict(OVERLOADED)])
        assert not policy.inhibited(dict(explained), [dict(OVERLOADED_ELSEWHERE)])
        assert not policy.inhibited(dict(explained), [dict(LOGINS_SHORT)])
    for other in (OVERRUN, LOST, DOWN_SMTP):
        assert not policy.inhibited(dict(other), [dict(OVERLOADED)])


def test_the_cause_is_told_once() -> None:
    """What a shortage or an old server explains is not told too, and an outage outranks a shortage."""
    policy = Policy(ALERTMANAGER)
    for explained in (DOWN_TRIP, OVERDUE, BURNING):
        assert policy.inhibited(dict(explained), [dict(OLD_SERVER)])
    assert not policy.inhibited(dict(OVERDUE_B), [dict(OLD_SERVER)])
    assert policy.inhibited(dict(UNSTEADY), [dict(SHORT)])
    assert policy.inhibited(dict(SHORT), [dict(DOWN_SMTP)])
    assert not policy.inhibited(dict(DOWN_SMTP), [dict(SHORT)])


def test_throttling_is_told_once() -> None:
    """A probe that its server throttles says so itself; other servers are told by themselves."""
    policy = Policy(ALERTMANAGER)
    assert policy.inhibited(dict(THROTTLED), [dict(UNKNOWN)])
    assert policy.inhibited(dict(THROTTLED_POLLS), [dict(UNREAD)])
    assert not policy.inhibited(dict(THROTTLED_B), [dict(UNKNOWN), dict(UNREAD)])
    assert not policy.inhibited(dict(THROTTLED_POLLS), [dict(UNKNOWN)])


def test_the_heartbeat_beats_every_minute() -> None:
    """The example repeats the heartbeat at the end of each group interval, not of every other one."""
    route = Policy(ALERTMANAGER).route(dict(HEARTBEAT))
    assert route.group_interval == 60.0
    assert route.repeat_interval < route.group_interval


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("a = b", "b", True),
        ("a = b", "c", False),
        ('a="b"', "b", True),
        ("a != b", "", True),
        ('a =~ "b|c"', "c", True),
        ('a =~ "b|c"', "bc", False),
        ("a !~ b.*", "bc", False),
    ],
)
def test_matchers_hold_as_documented(text: str, value: str, holds: bool) -> None:
    """Equal, unequal, and regular expressions that are anchored at both ends."""
    assert Matcher.parsed(text).holds({"a": value}) is holds
