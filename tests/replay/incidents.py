"""The incidents of a replayed week: their kinds, their effects, and who must be notified."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from probes.core.reasons import Reason

MINUTE = 60.0
DAY = 86400.0
ROUTES_OF = {
    "submission-a": ("a-to-pop", "a-to-imap", "large"),
    "submission-b": ("b-to-pop", "b-to-imap", "newsletter"),
}
QUICK_ROUTES = ("a-to-pop", "a-to-imap", "b-to-pop", "b-to-imap")
TO_IMAP = ("a-to-imap", "b-to-imap", "large")
ROUTES = (*QUICK_ROUTES, "large", "newsletter")
CHECKS = ("smtp-a", "smtp-b", "pop", "imap", "mx", "trial")


OVERRUN_AFTER = 20 * MINUTE
"""Seconds after which the maintenance of an incident ends that goes on."""


class What(StrEnum):
    """What an effect does, and to what: a server, a probe, a mailbox or the agent."""

    DOWN = "down"  # a server refuses connections
    ENDS = "ends"  # the runs of a probe, or of a target of Exchange, end with the reason `value`
    HELD = "held"  # a route's messages wait in a queue until the effect ends
    DELAYED = "delayed"  # ... arrive later by up to so many seconds
    RISING = "rising"  # ... by more and more, up to so many seconds at the end
    GREYLISTED = "greylisted"  # ... because they are refused at first
    PRESSED = "pressed"  # a server answers MAIL FROM after so many seconds
    LOST = "lost"
    BOUNCED = "bounced"
    JUNKED = "junked"
    ALTERED = "altered"
    CERTIFICATE = "certificate"  # a server's certificate expires in so many seconds
    KILLED = "killed"  # the agent does not run
    REMOVED = "removed"  # a probe is not configured
    LAG = "lag"  # the agent's runs start up to so many seconds late
    SKIPPED = "skipped"  # a probe's runs do not start
    PAUSED = "paused"  # the probes that match a pattern are in maintenance
    SHOWN = "shown"  # windows_exporter shows a metric of a server, "METRIC SERVER", with the value
    UNSEEN = "unseen"  # ... does not show it
    FORGED = "forged"  # a mailbox gets a message with a token that does not verify


@dataclass(frozen=True, slots=True)
class Effect:
    """One condition from ``begins`` until ``ends`` (seconds into the week)."""

    what: What
    of: str
    begins: float
    ends: float
    value: float | Reason = 0.0
    once: bool = False  # affects only the first run or message


class Expected(StrEnum):
    """Who must be notified of an incident."""

    PAGE = "page"
    WARNING = "warning"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of incident: who must be notified, by which alerts, its duration in minutes, its effects."""

    name: str
    expected: Expected
    alerts: frozenset[str]
    minutes: float
    effects: Callable[[Random, float, float], list[Effect]]


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident of a week."""

    kind: Kind
    begins: float
    ends: float
    effects: tuple[Effect, ...]


def all_of(
    what: What,
    names: Iterable[str],
    begins: float,
    ends: float,
    value: float | Reason = 0.0,
    *,
    once: bool = False,
) -> list[Effect]:
    """Return the effect on each of the names."""
    return [Effect(what, name, begins, ends, value, once) for name in names]


def _submission(rng: Random) -> str:
    return rng.choice(sorted(ROUTES_OF))


def _queue_held(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.HELD, ROUTES_OF[_submission(rng)], begins, ends)


def _message_lost(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.LOST, [rng.choice(QUICK_ROUTES)], begins, ends, once=True)


def _burst_lost(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.LOST, ROUTES_OF[_submission(rng)], begins, ends)


def _slow(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.DELAYED, ROUTES_OF[_submission(rng)], begins, ends, 55.0)


def _rising(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.RISING, ROUTES_OF[_submission(rng)], begins, ends, 58.0)


def _submission_down(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.DOWN, [_submission(rng)], begins, ends)


def _pop_down(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.DOWN, ["pop"], begins, ends)


def _imap_down(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.DOWN, ["imap"], begins, ends)


def _flapping(rng: Random, begins: float, ends: float) -> list[Effect]:
    """Down and up again, each for two to five minutes."""
    server = _submission(rng)
    effects = []
    while begins < ends:
        down = MINUTE * rng.uniform(2.0, 5.0)
        effects.append(Effect(What.DOWN, server, begins, begins + down))
        begins += down + MINUTE * rng.uniform(2.0, 5.0)
    return effects


def _junk(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.JUNKED, TO_IMAP, begins, ends)


def _bounce(rng: Random, begins: float, ends: float) -> list[Effect]:
    route = rng.choice(QUICK_ROUTES)
    return all_of(What.BOUNCED, [route], begins, ends, Reason.BOUNCE_MAILBOX_FULL, once=True)


def _altered(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.ALTERED, ROUTES_OF[_submission(rng)], begins, ends)


def _certificate(days: float) -> Callable[[Random, float, float], list[Effect]]:
    def effects(rng: Random, begins: float, ends: float) -> list[Effect]:
        return all_of(What.CERTIFICATE, [rng.choice(["pop", "imap"])], begins, ends, days * 86400.0)

    return effects


def runs_end(names: Iterable[str], reason: Reason) -> Callable[[Random, float, float], list[Effect]]:
    """Return what makes the runs of the named probes, or targets of Exchange, end with a reason."""
    return lambda rng, begins, ends: all_of(What.ENDS, names, begins, ends, reason)


def _certificate_ended(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.ENDS, [rng.choice(["pop", "imap"])], begins, ends, Reason.CERTIFICATE_EXPIRED)


def _unsteady(rng: Random, begins: float, ends: float) -> list[Effect]:
    """One in four runs of a probe fails."""
    check = rng.choice(["smtp-a", "smtp-b", "pop", "imap"])
    failing = [begins + 4 * MINUTE * number for number in range(int((ends - begins) / (4 * MINUTE)))]
    return [
        Effect(What.ENDS, check, at, at + 2 * MINUTE, Reason.CONNECT_TIMEOUT, once=True) for at in failing
    ]


def _agent_killed(rng: Random, begins: float, ends: float) -> list[Effect]:
    return [Effect(What.KILLED, "agent", begins, ends)]


def _agent_restarts(rng: Random, begins: float, ends: float) -> list[Effect]:
    """Three restarts, each within an agent's normal start-up time."""
    starts = [begins + share * (ends - begins) for share in (0.0, 0.4, 0.8)]
    return [Effect(What.KILLED, "agent", start, start + rng.uniform(2.0, 40.0)) for start in starts]


