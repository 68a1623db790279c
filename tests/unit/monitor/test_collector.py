"""The content of /metrics, as Prometheus reads it."""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from monitor.collector import AgentCollector
from monitor.ledger.counters import Counters, Total
from monitor.load import OVERLOAD
from monitor.state import AgentState
from probes.core.finding import Check, Finding, Severity
from probes.core.reasons import Outcome, Reason
from probes.core.settings import Site
from probes.core.verdict import MessageState, Verdict
from probes.delivery.arrivals import Settled, Unexpected
from probes.delivery.message_life import Message
from probes.messages.authentication_results import results
from probes.messages.exchange_report import exchange_report
from probes.messages.hops import hops
from tests.fakes.agent_state import SITE, RouteProbe, pop3_probe, smtp_probe

Read = Callable[..., float | None]


@pytest.fixture
def state() -> AgentState:
    made = AgentState(["canary"], "fra1")
    made.add(smtp_probe(), now=1000.0)
    return made


def _reader(state: AgentState, counters: Counters | None = None) -> Read:
    """Return a function that looks up a sample in the exposed text by name and labels."""
    registry = CollectorRegistry()
    registry.register(AgentCollector(state, lambda: counters or Counters()))
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))

    def read(name: str, **labels: str) -> float | None:
        values = [
            s.value
            for f in families
            for s in f.samples
            if s.name == name and labels.items() <= s.labels.items()
        ]
        return sum(values) if values else None

    return read


def test_known_label_sets_begin_at_zero(state: AgentState) -> None:
    """Before the first run, all outcomes are 0, so that an increase is seen; reasons have no series yet."""
    read = _reader(state)
    for outcome in Outcome:
        assert read("mailsonde_probe_runs_total", outcome=str(outcome)) == 0
    assert read("mailsonde_probe_reasons_total") is None
    assert read("mailsonde_probe_success") is None
    assert read("mailsonde_probe_last_run_timestamp_seconds", probe="smtp") == 1000.0
    for unexpected in Unexpected:
        assert read("mailsonde_mailbox_unexpected_total", mailbox="canary", reason=str(unexpected)) == 0
    for reason in ("missed", "overrun"):
        assert read("mailsonde_schedule_skipped_total", probe="smtp", reason=reason) == 0


def test_each_series_says_which_probe_it_is_about(state: AgentState) -> None:
    """Rules and dashboards join series by the same four labels, whatever the series is about."""
    state.add(RouteProbe(interval="2m", slo={"objective": "99.5%", "within": "30s"}), now=1000.0)
    state.skipped["trip"]["missed"] = 1
    labels = {"location", "probe", "kind", "target"}
    for family in AgentCollector(state, Counters).collect():
        for sample in family.samples:
            assert sample.labels["location"] == "fra1"
            assert labels <= sample.labels.keys() or not {"probe", "kind", "target"} & sample.labels.keys()
            read_over_ranges = family.type in {"counter", "histogram", "summary"} and "probe" in sample.labels
            if read_over_ranges:
                assert sample.labels["cadence"] == {"smtp": "1m", "trip": "5m"}[sample.labels["probe"]]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [("1s", "15s"), ("15s", "15s"), ("16s", "1m"), ("5m", "5m"), ("301s", "15m"), ("24h", "1d")],
)
def test_the_cadence_is_no_shorter_than_the_interval(interval: str, expected: str) -> None:
    """A range of two cadences holds at least two runs."""
    agent = AgentState()
    agent.add(smtp_probe(interval=interval, deadline="1s"), now=1.0)
    assert _reader(agent)("mailsonde_probe_runs_total", cadence=expected) == 0


