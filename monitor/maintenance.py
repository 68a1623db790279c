"""When which probes are in maintenance: a function of the configuration's windows and the ledger's pauses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Literal, Self

from monitor.config.maintenance import WindowSettings
from monitor.config.models import Configuration
from monitor.config.selection import chosen, labelled
from monitor.ledger.pauses import Pause


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

    def has(self, now: float) -> bool:
        """Return whether it is maintenance ``now`` (unix seconds)."""
        return self.begins_at <= now < self.ends_at


class _Window:
    """A window of the configuration, which remembers its latest period until the next one begins."""

    def __init__(self, name: str, settings: WindowSettings) -> None:
        self._name = name
        self._settings = settings
        self._known: tuple[float, float, Period | None] = (inf, -inf, None)

    def latest(self, now: float) -> Period | None:
        """Return the latest period that has begun ``now`` (unix seconds)."""
        since, until, period = self._known
        if since <= now < until:
            return period
        latest, following = self._settings.latest(now), self._settings.next(now)
        period = latest and Period(*latest, "window", self._name, self._settings.comment or "")
        begins_at = now if latest is None else latest[0]
        self._known = (begins_at, inf if following is None else following[0], period)
        return period


class Maintenance:
    """When which probes are in maintenance. Nothing changes it, so any thread may ask it."""

    def __init__(
        self,
        names: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
        windows: Mapping[str, WindowSettings] = MappingProxyType({}),
    ) -> None:
        """``names`` has all probes with their labels."""
        self._names = names
        self._windows: dict[str, list[_Window]] = {}  # by probe, as are the pauses
        self._pauses: dict[str, list[Period]] = {}
        self.pauses: tuple[Pause, ...] = ()
        for name, settings in windows.items():
            window = _Window(name, settings)
            for probe in chosen(names, settings.probes, settings.labels):
                self._windows.setdefault(probe, []).append(window)
        self.probes: Collection[str] = self._windows.keys()
        """The probes that have windows or pauses, now or at another time."""

    @classmethod
    def of(cls, configuration: Configuration, pauses: Iterable[Pause] = ()) -> Self:
        """Return the maintenance of a configuration, with pauses."""
        names = labelled(configuration.enabled_probes, configuration.site)
        return cls(names, configuration.maintenance).paused(pauses)

    def paused(self, pauses: Iterable[Pause]) -> Self:
        """Return the same with these pauses in place of others."""
        made = type(self)(self._names)
        made._windows, made.pauses = self._windows, tuple(pauses)
        of_selection: dict[str, list[Period]] = {}
        for pause in made.pauses:
            period = Period(pause.begins_at, pause.ends_at, "pause", pause.set_by, pause.comment)
            of_selection.setdefault(pause.selection, []).append(period)
        for pause in {pause.selection: pause for pause in made.pauses}.values():
            for probe in chosen(self._names, [pause.pattern] if pause.pattern else [], pause.labels):
                made._pauses.setdefault(probe, []).extend(of_selection[pause.selection])
        made.probes = made._windows.keys() | made._pauses.keys()
        return made

    def current(self, probe: str, now: float) -> Period | None:
        """Return the maintenance of a probe ``now`` (unix seconds); if there are several, the last to end."""
        periods = (period for period in self._begun(probe, now) if period.has(now))
        return max(periods, key=lambda period: period.ends_at, default=None)

    def counts_from(self, probe: str, now: float) -> float:
        """Return when the last maintenance of a probe ended, ``now`` (unix seconds); `math.inf` during one.

        Runs that began, and messages that were created before that, and end only now, do not count. Returns
        ``-inf`` if there was none. Pauses of more than two days ago are forgotten.
        """
        if probe not in self.probes:  # nearly all
            return -inf
        ends = (inf if period.has(now) else period.ends_at for period in self._begun(probe, now))
        return max(ends, default=-inf)

    def _begun(self, probe: str, now: float) -> Iterator[Period]:
        for window in self._windows.get(probe, ()):
            if (period := window.latest(now)) is not None:
                yield period
        yield from (period for period in self._pauses.get(probe, ()) if period.begins_at <= now)
