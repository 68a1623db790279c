"""The latest finished runs of each route (a probe and its target). Failures are kept longer."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from sqlalchemy import (
    Connection,
    ScalarSelect,
    and_,
    bindparam,
    delete,
    false,
    func,
    insert,
    or_,
    select,
    tuple_,
)

from monitor.ledger.compiled import CompiledStatement
from monitor.ledger.limits import ROUTES_KEPT
from monitor.ledger.packing import packed
from monitor.ledger.schema import runs

FORGOTTEN_AT_ONCE = 100
"""Maximum number of runs that are removed in one transaction, so that messages need not wait long."""

Route = tuple[str, str]
"""A probe and its target."""

Documents = tuple[bytes | str, bytes | str | None]
"""A run as one JSON object, and its transcript as a JSON list of lines if requested, both `packed`."""

_ENCODER = json.JSONEncoder(default=dict)  # a mapping of another type than dict


def add_runs(connection: Connection, location: str, finished: Sequence[Mapping[str, object]]) -> None:
    """Add finished runs: JSON objects with at least ``run``, ``probe``, ``target`` and ``outcome``."""
    connection.execute(insert(runs), [_row(run) | {"location": location} for run in finished])


def _row(run: Mapping[str, object]) -> dict[str, object]:
    """Return a run's row. The transcript has its own column, because it is large and rarely read."""
    transcript = run.get("transcript")
    return {
        "run": run["run"],
        "probe": run["probe"],
        "target": run["target"],
        "failed": run["outcome"] != "ok",
        "document": packed(_ENCODER.encode({name: run[name] for name in run if name != "transcript"})),
        "transcript": None if transcript is None else packed(_ENCODER.encode(transcript)),
    }


def forget_old_runs(connection: Connection, location: str, routes: Iterable[Route], kept: int) -> None:
    """Keep only the ``kept`` latest runs, and latest failed runs, of these routes."""
    for route in routes:
        connection.execute(_FORGET_OLD, _of(location, route) | {"kept": kept})


def gone_routes(connection: Connection, location: str) -> list[Route]:
    """Return the routes that are not among the latest `ROUTES_KEPT` of their probe to run."""
    by_probe: dict[str, list[Route]] = {}
    for route in _routes(connection, location):
        by_probe.setdefault(route[0], []).append(route)
    gone: list[Route] = []
    for routes in by_probe.values():
        if len(routes) > ROUTES_KEPT:
            newest = {route: _NEWEST.rows(connection, _of(location, route)) for route in routes}
            gone += sorted(routes, key=lambda route: newest[route], reverse=True)[ROUTES_KEPT:]
    return gone


def forget_some(connection: Connection, location: str, route: Route) -> bool:
    """Remove up to `FORGOTTEN_AT_ONCE` runs of a route; return whether there may be more."""
    found = connection.execute(_FORGET_SOME, _of(location, route) | {"most": FORGOTTEN_AT_ONCE})
    return found.rowcount == FORGOTTEN_AT_ONCE


def _routes(connection: Connection, location: str) -> Iterator[Route]:
    """Find each route by the one before it: there are far fewer routes than runs."""
    probe = target = ""
    values = {"of_location": location}
    found = _FIRST_ROUTE.rows(connection, values)
    while found:
        probe, target = found[0]
        yield probe, target
        found = _NEXT_ROUTE.rows(connection, values | {"of_probe": probe, "of_target": target})


def recent_runs(
    connection: Connection, location: str, route: Route, limit: int, *, failures: bool
) -> list[Documents]:
    """Return up to ``limit`` runs or failed runs of a route, newest first, without transcripts."""
    statement = _RECENT_FAILURES if failures else _RECENT
    found = statement.rows(connection, _of(location, route) | {"most": limit})
    return [(document, None) for (document,) in found]


def find_run(connection: Connection, location: str, probe: str, run: str) -> list[Documents]:
    """Return the run of a probe with this id; an empty list if there is none."""
    values = {"of_location": location, "of_probe": probe, "of_run": run}
    return [(document, transcript) for document, transcript in _FIND.rows(connection, values)]


def newest_runs(
    connection: Connection, location: str, probes: Collection[str], each: int, most: int
) -> list[Documents]:
    """Return the newest runs of every route of these probes, oldest first in a route, without transcripts.

    There are up to ``each`` runs of a route. If that would be more than ``most`` in total, there are fewer,
    but at least one.
    """
    routes = [route for route in _routes(connection, location) if route[0] in probes]
    limit = max(1, min(each, most // max(1, len(routes))))
    return [
        run
        for route in routes
        for run in reversed(recent_runs(connection, location, route, limit, failures=False))
    ]


def _of(location: str, route: Route) -> dict[str, object]:
    return {"of_location": location, "of_probe": route[0], "of_target": route[1]}


_HERE = runs.c.location == bindparam("of_location")
_OF_ROUTE = and_(_HERE, runs.c.probe == bindparam("of_probe"), runs.c.target == bindparam("of_target"))

_FIND = CompiledStatement(
    select(runs.c.document, runs.c.transcript).where(
        _HERE, runs.c.probe == bindparam("of_probe"), runs.c.run == bindparam("of_run")
    )
)
_ROUTE = runs.c.probe, runs.c.target
_FIRST_ROUTE = CompiledStatement(select(*_ROUTE).where(_HERE).order_by(*_ROUTE).limit(1))
_NEXT_ROUTE = CompiledStatement(
    select(*_ROUTE)
    .where(_HERE, tuple_(*_ROUTE) > tuple_(bindparam("of_probe"), bindparam("of_target")))
    .order_by(*_ROUTE)
    .limit(1)
)
_NEWEST = CompiledStatement(select(func.max(runs.c.id)).where(_OF_ROUTE))
_LATEST = select(runs.c.document).where(_OF_ROUTE).order_by(runs.c.id.desc()).limit(bindparam("most"))
_RECENT = CompiledStatement(_LATEST)
_RECENT_FAILURES = CompiledStatement(_LATEST.where(runs.c.failed))


def _newest_beyond(*, failures: bool) -> ScalarSelect[int]:
    """Select the newest run that is too old to keep. If there is none, select NULL, which deletes nothing."""
    condition = and_(_OF_ROUTE, runs.c.failed) if failures else _OF_ROUTE
    ranked = (
        select(runs.c.id)
        .where(condition)
        .order_by(runs.c.id.desc())
        .limit(1)
        .offset(bindparam("kept"))
        .subquery()
    )
    return select(func.max(ranked.c.id)).scalar_subquery()


_FORGET_OLD = delete(runs).where(
    _OF_ROUTE,
    runs.c.id <= _newest_beyond(failures=False),
    or_(runs.c.failed == false(), runs.c.id <= _newest_beyond(failures=True)),
)
_FORGET_SOME = delete(runs).where(
    runs.c.id.in_(select(runs.c.id).where(_OF_ROUTE).order_by(runs.c.id).limit(bindparam("most")))
)
