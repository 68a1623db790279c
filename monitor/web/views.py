"""What the pages show for each route, derived from the agent's state, without HTML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from monitor.ledger.last_week import DAY_HOURS, WEEK_HOURS, RouteWeek, Share
from monitor.maintenance import Period
from monitor.recent import POINTS_KEPT, InFlight, Point, Recent, Route, RouteKey
from monitor.runtime import Runtime
from monitor.web.status_text import Flight, sentence
from probes.core.probe import Probe
from probes.core.verdict import MessageState
from probes.delivery.message_probe import MessageProbe

FROM_BAD_TO_GOOD = ("failed", "unknown", "late", "warning", "ok", "waiting")

QUANTILES = (0.5, 0.95, 0.99)

WIDTH, HEIGHT = 160.0, 28.0
"""Size of a sparkline, in its own units."""


@dataclass(frozen=True)  # without slots, for the cached properties
class RouteView:
    """One row of the overview, and the header of a probe's page."""

    probe: str
    kind: str
    target: str
    word: str  # failed, unknown, late, warning, ok or waiting
    sentence: str
    last: Any  # the last run's object, or None
    last_at: float | None  # unix seconds: when the last run began
    points: Sequence[Point]
    flight: InFlight
    states: dict[str, int] | None  # messages that entered each state; None for probes that send none
    has_routes: bool  # whether the probe may have several rows, one per route
    findings: Sequence[Mapping[str, str]] | None  # current ones; None if the kind has no checks
    description: str | None  # what the site says the probe is for
    severity: str  # the highest of its alerts
    deadline: float  # seconds
    last_trace: tuple[str, str] | None  # id of the message traced last, and what was told
    overdue_after: float | None  # seconds; None if the agent does not know
    learns_overdue: bool  # whether that was learned and not configured
    failing_since: float | None  # unix seconds
    failed_earlier: bool  # whether runs before that may have failed, too
    maintenance: Period | None  # that the probe is in
    at: float  # unix seconds: the time of this view
    week: RouteWeek

    @cached_property
    def last_day(self) -> Share:
        """How the messages of the last 24 hours ended."""
        return self.week.share(self.at, DAY_HOURS)

    @cached_property
    def last_week(self) -> Share:
        """How the messages of the last 7 days ended."""
        return self.week.share(self.at, WEEK_HOURS)

    @property
    def within(self) -> Mapping[float, float] | None:
        """Quantiles of the last day's latencies in seconds, by the quantile; ``None`` if none is known."""
        return self.week.within(self.at, QUANTILES)

    @property
    def week_strip(self) -> dict[str, str]:
        """The hours of the last 7 days: one path per word, as in `strip`."""
        return _cells(enumerate(map(_word_of_share, self.week.by_hour(self.at))))

    @property
    def week_counts(self) -> str:
        """The hours of the last 7 days in words."""
        words = list(map(_word_of_share, self.week.by_hour(self.at)))
        named = {"ok": "all", "warning": "not all", "failed": "none"}
        each = [f"{words.count(word)} with {named[word]}" for word in named if word in words]
        return f"hours by messages delivered: {', '.join(each) or 'none yet'}"

    @property
    def key(self) -> str:
        """A key for the page: names and targets contain no spaces."""
        return f"{self.probe} {self.target}"

    @property
    def rank(self) -> int:
        """The sort order: problems come first."""
        return FROM_BAD_TO_GOOD.index(self.word)

    @property
    def strip(self) -> dict[str, str]:
        """The strip of recent results: one path per state with all its cells, 5 wide and up to 20 high.

        Results that are not ok also differ in height, for people who cannot tell the colours apart.
        """
        return _cells(enumerate((point.word for point in self.points), POINTS_KEPT - len(self.points)))

    @property
    def counts(self) -> str:
        """The strip in words."""
        if not self.points:
            return "no runs yet"
        words = [point.word for point in self.points]
        each = (f"{words.count(word)} {word}" for word in FROM_BAD_TO_GOOD if word in words)
        return f"last {len(words)} runs: {', '.join(each)}"

    @property
    def sparkline(self) -> list[str]:
        """A sparkline as lists of points, with gaps where nothing was measured; 0 is at the bottom."""
        known = [point.seconds for point in self.points if point.seconds is not None]
        top = max(known, default=0.0) or 1.0
        lines: list[list[str]] = [[]]
        empty = POINTS_KEPT - len(self.points)
        for number, point in enumerate(self.points):
            if point.seconds is None:
                lines.append([])
                continue
            x = (empty + number) * WIDTH / (POINTS_KEPT - 1)
            y = HEIGHT - 2 - point.seconds / top * (HEIGHT - 4)
            lines[-1].append(f"{x:.0f},{y:.1f}")
        return [" ".join(line if len(line) > 1 else line * 2) for line in lines if line]

    def as_object(self) -> dict[str, Any]:
        """Return the object for JSON."""
        return {
            "probe": self.probe,
            "kind": self.kind,
            "target": self.target,
            "description": self.description,
            "severity": self.severity,
            "state": self.word,
            "sentence": self.sentence,
            "deadline_seconds": self.deadline,
            "overdue_seconds": self.overdue_after,
            "messages": self.states,
            "in_flight": self.flight.count,
            "oldest_in_flight_at": self.flight.oldest_at or None,
            "oldest_intent_at": self.flight.oldest_intent_at or None,
            "message_trace": self.flight.trace or None,
            "findings": self.findings,
            "failing_since": self.failing_since,
            "failed_earlier": self.failed_earlier,
            "maintenance": self.maintenance and asdict(self.maintenance),
            "last_24h": _share_object(self.last_day, self.within) if self.states else None,
            "last_7d": _share_object(self.last_week) if self.states else None,
            "last": self.last,
        }