def test_the_configuration_tells_about_a_probe() -> None:
    """A probe's own labels, its address and its mailbox's server can be joined to its alerts."""
    agent = AgentState()
    agent.add(smtp_probe(severity="warning", description='The "new"\\ one', labels={"team": "mail"}), now=1.0)
    agent.add(RouteProbe("mx.example.com", send_via="mx"), now=1.0)
    agent.add(pop3_probe(), now=1.0)
    infos = {
        sample.labels["probe"]: sample.labels
        for family in AgentCollector(agent, Counters).collect()
        for sample in family.samples
        if sample.name == "mailsonde_probe_info"
    }
    assert infos["smtp"].items() >= {
        ("team", "mail"),
        ("severity", "warning"),
        ("description", 'The "new"\\ one'),
        ("address", "[fd00::1]:587"),
    }
    assert "mailbox_server" not in infos["smtp"]
    assert infos["trip"]["mailbox_server"] == "pop"
    assert not {"address", "description", "team"} & infos["trip"].keys()
    assert infos["pop3"].items() >= {("mailbox_server", "pop"), ("address", "mail.example.com:995")}


def test_labels_of_servers_are_labels_of_their_probes() -> None:
    """A probe's own label replaces its server's, which replaces that of its mailbox's server."""
    agent, trip = AgentState(), RouteProbe(labels={"owner": "probe"})
    servers = dict(trip.context.site.servers)
    for name, label in (("out", "sending"), ("pop", "reading")):
        labels = {"owner": label, "site": label, label: "yes"}
        servers[name] = servers[name].model_copy(update={"labels": labels})
    site = replace(trip.context.site, servers=servers)
    trip.context = replace(trip.context, site=site)
    agent.add(trip, now=1.0)
    (info,) = (
        sample.labels
        for family in AgentCollector(agent, Counters).collect()
        for sample in family.samples
        if sample.name == "mailsonde_probe_info"
    )
    labels = {"owner": "probe", "site": "sending", "sending": "yes", "reading": "yes"}
    assert info.items() >= labels.items()


def test_unknown_run_leaves_success_as_it_was(state: AgentState) -> None:
    """An unknown run leaves the success metric unchanged: our own fault must not look like an outage."""
    state.ran("smtp", "out", Verdict(Reason.NONE), ended_at=1060.0, duration=0.1)
    state.ran("smtp", "out", Verdict(Reason.INTERNAL), ended_at=1120.0, duration=0.1)
    read = _reader(state)
    assert read("mailsonde_probe_success", probe="smtp", kind="smtp", target="out") == 1
    assert read("mailsonde_probe_runs_total", outcome="unknown") == 1
    assert read("mailsonde_probe_reasons_total", outcome="unknown", reason="internal") == 1
    assert read("mailsonde_probe_runs_total", outcome="ok") == 1
    assert read("mailsonde_probe_reasons_total", outcome="ok") is None
    assert read("mailsonde_probe_last_run_timestamp_seconds") == 1120.0


def test_throttled_requests_of_runs_and_polls(state: AgentState) -> None:
    """Refusals are counted by server and mailbox, whichever probe asked; others have no series."""
    state.keep_only([smtp_probe(), smtp_probe("other"), pop3_probe()], SITE, now=1000.0)
    assert _reader(state)("mailsonde_throttled_requests_total") is None
    throttled = Verdict(Reason.THROTTLED, throttled=1)
    state.ran("smtp", "out", throttled, ended_at=1060.0, duration=0.1)
    state.ran("other", "out", Verdict(Reason.GREYLISTED, throttled=2), ended_at=1060.0, duration=0.1)
    state.ran("pop3", "pop", throttled, ended_at=1060.0, duration=0.1)
    state.poll_throttled("canary", 0.0)
    read = _reader(state)
    name = "mailsonde_throttled_requests_total"
    assert read(name, location="fra1", protocol="smtp", server="out", mailbox="") == 3
    assert read(name, protocol="pop3", server="pop", mailbox="") == 1
    assert read(name, protocol="pop3", server="pop", mailbox="canary") == 1


def test_throttled_requests_of_what_is_configured_no_more(state: AgentState) -> None:
    """A mailbox or server that a reload removes has no series any more, so their number is bounded."""
    state.keep_only([smtp_probe(), pop3_probe()], SITE, now=1000.0)
    state.ran("pop3", "pop", Verdict(Reason.THROTTLED, throttled=1), ended_at=1060.0, duration=0.1)
    state.poll_throttled("canary", 0.0)
    state.keep_only([smtp_probe()], Site("fra1", SITE.servers, {}), now=1100.0)
    assert _reader(state)("mailsonde_throttled_requests_total") is None


