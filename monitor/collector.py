"""The only place that names mailsonde's metrics; it builds them from state at each scrape."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from monitor.exposition import Counter, Family, Gauge, Histogram, Info, Summary
from monitor.labels import Labels
from monitor.ledger.counters import Counters, Total
from monitor.state import AgentState, DeliveryState
from probes.core.reasons import Outcome
from probes.core.verdict import MessageState

_AGENT = ("location",)
_PROBE = ("location", "probe", "kind", "target")
_PACED = (*_PROBE, "cadence")
"""The labels of what rules read over a range; the cadence tells them how long the range must be."""

_OUTCOMES = tuple((outcome, outcome.value) for outcome in Outcome)
_STATES = tuple((state, state.value) for state in MessageState)
_ALWAYS = frozenset({MessageState.DELIVERED, MessageState.LATE, MessageState.LOST, MessageState.BOUNCED})
"""States that are counted from 0, so that rules see the first increase."""

_NO_TOTALS: Mapping[MessageState, Total] = {}


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
        """Yield all metric families as prometheus_client's."""
        for family in self.families():
            yield family.metric()

    def families(self) -> Iterator[Family]:
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

    def _routes(self) -> Iterator[tuple[tuple[Labels], tuple[Labels], DeliveryState, tuple[str, str]]]:
        """Yield the labels of each route, without and with its cadence, its state, and its key."""
        for route, delivery in list(self._state.deliveries.items()):
            probe = self._state.probes.get(route)
            if probe is not None:  # else it was removed just now
                yield (probe.labels,), (probe.paced,), delivery, route

    def _probes(self) -> Iterator[Family]:
        success = Gauge(
            "mailsonde_probe_success", "1 if the last run with a known result was ok, else 0.", labels=_PACED
        )
        last_run = Gauge(
            "mailsonde_probe_last_run_timestamp_seconds",
            "When the last run ended; before the first run, when the agent started.",
            labels=_PROBE,
        )
        interval = Gauge(
            "mailsonde_probe_interval_seconds",
            "Configured time between the starts of two runs.",
            labels=_PROBE,
        )
        phases = Gauge(
            "mailsonde_probe_phase_seconds",
            "Duration of a phase of the last run.",
            labels=(*_PROBE, "phase"),
        )
        expiry = Gauge(
            "mailsonde_tls_certificate_not_after_timestamp_seconds",
            "When the first certificate in the chain that was last seen expires.",
            labels=_PROBE,
        )
        failure = Gauge(
            "mailsonde_probe_failure",
            "1 from a run that was not ok until one is: reason and phase of the last such run by outcome.",
            labels=(*_PROBE, "outcome", "reason", "phase"),
        )
        finding = Gauge(
            "mailsonde_finding",
            "1 while a check has a finding; the series ends with the finding.",
            labels=(*_PACED, "check", "severity"),
        )
        info = Info(
            "mailsonde_probe",
            "What the configuration says about the probe: its highest severity, the address that it connects "
            "to, the server of its mailbox, its description, and its own labels.",
            labels=_PROBE,
        )
        for probe in list(self._state.probes.values()):
            labels = (probe.labels,)
            info.add_info(labels, probe.info)
            last_run.add_metric(labels, probe.last_run)
            interval.add_metric(labels, probe.interval)
            if probe.success is not None:
                success.add_metric((probe.paced,), probe.success)
            if probe.certificate_not_after is not None:
                expiry.add_metric(labels, probe.certificate_not_after)
            for outcome, (reason, phase) in list(probe.failures.items()):
                failure.add_metric((*labels, str(outcome), str(reason), phase), 1.0)
            for phase, seconds in list(probe.phases.items()):
                phases.add_metric((*labels, phase), seconds)
            for check, severity in sorted(probe.findings):
                finding.add_metric((probe.paced, str(check), str(severity)), 1.0)
        yield from (info, success, last_run, interval, failure, phases, expiry, finding)

    def _runs(self) -> Iterator[Family]:
        runs = Counter(
            "mailsonde_probe_runs",
            "Finished runs by outcome.",
            labels=(*_PACED, "outcome"),
        )
        reasons = Counter(
            "mailsonde_probe_reasons",
            "Finished runs with a reason other than `none`. A series begins with the first such run, or at 0 "
            "if alerts count it.",
            labels=(*_PACED, "outcome", "reason"),
        )
        duration = Summary("mailsonde_probe_duration_seconds", "Duration of runs.", labels=_PACED)
        for probe in list(self._state.probes.values()):
            paced, counts = (probe.paced,), probe.runs
            for outcome, word in _OUTCOMES:
                runs.add_metric((*paced, word), counts[outcome])
            for reason, count in list(probe.reasons.items()):
                reasons.add_metric((*paced, str(reason.outcome), str(reason)), count)
            duration.add_observations(paced, sum(counts.values()), probe.seconds)
        yield from (runs, reasons, duration)

    def _messages(self) -> Iterator[Family]:
        counters = self._counters()
        messages = Counter(
            "mailsonde_messages",
            "Messages that entered a state; the count continues across restarts of the agent. `delivered`, "
            "`late`, `lost` and `bounced` are always there, other states from their first message on.",
            labels=(*_PACED, "state"),
        )
        in_flight = Gauge("mailsonde_messages_in_flight", "Messages in flight.", labels=_PROBE)
        oldest = Gauge(
            "mailsonde_oldest_in_flight_timestamp_seconds",
            "When the oldest message in flight was created; 0 if there is none.",
            labels=_PROBE,
        )
        oldest_intent = Gauge(
            "mailsonde_oldest_intent_timestamp_seconds",
            "When the oldest message that is not handed over yet was created; 0 if there is none.",
            labels=_PROBE,
        )
        threshold = Gauge(
            "mailsonde_threshold_seconds",
            "The age from which on a message in flight is overdue: configured, or learned from the last day.",
            labels=(*_PROBE, "threshold"),
        )
        for labels, paced, _, route in self._routes():
            overdue = self._overdue_after(*route)
            if overdue is not None:
                threshold.add_metric((*labels, "overdue"), overdue)
            totals = counters.routes.get(route, _NO_TOTALS)
            for state, word in _STATES:
                total = totals.get(state)
                if total is not None:
                    messages.add_metric((*paced, word), total.entered)
                elif state in _ALWAYS:
                    messages.add_metric((*paced, word), 0)
            in_flight.add_metric(labels, counters.in_flight(*route))
            oldest.add_metric(labels, counters.oldest_in_flight(*route))
            oldest_intent.add_metric(labels, counters.oldest_intent(*route))
        yield from (messages, in_flight, oldest, oldest_intent, threshold)

    def _deliveries(self) -> Iterator[Family]:
        histogram = Histogram(
            "mailsonde_delivery_seconds",
            "Time from connecting until visible in the mailbox, for delivered messages only.",
            labels=_PACED,
        )
        last = Gauge(
            "mailsonde_delivery_last_seconds",
            "Delivery latency of the last message to arrive whose latency could be measured.",
            labels=_PROBE,
        )
        uncertainty = Gauge(
            "mailsonde_delivery_uncertainty_seconds",
            "Maximum difference between the true and the published latency of that message, in either "
            "direction.",
            labels=_PROBE,
        )
        issues = Counter(
            "mailsonde_arrival_issues",
            "Arrivals in the junk folder or marked as junk, and arrivals with altered content.",
            labels=(*_PACED, "issue"),
        )
        for labels, paced, delivery, _ in self._routes():
            for issue, count in list(delivery.arrival_issues.items()):
                issues.add_metric((*paced, issue.value), count)
            histogram.add_buckets(paced, delivery.histogram.cumulative(), delivery.histogram.sum)
            if delivery.last is not None and delivery.uncertainty is not None:
                last.add_metric(labels, delivery.last)
                uncertainty.add_metric(labels, delivery.uncertainty)
        yield from (histogram, last, uncertainty, issues)

    def _ways(self) -> Iterator[Family]:
        """Yield what the header section of the last arrival says about its route."""
        hop = Gauge(
            "mailsonde_hop_delay_seconds",
            "Where the last arrival waited, by the stamps and clocks of the hosts on its route.",
            labels=(*_PROBE, "position"),
        )
        skewed = Gauge(
            "mailsonde_hops_skewed",
            "Hops of the last arrival with an impossible timestamp, if there were any.",
            labels=_PROBE,
        )
        passed = Gauge(
            "mailsonde_authentication_passed",
            "1 if the last arrival passed spf, dkim or dmarc at the receiving host, else 0.",
            labels=(*_PROBE, "method"),
        )
        for labels, _, delivery, _ in self._routes():
            for position, seconds in list(delivery.hop_seconds.items()):
                hop.add_metric((*labels, position), seconds)
            if delivery.hops_skewed:
                skewed.add_metric(labels, delivery.hops_skewed)
            for method, result in list(delivery.authentication.items()):
                passed.add_metric((*labels, method), int(result == "pass"))
        yield from (hop, skewed, passed)

    def _service_levels(self) -> Iterator[Family]:
        runs = Counter(
            "mailsonde_slo_runs",
            "Runs of a route with an objective: good if the message arrived in time, else bad.",
            labels=(*_PACED, "result"),
        )
        objective = Gauge("mailsonde_slo_objective_ratio", "Target share of good runs.", labels=_PROBE)
        within = Gauge(
            "mailsonde_slo_within_seconds", "How long the message of a good run may take.", labels=_PROBE
        )
        for labels, paced, delivery, _ in self._routes():
            if delivery.slo is None:
                continue
            runs.add_metric((*paced, "good"), delivery.slo_runs[True])
            runs.add_metric((*paced, "bad"), delivery.slo_runs[False])
            objective.add_metric(labels, delivery.slo.objective)
            within.add_metric(labels, delivery.slo.within)
        yield from (runs, objective, within)

    def _agent(self) -> Iterator[Family]:
        agent = (Labels({"location": self._state.location}),)
        unexpected = Counter(
            "mailsonde_mailbox_unexpected",
            "Unexpected messages with our token.",
            labels=(*_AGENT, "mailbox", "reason"),
        )
        for (mailbox, reason), count in list(self._state.unexpected.items()):
            unexpected.add_metric((*agent, mailbox, str(reason)), count)
        skipped = Counter(
            "mailsonde_schedule_skipped", "Runs that did not start on time.", labels=(*_PACED, "reason")
        )
        for (name, cause), count in list(self._state.skipped.items()):
            probe = self._state.probes.get((name, self._state.scheduled.get(name, "")))
            if probe is not None:
                skipped.add_metric((probe.paced, cause), count)
        overloaded = Gauge(
            "mailsonde_agent_overloaded",
            "1 while the agent holds back new messages because it cannot keep up, else 0.",
            labels=_AGENT,
        )
        overloaded.add_metric(agent, float(bool(self._state.shortage)))
        lag = Histogram("mailsonde_schedule_lag_seconds", "Start delay of runs.", labels=_AGENT)
        lag.add_buckets(agent, self._state.schedule_lag.cumulative(), self._state.schedule_lag.sum)
        reload = Gauge(
            "mailsonde_config_last_reload_successful",
            "1 if the agent uses the configuration that it last read, else 0.",
            labels=_AGENT,
        )
        reload.add_metric(agent, 1.0)
        build = Info("mailsonde_build", "Versions of mailsonde and Python.", labels=_AGENT)
        build.add_info(agent, {"version": version("mailsonde"), "python": platform.python_version()})
        steps = Counter(
            "mailsonde_clock_steps",
            "How often the machine's wall clock was set forward or back.",
            labels=_AGENT,
        )
        steps.add_metric(agent, self._state.clock_steps)
        yield from (unexpected, skipped, overloaded, lag, steps, reload, build)
