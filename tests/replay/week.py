"""A week of an agent's metrics without waiting: its own state and collector, on a simulated clock.

Runs, arrivals, polls and scrapes are events in time. The incidents determine what servers do. The agent's
results go into `AgentState`, and `AgentCollector` provides the scrapes.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from monitor.assembly import assemble
from monitor.collector import AgentCollector
from monitor.config.models import Configuration
from monitor.ledger.counters import Counters, Total
from monitor.ledger.last_week import LastWeek, ends_of
from monitor.ledger.pauses import Pause
from monitor.maintenance import Maintenance
from monitor.schedule import JITTER, start_offset
from monitor.state import AgentState
from probes.core.clock import SystemClock
from probes.core.finding import Check, Finding, Severity
from probes.core.probe import Probe
from probes.core.reasons import Reason
from probes.core.settings import ProbeSettings
from probes.core.verdict import MessageState, Verdict
from probes.delivery.arrivals import Settled, Unexpected
from probes.delivery.message_life import ArrivalIssue, Message
from probes.exchange import AUTH_CERTIFICATE, ExchangeSettings
from probes.posture.mx import REASONS
from probes.roundtrip import POLL_GRACE, RoundtripSettings
from tests.replay.incidents import Effect, Incident, What
from tests.replay.series import AGENT, Recorder
from tests.replay.windows_exporter import WindowsExporter

CERTIFICATE_LASTS = 60 * 86400.0
_RETRY = 5.0  # seconds between tries to read an unreadable mailbox
_SLOW_FAULTS = {Reason.CONNECT_TIMEOUT, Reason.DNS_TIMEOUT}
_S = MessageState
_FOUND = {reason: found for found, reason in REASONS.items()} | {
    Reason.EXCHANGE_OLD_BUILD: (Check.EXCHANGE_BUILD_BELOW_MINIMUM, Severity.WARNING)
}


@dataclass(slots=True, eq=False)
class Sent:
    """A message in flight, and its outcome. Times are seconds into the week."""

    settings: RoundtripSettings
    id: str
    created: float
    epoch: int
    arrives: float | None
    issues: tuple[ArrivalIssue, ...] = ()
    greylisted: float | None = None
    bounce: Reason | None = None
    state: MessageState = _S.SENT
    unseen_since: float | None = None  # if polls failed: the last poll before that
    is_told: bool = False  # its run has ended

    @property
    def deadline(self) -> float:
        """When it counts as lost."""
        return self.created + self.settings.deadline


@dataclass(slots=True)
class _Agent:
    """One process of the agent."""

    epoch: int
    state: AgentState
    collector: AgentCollector
    lateness: float = field(default=0.002)


class Week:
    """Simulates the agent of a configuration with incidents; `series` is what Prometheus scraped."""

    def __init__(
        self, configuration: Configuration, incidents: Iterable[Incident], seed: int, metrics: Iterable[str]
    ) -> None:
        self._site = configuration.site
        self._probes = _probes(configuration)
        self._rng = Random(seed)  # noqa: S311 # a replay, and no secret
        self._effects: dict[tuple[What, str], list[Effect]] = defaultdict(list)
        for effect in (effect for incident in incidents for effect in incident.effects):
            self._effects[effect.what, effect.of].append(effect)
        self._used: set[Effect] = set()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._agent: _Agent | None = None
        self._epochs = count()
        self._killed_at = 0.0
        self._under_way: dict[str, Sent] = {}
        self._entered: Counter[tuple[str, str, MessageState]] = Counter()
        self._recorder = Recorder(metrics)
        self._exporters = [
            WindowsExporter(node, self._active)
            for probe in configuration.probes
            if isinstance(probe, ExchangeSettings)
            for node in probe.nodes
        ]
        self._now = 0.0
        self._last_week = LastWeek()  # as the ledger has it across restarts
        self._excused: Counter[tuple[str, str, MessageState]] = Counter()
        names = {probe.settings.name: {} for probe in self._probes}
        self._maintenance = Maintenance(names)
        self._routes = {p.name: p for p in configuration.probes if isinstance(p, RoundtripSettings)}

    def play(self, length: float, step: float) -> Recorder:
        """Let ``length`` seconds pass, with a scrape every ``step`` seconds; return the scrapes."""
        self._at(0.0, self._start)
        for scrape in range(int(length / step) + 1):
            self._at(scrape * step, self._scrape)
        for effect in self._effects[What.KILLED, "agent"]:
            self._at(effect.begins, self._kill)
            self._at(effect.ends, self._start)
        for (what, name), effects in list(self._effects.items()):
            for effect in effects if what is What.FORGED else ():
                self._at(effect.begins, self._forged, name)
            for effect in effects if what is What.PAUSED else ():
                self._at(effect.begins, self._pause, Pause(name, effect.begins, effect.ends, "", "replay"))
        while self._events and self._events[0][0] <= length:
            self._now, _, call, arguments = heapq.heappop(self._events)
            call(self._now, *arguments)
        return self._recorder

    def _at(self, time: float, call: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (time, next(self._order), call, arguments))

    def _active(self, what: What, name: str, now: float) -> Effect | None:
        """Return the current effect; if it affects only the first, use it up."""
        for effect in self._effects.get((what, name), ()):
            if effect.begins <= now < effect.ends and effect not in self._used:
                if effect.once:
                    self._used.add(effect)
                return effect
        return None

    # The agent

    def _start(self, now: float) -> None:
        state = AgentState(self._site.mailboxes, self._site.location)
        state.maintenance = self._maintenance
        collector = AgentCollector(state, self._counters, self._overdue_after, now=lambda: self._now)
        self._agent = agent = _Agent(next(self._epochs), state, collector)
        configured = [p for p in self._probes if not self._active(What.REMOVED, p.settings.name, now)]
        for probe in configured:
            state.add(probe, now)
            begin = now + 0.5 + start_offset(probe.settings, len(configured))
            self._at(begin, self._run, probe, agent)
        for message in self._under_way.values():
            if message.arrives is not None and message.arrives <= now:
                self._at(now + 1.0, self._poll, message)
            elif message.deadline <= now:
                self._at(now + 1.0, self._deadline, message)

    def _kill(self, now: float) -> None:
        self._agent = None
        self._killed_at = now

    def _pause(self, _: float, pause: Pause) -> None:
        self._maintenance = self._maintenance.paused([*self._maintenance.pauses, pause])
        if self._agent is not None:
            self._agent.state.maintenance = self._maintenance

    def _forged(self, now: float, mailbox: str) -> None:
        if self._agent is not None:
            self._agent.state.unexpected_found(mailbox, Unexpected.FORGED)

    def _overdue_after(self, name: str, target: str) -> float | None:
        return self._routes[name].overdue_after(self._last_week.route(name, target).usual(self._now))

    def _scrape(self, now: float) -> None:
        agent = None if self._agent is None else self._agent.collector.collect()
        self._recorder.scrape({AGENT: agent, **{one.labels: one.collect(now) for one in self._exporters}})

    def _counters(self) -> Counters:
        held: dict[tuple[str, str, MessageState], list[float]] = defaultdict(list)
        for message in self._under_way.values():
            if message.state is _S.SENT:
                held[message.settings.name, message.settings.send_via, _S.SENT].append(message.created)
        return Counters().updated(
            Total(*key, entered, len(held[key]), *self._oldest(key, held[key]))
            for key, entered in self._entered.items()
        )

    def _oldest(
        self, key: tuple[str, str, MessageState], held: list[float]
    ) -> tuple[float | None, int, float | None]:
        """Return the last three counts of a total, from when its messages were created."""
        since = self._maintenance.counts_from(key[0], self._now)
        counted = min((created for created in held if created >= since), default=None)
        return min(held, default=None), self._excused[key], counted

    # Runs

    def _run(self, now: float, probe: Probe, agent: _Agent) -> None:
        if agent is not self._agent:
            return
        settings = probe.settings
        shift = settings.interval * JITTER * self._rng.uniform(-1.0, 1.0)
        self._at(now + settings.interval + shift, self._run, probe, agent)
        if self._active(What.SKIPPED, settings.name, now):
            agent.state.skip(settings.name, "overrun", 1, now)
            return
        lag = self._active(What.LAG, "agent", now)
        late = 0.002 if lag is None else _number(lag) * self._rng.random()
        agent.state.schedule_lag.observe(late)
        if isinstance(settings, RoundtripSettings):
            self._at(now + late, self._send, settings, agent)
        else:
            of = probe.target if isinstance(settings, ExchangeSettings) else settings.name
            reason = self._fault(of, _server(settings), now) or Reason.NONE
            seconds = late + self._seconds(reason)
            self._at(now + seconds, self._ended, probe.settings.name, probe.target, reason, seconds, agent)

    def _fault(self, probe: str, server: str | None, now: float) -> Reason | None:
        """Return the reason why a run that begins now fails, if it does."""
        if (effect := self._active(What.ENDS, probe, now)) is not None:
            return cast(Reason, effect.value)
        down = server is not None and self._active(What.DOWN, server, now) is not None
        return Reason.CONNECT_REFUSED if down else None

    def _seconds(self, reason: Reason) -> float:
        return self._rng.uniform(8.0, 12.0) if reason in _SLOW_FAULTS else self._rng.uniform(0.05, 0.4)

    def _ended(
        self,
        now: float,
        name: str,
        target: str,
        reason: Reason,
        seconds: float,
        agent: _Agent,
        message: Message | None = None,
    ) -> None:
        if agent is not self._agent:
            return
        expiry = None
        effect = self._active(What.CERTIFICATE, target, now)
        if effect is not None:
            expiry = effect.begins + _number(effect)
        elif reason is Reason.NONE and (target in self._site.servers or target == AUTH_CERTIFICATE):
            expiry = now + CERTIFICATE_LASTS
        pressed = self._active(What.PRESSED, target, now)
        phases = {"mail": _number(pressed)} if pressed is not None else {}
        told = message.report() if message is not None else None
        findings = _findings(reason, target)
        verdict = Verdict(
            reason, certificate_not_after=expiry, message=told, findings=findings, phases=phases
        )
        agent.state.ran(name, target, verdict, ended_at=now, duration=seconds)

    # Messages

    def _send(self, now: float, settings: RoundtripSettings, agent: _Agent) -> None:
        if agent is not self._agent:
            return
        fault = self._fault(settings.name, settings.send_via, now)
        if fault is not Reason.LEDGER_UNAVAILABLE:
            self._enter(settings, _S.INTENT)
        if fault is not None:
            if fault is not Reason.LEDGER_UNAVAILABLE:
                self._enter(settings, _S.DEFERRED)
            seconds = self._seconds(fault)
            self._at(now + seconds, self._ended, settings.name, settings.send_via, fault, seconds, agent)
            return
        message = self._fate(settings, now, agent)
        self._enter(settings, _S.SENT)
        self._under_way[message.id] = message
        if message.bounce is not None:
            self._at(now + 8.0, self._bounced, message)
        elif message.arrives is not None:
            self._at(message.arrives, self._poll, message)
        self._at(message.deadline, self._deadline, message)

    def _fate(self, settings: RoundtripSettings, now: float, agent: _Agent) -> Sent:
        """Return a message with the effects of the current incidents."""
        name = settings.name
        seconds = self._rng.lognormvariate(0.9, 0.35) * (6.0 if settings.attachment == "10MB" else 1.0)
        message = Sent(settings, f"{next(self._order):032x}", now, agent.epoch, None)
        if (effect := self._active(What.DELAYED, name, now)) is not None:
            seconds += _number(effect) * self._rng.uniform(0.7, 1.0)
        if (effect := self._active(What.RISING, name, now)) is not None:
            seconds += _number(effect) * (now - effect.begins) / (effect.ends - effect.begins)
        if (effect := self._active(What.GREYLISTED, name, now)) is not None:
            message.greylisted = _number(effect) * self._rng.uniform(0.6, 1.0)
            seconds += message.greylisted
        if (effect := self._active(What.HELD, name, now)) is not None:
            seconds += effect.ends - now
        if (effect := self._active(What.BOUNCED, name, now)) is not None:
            message.bounce = cast(Reason, effect.value)
        if self._active(What.JUNKED, name, now):
            message.issues += (ArrivalIssue.JUNKED,)
        if self._active(What.ALTERED, name, now):
            message.issues += (ArrivalIssue.ALTERED,)
        if not self._active(What.LOST, name, now) and message.bounce is None:
            message.arrives = now + seconds
        return message

    def _enter(self, settings: RoundtripSettings, state: MessageState) -> None:
        self._entered[settings.name, settings.send_via, state] += 1

    def _unreadable_since(self, message: Sent, now: float) -> float | None:
        """Return since when the agent cannot read a message's mailbox, if it cannot."""
        server = self._site.mailboxes[message.settings.to].server
        down = self._active(What.DOWN, server, now)
        return max(message.created, down.begins) if down is not None else None

    def _poll(self, now: float, message: Sent) -> None:
        """Poll for a message that is now in its mailbox."""
        if self._agent is None or message.state not in {_S.SENT, _S.LOST}:
            return
        since = self._unreadable_since(message, now)
        if since is not None:
            message.unseen_since = message.unseen_since or since
            self._at(now + _RETRY, self._poll, message)
            return
        arrived = cast(float, message.arrives)
        unseen = message.unseen_since
        if unseen is None and now - arrived > 0.5:
            unseen = max(message.created, min(self._killed_at, arrived))
        earliest, latest = (unseen, now) if unseen is not None else (arrived - 0.2, arrived + 0.2)
        late = message.state is _S.LOST or earliest > message.deadline
        self._settle(now, message, _S.LATE if late else _S.DELIVERED, (earliest, latest))

    def _deadline(self, now: float, message: Sent) -> None:
        """Give up a message, if a poll can show that it is absent."""
        if self._agent is None or message.state is not _S.SENT:
            return
        if self._unreadable_since(message, now) is None:
            if message.arrives is None or message.arrives > now:
                self._settle(now, message, _S.LOST, None)
            return
        if now >= message.deadline + POLL_GRACE:
            self._tell(now, message, Reason.CONNECT_REFUSED, None)
        self._at(now + _RETRY, self._deadline, message)

    def _bounced(self, now: float, message: Sent) -> None:
        if self._agent is not None:
            self._settle(now, message, _S.BOUNCED, None)

    def _settle(
        self, now: float, message: Sent, state: MessageState, interval: tuple[float, float] | None
    ) -> None:
        message.state = state
        self._enter(message.settings, state)
        if state is not _S.LOST or message.arrives is None:
            del self._under_way[message.id]
        is_excused = message.created < self._maintenance.counts_from(message.settings.name, now)
        record = replace(_record(message, interval), excused=is_excused)
        if is_excused:
            self._excused[message.settings.name, message.settings.send_via, state] += 1
        else:
            self._last_week.add(filter(None, [ends_of(record)]))
        assert self._agent is not None
        self._agent.state.settled(Settled(record))
        self._tell(now, message, _reason(message), record)

    def _tell(self, now: float, message: Sent, reason: Reason, record: Message | None) -> None:
        """End the message's run, unless it has ended or its process is gone."""
        agent = self._agent
        if agent is None or message.is_told or message.epoch != agent.epoch:
            return
        message.is_told = True
        settings = message.settings
        seconds = now - message.created
        self._ended(now, settings.name, settings.send_via, reason, seconds, agent, record)