def test_failed_run_shows_with_reason_and_phases(state: AgentState) -> None:
    """A failed run sets success to 0, counts its reason, and has the phases that it reached."""
    state.ran(
        "smtp", "out", Verdict(Reason.AUTH_FAILED, phases={"connect": 0.2}), ended_at=1060.0, duration=0.3
    )
    read = _reader(state)
    assert read("mailsonde_probe_success") == 0
    assert read("mailsonde_probe_runs_total", outcome="failed") == 1
    assert read("mailsonde_probe_reasons_total", outcome="failed", reason="auth_failed") == 1
    assert read("mailsonde_probe_phase_seconds", phase="connect") == 0.2
    assert read("mailsonde_probe_duration_seconds_total") == 0.3


def test_a_run_that_sends_shows_its_phases_in_parts() -> None:
    """The parts have fixed names, and together they take as long as the phases."""
    agent = _route()
    phases = {"resolve": 1.0, "connect": 2.0, "greeting": 4.0, "ehlo": 8.0, "starttls": 16.0, "tls": 32.0}
    phases |= {"auth": 64.0, "mail": 128.0, "rcpt": 256.0, "data": 512.0, "quit": 1024.0}
    quick = {phase: seconds / 1000 for phase, seconds in phases.items()}
    agent.ran("trip", "out", Verdict(Reason.NONE, phases=quick), ended_at=1.0, duration=2.0)
    shown = {"resolve": 0.001, "connect": 0.062, "auth": 0.064, "data": 1.92}
    read = _reader(agent)
    assert {phase: read("mailsonde_probe_phase_seconds", phase=phase) for phase in shown} == shown
    assert read("mailsonde_probe_phase_seconds") == pytest.approx(2.047)


def test_a_run_that_sends_shows_delayed_answers_by_themselves() -> None:
    """From 5 s on, the answers that tell back pressure and a tarpit apart stand alone."""
    agent = _route()
    phases = {"connect": 1.0, "ehlo": 0.5, "mail": 10.0, "rcpt": 5.0, "data": 2.0, "quit": 20.0}
    agent.ran("trip", "out", Verdict(Reason.NONE, phases=phases), ended_at=1.0, duration=38.5)
    shown = {"connect": 1.5, "mail": 10.0, "rcpt": 5.0, "data": 22.0}
    read = _reader(agent)
    assert {phase: read("mailsonde_probe_phase_seconds", phase=phase) for phase in shown} == shown
    assert read("mailsonde_probe_phase_seconds") == 38.5


def test_expiry_of_the_last_certificate_seen_stays(state: AgentState) -> None:
    """If a handshake fails, the certificate's expiry remains, so that its alert keeps its data."""
    state.ran("smtp", "out", Verdict(Reason.NONE, certificate_not_after=5000.0), ended_at=1.0, duration=0.1)
    state.ran("smtp", "out", Verdict(Reason.CERTIFICATE_EXPIRED), ended_at=2.0, duration=0.1)
    assert _reader(state)("mailsonde_tls_certificate_not_after_timestamp_seconds") == 5000.0


def _route() -> AgentState:
    made = AgentState(location="fra1")
    made.add(RouteProbe(), now=1.0)
    return made


def _message(state: MessageState, latency: float, uncertainty: float) -> Message:
    return Message(
        id="0" * 32,
        probe="trip",
        target="out",
        mailbox="canary",
        state=state,
        created_at=1.0,
        deadline_seconds=300.0,
        instance="me",
        boot="b",
        created_mono=1.0,
        delivery_seconds=latency,
        uncertainty_seconds=uncertainty,
    )


