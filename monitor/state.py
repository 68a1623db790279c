"""What the agent has observed, in memory: the only source of the metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from monitor.cadence import cadence
from monitor.labels import Labels, Number, constant, told
from monitor.maintenance import Maintenance
from monitor.probe_info import probe_info
from probes.core.finding import Check, Severity
from probes.core.histogram import LAG_BUCKETS, Histogram
from probes.core.probe import Probe
from probes.core.reasons import Outcome, Reason
from probes.core.settings import Site
from probes.core.trouble_log import TroubleLog
from probes.core.verdict import MessageState, Verdict
from probes.delivery.arrivals import Settled, Unexpected
from probes.delivery.message_life import ArrivalIssue, Message
from probes.delivery.message_probe import MessageProbe
from probes.delivery.service_level import SloSettings
from probes.delivery.tracing import Trace
from probes.messages.exchange_report import ExchangeReport
from probes.messages.hops import waits
from probes.protocols.smtp_pace import DELAYED_ANSWER

DELIVERY_BUCKETS = (0.5, 2.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds, in seconds, of the histogram of delivery times. Only dashboards read it."""

_PART_OF = {
    "greeting": "connect",
    "ehlo": "connect",
    "starttls": "connect",
    "tls": "connect",
    "mail": "data",
    "rcpt": "data",
    "quit": "data",
    "first_byte": "data",
    "body": "data",
}
"""Phases of a submission that count as part of another, because there may be thousands of routes."""

_STANDS_OUT = frozenset({"mail", "rcpt", "ehlo"})
"""Those that stand alone from `DELAYED_ANSWER` seconds on: their server delays them on purpose."""


class Limiter(NamedTuple):
    """What limits this client: a server or MX host, or for polls of a mailbox, that mailbox at its server."""

    protocol: str
    server: str
    mailbox: str = ""


@dataclass(slots=True)
class ProbeState:
    """What is known about one probe; in seconds, and in unix seconds for timestamps."""

    name: str
    target: str
    kind: str
    interval: float
    info: Labels  # what the configuration says about the probe
    last_run: Number  # when it ended, or when the agent started
    protocol: str = "smtp"  # by which it speaks to its target
    thresholds: dict[str, str] = field(
        default_factory=dict
    )  # after how many seconds its alerts fire, by name
    runs: Counter[Outcome] = field(default_factory=lambda: Counter(dict.fromkeys(Outcome, 0)))
    reasons: Counter[Reason] = field(default_factory=Counter)  # of runs that were not simply ok
    seconds: float = 0.0  # that all runs took together
    success: int | None = None  # 1 or 0, of the last run with a known result
    failed_runs: int = 0  # since the last ok one
    failing_since: Number = 0  # the end of the first failed run since the last ok one; 0 if it does not fail
    trouble: TroubleLog | None = None  # of its runs, until one is ok
    failures: dict[Outcome, tuple[Reason, str]] = field(default_factory=dict)
    """Reason and phase of the last failed and the last unknown run since the last ok one."""
    phases: Mapping[str, Number] = field(default_factory=dict)
    certificate_not_after: Number | None = None
    findings: frozenset[tuple[Check, Severity]] = frozenset()  # of the last run with a known result
    location: str = ""
    labels: Labels = field(init=False, repr=False, compare=False)
    """The labels that all its series share."""
    paced: Labels = field(init=False, repr=False, compare=False)
    """These, and the class of the interval."""

    def __post_init__(self) -> None:
        pairs = {"location": self.location, "probe": self.name, "kind": self.kind, "target": self.target}
        self.labels, self.paced = Labels(pairs), Labels({**pairs, "cadence": cadence(self.interval)})

    def configure(self, interval: float, info: Labels, thresholds: dict[str, str]) -> None:
        """Take over what a new configuration says."""
        self.interval, self.info, self.thresholds = interval, info, thresholds
        self.paced = Labels({**self.labels.pairs, "cadence": cadence(interval)})


