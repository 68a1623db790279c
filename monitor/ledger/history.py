"""The last finished runs of each probe; failures are kept longer than successes."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, ScalarSelect, and_, delete, false, func, insert, or_, select

from monitor.ledger.schema import runs

KEPT = 100
"""Runs, and failed runs besides, that are kept of each probe."""


def add_run(connection: Connection, probe: str, failed: bool, document: str) -> None:
    """Add a finished run, a JSON object, and remove what is then too old."""
    connection.execute(insert(runs).values(probe=probe, failed=failed, document=document))
    connection.execute(
        delete(runs).where(
            runs.c.probe == probe,
            runs.c.id <= _oldest_but(probe, failures=False),
            or_(runs.c.failed == false(), runs.c.id <= _oldest_but(probe, failures=True)),
        )
    )


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


def _oldest_but(probe: str, *, failures: bool) -> ScalarSelect[int]:
    """Select the newest run that is too old to be kept; NULL, which deletes nothing, if all are kept."""
    condition = and_(runs.c.probe == probe, runs.c.failed) if failures else runs.c.probe == probe
    ranked = select(runs.c.id).where(condition).order_by(runs.c.id.desc()).limit(1).offset(KEPT).subquery()
    return select(func.max(ranked.c.id)).scalar_subquery()