@pytest.mark.parametrize(
    ("state", "latency", "uncertainty", "counted", "is_shown"),
    [
        (MessageState.DELIVERED, 2.0, 0.2, 1, True),
        (MessageState.DELIVERED, 0.3, 0.3, 1, True),
        (MessageState.DELIVERED, 3600.0, 3599.0, 0, False),
        (MessageState.LATE, 400.0, 1.0, 0, True),
        (MessageState.LATE, 3600.0, 3599.0, 0, False),
    ],
    ids=["measured", "short and wide", "arrived while the agent was down", "late", "late and wide"],
)
def test_only_measured_latencies_are_published(
    state: MessageState, latency: float, uncertainty: float, counted: int, *, is_shown: bool
) -> None:
    """Only measured deliveries enter the histogram; the last values also show late ones, if measured."""
    agent = _route()
    delivery = agent.deliveries["trip", "out"]
    delivery.has_arrivals, delivery.last, delivery.uncertainty = True, 1.5, 0.1
    agent.settled(Settled(_message(state, latency, uncertainty)))
    read = _reader(agent)
    assert read("mailsonde_delivery_seconds_count", probe="trip", target="out") == counted
    assert read("mailsonde_delivery_last_seconds") == (latency if is_shown else 1.5)
    assert read("mailsonde_delivery_uncertainty_seconds") == (uncertainty if is_shown else 0.1)


HEADER_SECTION = b"""\
Authentication-Results: mx.example.com; spf=pass; dkim=fail
Received: from b by mx.example.com with ESMTP; Thu, 19 Jun 2025 12:00:30 +0000
Received: from us by b with ESMTP; Thu, 19 Jun 2025 12:00:10 +0000
Received: from x by a with ESMTP; Thu, 19 Jun 2020 12:00:00 +0000
"""


def test_what_an_arrival_says_of_its_way() -> None:
    """Arrival issues are counted; the last arrival's delays, clocks and authentication have fixed labels."""
    agent = _route()
    read = _reader(agent)
    assert read("mailsonde_arrival_issues_total", issue="junked") == 0
    assert read("mailsonde_arrival_issues_total", issue="altered") == 0
    assert read("mailsonde_hops_skewed") is None
    message = replace(_message(MessageState.DELIVERED, 20.0, 0.1), findings="junked altered")
    found = hops(HEADER_SECTION, sent_at=1_750_334_405.0, arrived_by=1_750_334_431.0)
    agent.settled(Settled(message, tuple(found), results(HEADER_SECTION)))
    read = _reader(agent)
    assert read("mailsonde_arrival_issues_total", issue="junked", probe="trip", target="out") == 1
    assert read("mailsonde_arrival_issues_total", issue="altered") == 1
    assert read("mailsonde_hop_delay_seconds", position="final") == 20.0
    assert read("mailsonde_hop_delay_seconds", position="submission") is None
    assert read("mailsonde_hops_skewed", probe="trip", target="out") == 1
    assert read("mailsonde_authentication_info", probe="trip", spf="pass", dkim="fail") == 1
    assert read("mailsonde_authentication_info", dmarc="") is None


EXCHANGE_FIELDS = b"""\
X-MS-Exchange-Organization-MessageLatency: SRV=cas-1:TOTAL-FE=0.025|SMR=0.024;SRV=hostile:TOTAL-X=1
X-MS-Exchange-Transport-EndToEndLatency: 00:00:03.5
X-Forefront-Antispam-Report: SCL:1;SFV:hostile;CAT:NONE
"""


def test_what_exchange_says_of_an_arrival() -> None:
    """Stages, total and filter have fixed labels, and series only while the last arrival has them."""
    agent = _route()
    assert _reader(agent)("mailsonde_exchange_filter_info") is None
    message = _message(MessageState.DELIVERED, 20.0, 0.1)
    agent.settled(Settled(message, exchange=exchange_report(EXCHANGE_FIELDS, longest=20.0)))
    read = _reader(agent)
    assert read("mailsonde_exchange_stage_seconds", stage="front_end", probe="trip", target="out") == 0.025
    assert read("mailsonde_exchange_stage_seconds", stage="other") == 1
    assert read("mailsonde_exchange_stage_seconds", stage="hub") is None
    assert read("mailsonde_exchange_end_to_end_seconds") == 3.5
    assert read("mailsonde_exchange_filter_info", scl="1", sfv="other", cat="NONE") == 1
    agent.settled(Settled(message))
    read = _reader(agent)
    assert read("mailsonde_exchange_stage_seconds") is None
    assert read("mailsonde_exchange_end_to_end_seconds") is None


