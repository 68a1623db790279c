"""The table ``maintenance``: windows in which failures of some probes are expected.

A window begins at the times of a cron expression, or once. What ends a window early, and pauses, which people
set while the agent runs, are the ledger's (`monitor.ledger.pauses`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from heapq import merge
from itertools import islice
from math import inf
from typing import Annotated, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from monitor.config.document import Location
from monitor.config.selection import Choice, chosen, grouped, labelled, nothing_chosen, pattern
from probes.core.setting_types import Duration, ForEach, Line, SiteLabels, between
from probes.core.settings import ProbeSettings, Settings, Site

LONGEST_WINDOW = 30 * 86400.0
"""Maximum length of a window or a pause, in seconds: to be quiet for longer, remove a probe."""

SHORTEST_WINDOW = 60.0

_YEARS = 1970, 9000

_SAMPLE = date(2024, 1, 1)
_SAMPLE_DAYS = 400
"""Windows that repeat are looked at for a year and a month from that day, which include a 29 February."""

_PERIODS = 10_000
"""How many periods are looked at, at most; so many without a gap never end."""


_OF_THE_MACHINE = frozenset({"localtime", "posixrules", "Factory"})
"""Zones whose meaning another machine may not share."""

_VARIANTS = frozenset({"posix", "right"})
"""Folders in which some systems have zones again, those in ``right`` with leap seconds."""


class _Times(CronSim):
    """The times of a cron expression, also where clocks change by half an hour, as in Australia/Lord_Howe.

    The library steps over whole hours, and would leave out the first half of the hour after such a change.
    """

    def advance_hour(self) -> bool:
        return self._step(minute=0, second=0)

    def reverse_hour(self) -> bool:
        return self._step(minute=59, second=59)

    def _step(self, minute: int, second: int) -> bool:
        if self.dt.hour in self.hours:
            return False
        self.dt = self.dt.replace(minute=minute, second=second)
        day = self.dt.day
        while self.dt.hour not in self.hours and self.dt.day == day:
            self.tick(seconds=1800)
        return True


def _cron(value: str) -> str:
    if len(value.split()) != 5:
        raise ValueError(
            f"{value!r} is not a cron expression; write minute, hour, day of month, month and day of week, "
            "such as 0 2 * * sun"
        )
    try:
        begins = next(_Times(value, datetime(2024, 1, 1, tzinfo=UTC)), None)
    except CronSimError as error:
        told = str(error)
        raise ValueError(f"{value!r} is not a cron expression: {told[:1].lower()}{told[1:]}") from None
    if begins is None:
        raise ValueError(f"{value!r} matches no day of the next 50 years")
    return value


@cache  # ZoneInfo itself remembers a few, and reads the others from the disk again
def _clock(zone: str) -> ZoneInfo:
    return ZoneInfo(zone)


def _zone(value: str) -> str:
    if value in _OF_THE_MACHINE or value.partition("/")[0] in _VARIANTS:
        raise ValueError(f"{value!r} is not a time zone's IANA name; write one such as Europe/Berlin or UTC")
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {value!r}; write one such as Europe/Berlin or UTC") from None
    return value


def _instant(value: object) -> object:
    if isinstance(value, str) and not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}|$)", value):
        raise ValueError(f"{value!r} is not a date and time such as 2026-12-01 22:00")
    if not isinstance(value, str | datetime) and not hasattr(value, "isoformat"):
        raise ValueError("must be a date and time such as 2026-12-01 22:00")
    return value


Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    WithJsonSchema({"type": "string", "examples": ["2026-12-01 22:00", "2026-12-01T22:00:00+01:00"]}),
]
"""A date and time; without an offset from UTC, it is in the window's ``timezone``."""

ProbePatterns = Annotated[tuple[Annotated[str, AfterValidator(pattern)], ...], Field(max_length=1000)]