def _probe_removed(rng: Random, begins: float, ends: float) -> list[Effect]:
    """A configuration without the probe, and later with it; the agent restarts each time."""
    restarts = [Effect(What.KILLED, "agent", at, at + rng.uniform(2.0, 20.0)) for at in (begins, ends - 30.0)]
    return [Effect(What.REMOVED, "trial", begins, ends - 15.0), *restarts]


def _failed_run(rng: Random, begins: float, ends: float) -> list[Effect]:
    name = rng.choice([*CHECKS, *QUICK_ROUTES])
    reason = Reason.MX_UNEXPECTED if name == "mx" else Reason.CONNECT_TIMEOUT
    return all_of(What.ENDS, [name], begins, ends, reason, once=True)


def _restart_at_failed_run(rng: Random, begins: float, ends: float) -> list[Effect]:
    """A run fails, and then the agent is down for less than the time that pages."""
    failed = all_of(
        What.ENDS, [rng.choice(["pop", "imap", "smtp-a"])], begins, begins + 90.0, Reason.CONNECT_TIMEOUT
    )
    return [*failed, Effect(What.KILLED, "agent", begins + 90.0, begins + 90.0 + rng.uniform(20.0, 45.0))]


def _slow_message(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.DELAYED, [rng.choice(QUICK_ROUTES)], begins, ends, 50.0, once=True)


def _some_slow(rng: Random, begins: float, ends: float) -> list[Effect]:
    """One in ten messages through a server is slow."""
    effects = []
    for route in ROUTES_OF[_submission(rng)][:2]:
        for tenth in range(int((ends - begins) / (10 * MINUTE))):
            at = begins + MINUTE * (10 * tenth + rng.uniform(0.0, 9.0))
            effects.append(Effect(What.DELAYED, route, at, at + 2 * MINUTE, 50.0, once=True))
    return effects


