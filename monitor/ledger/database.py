"""All that knows which database the ledger lies in: its engine, its transactions and its errors.

SQLite 3.24 or later, in WAL mode with ``synchronous=FULL``: a commit that returned survives a
power cut, and readers never wait for the writer.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import URL
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, ProgrammingError

from probes.delivery.message_life import LedgerError

__all__ = ["Database", "FullError", "insert"]

BUSY_SECONDS = 5.0
"""How long a transaction waits for another process's before it fails."""

_WRITING = "mailsonde_writing"
_PLAIN = {
    sqlite3.SQLITE_FULL: "its disk is full; free some space",
    sqlite3.SQLITE_READONLY: "it is read-only; check its file system, and its permissions",
    sqlite3.SQLITE_BUSY: f"another process kept it locked for {BUSY_SECONDS:g} seconds",
    sqlite3.SQLITE_IOERR: "reading or writing its file failed; check the disk, and its free space",
    sqlite3.SQLITE_CANTOPEN: "its file cannot be opened; check that it exists, and its permissions",
    sqlite3.SQLITE_CORRUPT: "it is damaged; move it away, and mailsonde makes a new one",
    sqlite3.SQLITE_NOTADB: "its file is damaged or no SQLite database; move it away, or name another",
}
_PASSING = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY})
"""Troubles after which the same connection is still good."""


class FullError(LedgerError):
    """The disk has no room for all that a transaction was to write; for a part of it, it may have."""


class Database:
    """The SQLite file at ``path``, made with mode 0600 if it is not there yet.

    LedgerError says what stands in the way, and what to do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _make_file(path)
        url = URL.create(
            "sqlite", database=f"file:{quote(str(path.absolute()))}", query={"mode": "rw", "uri": "true"}
        )
        self.engine = create_engine(
            url, connect_args={"timeout": BUSY_SECONDS, "isolation_level": None}, hide_parameters=True
        )
        event.listen(self.engine, "connect", _configure)
        event.listen(self.engine, "begin", _begin)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that nobody else writes beside, durable once the block is left.

        LedgerError when the database cannot do it; nothing is changed then, as with any exception.
        """
        with self._transaction(writing=True) as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view of what is committed; LedgerError when it cannot be read.

        A ValueError or TypeError in the block counts as that: the file holds what was never written.
        """
        with self._transaction(writing=False) as connection:
            try:
                yield connection
            except (ValueError, TypeError) as error:
                raise self._damaged(error) from error

    @contextmanager
    def _transaction(self, *, writing: bool) -> Iterator[Connection]:
        with self._translated(), self.engine.connect() as connection:
            connection.execution_options(**{_WRITING: writing})
            try:
                with connection.begin():
                    yield connection
            except DBAPIError as error:
                if _is_trouble(error) and _code(error) not in _PASSING:
                    connection.invalidate()
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if not _is_trouble(error):
                raise
            what = _PLAIN.get(_code(error), "the database failed")
            kind = FullError if _code(error) == sqlite3.SQLITE_FULL else LedgerError
            raise kind(f"ledger {self.path}: {what} ({error.orig}); nothing was recorded") from error
        except UnicodeDecodeError as error:  # even SQLite's own error texts quote what a damaged file holds
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> LedgerError:
        return LedgerError(f"ledger {self.path}: {_PLAIN[sqlite3.SQLITE_CORRUPT]} ({error})")

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _make_file(path: Path) -> None:
    try:
        # Never opened when it exists: closing it would drop the locks of a connection in this process.
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        elif path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except FileExistsError:
        pass  # another process was quicker
    except FileNotFoundError:
        raise LedgerError(
            f"ledger {path}: directory {path.parent} does not exist; create it, owned by mailsonde's user"
        ) from None
    except OSError as error:
        raise LedgerError(
            f"ledger {path}: {error.strerror}; make {path.parent} and it writable for user {os.geteuid()}"
        ) from error


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once, where waiting for it is possible; a later upgrade fails.
    writing = connection.get_execution_options().get(_WRITING)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _is_trouble(error: DBAPIError) -> bool:
    """Tell the database's own trouble from the fault of a value that was to be written."""
    return not isinstance(error, (IntegrityError, DataError, InterfaceError, ProgrammingError))


def _code(error: DBAPIError) -> int:
    return int(getattr(error.orig, "sqlite_errorcode", -1)) & 0xFF  # the primary part of an extended code
