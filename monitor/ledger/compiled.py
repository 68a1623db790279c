"""Statements that are compiled once, and then run by the driver itself.

If SQLAlchemy runs a statement on one row, its own work takes several times as long as the database's. So this
is for the statements in the life of every message.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import ClauseElement, Connection

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPICursor


class CompiledStatement:
    """A statement for a driver that takes parameters by name, compiled when it first runs.

    Values are passed to the driver and back as they are. ``columns`` are those that an UPDATE sets.
    """

    def __init__(self, statement: ClauseElement, columns: Collection[str] | None = None) -> None:
        self.statement = statement
        self._columns = None if columns is None else sorted(columns)
        self._by_dialect: dict[str, tuple[str, Mapping[str, Any]]] = {}

    def rows(self, connection: Connection, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """Return all rows of a query. Raises the driver's own errors."""
        return list(self._run(connection, values).fetchall())

    def run(self, connection: Connection, values: Mapping[str, object]) -> int:
        """Return how many rows a change concerned. Raises the driver's own errors."""
        return self._run(connection, values).rowcount

    def _run(self, connection: Connection, values: Mapping[str, object]) -> DBAPICursor:
        name = connection.dialect.name
        if name not in self._by_dialect:
            compiled = self.statement.compile(dialect=connection.dialect, column_keys=self._columns)
            self._by_dialect[name] = str(compiled), compiled.params
        text, constants = self._by_dialect[name]
        cursor = connection.connection.cursor()
        cursor.execute(text, {**constants, **values})
        return cursor
