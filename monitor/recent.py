"""The latest runs of each route, kept in memory so that the live page need not query the ledger."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from monitor.maintenance import Period
from probes.core.reasons import Outcome, Reason
from probes.registry import MESSAGE_KINDS

POINTS_KEPT = 40
"""Number of runs to keep for each route."""

RouteKey = tuple[str, str]
"""A probe's name and its target."""


_WORDS = ("ok", "warning", "failed", "unknown")
_POINT = struct.Struct("<Bdd")  # position in `_WORDS`, seconds and uncertainty, which are NaN if not known


class Point(NamedTuple):
    """One finished run; ``seconds`` is the delivery latency of a message, else the duration of the run."""

    word: str  # ok, warning, failed or unknown
    seconds: float | None
    uncertainty: float | None


class Points:
    """The latest `POINTS_KEPT` points of a route, oldest first, in 17 octets each."""

    __slots__ = ("_packed",)

    def __init__(self) -> None:
        self._packed = b""

    def append(self, point: Point) -> None:
        """Add the newest point."""
        word, seconds, uncertainty = point
        packed = _POINT.pack(
            _WORDS.index(word),
            math.nan if seconds is None else seconds,
            math.nan if uncertainty is None else uncertainty,
        )
        self._packed = (self._packed + packed)[-POINTS_KEPT * _POINT.size :]

    def __len__(self) -> int:
        return len(self._packed) // _POINT.size

    def __iter__(self) -> Iterator[Point]:
        for word, seconds, uncertainty in _POINT.iter_unpack(self._packed):
            yield Point(
                _WORDS[word],
                None if math.isnan(seconds) else seconds,
                None if math.isnan(uncertainty) else uncertainty,
            )

    @property
    def latest_word(self) -> str:
        """The word of the newest point, of which there must be one."""
        return _WORDS[self._packed[-_POINT.size]]

    @property
    def longest(self) -> float | None:
        """The longest latency that was measured."""
        unpacked = _POINT.iter_unpack(self._packed)
        measured = [seconds for _, seconds, uncertainty in unpacked if not math.isnan(uncertainty)]
        return max((seconds for seconds in measured if not math.isnan(seconds)), default=None)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A route's messages in flight; instants in unix seconds, 0 if there is no such message."""

    count: int = 0
    oldest_at: float = 0.0
    intents: int = 0  # how many of them no server has accepted yet
    oldest_intent_at: float = 0.0
    is_overdue: bool = False
    trace: str = ""  # what the message trace says about the oldest that was traced


@dataclass(slots=True)
class Route:
    """The latest runs of one route, the last one in full, and what is derived from them."""

    version: int = 0
    last: dict[str, Any] | None = None
    last_at: float | None = None  # unix seconds: when it began
    findings: Sequence[Mapping[str, str]] = ()  # of the last run with a known result
    failing_since: float | None = None  # unix seconds: when the first of the current failed runs began
    failed_earlier: bool = False  # whether runs before it, which are no longer known, may have failed too
    points: Points = field(default_factory=Points)
    row: str = ""  # the rendered row; empty if the route has changed since
    word: str = ""  # the state in one word; empty if the route has changed since
    flight: InFlight = InFlight()  # the last result of `Views.flight_of` that clients were sent
    maintenance: Period | None = None  # likewise, of `Views.maintenance_of`


class Recent:
    """The latest runs by route. Every change has a version, greater than all earlier ones.

    Versions keep increasing across restarts of the agent: they start from the current time in milliseconds.
    """

    def __init__(self, now: float) -> None:
        self.version = int(now * 1000)
        self.routes: dict[RouteKey, Route] = {}
        self._targets: dict[str, set[str]] = {}  # of the routes, by probe
        self._news = asyncio.Event()

    def take_in(self, run: Mapping[str, Any]) -> None:
        """Add a finished run, from `Result.with_transcript` or the ledger's history."""
        key = run["probe"], run["target"]
        route = self.route(key)
        route.last = {**run}
        route.last.pop("transcript", None)  # large, and the ledger keeps it
        route.last_at = began_at(run)
        if "findings" in run and run["outcome"] != Outcome.UNKNOWN:
            route.findings = run["findings"]
        if run["outcome"] == Outcome.OK:
            route.failing_since = None
        elif run["outcome"] == Outcome.FAILED and route.failing_since is None:
            route.failing_since = route.last_at
            route.failed_earlier = all(known.word == Outcome.UNKNOWN for known in route.points)
        route.points.append(point_of(run))
        self.touch(key)

    def keep_only(self, probe: str, targets: Container[str]) -> None:
        """Forget the routes of ``probe`` except those to ``targets``."""
        gone = [target for target in self._targets.get(probe, ()) if target not in targets]
        for target in gone:
            self._targets[probe].discard(target)
            del self.routes[probe, target]
        if gone:
            self.version += 1
            self._news.set()

    def touch(self, key: RouteKey) -> None:
        """Mark a route as changed, so that it is rendered again."""
        self.version += 1
        route = self.route(key)
        route.version, route.row, route.word = self.version, "", ""
        self._news.set()

    def route(self, key: RouteKey) -> Route:
        """Return the data of an existing route."""
        if (route := self.routes.get(key)) is None:
            route = self.routes[key] = Route()
            self._targets.setdefault(key[0], set()).add(key[1])
        return route

    def changed_since(self, version: int) -> list[RouteKey]:
        """Return the routes that changed after ``version``."""
        return [key for key, route in self.routes.items() if route.version > version]

    async def beyond(self, version: int) -> None:
        """Return as soon as there is a change after ``version``."""
        while self.version <= version:
            self._news.clear()
            await self._news.wait()


def began_at(run: Mapping[str, Any]) -> float:
    """Return when a run began, in unix seconds."""
    return datetime.fromisoformat(run["started_at"]).timestamp()


def word_of(run: Mapping[str, Any]) -> str:
    """Return a run's outcome in one word: ok, warning, failed or unknown, as `Reason.word` does.

    The run may be from an older or newer version, with a reason that this one does not know.
    """
    is_warning = run["outcome"] == Outcome.OK and run["reason"] != Reason.NONE
    return "warning" if is_warning else str(run["outcome"])


def point_of(run: Mapping[str, Any]) -> Point:
    """Return the point for a run."""
    message = run.get("message") or {}
    measured = message.get("uncertainty_seconds") is not None
    sends = "message" in run or run["kind"] in MESSAGE_KINDS
    return Point(
        word=word_of(run),
        seconds=message.get("delivery_seconds") if sends else run["duration_seconds"],
        uncertainty=message["uncertainty_seconds"] if measured else None,
    )
