"""When which probes are in maintenance: a function of the configuration's windows and the ledger's pauses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Literal, NamedTuple, Self

from monitor.config.maintenance import WindowSettings
from monitor.config.models import Configuration
from monitor.config.selection import Choice, chosen, grouped, labelled, mailbox_of
from monitor.ledger.pauses import PAUSES_KEPT, Pause


@dataclass(frozen=True, slots=True)
class Period:
    """Maintenance of a probe, in unix seconds."""

    begins_at: float
    ends_at: float
    kind: Literal["window", "pause"]
    name: str
    """The name of the window, or of the user who paused."""
    comment: str

    @property
    def source(self) -> str:
        """What set it, in words."""
        return f"window {self.name}" if self.kind == "window" else f"pause by {self.name}"


class _Answer(NamedTuple):
    """What holds from ``since`` until ``until`` (unix seconds), when a period begins or ends."""

    since: float
    until: float
    current: Period | None
    counts_from: float

    def holds(self, now: float) -> bool:
        return self.since <= now < self.until


class _Window:
    """A window of the configuration, which remembers its latest period until the next one begins."""

    def __init__(self, name: str, settings: WindowSettings) -> None:
        self._name = name
        self._settings = settings
        self._known: tuple[float, float, Period | None] = (inf, -inf, None)

    def latest(self, now: float) -> tuple[Period | None, float]:
        """Return the latest period that has begun ``now``, and when the next begins (unix seconds)."""
        since, until, period = self._known
        if not since <= now < until:
            latest, following = self._settings.latest(now), self._settings.next(now)
            period = latest and Period(*latest, "window", self._name, self._settings.comment or "")
            until = inf if following is None else following[0]
            self._known = (now if latest is None else latest[0], until, period)
        return period, until


class _Timeline:
    """The maintenance of all probes that have the same windows and pauses.

    It remembers its answer until that changes: many probes ask often, and there may be many windows.
    """

    def __init__(self, windows: Sequence[_Window], pauses: Sequence[Period]) -> None:
        self._windows = windows
        self._pauses = pauses
        self._known = _Answer(inf, -inf, None, -inf)

    def at(self, now: float) -> _Answer:
        """Return what holds ``now`` (unix seconds)."""
        known = self._known  # once, because other threads may replace it
        if not known.holds(now):
            self._known = known = self._found(now)
        return known

    def _found(self, now: float) -> _Answer:
        periods = list(self._pauses)  # one that begins later is of now, too: the clock was set back
        since, until = -inf, inf
        for window in self._windows:
            period, following = window.latest(now)
            until = min(until, following)
            if period is not None:
                periods.append(period)
                since = max(since, period.begins_at)
        current: Period | None = None
        counts_from = -inf
        for period in periods:
            if period.ends_at <= now:
                since, counts_from = max(since, period.ends_at), max(counts_from, period.ends_at)
                continue
            until = min(until, period.ends_at)
            if current is None or period.ends_at > current.ends_at:
                current = period
        return _Answer(since, until, current, counts_from if current is None else inf)


class Maintenance:
    """When which probes are in maintenance. Nothing changes it, so any thread may ask it."""

    def __init__(
        self,
        names: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
        windows: Mapping[str, WindowSettings] = MappingProxyType({}),
        pauses: Iterable[Pause] = (),
    ) -> None:
        """``names`` has all probes with their labels."""
        self._names = names
        self._windows: dict[Choice, list[_Window]] = {}
        for name, settings in windows.items():
            self._windows.setdefault(settings.choice, []).append(_Window(name, settings))
        self._chosen = {choice: chosen(names, choice) for choice in self._windows}
        self._mailboxes: dict[str, list[str]] = {}  # their probes by name
        self.pauses = tuple(pauses)
        self._timelines = self._shared()
        self._held: Mapping[str, float] = {}  # when maintenance ended that an earlier configuration had

    @classmethod
    def of(cls, configuration: Configuration, pauses: Iterable[Pause] = ()) -> Self:
        """Return the maintenance of a configuration, with pauses."""
        probes = configuration.enabled_probes
        made = cls(labelled(probes, configuration.site), configuration.maintenance, pauses)
        for probe in probes:
            if (mailbox := mailbox_of(probe)) is not None:
                made._mailboxes.setdefault(mailbox, []).append(probe.name)
        return made

    @property
    def probes(self) -> Collection[str]:
        """The probes that have windows or pauses, now or at another time."""
        return self._timelines.keys()

    def paused(self, pauses: Iterable[Pause]) -> Self:
        """Return the same with these pauses in place of others."""
        made = copy(self)
        made.pauses = tuple(pauses)
        made._timelines = made._shared()
        return made

    def after(self, earlier: Maintenance, now: float) -> Self:
        """Return the same with the pauses of ``earlier``, which held until ``now`` (unix seconds).

        What was under way in its maintenance stays excused, also if there is no such window any more.
        """
        made = copy(self) if self.pauses == earlier.pauses else self.paused(earlier.pauses)
        ends = {
            probe: min(earlier.counts_from(probe, now), now)
            for probe in earlier._timelines.keys() | earlier._held.keys()
        }
        made._held = {probe: end for probe, end in ends.items() if end > now - PAUSES_KEPT}
        return made

    def _shared(self) -> dict[str, _Timeline]:
        """Return the timelines by probe; probes that are chosen by the same share one."""
        pauses: dict[Choice, list[Period]] = {}
        for pause in self.pauses:
            period = Period(pause.begins_at, pause.ends_at, "pause", pause.set_by, pause.comment)
            pauses.setdefault(Choice.of(pause.patterns, pause.labels), []).append(period)
        paused = {choice: chosen(self._names, choice) for choice in pauses if choice not in self._windows}
        found: dict[str, _Timeline] = {}
        for probes, choices in grouped({**self._chosen, **paused}):
            windows = [window for choice in choices for window in self._windows.get(choice, ())]
            periods = [period for choice in choices for period in pauses.get(choice, ())]
            found |= dict.fromkeys(probes, _Timeline(windows, periods))
        return found

    def current(self, probe: str, now: float) -> Period | None:
        """Return the maintenance of a probe ``now`` (unix seconds); if there are several, the last to end."""
        timeline = self._timelines.get(probe)
        return None if timeline is None else timeline.at(now).current

    def has_mailbox(self, mailbox: str, now: float) -> bool:
        """Return whether all probes of a mailbox are in maintenance ``now`` (unix seconds)."""
        probes = self._mailboxes.get(mailbox, ())
        return bool(probes) and all(self.current(probe, now) is not None for probe in probes)

    def counts_from(self, probe: str, now: float) -> float:
        """Return when the last maintenance of a probe ended, ``now`` (unix seconds); `math.inf` during one.

        Runs that began, and messages that were created before that, and end only now, do not count. Returns
        ``-inf`` if there was none. Pauses of more than two days ago are forgotten.
        """
        timeline, held = self._timelines.get(probe), self._held.get(probe, -inf)
        if held > now:  # the clock was set back
            held = -inf
        return held if timeline is None else max(held, timeline.at(now).counts_from)
