"""The table ``maintenance``: windows in which failures of some probes are expected.

A window begins at the times of a cron expression, or once. What ends a window early, and pauses, which people
set while the agent runs, are the ledger's (`monitor.ledger.pauses`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from math import inf
from typing import Annotated, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from monitor.config.document import Location
from monitor.config.selection import chosen, labelled, nothing_chosen, pattern
from probes.core.setting_types import Duration, ForEach, Line, SiteLabels, between
from probes.core.settings import ProbeSettings, Settings, Site

LONGEST_WINDOW = 30 * 86400.0
"""Maximum length of a window or a pause, in seconds: to be quiet for longer, remove a probe."""

SHORTEST_WINDOW = 60.0

_YEARS = 1970, 9000

_GAPS = 60
"""How many windows are looked at for the shortest time between two of them."""

_STEPS = 2000
"""How many windows may follow each other without a gap; more of them are one that never ends."""


def _cron(value: str) -> str:
    if len(value.split()) != 5:
        raise ValueError(
            f"{value!r} is not a cron expression; write minute, hour, day of month, month and day of week, "
            "such as 0 2 * * sun"
        )
    try:
        begins = next(CronSim(value, datetime(2024, 1, 1, tzinfo=UTC)), None)
    except CronSimError as error:
        told = str(error)
        raise ValueError(f"{value!r} is not a cron expression: {told[:1].lower()}{told[1:]}") from None
    if begins is None:
        raise ValueError(f"{value!r} matches no day of the next 50 years")
    return value


def _zone(value: str) -> str:
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
            if _never_ends(self):
                raise ValueError("the window never ends: the next one begins before it is over; shorten for")
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
        moment = datetime.fromtimestamp(int(at) + 1, ZoneInfo(self.timezone))
        return self._lasting(next(CronSim(self.cron, moment, reverse=True), None))

    def next(self, at: float) -> tuple[float, float] | None:
        """Return begin and end of the first window that begins after ``at``; all in unix seconds."""
        if self.cron is None:
            return self.once if self.once[0] > at else None
        moment = datetime.fromtimestamp(int(at), ZoneInfo(self.timezone))
        return self._lasting(next(CronSim(self.cron, moment), None))

    def _lasting(self, begins: datetime | None) -> tuple[float, float] | None:
        if begins is None or self.length is None:
            return None
        return begins.timestamp(), begins.timestamp() + self.length


def _at(moment: datetime, zone: str) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=ZoneInfo(zone))


def _exists(moment: datetime, zone: str) -> bool:
    local = _at(moment, zone)
    return local.astimezone(UTC).astimezone(local.tzinfo).replace(fold=0) == local.replace(fold=0)


def _never_ends(window: WindowSettings) -> bool:
    """Return whether windows follow each other without a gap, over `_STEPS` of them."""
    first = window.next(datetime(2024, 1, 1, tzinfo=UTC).timestamp())
    if first is None:
        return False
    begins, ends = first
    for _ in range(_STEPS):
        last = window.latest(ends)
        if last is None or last[0] <= begins:
            return False
        begins, ends = last
    return True


def useless_windows(
    windows: Mapping[str, WindowSettings], probes: Collection[ProbeSettings], site: Site
) -> Iterator[tuple[Location, str]]:
    """Yield where windows are for no probe, or so close that a probe might never count, and what to do."""
    if not windows:
        return
    names = labelled(probes, site)
    for window, settings in windows.items():
        at: Location = ("maintenance", window)
        for index, each in enumerate(settings.probes):
            if told := nothing_chosen(names, each):
                yield (*at, "probes", index), told
        if told := nothing_chosen(names, settings.labels):
            yield (*at, "labels"), told
        gap = _shortest_gap(settings)
        its = chosen(names, settings.probes, settings.labels)
        for probe in probes:
            if probe.name in its and probe.scheduled and (told := _too_long_for(probe, gap)):
                yield (*at, "for"), told
                break


def _shortest_gap(window: WindowSettings) -> float:
    """Return how many seconds are between two windows, at least."""
    period, gap = window.next(datetime(2024, 1, 1, tzinfo=UTC).timestamp()), inf
    for _ in range(_GAPS):
        following = window.next(period[0]) if period is not None else None
        if period is None or following is None:
            break
        gap, period = min(gap, following[0] - period[1]), following
    return gap


def _too_long_for(probe: ProbeSettings, gap: float) -> str:
    """Say that failures of a probe might all have a part in windows, and never count; empty if not."""
    times = {"interval": probe.interval, "deadline": probe.deadline, "alerts.down": probe.alerts.down or 0.0}
    key = max(times, key=lambda each: times[each])
    if times[key] <= gap:
        return ""
    return (
        f"there are only {gap:g}s between two windows, less than the {key} of the probe {probe.name!r} "
        f"({times[key]:g}s), whose failures might never count; shorten for, or leave the probe out"
    )