def _found(*pairs: tuple[Check, Severity]) -> tuple[Finding, ...]:
    return tuple(Finding(*pair, "\x1bhostile", "seen", "expected") for pair in pairs)


def test_a_finding_has_its_series_while_it_holds(state: AgentState) -> None:
    """Every current finding has one series, which ends with it; no label has foreign text."""
    missing, alias = (Check.MX_MISSING, Severity.CRITICAL), (Check.MX_TARGET_CNAME, Severity.WARNING)
    assert _reader(state)("mailsonde_finding") is None
    found = Verdict(Reason.MX_MISSING, findings=_found(missing, alias, alias))
    state.ran("smtp", "out", found, ended_at=1.0, duration=0.1)
    read = _reader(state)
    labels = {"probe": "smtp", "kind": "smtp", "target": "out"}
    assert read("mailsonde_finding", **labels, check="mx_missing", severity="critical") == 1
    assert read("mailsonde_finding", **labels, check="mx_target_cname", severity="warning") == 1
    registry = CollectorRegistry()
    registry.register(AgentCollector(state, Counters))
    assert "hostile" not in generate_latest(registry).decode()
    found = Verdict(Reason.MX_TARGET_CNAME, findings=_found(alias))
    state.ran("smtp", "out", found, ended_at=2.0, duration=0.1)
    assert _reader(state)("mailsonde_finding", check="mx_missing") is None
    assert _reader(state)("mailsonde_finding") == 1
    state.ran("smtp", "out", Verdict(Reason.NONE, findings=()), ended_at=3.0, duration=0.1)
    assert _reader(state)("mailsonde_finding") is None


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(Reason.DNS_TIMEOUT, findings=()),
        Verdict(Reason.DNS_SERVFAIL),
        Verdict(Reason.TIMEOUT),
    ],
    ids=["judged in part", "unknown", "broken off"],
)
def test_a_run_that_could_not_judge_leaves_findings_as_they_were(state: AgentState, verdict: Verdict) -> None:
    """Runs that could not judge, such as with a silent resolver, end no alert."""
    found = Verdict(Reason.MX_MISSING, findings=_found((Check.MX_MISSING, Severity.CRITICAL)))
    state.ran("smtp", "out", found, ended_at=1.0, duration=0.1)
    state.ran("smtp", "out", verdict, ended_at=2.0, duration=0.1)
    assert _reader(state)("mailsonde_finding", check="mx_missing") == 1


def test_objectives_are_counted_by_run() -> None:
    """A route with an objective exposes it with good and bad runs; unknown runs are neither."""
    agent = AgentState()
    agent.add(RouteProbe(slo={"objective": "99.5%", "within": "30s"}), now=1.0)
    read = _reader(agent)
    assert (
        read("mailsonde_slo_runs_total", result="bad") == read("mailsonde_slo_runs_total", result="good") == 0
    )
    for reason in (Reason.SMTP_REJECTED, Reason.MESSAGE_LOST, Reason.INTERNAL):
        agent.ran("trip", "out", Verdict(reason), ended_at=1.0, duration=0.1)
    read = _reader(agent)
    assert read("mailsonde_slo_runs_total", probe="trip", target="out", result="bad") == 2
    assert read("mailsonde_slo_runs_total", result="good") == 0
    assert read("mailsonde_slo_objective_ratio", probe="trip", target="out") == 0.995
    assert read("mailsonde_slo_within_seconds") == 30.0


def test_sub_probes_that_are_gone_leave_the_metrics() -> None:
    """The metrics of an MX host that DNS no longer names end, so it raises no alert as stale."""
    agent = AgentState()
    agent.add(RouteProbe("example.com"), now=1.0)
    agent.keep_sub_probes(RouteProbe("example.com", (RouteProbe("mx1"), RouteProbe("mx2"))), now=2.0)
    agent.ran("trip", "mx1", Verdict(Reason.NONE), ended_at=3.0, duration=0.1)
    agent.keep_sub_probes(RouteProbe("example.com", (RouteProbe("mx1"), RouteProbe("mx3"))), now=4.0)
    assert sorted(agent.probes) == [("trip", "example.com"), ("trip", "mx1"), ("trip", "mx3")]
    assert ("trip", "mx2") not in agent.deliveries
    agent.ran("trip", "mx2", Verdict(Reason.NONE), ended_at=5.0, duration=0.1)  # it was still in progress
    assert ("trip", "mx2") not in agent.probes
    read = _reader(agent)
    assert read("mailsonde_probe_runs_total", target="mx1", outcome="ok") == 1
    assert read("mailsonde_probe_last_run_timestamp_seconds", target="mx3") == 4.0