def _greylisted(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.GREYLISTED, [rng.choice(QUICK_ROUTES)], begins, ends, 22.0)


def _lag(rng: Random, begins: float, ends: float) -> list[Effect]:
    return [Effect(What.LAG, "agent", begins, ends, 4.0)]


def _skipped(rng: Random, begins: float, ends: float) -> list[Effect]:
    return all_of(What.SKIPPED, [rng.choice(CHECKS[:4])], begins, ends)


def _forged(rng: Random, begins: float, ends: float) -> list[Effect]:
    mailbox = rng.choice(["canary", "staff"])
    return [Effect(What.FORGED, mailbox, at, at + 1.0) for at in (begins, begins + 100.0, begins + 400.0)]


def _some_dns_timeouts(rng: Random, begins: float, ends: float) -> list[Effect]:
    """Occasionally, a run of some probe gets no answer from the agent's resolver."""
    effects = []
    while begins < ends:
        name = rng.choice([*CHECKS, *QUICK_ROUTES])
        effects.append(Effect(What.ENDS, name, begins, ends, Reason.DNS_TIMEOUT, once=True))
        begins += rng.uniform(60.0, 240.0)
    return effects


def _maintenance(rng: Random, begins: float, ends: float) -> list[Effect]:
    """Two servers are down at slightly different times, and the agent restarts in between."""
    later = begins + rng.uniform(60.0, 240.0)
    middle = (begins + ends) / 2
    return [
        Effect(What.DOWN, _submission(rng), begins, ends - rng.uniform(60.0, 300.0)),
        Effect(What.DOWN, rng.choice(["pop", "imap"]), later, ends),
        Effect(What.KILLED, "agent", middle, middle + rng.uniform(5.0, 30.0)),
    ]


def _announced(rng: Random, begins: float, ends: float) -> list[Effect]:
    """Maintenance as above, in a pause. Mail is also lost, junked and slow, also at the very end."""
    effects = _maintenance(rng, begins + 60.0, ends - 60.0)
    lost, junked, slow, held = rng.sample(QUICK_ROUTES, 4)
    return [
        *effects,
        Effect(What.LOST, lost, begins + 60.0, ends - 60.0),
        Effect(What.JUNKED, junked, begins + 60.0, ends - 60.0),
        Effect(What.DELAYED, slow, begins + 60.0, ends - 60.0, 55.0),
        Effect(What.LOST, held, ends - 60.0, ends),
        Effect(What.PAUSED, "*", begins, ends),
    ]


def _overrun(rng: Random, begins: float, ends: float) -> list[Effect]:
    """A server that is down from the beginning of a pause stays down after its end."""
    down = [Effect(What.DOWN, _submission(rng), begins, ends), Effect(What.DOWN, "imap", begins, ends)]
    return [*down, Effect(What.PAUSED, "*", begins, begins + OVERRUN_AFTER)]


def kind_of(
    name: str,
    expected: Expected,
    alerts: str,
    minutes: float,
    effects: Callable[[Random, float, float], list[Effect]],
) -> Kind:
    """Return a kind; ``alerts`` are names without their prefix."""
    return Kind(name, expected, frozenset(f"Mailsonde{alert}" for alert in alerts.split()), minutes, effects)