class WindowSettings(Settings):
    """A maintenance window. Its probes run on, but alerts are quiet and objectives do not count the runs."""

    for_each: ForEach = None
    cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        default=None,
        description=(
            "When the window begins, again and again: minute, hour, day of month, month and day of week, "
            "such as `0 2 * * sun`, by the clock of `timezone`."
        ),
    )
    length: Annotated[Duration, between(SHORTEST_WINDOW, LONGEST_WINDOW)] | None = Field(
        default=None, alias="for", description="How long the window lasts, required with `cron`."
    )
    begins: Instant | None = Field(
        default=None,
        alias="from",
        description=(
            "When a window begins that happens once, such as `2026-12-01 22:00`; required without `cron`. "
            "The time is one of `timezone`, unless it has an offset."
        ),
    )
    until: Instant | None = Field(default=None, description="When a window ends that happens once.")
    timezone: Annotated[str, AfterValidator(_zone)] = Field(
        default="UTC", description="The time zone by its IANA name, such as `Europe/Berlin`."
    )
    probes: ProbePatterns = Field(
        default=(), description="The probes by name, or by patterns with `*`, `?` and `[…]`, such as `hq-*`."
    )
    labels: SiteLabels = Field(
        default_factory=dict,
        description="In place of `probes`: the probes with all of these labels, such as `{team: messaging}`.",
    )
    comment: Line | None = Field(
        default=None, description="What is done, in one line, for people who look at the live page."
    )

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if bool(self.probes) == bool(self.labels):
            raise ValueError('needs either probes, such as ["hq-*"], or labels, such as {team: messaging}')
        if (self.cron is None) == (self.begins is None):
            raise ValueError(
                "needs either cron, for a window that repeats, or from and until, for one that does not"
            )
        if self.cron is not None:
            if self.length is None or self.until is not None:
                raise ValueError("with cron, a window needs for, such as 2h, and has no until")
            if _endless({"": self}):
                raise ValueError(
                    "the window never ends: for more than 30 days, the next one begins before it is over; "
                    "shorten for"
                )
            return self
        if self.until is None or self.length is not None:
            raise ValueError("with from, a window needs until, and has no for")
        for key, moment in (("from", self.begins), ("until", self.until)):
            assert moment is not None  # noqa: S101 # both are set here
            if not _YEARS[0] <= moment.year <= _YEARS[1]:
                raise ValueError(f"{key}: write a year from {_YEARS[0]} to {_YEARS[1]}")
            if not _exists(moment, self.timezone):
                raise ValueError(f"{key}: the clock of {self.timezone} skips {moment:%Y-%m-%d %H:%M}")
        begins, ends = self.once
        if not SHORTEST_WINDOW <= ends - begins <= LONGEST_WINDOW:
            told = "ends before it begins" if ends <= begins else f"lasts {(ends - begins) / 86400:.3g} days"
            raise ValueError(f"the window {told}; it may last from 1 minute to 30 days")
        return self

    @property
    def choice(self) -> Choice:
        """What chooses the probes."""
        return Choice.of(self.probes, self.labels)

    @property
    def once(self) -> tuple[float, float]:
        """Begin and end (unix seconds) of a window without ``cron``."""
        assert self.begins is not None  # noqa: S101 # validated
        assert self.until is not None  # noqa: S101 # validated
        return _at(self.begins, self.timezone).timestamp(), _at(self.until, self.timezone).timestamp()

    def latest(self, at: float) -> tuple[float, float] | None:
        """Return begin and end of the latest window that has begun at ``at``; all in unix seconds."""
        if self.cron is None:
            return self.once if self.once[0] <= at else None
        # The library looks from the second before; a window that begins just now counts.
        moment = datetime.fromtimestamp(int(at) + 1, _clock(self.timezone))
        return self._lasting(next(_Times(self.cron, moment, reverse=True), None))

    def next(self, at: float) -> tuple[float, float] | None:
        """Return begin and end of the first window that begins after ``at``; all in unix seconds."""
        if self.cron is None:
            return self.once if self.once[0] > at else None
        moment = datetime.fromtimestamp(int(at), _clock(self.timezone))
        return self._lasting(next(_Times(self.cron, moment), None))

    def _lasting(self, begins: datetime | None) -> tuple[float, float] | None:
        if begins is None or self.length is None:
            return None
        return begins.timestamp(), begins.timestamp() + self.length


def _at(moment: datetime, zone: str) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=_clock(zone))


def _exists(moment: datetime, zone: str) -> bool:
    local = _at(moment, zone)
    return local.astimezone(UTC).astimezone(local.tzinfo).replace(fold=0) == local.replace(fold=0)


