"""The only place that names mailsonde's metrics; it builds them from state at each scrape."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from monitor.ledger.counters import Counters
from monitor.state import AgentState, DeliveryState, ProbeState
from probes.core.verdict import MessageState

_AGENT = ("location",)
_PROBE = ("location", "probe", "kind", "target")
_PACED = (*_PROBE, "cadence")
"""The labels of what rules read over a range; the cadence tells them how long the range must be."""

_CADENCES = {15: "15s", 60: "1m", 300: "5m", 900: "15m", 3600: "1h", 21600: "6h", 86400: "1d"}
"""Classes of intervals, by the longest interval in seconds that belongs to each."""


class AgentCollector(Collector):
    """Builds every metric from the agent's state and the ledger's counters."""

    def __init__(
        self,
        state: AgentState,
        counters: Callable[[], Counters],
        overdue_after: Callable[[str, str], float | None] = lambda *_: None,
    ) -> None:
        """``overdue_after`` returns the threshold of a probe and target in seconds, if it is known."""
        self._state = state
        self._counters = counters
        self._overdue_after = overdue_after

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families.

        Meanwhile, the garbage collector is off. The samples of thousands of probes contain no cycles, but
        each pass over them would block all threads, and so the probes, for up to half a second.
        """
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield from self._probes()
            yield from self._runs()
            yield from self._messages()
            yield from self._deliveries()
            yield from self._ways()
            yield from self._service_levels()
            yield from self._agent()
        finally:
            if was_enabled:
                gc.enable()

    def _of(self, probe: ProbeState) -> tuple[str, str, str, str]:
        return (self._state.location, probe.name, probe.kind, probe.target)

    def _routes(self) -> Iterator[tuple[tuple[str, ...], str, DeliveryState, tuple[str, str]]]:
        """Yield the labels of each route, the class of its interval, its state, and its key."""
        for route, delivery in list(self._state.deliveries.items()):
            probe = self._state.probes.get(route)
            if probe is not None:  # else it was removed just now
                yield self._of(probe), cadence(probe.interval), delivery, route

    def _probes(self) -> Iterator[Metric]:
        success = GaugeMetricFamily(
            "mailsonde_probe_success", "1 if the last run with a known result was ok, else 0.", labels=_PACED
        )
        last_run = GaugeMetricFamily(
            "mailsonde_probe_last_run_timestamp_seconds",
            "When the last run ended; before the first run, when the agent started.",
            labels=_PROBE,
        )
        interval = GaugeMetricFamily(
            "mailsonde_probe_interval_seconds",
            "Configured time between the starts of two runs.",
            labels=_PROBE,
        )
        phases = GaugeMetricFamily(
            "mailsonde_probe_phase_seconds",
            "Duration of a phase of the last run.",
            labels=(*_PROBE, "phase"),
        )
        expiry = GaugeMetricFamily(
            "mailsonde_tls_certificate_not_after_timestamp_seconds",
            "When the first certificate in the chain that was last seen expires.",
            labels=_PROBE,
        )
        failure = GaugeMetricFamily(
            "mailsonde_probe_failure",
            "1 from a run that was not ok until one is: reason and phase of the last such run by outcome.",
            labels=(*_PROBE, "outcome", "reason", "phase"),
        )
        finding = GaugeMetricFamily(
            "mailsonde_finding",
            "1 while a check has a finding; the series ends with the finding.",
            labels=(*_PACED, "check", "severity"),
        )
        info = InfoMetricFamily(
            "mailsonde_probe",
            "What the configuration says about the probe: its highest severity, the address that it connects "
            "to, the server of its mailbox, its description, and its own labels.",
            labels=_PROBE,
        )
        for probe in list(self._state.probes.values()):
            labels = self._of(probe)
            info.add_metric(labels, probe.info)
            last_run.add_metric(labels, probe.last_run)
            interval.add_metric(labels, probe.interval)
            if probe.success is not None:
                success.add_metric((*labels, cadence(probe.interval)), probe.success)
            if probe.certificate_not_after is not None:
                expiry.add_metric(labels, probe.certificate_not_after)
            for outcome, (reason, phase) in list(probe.failures.items()):
                failure.add_metric((*labels, str(outcome), str(reason), phase), 1.0)
            for phase, seconds in list(probe.phases.items()):
                phases.add_metric((*labels, phase), seconds)
            for check, severity in sorted(probe.findings):
                finding.add_metric((*labels, cadence(probe.interval), str(check), str(severity)), 1.0)
        yield from (info, success, last_run, interval, failure, phases, expiry, finding)

    def _runs(self) -> Iterator[Metric]:
        runs = CounterMetricFamily(
            "mailsonde_probe_runs",
            "Finished runs by outcome.",
            labels=(*_PACED, "outcome"),
        )
        reasons = CounterMetricFamily(
            "mailsonde_probe_reasons",
            "Finished runs with a reason other than `none`; a reason's series begins with its first run.",
            labels=(*_PACED, "outcome", "reason"),
        )
        duration = HistogramMetricFamily(
            "mailsonde_probe_duration_seconds", "Duration of runs.", labels=_PACED
        )
        for probe in list(self._state.probes.values()):
            labels = (*self._of(probe), cadence(probe.interval))
            for outcome, count in list(probe.runs.items()):
                runs.add_metric((*labels, str(outcome)), count)
            for reason, count in list(probe.reasons.items()):
                reasons.add_metric((*labels, str(reason.outcome), str(reason)), count)
            duration.add_metric(labels, probe.duration.cumulative(), probe.duration.sum)
        yield from (runs, reasons, duration)

    def _messages(self) -> Iterator[Metric]:
        counters = self._counters()
        messages = CounterMetricFamily(
            "mailsonde_messages",
            "Messages that entered a state; the count continues across restarts of the agent.",
            labels=(*_PACED, "state"),
        )
        in_flight = GaugeMetricFamily("mailsonde_messages_in_flight", "Messages in flight.", labels=_PROBE)
        oldest = GaugeMetricFamily(
            "mailsonde_oldest_in_flight_timestamp_seconds",
            "When the oldest message in flight was created; 0 if there is none.",
            labels=_PROBE,
        )
        oldest_intent = GaugeMetricFamily(
            "mailsonde_oldest_intent_timestamp_seconds",
            "When the oldest message that is not handed over yet was created; 0 if there is none.",
            labels=_PROBE,
        )
        threshold = GaugeMetricFamily(
            "mailsonde_threshold_seconds",
            "The age from which on a message in flight is overdue: configured, or learned from the last day.",
            labels=(*_PROBE, "threshold"),
        )
        for labels, pace, _, route in self._routes():
            overdue = self._overdue_after(*route)
            if overdue is not None:
                threshold.add_metric((*labels, "overdue"), overdue)
            for state in MessageState:
                messages.add_metric((*labels, pace, str(state)), counters.entered(*route, state))
            in_flight.add_metric(labels, counters.in_flight(*route))
            oldest.add_metric(labels, counters.oldest_in_flight(*route))
            oldest_intent.add_metric(labels, counters.oldest_intent(*route))
        yield from (messages, in_flight, oldest, oldest_intent, threshold)

    def _deliveries(self) -> Iterator[Metric]:
        histogram = HistogramMetricFamily(
            "mailsonde_delivery_seconds",
            "Time from connecting until visible in the mailbox, for delivered messages only.",
            labels=_PACED,
        )
        last = GaugeMetricFamily(
            "mailsonde_delivery_last_seconds",
            "Delivery latency of the last message to arrive whose latency could be measured.",
            labels=_PROBE,
        )
        uncertainty = GaugeMetricFamily(
            "mailsonde_delivery_uncertainty_seconds",
            "Maximum difference between the true and the published latency of that message, in either "
            "direction.",
            labels=_PROBE,
        )
        issues = CounterMetricFamily(
            "mailsonde_arrival_issues",
            "Arrivals in the junk folder or marked as junk, and arrivals with altered content.",
            labels=(*_PACED, "issue"),
        )
        for labels, pace, delivery, _ in self._routes():
            for issue, count in list(delivery.arrival_issues.items()):
                issues.add_metric((*labels, pace, str(issue)), count)
            histogram.add_metric((*labels, pace), delivery.histogram.cumulative(), delivery.histogram.sum)
            if delivery.last is not None and delivery.uncertainty is not None:
                last.add_metric(labels, delivery.last)
                uncertainty.add_metric(labels, delivery.uncertainty)
        yield from (histogram, last, uncertainty, issues)

    def _ways(self) -> Iterator[Metric]:
        """Yield what the header section of the last arrival says about its route."""
        hop = GaugeMetricFamily(
            "mailsonde_hop_delay_seconds",
            "Where the last arrival waited, by the stamps and clocks of the hosts on its route.",
            labels=(*_PROBE, "position"),
        )
        skewed = GaugeMetricFamily(
            "mailsonde_hops_skewed",
            "Hops of the last arrival with an impossible timestamp.",
            labels=_PROBE,
        )
        passed = GaugeMetricFamily(
            "mailsonde_authentication_passed",
            "1 if the last arrival passed spf, dkim or dmarc at the receiving host, else 0.",
            labels=(*_PROBE, "method"),
        )
        for labels, _, delivery, _ in self._routes():
            for position, seconds in list(delivery.hop_seconds.items()):
                hop.add_metric((*labels, position), seconds)
            if delivery.has_arrivals:
                skewed.add_metric(labels, delivery.hops_skewed)
            for method, result in list(delivery.authentication.items()):
                passed.add_metric((*labels, method), float(result == "pass"))
        yield from (hop, skewed, passed)

    def _service_levels(self) -> Iterator[Metric]:
        runs = CounterMetricFamily(
            "mailsonde_slo_runs",
            "Runs of a route with an objective: good if the message arrived in time, else bad.",
            labels=(*_PACED, "result"),
        )
        objective = GaugeMetricFamily(
            "mailsonde_slo_objective_ratio", "Target share of good runs.", labels=_PROBE
        )
        within = GaugeMetricFamily(
            "mailsonde_slo_within_seconds", "How long the message of a good run may take.", labels=_PROBE
        )
        for labels, pace, delivery, _ in self._routes():
            if delivery.slo is None:
                continue
            runs.add_metric((*labels, pace, "good"), delivery.slo_runs[True])
            runs.add_metric((*labels, pace, "bad"), delivery.slo_runs[False])
            objective.add_metric(labels, delivery.slo.objective)
            within.add_metric(labels, delivery.slo.within)
        yield from (runs, objective, within)

    def _agent(self) -> Iterator[Metric]:
        agent = (self._state.location,)
        unexpected = CounterMetricFamily(
            "mailsonde_mailbox_unexpected",
            "Unexpected messages with our token.",
            labels=(*_AGENT, "mailbox", "reason"),
        )
        for (mailbox, reason), count in list(self._state.unexpected.items()):
            unexpected.add_metric((*agent, mailbox, str(reason)), count)
        skipped = CounterMetricFamily(
            "mailsonde_schedule_skipped", "Runs that did not start on time.", labels=(*_PACED, "reason")
        )
        for (name, cause), count in list(self._state.skipped.items()):
            probe = self._state.probes.get((name, self._state.scheduled.get(name, "")))
            if probe is not None:
                skipped.add_metric((*self._of(probe), cadence(probe.interval), cause), count)
        overloaded = GaugeMetricFamily(
            "mailsonde_agent_overloaded",
            "1 while the agent holds back new messages because it cannot keep up, else 0.",
            labels=_AGENT,
        )
        overloaded.add_metric(agent, float(bool(self._state.shortage)))
        lag = HistogramMetricFamily("mailsonde_schedule_lag_seconds", "Start delay of runs.", labels=_AGENT)
        lag.add_metric(agent, self._state.schedule_lag.cumulative(), self._state.schedule_lag.sum)
        reload = GaugeMetricFamily(
            "mailsonde_config_last_reload_successful",
            "1 if the agent uses the configuration that it last read, else 0.",
            labels=_AGENT,
        )
        reload.add_metric(agent, 1.0)
        build = InfoMetricFamily("mailsonde_build", "Versions of mailsonde and Python.", labels=_AGENT)
        build.add_metric(agent, {"version": version("mailsonde"), "python": platform.python_version()})
        steps = CounterMetricFamily(
            "mailsonde_clock_steps",
            "How often the machine's wall clock was set forward or back.",
            labels=_AGENT,
        )
        steps.add_metric(agent, self._state.clock_steps)
        yield from (unexpected, skipped, overloaded, lag, steps, reload, build)


def cadence(interval: float) -> str:
    """Return the class of an interval in seconds: the shortest of `_CADENCES` that is not below it."""
    return next((name for longest, name in _CADENCES.items() if interval <= longest), "1d")