def test_thresholds_are_those_of_the_configuration_until_something_is_learned() -> None:
    """Rules read when a route's alerts fire: its own values, the common ones, or what the agent learned."""
    agent = AgentState(location="fra1")
    agent.add(RouteProbe(interval="1m", deadline="5m"), now=1.0)
    agent.add(RouteProbe(name="own", alerts={"overdue": "20s", "slow": "5s", "down": "10m"}), now=1.0)
    agent.add(RouteProbe(name="learned"), now=1.0)
    registry = CollectorRegistry()
    registry.register(AgentCollector(agent, Counters, lambda name, _: 75.0 if name == "learned" else None))
    (family,) = (f for f in registry.collect() if f.name == "mailsonde_threshold_seconds")
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for sample in family.samples:
        found[sample.labels["probe"]][sample.labels["threshold"]] = sample.value
    stale = found["trip"].pop("stale")
    assert stale > 3 * 60.0 + 300.0
    assert found["trip"] == {"overdue": 60.0, "slow": 30.0}
    assert found["own"] == {"overdue": 20.0, "slow": 5.0, "down": 600.0, "stale": stale}
    assert found["learned"]["overdue"] == 75.0


def test_a_probe_with_its_own_limit_says_since_when_it_fails() -> None:
    """The first failed run since the last ok one counts; runs without a result change nothing."""
    agent = AgentState(location="fra1")
    agent.add(smtp_probe("own", alerts={"down": "10m"}), now=1.0)
    agent.add(smtp_probe(), now=1.0)
    seen = []
    reasons = (
        Reason.DNS_TIMEOUT,
        Reason.CONNECT_REFUSED,
        Reason.DNS_TIMEOUT,
        Reason.AUTH_FAILED,
        Reason.NONE,
    )
    for at, reason in enumerate(reasons, start=10):
        for name in ("own", "smtp"):
            agent.ran(name, "out", Verdict(reason), ended_at=float(at), duration=0.1)
        read = _reader(agent)
        seen.append(read("mailsonde_probe_failing_since_timestamp_seconds", probe="own"))
        assert read("mailsonde_probe_failing_since_timestamp_seconds", probe="smtp") is None
    assert seen == [0.0, 11.0, 11.0, 11.0, 0.0]


def test_failed_runs_are_counted_until_one_is_ok() -> None:
    """Runs without a result neither count nor end the count; nothing is shown of a probe that is ok."""
    agent = AgentState(location="fra1")
    agent.add(smtp_probe(), now=1.0)
    seen = []
    for reason in (Reason.NONE, Reason.AUTH_FAILED, Reason.DNS_TIMEOUT, Reason.CONNECT_REFUSED, Reason.NONE):
        agent.ran("smtp", "out", Verdict(reason), ended_at=10.0, duration=0.1)
        seen.append(_reader(agent)("mailsonde_probe_failed_runs", probe="smtp"))
    assert seen == [None, 1.0, 1.0, 2.0, None]


def test_deliveries_at_the_threshold_are_slow() -> None:
    """Deliveries that take as long as the route's threshold or longer are counted; quicker ones are not."""
    agent = AgentState(location="fra1")
    agent.add(RouteProbe(alerts={"slow": "30s"}), now=1.0)
    for seconds in (1.0, 29.9, 30.0, 200.0):
        agent.settled(Settled(_message(MessageState.DELIVERED, seconds, 0.1)))
    assert _reader(agent)("mailsonde_slow_deliveries_total") == 2.0
    assert _reader(agent)("mailsonde_delivery_seconds_count") == 4.0


