"""The pages, as HTML or as JSON depending on what the client accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from monitor.ledger.last_week import WEEK_HOURS
from monitor.ledger.store import SqlLedger
from monitor.recent import POINTS_KEPT, RouteKey, began_at, point_of, word_of
from monitor.slices import in_slices
from monitor.web.events import Events
from monitor.web.fairness import RequestLimit
from monitor.web.runbooks import as_html, runbook
from monitor.web.standings import Selection, Standings
from monitor.web.status_text import capital, duration, explained, share
from monitor.web.views import HEIGHT, WIDTH, RouteView, Views
from probes.delivery.message_life import LedgerError

RUNS_SHOWN = 100
"""Runs, and failed runs, of a route on its probe's page: as many as the ledger keeps."""

_HERE = Path(__file__).parent
_RUN_ID = re.compile(r"[0-9a-f]{32}")

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "vary": "Accept",
}
"""The pages run, load and send only to the agent itself; text from servers is never markup."""


class Pages:
    """The handlers for the overview, the probes, their runs, and the events that update the pages."""

    def __init__(self, views: Views, ledger: SqlLedger, notices: Callable[[], Iterable[str]] = tuple) -> None:
        """``notices`` returns sentences for people who operate the agent."""
        self._views = views
        self._notices = notices
        self._ledger = ledger
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.policies["json.dumps_kwargs"] = {}  # keeps phases in order
        self._templates.filters |= {
            "duration": duration,
            "instant": _instant,
            "explained": explained,
            "capital": capital,
            "share": share,
        }
        self._templates.globals |= {
            "agent_version": version("mailsonde"),
            "cells": POINTS_KEPT,
            "week_cells": WEEK_HOURS,
            "spark": (WIDTH, HEIGHT),
            "word_of": word_of,
        }
        self._row = self._templates.get_template("row.html").module.row  # type: ignore[attr-defined] # a macro
        self._standings = Standings(views)
        self._events = Events(views, self._standings, self._render_row)

    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes for the application."""
        compressed = [Middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)]
        # One page of each sort at a time, so that a slow ledger delays only the pages that need it.
        of_state, of_ledger = RequestLimit(at_once=1), RequestLimit(at_once=1)
        return [
            Route("/", of_state.before(self.overview), middleware=compressed),
            Route("/probes/{probe}", of_ledger.before(self.probe), middleware=compressed),
            Route("/probes/{probe}/runs/latest", of_ledger.before(self.latest_run)),
            Route("/probes/{probe}/runs/{run}", of_ledger.before(self.run), middleware=compressed),
            Route("/runbooks/{alert}", self.runbook, middleware=compressed),
            Route("/events", self._events, methods=["GET"]),
            Mount("/static", StaticFiles(directory=_HERE / "static"), middleware=compressed),
        ]

    def _render_row(self, key: RouteKey) -> str:
        return str(self._row(self._views.view(key)))

    async def _answer(
        self, request: Request, template: str, shown: Mapping[str, Any], data: object
    ) -> Response:
        if _wants_json(request):
            return JSONResponse(data, headers=SECURITY_HEADERS)
        return await self._html(template, shown)

    async def _html(self, template: str, shown: Mapping[str, Any]) -> Response:
        texts = self._templates.get_template(template).generate(shown)
        return HTMLResponse("".join([text async for text in in_slices(texts)]), headers=SECURITY_HEADERS)

    async def overview(self, request: Request) -> Response:
        """Show the routes, problems first, a page at a time; as JSON, all of them or the requested page."""
        selection = Selection.of(request.query_params)
        await self._standings.look_at_flights()
        listing = await self._standings.listing(selection, self._views.recent.version)
        if _wants_json(request):
            shown = listing.routes if "page" in request.query_params else listing.fitting
            views = [self._views.view(key) async for key in in_slices(shown) if self._views.has(key)]
            return await _json_in_turns("probes", (view.as_object() for view in views))
        rows = [self._render_row(key) async for key in in_slices(listing.routes) if self._views.has(key)]
        context = {
            "rows": rows,
            "listing": listing,
            "selection": selection,
            "whole": len(rows) == sum(listing.counts.values()),
            "shortage": self._views.shortage,
            "refused": self._views.refused,
            "notices": list(self._notices()),
        }
        return await self._html("overview.html", context)

    async def probe(self, request: Request) -> Response:
        """Show one probe: its routes, the charts of one of them, the last runs and the last failures."""
        name, since = request.path_params["probe"], self._views.recent.version
        views, view = self._requested(request)
        runs = await self._runs(name, view.target, failures=False)
        failures = await self._runs(name, view.target, failures=True)
        hops = self._views.hop_seconds((name, view.target))
        data = view.as_object() | {"hop_seconds": hops, "runs": runs, "failures": failures}
        context = {"view": view, "views": views, "runs": runs, "failures": failures, "hops": hops}
        return await self._answer(
            request, "probe.html", context | {"since": since, "chart": _chart(view, runs)}, data
        )

    def _requested(self, request: Request) -> tuple[Sequence[RouteView], RouteView]:
        """Return all routes of the probe, and the one that the request is about; raises HTTPException."""
        name = request.path_params["probe"]
        if not self._views.has_probe(name):
            raise HTTPException(404, "no probe with this name is configured")
        views = [self._views.view(key) for key in self._views.routes() if key[0] == name]
        if not views:
            raise HTTPException(404, "this probe is not scheduled: only /probe and `check` run it")
        wanted = request.query_params.get("target")
        return views, next((view for view in views if view.target == wanted), _most_telling(views))

    async def _runs(self, probe: str, target: str, *, failures: bool) -> list[dict[str, Any]]:
        """Return the latest runs of a route, newest first, without their transcripts."""
        with _told_if_unreadable():
            return await self._ledger.recent_runs(probe, target, RUNS_SHOWN, failures=failures)

    async def run(self, request: Request) -> Response:
        """Show one run with its transcript."""
        name, wanted = request.path_params["probe"], request.path_params["run"]
        found = None
        if _RUN_ID.fullmatch(wanted):
            with _told_if_unreadable():
                found = await self._ledger.find_run(name, wanted)
        if found is None:
            raise HTTPException(
                404,
                "no such run; the agent keeps the last agent.runs_kept runs and failures of a route",
            )
        return await self._answer(request, "run.html", {"run": found}, found)

    async def latest_run(self, request: Request) -> Response:
        """Redirect to the latest run of a route, or the latest with ``outcome``: alerts link here.

        Without such a run, redirect to the probe's page.
        """
        _, view = self._requested(request)
        outcome = request.query_params.get("outcome")
        runs = await self._runs(view.probe, view.target, failures=outcome in {"failed", "unknown"})
        found = (run["run"] for run in runs if outcome in {None, run["outcome"]} and "run" in run)
        # Relative, so that the client's Host is not repeated.
        where = next(found, f"../../{view.probe}?target={quote(view.target)}")
        return Response(status_code=302, headers={**SECURITY_HEADERS, "location": where})

    async def runbook(self, request: Request) -> Response:
        """Show the runbook of an alert."""
        name = request.path_params["alert"].removesuffix(".md")
        text = runbook(name)
        if text is None:
            raise HTTPException(404, "there is no runbook with this name")
        return await self._answer(
            request, "runbook.html", {"name": name, "text": as_html(text)}, {"alert": name, "markdown": text}
        )

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answer with an error message, as HTML or JSON."""
        assert isinstance(error, HTTPException)  # noqa: S101 # registered for this class alone
        headers = {**SECURITY_HEADERS, **(error.headers or {})}
        if request.method == "HEAD" or error.status_code in {204, 304}:
            return Response(status_code=error.status_code, headers=headers)
        if _wants_json(request):
            return JSONResponse({"error": error.detail}, error.status_code, headers=headers)
        what = HTTPStatus(error.status_code).phrase
        text = self._templates.get_template("error.html").render(what=what, detail=error.detail)
        return HTMLResponse(text, error.status_code, headers=headers)


