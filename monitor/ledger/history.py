"""The last finished runs of each route, which is a probe and its target; failures are kept longer."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

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
"""Runs, and failed runs besides, that are kept of each route."""

ROUTES_KEPT = 50
"""Routes of one probe that are kept, those that ran last: twice as many as it can have at a time."""

_ENCODER = json.JSONEncoder(default=dict)  # a mapping of another type than dict


def add_runs(connection: Connection, finished: Sequence[Mapping[str, object]]) -> None:
    """Add finished runs: JSON objects with at least ``run``, ``probe``, ``target`` and ``outcome``."""
    connection.execute(insert(runs), [_row(run) for run in finished])


def _row(run: Mapping[str, object]) -> dict[str, object]:
    """Return a run's row; what was said in it stands apart, for it is most of a run, and seldom read."""
    said = run.get("transcript")
    return {
        "run": run["run"],
        "probe": run["probe"],
        "target": run["target"],
        "failed": run["outcome"] != "ok",
        "document": _ENCODER.encode({name: run[name] for name in run if name != "transcript"}),
        "transcript": None if said is None else _ENCODER.encode(said),
    }


def forget_old_runs(connection: Connection, routes: Iterable[tuple[str, str]]) -> None:
    """Remove the runs of these routes that are too old to be kept."""
    connection.execute(_FORGET_OLD, [{"of_probe": probe, "of_target": target} for probe, target in routes])


def forget_gone_routes(connection: Connection) -> None:
    """Remove all runs of those routes of a probe that are not among the last that ran."""
    connection.execute(_FORGET_GONE)


def recent_runs(
    connection: Connection, probe: str, target: str, limit: int, *, failures: bool
) -> list[dict[str, Any]]:
    """Return up to ``limit`` runs of a route, newest first, and only what failed if asked.

    They come without what was said in them.
    """
    values = {"of_probe": probe, "of_target": target, "most": limit}
    documents = connection.scalars(_RECENT_FAILURES if failures else _RECENT, values)
    return [json.loads(document) for document in documents]


def find_run(connection: Connection, probe: str, run: str) -> dict[str, Any] | None:
    """Return the run of a probe that has this id, with what was said in it, or ``None``."""
    query = select(runs.c.document, runs.c.transcript).where(runs.c.probe == probe, runs.c.run == run)
    row = connection.execute(query).first()
    if row is None:
        return None
    found: dict[str, Any] = json.loads(row.document)
    return found if row.transcript is None else found | {"transcript": json.loads(row.transcript)}


def newest_runs(
    connection: Connection, probes: Collection[str], each: int, most: int
) -> list[dict[str, Any]]:
    """Return the newest runs of every route of these probes, oldest first within a route.

    Up to ``each`` of a route; fewer, but at least one, where those would be more than ``most`` together.
    They come without what was said in them.
    """
    known = connection.execute(select(runs.c.probe, runs.c.target).distinct())
    routes = [(probe, target) for probe, target in known if probe in probes]
    limit = max(1, min(each, most // max(1, len(routes))))
    return [
        run
        for probe, target in routes
        for run in reversed(recent_runs(connection, probe, target, limit, failures=False))
    ]


_OF_ROUTE = and_(runs.c.probe == bindparam("of_probe"), runs.c.target == bindparam("of_target"))

_RECENT = select(runs.c.document).where(_OF_ROUTE).order_by(runs.c.id.desc()).limit(bindparam("most"))
_RECENT_FAILURES = _RECENT.where(runs.c.failed)


def _newest_beyond(*, failures: bool) -> ScalarSelect[int]:
    """Select the newest run that is too old to be kept; NULL, which deletes nothing, if all are kept."""
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
    .group_by(runs.c.probe, runs.c.target)
    .subquery()
)
_FORGET_GONE = delete(runs).where(
    tuple_(runs.c.probe, runs.c.target).in_(
        select(_ROUTES.c.probe, _ROUTES.c.target).where(_ROUTES.c.position > ROUTES_KEPT)
    )
)