def _periods(name: str, window: WindowSettings) -> Iterator[tuple[float, float, str]]:
    """Yield begin and end (unix seconds) of a window, in order, and its name; in the sample if it repeats."""
    if window.cron is None or window.length is None:
        yield *window.once, name
        return
    times, zone = _Times(window.cron, datetime(_SAMPLE.year, 1, 1)), _clock(window.timezone)
    of_a_day: list[tuple[int, float]] = []  # in seconds since midnight; what follows without a gap is one
    for begins in sorted(3600 * hour + 60 * minute for hour in times.hours for minute in times.minutes):
        first = of_a_day.pop()[0] if of_a_day and begins <= of_a_day[-1][1] else begins
        of_a_day.append((first, begins + window.length))
    for day in (_SAMPLE + timedelta(days=number) for number in range(_SAMPLE_DAYS)):
        if day.month in times.months and times.match_day(day):
            for begins, ends in of_a_day:
                moment = time(begins // 3600, begins % 3600 // 60, tzinfo=zone)
                begins_at = datetime.combine(day, moment).timestamp()
                yield begins_at, begins_at + ends - begins, name


def _endless(windows: Mapping[str, WindowSettings], least: float = 0.0) -> Sequence[str]:
    """Return the windows that leave no gap of ``least`` seconds for longer than a window may last, if any.

    Either all ``windows`` repeat, or none.
    """
    begun_at = ends_at = -inf
    together: dict[str, None] = {}
    has_gap = False
    periods = merge(*(_periods(name, window) for name, window in windows.items()))
    for begins, ends, name in islice(periods, _PERIODS):
        if begins > ends_at and begins - ends_at >= least:
            has_gap, begun_at, together = ends_at > -inf, begins, {}
        together[name] = None
        ends_at = max(ends_at, ends)
        if ends_at - begun_at > LONGEST_WINDOW:
            return tuple(together)
    return () if has_gap or next(periods, None) is None else tuple(together)


def useless_windows(
    windows: Mapping[str, WindowSettings], probes: Collection[ProbeSettings], site: Site
) -> Iterator[tuple[Location, str]]:
    """Yield where windows are for no probe, or leave a probe no time in which it counts, and what to do."""
    if not windows:
        return
    names = labelled(probes, site)
    by_choice: dict[Choice, dict[str, WindowSettings]] = {}
    for window, settings in windows.items():
        by_choice.setdefault(settings.choice, {})[window] = settings
        for index, each in enumerate(settings.probes):
            if told := nothing_chosen(names, each):
                yield ("maintenance", window, "probes", index), told
        if settings.labels and (told := nothing_chosen(names, None, settings.labels)):
            yield ("maintenance", window, "labels"), told
    scheduled = {probe.name: probe for probe in probes if probe.scheduled}
    found: dict[Location, str] = {}
    for members, choices in grouped({choice: chosen(names, choice) for choice in by_choice}):
        its_windows = {name: each for choice in choices for name, each in by_choice[choice].items()}
        longest = {_longest(scheduled[name]): name for name in members if name in scheduled}
        for repeats in (True, False):
            alike = {name: each for name, each in its_windows.items() if (each.cron is not None) is repeats}
            for (seconds, key), probe in longest.items():
                if endless := _endless(alike, seconds):
                    at = ("maintenance", endless[-1], "for" if repeats else "until")
                    found.setdefault(at, _told(endless, probe, key, seconds))
    yield from found.items()


def _longest(probe: ProbeSettings) -> tuple[float, str]:
    """Return how many seconds a failure of a probe may take until it counts, and the setting that says so."""
    down = probe.alerts.down or 0.0
    return max((probe.interval, "interval"), (probe.deadline, "deadline"), (down, "alerts.down"))


def _told(windows: Sequence[str], probe: str, key: str, seconds: float) -> str:
    several = ", ".join(windows[:3]) + (" and others" if len(windows) > 3 else "")
    which, it = (f"the windows {several} leave", "one") if len(windows) > 1 else ("the window leaves", "it")
    return (
        f"{which} the probe {probe!r} no gap as long as its {key} ({seconds:g}s) in more than 30 days, so "
        f"its failures might never count; shorten {it}, or leave the probe out"
    )