class Exchange(NamedTuple):
    """What Exchange says about an arrival, as the metrics show it."""

    stages: Mapping[str, Number]
    end_to_end: Number | None
    filtered: Labels | None

    @classmethod
    def of(cls, report: ExchangeReport) -> Self:
        """Return what the metrics show of a report."""
        words = {"scl": report.scl, "sfv": report.sfv, "cat": report.cat}
        total = report.end_to_end_seconds
        return cls(
            {stage: told(seconds) for stage, seconds in report.stages.items()},
            told(total) if total is not None else None,
            Labels(words) if any(words.values()) else None,
        )


@dataclass(slots=True)
class DeliveryState:
    """The results of one route's runs and arrivals; latencies in seconds."""

    slo: SloSettings | None = None
    slo_runs: dict[str, int] = field(default_factory=lambda: {"good": 0, "bad": 0})
    histogram: Histogram = field(default_factory=lambda: Histogram(DELIVERY_BUCKETS))
    slow: int = 0  # how many of the histogram's deliveries were slower than the route's threshold
    has_arrivals: bool = False
    last: Number | None = None  # of the last arrival that was measured
    uncertainty: Number | None = None
    arrival_issues: Counter[ArrivalIssue] = field(
        default_factory=lambda: Counter(dict.fromkeys(ArrivalIssue, 0))
    )
    hop_seconds: dict[str, Number] = field(default_factory=dict)  # of the last arrival, by position
    hops_skewed: int = 0
    authentication: Labels | None = None  # its results (RFC 8601) by method
    exchange: Exchange | None = None  # what Exchange says about it
    traces: dict[str, str] = field(default_factory=dict)  # of messages in flight, by id: where they are
    last_trace: tuple[str, str] | None = None  # id of the message traced last, and all that was told