@contextmanager
def _told_if_unreadable() -> Iterator[None]:
    """Answer 503 with the ledger's own message if it cannot be read."""
    try:
        yield
    except LedgerError as error:
        raise HTTPException(503, f"the ledger cannot be read: {error}") from error


async def _json_in_turns(name: str, objects: Iterable[object]) -> Response:
    """Answer with an object with one member, a list that may be long."""
    texts = [json.dumps(each, ensure_ascii=False, allow_nan=False) async for each in in_slices(objects)]
    text = f'{{"{name}": [{", ".join(texts)}]}}'
    return Response(text, media_type="application/json", headers=SECURITY_HEADERS)


def _wants_json(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted


def _most_telling(views: Sequence[RouteView]) -> RouteView:
    """Return the route whose charts to show: the worst one, or the worst one that sends messages."""
    return min(views, key=lambda view: (view.states is None, view.rank))


def _instant(at: float | str) -> str:
    """Return an instant (unix seconds or RFC 3339) as RFC 3339 in UTC, whole seconds."""
    moment = datetime.fromisoformat(at) if isinstance(at, str) else datetime.fromtimestamp(at, UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _chart(view: RouteView, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the charts' data, oldest first: seconds, and a list of seconds for each phase."""
    oldest_first = runs[::-1]
    points = [point_of(run) for run in oldest_first]
    names = dict.fromkeys(phase for run in runs for phase in run["phases"])
    return {
        "at": [round(began_at(run), 3) for run in oldest_first],
        "word": [point.word for point in points],
        "run": [run.get("run", "") for run in oldest_first],
        "seconds": [point.seconds for point in points],
        "uncertainty": [point.uncertainty for point in points],
        "phases": {name: [run["phases"].get(name) for run in oldest_first] for name in names},
        "deadline": view.deadline,
        "sends": view.states is not None,
    }