_SLOW = "DeliverySlow ErrorBudgetBurningFast MessageOverdue"
_DOWN = "ProbeDown MessageOverdue ErrorBudgetBurningFast"
_PAGE, _WARNING, _NOBODY = Expected.PAGE, Expected.WARNING, Expected.NOBODY
KINDS = (
    kind_of("queue held", _PAGE, "MessageOverdue", 10, _queue_held),
    kind_of("one message lost", _PAGE, "MessageOverdue MessageLost", 5, _message_lost),
    kind_of("a burst lost", _PAGE, "MessageLost MessageOverdue", 5, _burst_lost),
    kind_of("deliveries slow", _PAGE, _SLOW, 60, _slow),
    kind_of("one message in ten slow", _PAGE, _SLOW, 180, _some_slow),
    kind_of("latency rising", _PAGE, _SLOW, 120, _rising),
    kind_of("submission server down", _PAGE, _DOWN, 15, _submission_down),
    kind_of("POP3 server down", _PAGE, _DOWN, 15, _pop_down),
    kind_of("IMAP server down", _PAGE, _DOWN, 15, _imap_down),
    kind_of("server flapping", _PAGE, _DOWN, 60, _flapping),
    kind_of("junk for a morning", _PAGE, "MessageJunked", 180, _junk),
    kind_of("a bounce", _PAGE, "MessageBounced", 5, _bounce),
    kind_of("subjects altered", _WARNING, "MessageAltered", 20, _altered),
    kind_of("certificate, last weeks", _WARNING, "CertificateExpiring", 60, _certificate(10.0)),
    kind_of("certificate, last days", _PAGE, "CertificateExpiring", 60, _certificate(2.0)),
    kind_of("certificate ended", _PAGE, "CertificateExpired", 20, _certificate_ended),
    kind_of("MX wrong", _PAGE, "FindingCritical", 40, runs_end(["mx"], Reason.MX_UNEXPECTED)),
    kind_of("MX doubtful", _WARNING, "FindingWarning", 40, runs_end(["mx"], Reason.MX_TARGET_CNAME)),
    kind_of("check unsteady", _WARNING, "ProbeUnsteady", 40, _unsteady),
    kind_of("agent killed", _PAGE, "AgentDown", 10, _agent_killed),
    kind_of("agent restarts", _NOBODY, "", 10, _agent_restarts),
    kind_of("probe removed", _NOBODY, "", 40, _probe_removed),
    kind_of("one failed run", _NOBODY, "", 5, _failed_run),
    kind_of("failed run, restart", _NOBODY, "", 5, _restart_at_failed_run),
    kind_of("one slow message", _NOBODY, "", 5, _slow_message),
    kind_of("greylisted in time", _NOBODY, "", 40, _greylisted),
    kind_of("runs start late", _WARNING, "ScheduleLag", 40, _lag),
    kind_of("runs skipped", _WARNING, "RunsSkipped ProbeStale", 20, _skipped),
    kind_of("forged messages", _WARNING, "UnexpectedMessage", 10, _forged),
    kind_of("resolver gone", _WARNING, "ProbeUnknown", 30, runs_end([*ROUTES, *CHECKS], Reason.DNS_TIMEOUT)),
    kind_of("ledger gone", _WARNING, "ProbeUnknown", 30, runs_end(ROUTES, Reason.LEDGER_UNAVAILABLE)),
    kind_of("some DNS timeouts", _NOBODY, "", 30, _some_dns_timeouts),
    kind_of("maintenance", _PAGE, _DOWN, 25, _maintenance),
    kind_of("maintenance, paused", _NOBODY, "", 25, _announced),
    kind_of("maintenance, overrun", _PAGE, _DOWN, 35, _overrun),
)


def schedule(seed: int, length: float, aftermath: float, kinds: Iterable[Kind] = KINDS) -> list[Incident]:
    """Return one incident of each kind in random order, spread over ``length`` seconds.

    Between the end of one incident and the start of the next there are at least ``aftermath`` seconds.
    Raises ValueError if they do not fit.
    """
    rng = Random(seed)  # noqa: S311 # a replay, and no secret
    order = list(kinds)
    rng.shuffle(order)
    spare = length - sum(MINUTE * kind.minutes + aftermath for kind in order) - aftermath
    if spare < 0:
        raise ValueError(f"{len(order)} incidents need {-spare:.0f} s more")
    gaps = [rng.random() for _ in order]
    begins, incidents = aftermath, []
    for kind, gap in zip(order, gaps, strict=True):
        begins += spare * gap / sum(gaps)
        ends = begins + MINUTE * kind.minutes
        incidents.append(Incident(kind, begins, ends, tuple(kind.effects(rng, begins, ends))))
        begins = ends + aftermath
    return incidents