class AgentState:
    """All that the agent has observed since its start. Changed on the event loop, read from any thread."""

    def __init__(self, mailboxes: Iterable[str] = (), location: str = "") -> None:
        self.location = location
        self.probes: dict[tuple[str, str], ProbeState] = {}  # by name and target, like all below
        self.deliveries: dict[tuple[str, str], DeliveryState] = {}
        self._targets: defaultdict[str, set[str]] = defaultdict(set)  # of `probes`, by name
        self.unexpected: Counter[tuple[str, Unexpected]] = Counter()
        self.skipped: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by name, and then by cause
        self.scheduled: dict[str, str] = {}
        """The target of each probe that has its own schedule."""
        self.schedule_lag = Histogram(LAG_BUCKETS)
        self.shortage = ""
        """What the agent has too little of, if it is overloaded and holds back messages, and what to do."""
        self.overload = {"logins": False, "machine": False}
        """Whether messages are held back because mailboxes lack logins, or the machine is too slow."""
        self.web_config_is_valid: bool | None = None
        """Whether the web configuration as it is now is in force; None if there is none."""
        self.throttled: Counter[Limiter] = Counter()
        """How often requests were refused because a server limits this client."""
        self._mailboxes: dict[str, Limiter] = {}
        self.maintenance = Maintenance()
        """When which probes are in maintenance, by the configuration and by pauses."""
        self.refused: Sequence[str] = ()
        """The mistakes because of which the configuration that was last read is not used."""
        self.configured_at: Number = 0
        """When the configuration in use was read, in unix seconds."""
        self.clock_steps = 0
        """How often the wall clock was set by more than its drift."""
        self._keep_mailboxes(mailboxes)

    def keep_only(self, probes: Iterable[Probe], site: Site, now: float) -> None:
        """Register these probes and the mailboxes of ``site``, and forget all others.

        Known ones keep their counts. ``now`` (unix seconds) counts as the last run of a probe that has not
        run yet.
        """
        by_name = {probe.settings.name: probe for probe in probes}
        for name in list(self._targets):
            self.forget(name, by_name.get(name))
        for probe in by_name.values():
            self.configure(probe, now)
        self.keep_mailboxes(site)

    def forget(self, name: str, successor: Probe | None = None) -> None:
        """Forget the routes of a probe, except those that ``successor``, the new one of its name, has."""
        for target in list(self._targets[name]):
            state = self.probes[name, target]
            if successor is None or state.kind != successor.settings.kind or target not in successor.targets:
                self._forget((name, target))
        if successor is None:
            self.skipped.pop(name, None)
            self.scheduled.pop(name, None)
            del self._targets[name]

    def configure(self, probe: Probe, now: float) -> None:
        """Register a probe that has its own schedule, with its siblings; known ones keep their counts."""
        self.scheduled[probe.settings.name] = probe.target
        for each in (probe, *probe.siblings, *probe.sub_probes):
            route = each.settings.name, each.target
            if (known := self.probes.get(route)) is None:
                self.add(each, now)
                continue
            known.configure(each.settings.interval, Labels(probe_info(each)), _thresholds(each))
            if isinstance(each, MessageProbe) and (delivery := self.deliveries.get(route)) is not None:
                delivery.slo = each.objective

    def keep_mailboxes(self, site: Site) -> None:
        """Register the mailboxes of ``site``, and forget all others."""
        self._keep_mailboxes(site.mailboxes)
        self._mailboxes = {
            name: Limiter(site.servers[mailbox.server].protocol, mailbox.server, name)
            for name, mailbox in site.mailboxes.items()
        }
        polled = set(self._mailboxes.values())
        for limiter in [each for each in self.throttled if each.mailbox and each not in polled]:
            del self.throttled[limiter]

    def _keep_mailboxes(self, mailboxes: Iterable[str]) -> None:
        self.unexpected = Counter(
            {(name, reason): self.unexpected[name, reason] for name in mailboxes for reason in Unexpected}
        )

    def _forget(self, route: tuple[str, str]) -> None:
        state = self.probes.pop(route)
        self._targets[state.name].discard(state.target)
        self.throttled.pop(Limiter(state.protocol, state.target), None)
        self.deliveries.pop(route, None)

    def add(self, probe: Probe, now: float) -> None:
        """Register a probe; until its first run ends, ``now`` (unix seconds) counts as its last run."""
        settings = probe.settings
        route = settings.name, probe.target
        server = probe.context.site.servers.get(probe.target)
        self.probes[route] = ProbeState(
            *route,
            kind=settings.kind,
            interval=settings.interval,
            info=Labels(probe_info(probe)),
            location=self.location,
            last_run=now,
            protocol="smtp" if server is None else server.protocol,
            thresholds=_thresholds(probe),
        )
        self._targets[settings.name].add(probe.target)
        if isinstance(probe, MessageProbe) and probe.sends_messages:
            self.deliveries[route] = DeliveryState(slo=probe.objective)
        for cause in ("missed", "overrun"):  # rules see the first one; others begin with it
            self.skipped[settings.name].setdefault(cause, 0)
        self.scheduled.setdefault(settings.name, probe.target)

    def keep_sub_probes(self, probe: Probe, now: float) -> None:
        """Register the current sub-probes of ``probe``, and forget those that are gone."""
        name, targets = probe.settings.name, probe.targets
        for target in [target for target in self._targets[name] if target not in targets]:
            self._forget((name, target))
        for sub_probe in probe.sub_probes:
            if (name, sub_probe.target) not in self.probes:
                self.add(sub_probe, now)

    def ran(self, name: str, target: str, verdict: Verdict, *, ended_at: float, duration: float) -> None:
        """Record a finished run, with its end (unix seconds) and its duration (seconds)."""
        state = self.probes.get((name, target))
        if state is None:
            return  # an MX host that DNS stopped naming during the run
        is_excused = ended_at - duration < self.maintenance.counts_from(name, ended_at)
        if is_excused:
            state.failed_runs, state.failing_since = 0, 0
        else:
            self._count(state, verdict, ended_at, duration)
        if verdict.throttled and not is_excused:
            self.throttled[Limiter(state.protocol, target)] += verdict.throttled
        delivery = self.deliveries.get((name, target))
        phases = verdict.phases if delivery is None else _joined(verdict.phases)
        state.phases = {phase: told(seconds) for phase, seconds in phases.items()}
        state.last_run = told(ended_at)
        if verdict.outcome is Outcome.OK:
            state.failures.clear()
        else:
            state.failures[verdict.outcome] = verdict.reason, verdict.broken_phase
        if verdict.outcome is not Outcome.UNKNOWN:
            state.success = int(verdict.outcome is Outcome.OK)
            if verdict.findings is not None:
                state.findings = frozenset((one.check, one.severity) for one in verdict.findings)
        if verdict.certificate_not_after is not None:
            state.certificate_not_after = told(verdict.certificate_not_after)

    def _count(self, state: ProbeState, verdict: Verdict, ended_at: float, duration: float) -> None:
        """Count a run that no maintenance excuses, for alerts and objectives."""
        state.runs[verdict.outcome] += 1
        if verdict.reason is not Reason.NONE:
            state.reasons[verdict.reason] += 1
        state.seconds += duration
        if verdict.outcome is Outcome.OK:
            state.failed_runs, state.failing_since = 0, 0
        elif verdict.outcome is Outcome.FAILED:
            state.failed_runs += 1
            state.failing_since = state.failing_since or told(ended_at)
        delivery = self.deliveries.get((state.name, state.target))
        if delivery is not None and delivery.slo is not None:
            is_good = delivery.slo.is_good(verdict)
            if is_good is not None:
                delivery.slo_runs["good" if is_good else "bad"] += 1

    def settled(self, settled: Settled) -> None:
        """Record a message with a final state; only latencies that are measured are shown and counted.

        Those of maintenance are shown and not counted.
        """
        message = settled.message
        route = message.probe, message.target
        delivery = self.deliveries.get(route)
        if delivery is not None:
            delivery.traces.pop(message.id, None)
        if delivery is None or message.delivery_seconds is None or message.uncertainty_seconds is None:
            return
        if not message.excused:
            delivery.arrival_issues.update(ArrivalIssue(word) for word in message.findings.split())
        delivery.hop_seconds = {position: told(seconds) for position, seconds in waits(settled.hops).items()}
        delivery.hops_skewed = sum(hop.skewed for hop in settled.hops)
        if settled.authentication is not None:
            delivery.authentication = Labels(settled.authentication.methods)
        delivery.exchange = Exchange.of(settled.exchange) if settled.exchange is not None else None
        delivery.has_arrivals = True
        if not message.report().is_measured:
            return
        delivery.last, delivery.uncertainty = (
            told(message.delivery_seconds),
            told(message.uncertainty_seconds),
        )
        if message.state is MessageState.DELIVERED and not message.excused:
            delivery.histogram.observe(message.delivery_seconds)
            delivery.slow += message.delivery_seconds >= float(self.probes[route].thresholds["slow"])

    def skip(self, name: str, cause: str, count: int, now: float) -> None:
        """Count runs of a probe that did not start on time, unless it is in maintenance ``now``."""
        if self.maintenance.current(name, now) is None:
            self.skipped[name][cause] += count

    def traced(self, message: Message, trace: Trace) -> None:
        """Record what a message trace says about a message that is overdue or lost."""
        delivery = self.deliveries.get((message.probe, message.target))
        if delivery is None:
            return
        delivery.last_trace = message.id, trace.told
        if message.state is not MessageState.LOST and trace.end:
            delivery.traces[message.id] = trace.end

    def unexpected_found(self, mailbox: str, reason: Unexpected) -> None:
        """Record an unexpected message with our token field."""
        self.unexpected[mailbox, reason] += 1

    def poll_throttled(self, mailbox: str, now: float) -> None:
        """Record that a server refused to let us look into a mailbox because it limits this client.

        It does not count while all probes of the mailbox are in maintenance ``now`` (unix seconds).
        """
        if not self.maintenance.has_mailbox(mailbox, now):
            self.throttled[self._mailboxes.get(mailbox, Limiter("", "", mailbox))] += 1


def _thresholds(probe: Probe) -> dict[str, str]:
    """Return the texts of a probe's thresholds, which are shown far more often than they change."""
    seconds = probe.settings.thresholds(probe.context.site.alerts)
    return {name: constant(limit) for name, limit in seconds.items()}


def _joined(phases: Mapping[str, float]) -> dict[str, float]:
    """Return the phases of a submission as the metrics show them."""
    joined: dict[str, float] = {}
    for phase, seconds in phases.items():
        stands_out = seconds >= DELAYED_ANSWER and phase in _STANDS_OUT
        whole = phase if stands_out else _PART_OF.get(phase, phase)
        joined[whole] = joined.get(whole, 0.0) + seconds
    return joined