def test_message_counts_come_from_the_ledger() -> None:
    """Counts and the oldest message in flight come from the ledger; states without messages are 0."""
    agent = _route()
    sent = Total("trip", "out", MessageState.SENT, entered=9, held=2, oldest=1234.5)
    read = _reader(agent, Counters().updated([sent]))
    assert read("mailsonde_messages_total", state="sent") == 9
    assert read("mailsonde_messages_total", state="lost") == 0
    assert read("mailsonde_messages_in_flight", probe="trip", target="out") == 2
    assert read("mailsonde_oldest_in_flight_timestamp_seconds") == 1234.5
    assert read("mailsonde_oldest_intent_timestamp_seconds") is None
    intent = Total("trip", "out", MessageState.INTENT, entered=9, held=1, oldest=1300.5)
    read = _reader(agent, Counters().updated([sent, intent]))
    assert read("mailsonde_oldest_in_flight_timestamp_seconds") == 1234.5
    assert read("mailsonde_oldest_intent_timestamp_seconds") == 1300.5


def test_every_value_is_finite(state: AgentState) -> None:
    """All values of a fresh agent are finite."""
    registry = CollectorRegistry()
    registry.register(AgentCollector(state, Counters))
    samples = [
        s for f in text_string_to_metric_families(generate_latest(registry).decode()) for s in f.samples
    ]
    assert samples
    assert all(math.isfinite(sample.value) for sample in samples)


def test_outcome_follows_from_the_reason() -> None:
    """No reason for a fault of ours counts as a failure of mail."""
    ours = {
        Reason.INTERNAL,
        Reason.INTERRUPTED,
        Reason.LOCAL_RESOURCES,
        Reason.LEDGER_UNAVAILABLE,
        Reason.DNS_TIMEOUT,
    }
    assert {reason.outcome for reason in ours} == {Outcome.UNKNOWN}


def test_failures_are_told_with_reason_and_phase_until_a_run_is_ok(state: AgentState) -> None:
    """The last failed run's reason remains despite later faults of ours, until a run is ok."""
    for reason, phase in ((Reason.CONNECT_REFUSED, "connect"), (Reason.AUTH_FAILED, "auth")):
        state.ran("smtp", "out", Verdict(reason, broken_phase=phase), ended_at=1.0, duration=0.1)
    state.ran("smtp", "out", Verdict(Reason.DNS_TIMEOUT, broken_phase="resolve"), ended_at=2.0, duration=0.1)
    read = _reader(state)
    assert read("mailsonde_probe_failure", outcome="failed", reason="auth_failed", phase="auth") == 1
    assert read("mailsonde_probe_failure", outcome="unknown", reason="dns_timeout", phase="resolve") == 1
    assert read("mailsonde_probe_failure", reason="connect_refused") is None
    state.ran("smtp", "out", Verdict(Reason.NONE), ended_at=3.0, duration=0.1)
    assert _reader(state)("mailsonde_probe_failure") is None


def test_garbage_is_not_collected_meanwhile() -> None:
    """While metrics are built, no garbage collection blocks the other threads; afterwards, it is on again."""
    collector = AgentCollector(AgentState(), Counters)
    whole, broken_off = collector.collect(), collector.collect()
    next(whole)
    next(broken_off)
    assert not gc.isenabled()
    broken_off.close()
    list(whole)
    assert gc.isenabled()


def test_an_overloaded_agent_has_a_gauge() -> None:
    """The gauge is 1 while the agent holds back messages, and a probe that sends counts its own."""
    agent = _route()
    assert _reader(agent)("mailsonde_agent_overloaded", location="fra1", shortage="machine") == 0
    assert _reader(agent)("mailsonde_schedule_skipped_total", probe="trip", reason="overload") is None
    agent.overload["machine"] = True
    agent.skipped["trip"][OVERLOAD] += 1
    assert _reader(agent)("mailsonde_agent_overloaded", location="fra1", shortage="machine") == 1
    assert _reader(agent)("mailsonde_agent_overloaded", location="fra1", shortage="logins") == 0
    assert _reader(agent)("mailsonde_schedule_skipped_total", probe="trip", reason="overload") == 1