def _probes(configuration: Configuration) -> list[Probe]:
    """Return the configured probes; only their names are used, and they never run."""
    ledger: Any = SimpleNamespace(token_key=b"never used")
    unused: Any = None
    assembly = assemble(configuration, SystemClock(), ledger, unused, "replay")
    return [one for probe in assembly.probes.values() for one in (probe, *probe.siblings)]


def _findings(reason: Reason, target: str) -> tuple[Finding, ...] | None:
    """Return the findings of a run with this outcome, or ``None`` if it could not judge."""
    if reason in _FOUND:
        return (Finding(*_FOUND[reason], target, "seen", "expected"),)
    return () if reason is Reason.NONE else None


def _server(settings: ProbeSettings) -> str | None:
    return getattr(settings, "server", None)


def _number(effect: Effect) -> float:
    return cast(float, effect.value)


def _record(message: Sent, interval: tuple[float, float] | None) -> Message:
    """Return a settled message as in the ledger, with the interval of its arrival."""
    latency = None if interval is None else (interval[0] + interval[1]) / 2 - message.created
    return Message(
        id=message.id,
        probe=message.settings.name,
        target=message.settings.send_via,
        mailbox=message.settings.to,
        state=message.state,
        created_at=message.created,
        deadline_seconds=message.settings.deadline,
        instance="replay",
        boot="replay",
        created_mono=message.created,
        findings=" ".join(message.issues),
        greylisted_seconds=message.greylisted,
        delivery_seconds=latency,
        uncertainty_seconds=None if interval is None else (interval[1] - interval[0]) / 2,
    )


def _reason(message: Sent) -> Reason:
    """Return the reason of a settled message's run, as in a round trip."""
    if message.bounce is not None:
        return message.bounce
    if message.state is not _S.DELIVERED:
        return Reason.MESSAGE_LOST
    if ArrivalIssue.JUNKED in message.issues:
        return Reason.MESSAGE_JUNKED
    if ArrivalIssue.ALTERED in message.issues:
        return Reason.MESSAGE_ALTERED
    return Reason.GREYLISTED if message.greylisted is not None else Reason.NONE
