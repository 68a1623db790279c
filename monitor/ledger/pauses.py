"""Pauses: maintenance of probes that people begin and end while the agent runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from monitor.ledger.schema import pauses

PAUSES_KEPT = 2 * 86400.0
"""For so many seconds, a pause is kept after its end: longer than any run that it excuses may take."""

_LINE = "\n"
"""Separates the parts of a selection; neither names nor labels contain it, and only labels a ``=``."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Maintenance until ``ends_at`` (unix seconds).

    It has begun: if ``begins_at`` is later than now, the clock was set back.
    """

    selection: str
    """The name of a probe or a pattern of names, and labels such as ``team=messaging``, each in a line."""
    begins_at: float
    ends_at: float
    comment: str
    set_by: str

    @classmethod
    def selections(cls, patterns: Sequence[str], labels: Mapping[str, str]) -> list[str]:
        """Return the selections for these names and patterns, of probes with all of these labels."""
        narrowed = [f"{name}={value}" for name, value in sorted(labels.items())]
        if not patterns:
            return [_LINE.join(narrowed)] if narrowed else []
        return [_LINE.join([pattern, *narrowed]) for pattern in dict.fromkeys(patterns)]

    @property
    def patterns(self) -> tuple[str, ...]:
        """The name or pattern of names, if there is one."""
        return tuple(line for line in self.selection.split(_LINE) if "=" not in line)

    @property
    def labels(self) -> dict[str, str]:
        """The labels that a probe must have."""
        pairs = (line.partition("=") for line in self.selection.split(_LINE) if "=" in line)
        return {name: value for name, _, value in pairs}

    @property
    def shown(self) -> str:
        """The selection in one line."""
        return ", ".join(self.selection.split(_LINE))

    def ended(self, at: float) -> Self:
        """Return the pause as it is if it ends at ``at``."""
        return type(self)(self.selection, self.begins_at, at, self.comment, self.set_by)


_COLUMNS = (
    pauses.c.selection,
    pauses.c.begins_at,
    pauses.c.ends_at,
    pauses.c.comment,
    pauses.c.set_by,
)
_SINCE = (
    select(*_COLUMNS)
    .where(pauses.c.location == bindparam("of_location"), pauses.c.ends_at > bindparam("since"))
    .order_by(pauses.c.begins_at, pauses.c.selection)
)


def pauses_since(connection: Connection, location: str, since: float) -> tuple[Pause, ...]:
    """Return the pauses that have not ended by ``since`` (unix seconds), oldest first."""
    found = connection.execute(_SINCE, {"of_location": location, "since": since})
    return tuple(Pause(*row) for row in found)


def begin(connection: Connection, location: str, new: Iterable[Pause]) -> None:
    """Record pauses, each in place of one of the same selection that has not ended."""
    for pause in new:
        end(connection, location, pause.selection, pause.begins_at)
        values = {name: getattr(pause, name) for name in Pause.__slots__}
        connection.execute(insert(pauses).values(location=location, **values))


def end(connection: Connection, location: str, selection: str, at: float) -> bool:
    """End the pauses with this selection at ``at`` (unix seconds); return whether there were any."""
    own = and_(pauses.c.location == location, pauses.c.selection == selection)
    # One that begins at this very moment would have no duration, and another could not begin then.
    removed = connection.execute(delete(pauses).where(own, pauses.c.begins_at == at))
    ended = connection.execute(update(pauses).where(own, pauses.c.ends_at > at).values(ends_at=at))
    return bool(removed.rowcount + ended.rowcount)


def forget(connection: Connection, location: str, before: float) -> None:
    """Remove the pauses that ended before that instant (unix seconds)."""
    connection.execute(delete(pauses).where(pauses.c.location == location, pauses.c.ends_at < before))
