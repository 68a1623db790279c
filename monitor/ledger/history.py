"""The latest finished runs of each route (a probe and its target). Failures are kept longer."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

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

from monitor.ledger.schema import runs

RUNS_KEPT = 100
"""How many of the latest runs, and of the latest failed runs, are kept for each route."""

ROUTES_KEPT = 50
"""How many routes of a probe are kept, the latest to run: twice as many as it can have at a time."""

Documents = tuple[str, str | None]
"""A run as one JSON object, and its transcript as a JSON list of lines if requested."""

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
        "document": _ENCODER.encode({name: run[name] for name in run if name != "transcript"}),
        "transcript": None if transcript is None else _ENCODER.encode(transcript),
    }


def forget_old_runs(connection: Connection, location: str, routes: Iterable[tuple[str, str]]) -> None:
    """Remove the runs of these routes that are too old to be kept."""
    rows = [{"of_location": location, "of_probe": probe, "of_target": target} for probe, target in routes]
    connection.execute(_FORGET_OLD, rows)


def forget_gone_routes(connection: Connection, location: str) -> None:
    """Remove all runs of routes that are not among the latest `ROUTES_KEPT` of their probe to run."""
    connection.execute(_FORGET_GONE, {"of_location": location})


def recent_runs(
    connection: Connection, location: str, route: tuple[str, str], limit: int, *, failures: bool
) -> list[Documents]:
    """Return up to ``limit`` runs or failed runs of a route, newest first, without transcripts."""
    values = {"of_location": location, "of_probe": route[0], "of_target": route[1], "most": limit}
    found = connection.scalars(_RECENT_FAILURES if failures else _RECENT, values)
    return [(document, None) for document in found]


def find_run(connection: Connection, location: str, probe: str, run: str) -> list[Documents]:
    """Return the run of a probe with this id; an empty list if there is none."""
    values = {"of_location": location, "of_probe": probe, "of_run": run}
    return [(row.document, row.transcript) for row in connection.execute(_FIND, values)]


def newest_runs(
    connection: Connection, location: str, probes: Collection[str], each: int, most: int
) -> list[Documents]:
    """Return the newest runs of every route of these probes, oldest first in a route, without transcripts.

    There are up to ``each`` runs of a route. If that would be more than ``most`` in total, there are fewer,
    but at least one.
    """
    known = connection.execute(_KNOWN_ROUTES, {"of_location": location})
    routes = [(probe, target) for probe, target in known if probe in probes]
    limit = max(1, min(each, most // max(1, len(routes))))
    return [
        run
        for route in routes
        for run in reversed(recent_runs(connection, location, route, limit, failures=False))
    ]


_HERE = runs.c.location == bindparam("of_location")
_OF_ROUTE = and_(_HERE, runs.c.probe == bindparam("of_probe"), runs.c.target == bindparam("of_target"))

_FIND = select(runs.c.document, runs.c.transcript).where(
    _HERE, runs.c.probe == bindparam("of_probe"), runs.c.run == bindparam("of_run")
)
_KNOWN_ROUTES = select(runs.c.probe, runs.c.target).distinct().where(_HERE)
_RECENT = select(runs.c.document).where(_OF_ROUTE).order_by(runs.c.id.desc()).limit(bindparam("most"))
_RECENT_FAILURES = _RECENT.where(runs.c.failed)


def _newest_beyond(*, failures: bool) -> ScalarSelect[int]:
    """Select the newest run that is too old to keep. If there is none, select NULL, which deletes nothing."""
    condition = and_(_OF_ROUTE, runs.c.failed) if failures else _OF_ROUTE
    ranked = (
        select(runs.c.id).where(condition).order_by(runs.c.id.desc()).limit(1).offset(RUNS_KEPT).subquery()
    )
    return select(func.max(ranked.c.id)).scalar_subquery()


_FORGET_OLD = delete(runs).where(
    _OF_ROUTE,
    runs.c.id <= _newest_beyond(failures=False),
    or_(runs.c.failed == false(), runs.c.id <= _newest_beyond(failures=True)),
)

_ROUTES = (
    select(
        runs.c.probe,
        runs.c.target,
        func.row_number()
        .over(partition_by=runs.c.probe, order_by=func.max(runs.c.id).desc())
        .label("position"),
    )
    .where(_HERE)
    .group_by(runs.c.probe, runs.c.target)
    .subquery()
)
_FORGET_GONE = delete(runs).where(
    _HERE,
    tuple_(runs.c.probe, runs.c.target).in_(
        select(_ROUTES.c.probe, _ROUTES.c.target).where(_ROUTES.c.position > ROUTES_KEPT)
    ),
)
