"""The latest runs of each route in memory: what the live page draws without asking the ledger."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from probes.core.reasons import Outcome, Reason
from probes.registry import MESSAGE_KINDS

POINTS_KEPT = 40
"""Runs of each route that are kept."""

RouteKey = tuple[str, str]
"""A probe's name and its target."""


@dataclass(frozen=True, slots=True)
class Point:
    """One finished run; ``seconds`` is the delivery where ``uncertainty`` is known, else how long it took."""

    run: str
    at: float  # unix seconds
    word: str  # ok, warning, failed or unknown
    reason: str
    seconds: float | None
    uncertainty: float | None


@dataclass(frozen=True, slots=True)
class InFlight:
    """A route's messages in flight; instants in unix seconds, 0 if there is no such message."""

    count: int = 0
    oldest_at: float = 0.0
    intents: int = 0  # how many of them no server has accepted yet
    oldest_intent_at: float = 0.0
    is_overdue: bool = False


@dataclass(slots=True)
class Route:
    """The latest runs of one route, oldest first, the last of them as a whole, and what was made of them."""

    version: int = 0
    last: dict[str, Any] | None = None
    findings: Sequence[Mapping[str, str]] = ()  # of the last run that could judge
    failing_since: float | None = None  # unix seconds: when the first of the failed runs in a row began
    failed_earlier: bool = False  # whether runs that are not known may have failed before it
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=POINTS_KEPT))
    row: str = ""  # as drawn since it changed, or empty
    word: str = ""  # its state, as worked out since it changed, or empty
    flight: InFlight = InFlight()  # as `Views.flight_of` last told who watched


class Recent:
    """The latest runs by route. Every change has a version, greater than all before it.

    Versions go on increasing over restarts of the agent, because they begin at its time in milliseconds.
    """

    def __init__(self, now: float) -> None:
        self.version = int(now * 1000)
        self.routes: dict[RouteKey, Route] = {}
        self._news = asyncio.Event()

    def take_in(self, run: Mapping[str, Any]) -> None:
        """Take in a finished run, as `Result.with_transcript` or the ledger's history gives it."""
        key = run["probe"], run["target"]
        route = self.route(key)
        route.last = {**run}
        route.last.pop("transcript", None)  # the ledger keeps what was said; here it would only take room
        if "findings" in run and run["outcome"] != Outcome.UNKNOWN:
            route.findings = run["findings"]
        point = point_of(run)
        if run["outcome"] == Outcome.OK:
            route.failing_since = None
        elif run["outcome"] == Outcome.FAILED and route.failing_since is None:
            route.failing_since = point.at
            route.failed_earlier = all(known.word == Outcome.UNKNOWN for known in route.points)
        route.points.append(point)
        self.touch(key)

    def keep_only(self, probe: str, targets: Container[str]) -> None:
        """Forget the routes of ``probe`` to targets that are gone."""
        for key in [key for key in self.routes if key[0] == probe and key[1] not in targets]:
            del self.routes[key]

    def touch(self, key: RouteKey) -> None:
        """Count what is shown of a route as changed."""
        self.version += 1
        route = self.route(key)
        route.version, route.row, route.word = self.version, "", ""
        self._news.set()

    def route(self, key: RouteKey) -> Route:
        """Return what is kept of a route that there is."""
        return self.routes.get(key) or self.routes.setdefault(key, Route())

    def changed_since(self, version: int) -> list[RouteKey]:
        """Return the routes that changed after ``version``."""
        return [key for key, route in self.routes.items() if route.version > version]

    async def beyond(self, version: int) -> None:
        """Return once something is newer than ``version``."""
        while self.version <= version:
            self._news.clear()
            await self._news.wait()


def word_of(run: Mapping[str, Any]) -> str:
    """Return a run's outcome in a word, with a warning told apart from ok, as `Reason.word` does.

    The run may be an older or newer version's, and its reason none of ours.
    """
    is_warning = run["outcome"] == Outcome.OK and run["reason"] != Reason.NONE
    return "warning" if is_warning else str(run["outcome"])


def point_of(run: Mapping[str, Any]) -> Point:
    """Return what is kept of a run."""
    message = run.get("message") or {}
    measured = message.get("uncertainty_seconds") is not None
    sends = "message" in run or run["kind"] in MESSAGE_KINDS
    return Point(
        run=str(run.get("run", "")),
        at=datetime.fromisoformat(run["started_at"]).timestamp(),
        word=word_of(run),
        reason=run["reason"],
        seconds=message.get("delivery_seconds") if sends else run["duration_seconds"],
        uncertainty=message["uncertainty_seconds"] if measured else None,
    )
