"""The last finished runs of each probe; failures are kept longer than successes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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
)

from monitor.ledger.schema import runs

KEPT = 100
"""Runs, and failed runs besides, that are kept of each probe."""


_ENCODER = json.JSONEncoder(default=dict)  # a mapping of another type than dict


def add_runs(connection: Connection, finished: Sequence[Mapping[str, object]]) -> None:
    """Add finished runs: JSON objects with at least ``probe`` and ``outcome``."""
    rows = [
        {"probe": run["probe"], "failed": run["outcome"] != "ok", "document": _ENCODER.encode(run)}
        for run in finished
    ]
    connection.execute(insert(runs), rows)


def forget_old_runs(connection: Connection, probes: Iterable[str]) -> None:
    """Remove the runs of these probes that are too old to be kept."""
    connection.execute(_FORGET_OLD, [{"of_probe": probe} for probe in probes])


def recent_runs(
    connection: Connection, probe: str | None, limit: int, failures: bool
) -> list[dict[str, Any]]:
    """Return up to ``limit`` runs, newest first: of one probe or all, and only what failed if asked."""
    query = select(runs.c.document).order_by(runs.c.id.desc()).limit(limit)
    if probe is not None:
        query = query.where(runs.c.probe == probe)
    if failures:
        query = query.where(runs.c.failed)
    return [json.loads(document) for document in connection.scalars(query)]


def _oldest_but(*, failures: bool) -> ScalarSelect[int]:
    """Select the newest run that is too old to be kept; NULL, which deletes nothing, if all are kept."""
    condition = runs.c.probe == bindparam("of_probe")
    if failures:
        condition = and_(condition, runs.c.failed)
    ranked = select(runs.c.id).where(condition).order_by(runs.c.id.desc()).limit(1).offset(KEPT).subquery()
    return select(func.max(ranked.c.id)).scalar_subquery()


_FORGET_OLD = delete(runs).where(
    runs.c.probe == bindparam("of_probe"),
    runs.c.id <= _oldest_but(failures=False),
    or_(runs.c.failed == false(), runs.c.id <= _oldest_but(failures=True)),
)
