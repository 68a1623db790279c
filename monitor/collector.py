"""Names mailsonde's metrics, and builds them from state at each scrape."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from math import inf
from typing import Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from monitor.exposition import Counter, Family, Gauge, Histogram, Info, named
from monitor.labels import Labels, constant, told
from monitor.ledger.counters import Counters, RouteCounts
from monitor.self_watch import SelfWatch
from monitor.state import DELIVERY_BUCKETS, AgentState, DeliveryState, Limiter, ProbeState
from probes.core.garbage import no_collection
from probes.core.histogram import LAG_BUCKETS
from probes.core.verdict import MessageState
from probes.oauth2.tokens import TokenSource

_ALWAYS = dict.fromkeys((MessageState.DELIVERED, MessageState.LOST, MessageState.BOUNCED), 0)
"""States that are counted from 0, so that rules see the first increase."""


_IN_MAINTENANCE = "in_maintenance"
"""The state under which messages are counted that ended in maintenance."""


def _states(known: RouteCounts) -> Mapping[Any, int]:
    """Return how many messages entered each state, as the metrics count them."""
    counted = _ALWAYS | known.counted
    return {**counted, _IN_MAINTENANCE: known.excused} if known.excused else counted


class _Route(NamedTuple):
    """A route, with its labels without and with its cadence."""

    key: tuple[str, str]
    labels: Labels
    paced: Labels
    delivery: DeliveryState


class AgentCollector(Collector):
    """Builds every metric from the agent's state and the ledger's counters.

    Rules read some metrics over a range. These have the labels ``paced``: the cadence tells rules how long
    the range must be.
    """

    def __init__(
        self,
        state: AgentState,
        counters: Callable[[], Counters],
        overdue_after: Callable[[str, str], float | None] = lambda *_: None,
        tokens: Callable[[], Mapping[str, TokenSource]] = dict,
        now: Callable[[], float] = time.time,
        self_watch: SelfWatch | None = None,
    ) -> None:
        """``overdue_after`` returns the threshold of a probe and target in seconds, if it is known.

        ``tokens`` returns the token sources in use, by name, and ``now`` the time in unix seconds.
        With a ``self_watch``, the agent's own process has metrics too.
        """
        self._now = now
        self._state = state
        self._counters = counters
        self._overdue_after = overdue_after
        self._tokens = tokens
        self._self_watch = self_watch
        self._versions = Labels({"version": version("mailsonde"), "python": platform.python_version()})

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families as prometheus_client's."""
        for family in self.families():
            yield family.metric()

    def families(self) -> Iterator[Family]:
        """Yield all metric families.

        Meanwhile, the garbage collector is off: the samples of thousands of probes contain no cycles.
        """
        with no_collection():
            yield from self._probes()
            yield from self._last_runs()
            yield from self._runs()
            routes = self._routes()
            yield from self._messages(routes)
            yield from self._deliveries(routes)
            yield from self._ways(routes)
            yield from self._service_levels(routes)
            yield from self._oauth2()
            yield from self._throttled()
            yield from self._agent()
            if self._self_watch is not None:
                yield from self._self_watch.families(Labels({"location": self._state.location}))

    def _routes(self) -> list[_Route]:
        probes = self._state.probes
        return [
            _Route(key, probe.labels, probe.paced, delivery)
            for key, delivery in list(self._state.deliveries.items())
            if (probe := probes.get(key)) is not None  # else it was removed just now
        ]

    def _probes(self) -> Iterator[Family]:
        probes = list(self._state.probes.values())
        yield Info(
            "mailsonde_probe",
            "What the configuration says about the probe: its highest severity, the address that it connects "
            "to, the server of its mailbox, its description, and its own labels.",
            ((probe.labels, probe.info) for probe in probes),
        )
        yield Gauge(
            "mailsonde_probe_success",
            "1 if the last run with a known result was ok, else 0.",
            ((probe.paced, probe.success) for probe in probes if probe.success is not None),
        )
        yield Gauge(
            "mailsonde_probe_last_run_timestamp_seconds",
            "When the last run ended; before the first run, when the agent started.",
            ((probe.labels, probe.last_run) for probe in probes),
        )
        yield Gauge(
            "mailsonde_threshold_seconds",
            "After what time alerts of the probe fire. How old a message in flight must be to be overdue is "
            "learned from the last day, unless it is configured.",
            ((probe.labels, self._thresholds(probe)) for probe in probes),
            by=named("threshold"),
        )
        now, maintenance = self._now(), self._state.maintenance
        concerned = [probe for probe in probes if probe.name in maintenance.probes]
        periods = [(each.labels, it) for each in concerned if (it := maintenance.current(each.name, now))]
        yield Gauge(
            "mailsonde_probe_in_maintenance",
            "1 while the probe is in maintenance, by a `window` or a `pause`: its alerts are quiet, and its "
            "runs do not count.",
            ((labels, {period.kind: 1}) for labels, period in periods),
            by=named("source"),
        )
        yield Gauge(
            "mailsonde_maintenance_ends_timestamp_seconds",
            "When the maintenance of a probe ends; the series is there only during one.",
            ((labels, told(period.ends_at)) for labels, period in periods),
        )
        yield Gauge(
            "mailsonde_probe_failed_runs",
            "Failed runs since the last ok one; the series is there only while the probe fails.",
            ((probe.labels, probe.failed_runs) for probe in probes if probe.failed_runs),
        )
        yield Gauge(
            "mailsonde_probe_failing_since_timestamp_seconds",
            "When the first failed run since the last ok one ended, or 0; only for probes with a threshold "
            "`down`.",
            ((probe.labels, probe.failing_since) for probe in probes if "down" in probe.thresholds),
        )

    def _last_runs(self) -> Iterator[Family]:
        probes = list(self._state.probes.values())
        yield Gauge(
            "mailsonde_probe_failure",
            "1 from a run that was not ok until one is: reason and phase of the last such run by outcome.",
            (
                (probe.labels, {(outcome, *cause): 1 for outcome, cause in list(probe.failures.items())})
                for probe in probes
                if probe.failures
            ),
            by=named("outcome", "reason", "phase"),
        )
        yield Gauge(
            "mailsonde_probe_phase_seconds",
            "Duration of a phase of the last run. If the run sends a message, `connect` includes `greeting`, "
            "`ehlo`, `starttls` and `tls`, and `data` includes `mail`, `rcpt` and `quit`. Those of `ehlo`, "
            "`mail` and `rcpt` that take 5 s or longer stand alone.",
            ((probe.labels, probe.phases) for probe in probes),
            by=named("phase"),
        )
        yield Gauge(
            "mailsonde_tls_certificate_not_after_timestamp_seconds",
            "When the first certificate in the chain that was last seen expires.",
            (
                (probe.labels, probe.certificate_not_after)
                for probe in probes
                if probe.certificate_not_after is not None
            ),
        )
        yield Gauge(
            "mailsonde_finding",
            "1 while a check has a finding; the series ends with the finding.",
            ((probe.paced, dict.fromkeys(sorted(probe.findings), 1)) for probe in probes if probe.findings),
            by=named("check", "severity"),
        )

    def _thresholds(self, probe: ProbeState) -> dict[str, str]:
        """Return the seconds of each threshold of a probe by name, with what its route has learned."""
        if "overdue" not in probe.thresholds:
            return probe.thresholds
        learned = self._overdue_after(probe.name, probe.target)
        return probe.thresholds if learned is None else {**probe.thresholds, "overdue": told(learned)}

    def _runs(self) -> Iterator[Family]:
        probes = list(self._state.probes.values())
        yield Counter(
            "mailsonde_probe_runs",
            "Finished runs by outcome.",
            ((probe.paced, probe.runs) for probe in probes),
            by=named("outcome"),
        )
        yield Counter(
            "mailsonde_probe_reasons",
            "Finished runs with a reason other than `none`. A series begins with the first such run.",
            ((probe.paced, probe.reasons) for probe in probes),
            by=lambda reason: {"outcome": str(reason.outcome), "reason": str(reason)},
        )
        yield Counter(
            "mailsonde_probe_duration_seconds",
            "Duration of all finished runs together.",
            ((probe.paced, probe.seconds) for probe in probes),
        )

    def _messages(self, routes: list[_Route]) -> Iterator[Family]:
        counters = self._counters()
        counts = [(route, counters.of(route.key)) for route in routes]
        now, counts_from = self._now(), self._state.maintenance.counts_from
        flights = []
        for route, known in counts:
            since = counts_from(route.key[0], now)
            flights.append((route.labels, known.flight if since == -inf else known.flight_since(since)))
        yield Counter(
            "mailsonde_messages",
            "Messages that entered a state; the count continues across restarts of the agent. `delivered`, "
            "`lost` and `bounced` are always there, other states from their first message on. Messages that "
            "ended in maintenance count as `in_maintenance`, whatever their end.",
            ((route.paced, _states(known)) for route, known in counts),
            by=named("state"),
        )
        yield Gauge(
            "mailsonde_messages_in_flight",
            "Messages in flight.",
            ((labels, flight.messages) for labels, flight in flights),
        )
        yield Gauge(
            "mailsonde_oldest_in_flight_timestamp_seconds",
            "When the oldest message in flight was created, without those from before the end of a "
            "maintenance; 0 if there is none.",
            ((labels, flight.oldest_at or 0) for labels, flight in flights),
        )
        yield Gauge(
            "mailsonde_oldest_intent_timestamp_seconds",
            "When the oldest message that is not handed over yet was created, if there is one.",
            ((labels, flight.oldest_intent_at) for labels, flight in flights if flight.intents),
        )

    def _deliveries(self, routes: list[_Route]) -> Iterator[Family]:
        yield Histogram(
            "mailsonde_delivery_seconds",
            "Time from connecting until visible in the mailbox, for delivered messages only.",
            ((route.paced, route.delivery.histogram) for route in routes),
            DELIVERY_BUCKETS,
        )
        yield Counter(
            "mailsonde_slow_deliveries",
            "Deliveries that took at least the route's threshold `slow`.",
            ((route.paced, route.delivery.slow) for route in routes),
        )
        yield Gauge(
            "mailsonde_delivery_last_seconds",
            "Delivery latency of the last message to arrive whose latency could be measured.",
            ((route.labels, route.delivery.last) for route in routes if route.delivery.last is not None),
        )
        yield Gauge(
            "mailsonde_delivery_uncertainty_seconds",
            "Maximum difference between the true and the published latency of that message, in either "
            "direction.",
            (
                (route.labels, route.delivery.uncertainty)
                for route in routes
                if route.delivery.uncertainty is not None
            ),
        )
        yield Counter(
            "mailsonde_arrival_issues",
            "Arrivals in the junk folder or marked as junk, and arrivals with altered content.",
            ((route.paced, route.delivery.arrival_issues) for route in routes),
            by=named("issue"),
        )

    def _ways(self, routes: list[_Route]) -> Iterator[Family]:
        """Yield what the header section of the last arrival says about its route."""
        yield Gauge(
            "mailsonde_hop_delay_seconds",
            "Where the last arrival waited, by the stamps and clocks of the hosts on its route.",
            ((route.labels, route.delivery.hop_seconds) for route in routes),
            by=named("position"),
        )
        yield Gauge(
            "mailsonde_hops_skewed",
            "Hops of the last arrival with an impossible timestamp, if there were any.",
            ((route.labels, route.delivery.hops_skewed) for route in routes if route.delivery.hops_skewed),
        )
        yield from self._exchange(routes)
        yield Info(
            "mailsonde_authentication",
            "What the receiving host found about the last arrival: its results (RFC 8601) by method.",
            (
                (route.labels, route.delivery.authentication)
                for route in routes
                if route.delivery.authentication is not None
            ),
        )

    def _exchange(self, routes: list[_Route]) -> Iterator[Family]:
        """Yield what Exchange wrote into the last arrival; only routes through Exchange have these series."""
        told = [(route, report) for route in routes if (report := route.delivery.exchange) is not None]
        yield Gauge(
            "mailsonde_exchange_stage_seconds",
            "Where the last arrival spent its time inside Exchange, by Exchange's own fields.",
            ((route.labels, report.stages) for route, report in told),
            by=named("stage"),
        )
        yield Gauge(
            "mailsonde_exchange_end_to_end_seconds",
            "How long the last arrival was inside Exchange, by Exchange's own total.",
            ((route.labels, report.end_to_end) for route, report in told if report.end_to_end is not None),
        )
        yield Info(
            "mailsonde_exchange_filter",
            "What Exchange's spam filter said of the last arrival: SCL, SFV and CAT.",
            ((route.labels, report.filtered) for route, report in told if report.filtered is not None),
        )

    def _service_levels(self, routes: list[_Route]) -> Iterator[Family]:
        with_objective = [(route, slo) for route in routes if (slo := route.delivery.slo) is not None]
        yield Counter(
            "mailsonde_slo_runs",
            "Runs of a route with an objective: good if the message arrived in time, else bad.",
            ((route.paced, route.delivery.slo_runs) for route, _ in with_objective),
            by=named("result"),
        )
        yield Gauge(
            "mailsonde_slo_objective_ratio",
            "Target share of good runs.",
            ((route.labels, constant(slo.objective)) for route, slo in with_objective),
        )
        yield Gauge(
            "mailsonde_slo_within_seconds",
            "How long the message of a good run may take.",
            ((route.labels, constant(slo.within)) for route, slo in with_objective),
        )

    def _oauth2(self) -> Iterator[Family]:
        location = self._state.location
        sources = [
            (Labels({"location": location, "oauth2": name}), source, source.requests)
            for name, source in self._tokens().items()
        ]
        yield Counter(
            "mailsonde_oauth2_token_requests",
            "Requests for access tokens: `issued`, `refused` by the provider, or `unavailable` if it did not "
            "answer.",
            ((labels, requests.results) for labels, _, requests in sources),
            by=named("result"),
        )
        yield Gauge(
            "mailsonde_oauth2_token_obtained_timestamp_seconds",
            "When the newest access token was obtained.",
            ((labels, it.obtained_at) for labels, _, it in sources if it.obtained_at is not None),
        )
        yield Gauge(
            "mailsonde_oauth2_token_expires_timestamp_seconds",
            "When the newest access token expires.",
            ((labels, it.expires_at) for labels, _, it in sources if it.expires_at is not None),
        )
        yield Gauge(
            "mailsonde_oauth2_credential_not_after_timestamp_seconds",
            "When the certificate expires, or the client secret according to `credential_expires`.",
            (
                (labels, not_after)
                for labels, source, _ in sources
                if (not_after := source.credential_not_after()) is not None
            ),
        )

    def _throttled(self) -> Iterator[Family]:
        refusals = dict(self._state.throttled)
        for name, source in self._tokens().items():
            if source.requests.throttled:
                refusals[Limiter("oauth2", name)] = source.requests.throttled
        yield Counter(
            "mailsonde_throttled_requests",
            "Requests that were refused because a server limits this client. `server` is a configured server "
            "or an MX host, or with protocol `oauth2` the entry of `oauth2`; `mailbox` is set for polls. A "
            "series begins with the first refusal.",
            [(Labels({"location": self._state.location}), refusals)],
            by=named("protocol", "server", "mailbox"),
        )

    def _agent(self) -> Iterator[Family]:
        state = self._state
        agent, skipped = Labels({"location": state.location}), state.skipped
        yield Counter(
            "mailsonde_mailbox_unexpected",
            "Unexpected messages with our token.",
            [(agent, state.unexpected)],
            by=named("mailbox", "reason"),
        )
        yield Counter(
            "mailsonde_schedule_skipped",
            "Runs that did not start on time. `overload` begins with the first such run.",
            (
                (probe.paced, skipped[name])
                for name, target in list(state.scheduled.items())
                if name in skipped and (probe := state.probes.get((name, target))) is not None
            ),
            by=named("reason"),
        )
        yield Gauge(
            "mailsonde_agent_overloaded",
            "1 while the agent holds back new messages because it cannot keep up, else 0. `shortage`: some "
            "mailboxes lack `logins`, or the `machine` is too slow for all probes.",
            [(agent, {shortage: int(is_short) for shortage, is_short in state.overload.items()})],
            by=named("shortage"),
        )
        yield Histogram(
            "mailsonde_schedule_lag_seconds",
            "Start delay of runs.",
            [(agent, state.schedule_lag)],
            LAG_BUCKETS,
        )
        yield Counter(
            "mailsonde_clock_steps",
            "How often the machine's wall clock was set forward or back.",
            [(agent, state.clock_steps)],
        )
        yield Gauge(
            "mailsonde_config_last_reload_successful",
            "1 if the agent uses the configuration that it last read, 0 if it refused that one.",
            [(agent, int(not state.refused))],
        )
        yield Gauge(
            "mailsonde_config_last_reload_success_timestamp_seconds",
            "When the agent read the configuration that it uses.",
            [(agent, state.configured_at)],
        )
        if (is_valid := state.web_config_is_valid) is not None:
            yield Gauge(
                "mailsonde_web_config_last_reload_successful",
                "1 if the web configuration is valid as it is now, else 0: the previous one is in force.",
                [(agent, int(is_valid))],
            )
        yield Info("mailsonde_build", "Versions of mailsonde and Python.", [(agent, self._versions)])