def _cells(words: Iterable[tuple[int, str]]) -> dict[str, str]:
    """Return one path per word, with a cell at each of its positions; an empty word draws nothing."""
    paths: dict[str, str] = {}
    for number, word in words:
        if word:
            height = 12 if word == "ok" else 20
            paths[word] = paths.get(word, "") + f"M{number * 5} {10 - height // 2}h4v{height}h-4z"
    return paths


def _word_of_share(share: Share) -> str:
    if not share.ended:
        return ""
    return "ok" if share.delivered == share.ended else "warning" if share.delivered else "failed"


def _share_object(share: Share, within: Mapping[float, float] | None = None) -> dict[str, Any]:
    shown: dict[str, Any] = {"messages": share.ended, "delivered": share.delivered}
    return shown | {f"p{part * 100:g}_seconds": seconds for part, seconds in (within or {}).items()}


class Views:
    """Builds the views of all routes from state, recent runs and the ledger's counters."""

    def __init__(self, runtime: Runtime, recent: Recent) -> None:
        self._runtime = runtime
        self.recent = recent

    @property
    def shortage(self) -> str:
        """What an overloaded agent has too little of, and what to do; empty if it keeps up."""
        return self._runtime.state.shortage

    @property
    def refused(self) -> Sequence[str]:
        """The mistakes because of which the configuration that was last read is not used."""
        return self._runtime.state.refused

    def routes(self) -> Iterator[RouteKey]:
        """Yield every route that exists now, including sub-probes."""
        yield from list(self._runtime.state.probes)

    def has(self, key: RouteKey) -> bool:
        """Return whether this route exists now."""
        return key in self._runtime.state.probes

    def has_probe(self, name: str) -> bool:
        """Return whether a probe with this name is configured."""
        return name in self._runtime.assembly.probes

    def flight_of(self, key: RouteKey) -> InFlight:
        """Return what a route has in flight, and whether the oldest message is late."""
        if key not in self._runtime.state.deliveries:
            return InFlight()
        flight = InFlight(*self._runtime.ledger.counters.flight(*key))
        if not flight.count:
            return flight
        if traces := self._runtime.state.deliveries[key].traces:
            flight = replace(flight, trace=next(iter(traces.values())))
        route = self.recent.routes.get(key, Route())
        return replace(flight, is_overdue=self._ages(flight, route).is_overdue)

    def maintenance_of(self, key: RouteKey) -> Period | None:
        """Return the maintenance that a route's probe is in now."""
        return self._runtime.state.maintenance.current(key[0], self._runtime.clock.time())

    def word(self, key: RouteKey) -> str:
        """Return the state of an existing route in one word."""
        return self._word(self.recent.routes.get(key, Route()), overdue=self.flight_of(key).is_overdue)

    def view(self, key: RouteKey) -> RouteView:
        """Return the view of an existing route."""
        state, delivery = self._runtime.state.probes[key], self._runtime.state.deliveries.get(key)
        probe, route = self._runtime.assembly.probes[key[0]], self.recent.routes.get(key, Route())
        mailbox = probe.mailbox if isinstance(probe, MessageProbe) and delivery is not None else None
        flight = self.flight_of(key)
        entered = self._runtime.ledger.counters.entered
        return RouteView(
            probe=state.name,
            kind=state.kind,
            target=state.target,
            word=self._word(route, overdue=flight.is_overdue),
            sentence=sentence(
                route.last,
                target=state.target,
                mailbox=mailbox,
                flight=self._ages(flight, route) if delivery is not None else None,
                hop_seconds=self.hop_seconds(key) if delivery is not None else None,
            ),
            last=route.last,
            last_at=route.last_at,
            points=tuple(route.points),
            flight=flight,
            states={str(each): entered(*key, each) for each in MessageState}
            if delivery is not None
            else None,
            has_routes=isinstance(probe, MessageProbe) or bool(probe.siblings),
            findings=route.findings if probe.checks else None,
            description=probe.settings.description,
            severity=probe.settings.severity,
            deadline=probe.settings.deadline,
            last_trace=delivery.last_trace if delivery is not None else None,
            overdue_after=self._runtime.overdue_after(*key) if delivery is not None else None,
            learns_overdue=getattr(probe.settings.alerts, "overdue", None) is None,
            failing_since=route.failing_since,
            failed_earlier=route.failed_earlier,
            maintenance=self.maintenance_of(key),
            at=self._runtime.clock.time(),
            week=self._runtime.ledger.last_week.route(*key),
        )

    def _ages(self, flight: InFlight, route: Route) -> Flight:
        now = self._runtime.clock.time()
        return Flight(
            flight.count,
            now - flight.oldest_at if flight.count else 0.0,
            route.points.longest,
            flight.intents,
            now - flight.oldest_intent_at if flight.intents else 0.0,
            flight.trace,
        )

    @staticmethod
    def _word(route: Route, *, overdue: bool) -> str:
        if not route.points:
            return "waiting"
        word = route.points.latest_word
        return "late" if overdue and word in {"ok", "warning"} else word

    def hop_seconds(self, key: RouteKey) -> dict[str, float]:
        """Return the delays of the last arrival by position, in seconds."""
        delivery = self._runtime.state.deliveries.get(key)
        waited = delivery.hop_seconds if delivery is not None else {}
        return {position: float(seconds) for position, seconds in waited.items()}

    def probe(self, name: str) -> Probe:
        """Return the configured probe with this name."""
        return self._runtime.assembly.probes[name]
