"""The routes of the overview: problems first, filtered, and a page at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

from starlette.datastructures import QueryParams

from monitor.recent import RouteKey
from monitor.slices import in_slices
from monitor.web.views import FROM_BAD_TO_GOOD, Views

ROUTES_SHOWN = 200
"""Maximum rows of a page of the overview."""

ROUTES_A_TURN = 2000
"""Maximum routes to look at each second for messages that were sent or arrived, because that takes 10 ms."""

_LONGEST_SEARCH = 100
_NO_PROBLEM = frozenset({"ok", "waiting"})


@dataclass(frozen=True, slots=True)
class Selection:
    """What a page of the overview shows: routes with ``wanted`` in their name, all or only problems."""

    wanted: str = ""
    only_wrong: bool = False
    page: int = 1

    @classmethod
    def of(cls, query: QueryParams) -> Self:
        """Return the selection of a request: ``?q=TEXT&wrong=1&page=NUMBER``."""
        page = query.get("page", "")
        number = int(page) if page.isascii() and page.isdecimal() and len(page) < 10 else 1
        return cls(query.get("q", "")[:_LONGEST_SEARCH], "wrong" in query, max(1, number))


@dataclass(frozen=True, slots=True)
class Listing:
    """The routes that fit a selection, and the page of them that it shows."""

    fitting: Sequence[RouteKey]
    page: int  # from 1; the last page if the selection asks for a later one
    pages: int
    counts: Mapping[str, int]  # of all routes by state, the worst state first
    version: int

    @property
    def before(self) -> int:
        """How many routes are on earlier pages."""
        return (self.page - 1) * ROUTES_SHOWN

    @property
    def routes(self) -> Sequence[RouteKey]:
        """The routes on this page."""
        return self.fitting[self.before : self.before + ROUTES_SHOWN]


class Standings:
    """Keeps the order of all routes, for every page and stream that shows them."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._version = -1
        self._by_word: dict[str, list[RouteKey]] = {}  # each in the order of names
        self._ordering = asyncio.Lock()

    async def listing(self, selection: Selection, since: int) -> Listing:
        """Return what ``selection`` shows, with at least all changes up to the version ``since``."""
        async with self._ordering:  # one order serves everybody who waits for it
            if self._version < since:
                await self._put_in_order()
        version, by_word = self._version, self._by_word
        fitting = await _fitting(by_word, selection)
        counts = {word: len(routes) for word, routes in by_word.items()}
        last = max(1, math.ceil(len(fitting) / ROUTES_SHOWN))
        return Listing(fitting, min(selection.page, last), last, counts, version)

    async def _put_in_order(self) -> None:
        version = self._views.recent.version
        by_word: dict[str, list[RouteKey]] = {word: [] for word in FROM_BAD_TO_GOOD}
        async for key in in_slices(self._views.routes()):
            if self._views.has(key):
                route = self._views.recent.route(key)
                route.word = route.word or self._views.word(key)
                by_word[route.word].append(key)
        for routes in by_word.values():
            routes.sort()  # quick, because the routes of a configuration are mostly in order
        self._version, self._by_word = version, {word: routes for word, routes in by_word.items() if routes}

    async def look_at_flights(self) -> None:
        """Mark a route as changed if messages were sent, arrived or got late, or maintenance changed."""
        await self._look_at(self._views.routes())

    async def keep_looking(self, pause: float) -> None:
        """Look at the flights of all routes, `ROUTES_A_TURN` at a time, with ``pause`` seconds in between."""
        while True:
            routes = list(self._views.routes())
            for begin in range(0, max(1, len(routes)), ROUTES_A_TURN):
                await self._look_at(routes[begin : begin + ROUTES_A_TURN])
                await asyncio.sleep(pause)

    async def _look_at(self, routes: Iterable[RouteKey]) -> None:
        async for key in in_slices(routes):
            if not self._views.has(key):
                continue
            route, flight = self._views.recent.route(key), self._views.flight_of(key)
            maintenance = self._views.maintenance_of(key)
            if route.flight != flight or route.maintenance != maintenance:
                route.flight, route.maintenance = flight, maintenance
                self._views.recent.touch(key)


async def _fitting(by_word: Mapping[str, Sequence[RouteKey]], selection: Selection) -> list[RouteKey]:
    chosen = chain.from_iterable(
        routes for word, routes in by_word.items() if not (selection.only_wrong and word in _NO_PROBLEM)
    )
    wanted = selection.wanted.lower()
    if not wanted:
        return list(chosen)
    return [key async for key in in_slices(chosen) if wanted in f"{key[0]} {key[1]}".lower()]
