"""Names mailsonde's metrics, and builds them from state at each scrape."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from monitor.exposition import Counter, Family, Gauge, Histogram, Info, named
from monitor.labels import Labels, told
from monitor.ledger.counters import Counters
from monitor.route_metrics import route_families
from monitor.self_watch import SelfWatch
from monitor.state import AgentState, Limiter, ProbeState
from probes.core.garbage import no_collection
from probes.core.histogram import LAG_BUCKETS
from probes.oauth2.tokens import TokenSource

_learned = lru_cache(maxsize=1000)(told)
"""The text of a threshold in seconds that a route has learned. Few routes differ."""


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
            yield from route_families(self._state, self._counters(), self._now())
            yield from self._oauth2()
            yield from self._throttled()
            yield from self._agent()
            if self._self_watch is not None:
                yield from self._self_watch.families(Labels({"location": self._state.location}))

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
            "mailsonde_maintenance_begins_timestamp_seconds",
            "When the maintenance of a probe began; the series is there only during one.",
            ((labels, told(period.begins_at)) for labels, period in periods),
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
        if learned is None:
            return probe.thresholds
        return {**probe.thresholds, "overdue": _learned(learned)}

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
