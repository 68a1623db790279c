"""A ledger in an SQLite file: connections, transactions, the meaning of errors, and upgrades of older files.

Needs SQLite 3.24 or later. The file is in WAL mode with ``synchronous=FULL``: once a commit has returned, it
survives a power cut, and readers never wait for the writer.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from monitor.ledger.database import Database, FullError
from probes.core.regular_file import require_replaceable
from probes.delivery.message_life import LedgerError

BUSY_SECONDS = 5.0
"""How long a transaction waits for another process to finish its own before it fails."""

T = TypeVar("T")
_MEANINGS = {
    sqlite3.SQLITE_FULL: "its disk is full; free some space",
    sqlite3.SQLITE_READONLY: "it is read-only; check its file system, and its permissions",
    sqlite3.SQLITE_BUSY: f"another process kept it locked for {BUSY_SECONDS:g} seconds",
    sqlite3.SQLITE_IOERR: "reading or writing its file failed; check the disk, and its free space",
    sqlite3.SQLITE_CANTOPEN: "its file cannot be opened; check that it exists, and its permissions",
    sqlite3.SQLITE_CORRUPT: "it is damaged; move it away, and mailsonde makes a new one",
    sqlite3.SQLITE_NOTADB: "its file is damaged or no SQLite database; move it away, or name another",
}
_GONE = (
    "its file was deleted or moved away while mailsonde was running; "
    "move it back, or restart mailsonde to begin with a new one"
)
_REPLACED = (
    "its file was replaced while mailsonde was running; "
    "put the old one back, or restart mailsonde to use the new one"
)
_OF_A_MESSAGE = (
    "id, probe, target, mailbox, state, created_at, deadline_seconds, instance, boot, created_mono, "
    "connected_mono, dot_mono, accepted_mono, greylisted_seconds, octets, digest, mailbox_uid, findings, "
    "reason, detail, reply_code, enhanced_status_code, submission_seconds, transit_seconds, "
    "delivery_seconds, uncertainty_seconds, changed_at"
)
_UPGRADES = MappingProxyType(
    {
        "1": (
            "ALTER TABLE messages ADD COLUMN greylisted_seconds FLOAT",
            "ALTER TABLE messages ADD COLUMN octets INTEGER",
            "ALTER TABLE messages ADD COLUMN digest VARCHAR",
            "ALTER TABLE messages ADD COLUMN findings VARCHAR NOT NULL DEFAULT ''",
        ),
        "2": (
            "ALTER TABLE runs ADD COLUMN target VARCHAR NOT NULL DEFAULT ''",
            "ALTER TABLE runs ADD COLUMN run VARCHAR NOT NULL DEFAULT ''",
            "ALTER TABLE runs ADD COLUMN transcript VARCHAR",
            "DROP INDEX runs_by_probe",
            "DROP INDEX runs_by_failure",
            "UPDATE runs SET target = coalesce(json_extract(document, '$.target'), ''), "
            "run = coalesce(json_extract(document, '$.run'), ''), "
            "transcript = json_extract(document, '$.transcript'), "
            "document = json_remove(document, '$.transcript') WHERE json_valid(document)",
            "CREATE INDEX runs_by_route ON runs (probe, target, id)",
            "CREATE INDEX failed_runs_by_route ON runs (probe, target, id) WHERE failed = 1",
        ),
        # SQLite cannot change a primary key, so each table is copied into a new one that takes its name.
        "3": (
            "CREATE TABLE new_messages (location VARCHAR NOT NULL, id VARCHAR(32) NOT NULL, "
            "probe VARCHAR NOT NULL, target VARCHAR NOT NULL, mailbox VARCHAR NOT NULL, "
            "state VARCHAR NOT NULL, created_at FLOAT NOT NULL, deadline_seconds FLOAT NOT NULL, "
            "instance VARCHAR NOT NULL, boot VARCHAR NOT NULL, created_mono FLOAT NOT NULL, "
            "connected_mono FLOAT, dot_mono FLOAT, accepted_mono FLOAT, greylisted_seconds FLOAT, "
            "octets INTEGER, digest VARCHAR, mailbox_uid VARCHAR, findings VARCHAR NOT NULL, "
            "reason VARCHAR NOT NULL, detail VARCHAR NOT NULL, reply_code INTEGER, "
            "enhanced_status_code VARCHAR, submission_seconds FLOAT, transit_seconds FLOAT, "
            "delivery_seconds FLOAT, uncertainty_seconds FLOAT, changed_at FLOAT NOT NULL, "
            "PRIMARY KEY (location, id))",
            f"INSERT INTO new_messages (location, {_OF_A_MESSAGE}) "  # noqa: S608 # column names, of ours
            f"SELECT :location, {_OF_A_MESSAGE} FROM messages",
            "DROP TABLE messages",
            "ALTER TABLE new_messages RENAME TO messages",
            "CREATE INDEX messages_by_state ON messages (location, state, probe, target, created_at)",
            "CREATE TABLE new_totals (location VARCHAR NOT NULL, probe VARCHAR NOT NULL, "
            "target VARCHAR NOT NULL, state VARCHAR NOT NULL, entered INTEGER NOT NULL, "
            "held INTEGER NOT NULL, purged INTEGER NOT NULL, PRIMARY KEY (location, probe, target, state))",
            "INSERT INTO new_totals (location, probe, target, state, entered, held, purged) "
            "SELECT :location, probe, target, state, entered, held, purged FROM totals",
            "DROP TABLE totals",
            "ALTER TABLE new_totals RENAME TO totals",
            "CREATE TABLE new_runs (id INTEGER NOT NULL PRIMARY KEY, location VARCHAR NOT NULL, "
            "run VARCHAR NOT NULL, probe VARCHAR NOT NULL, target VARCHAR NOT NULL, "
            "failed BOOLEAN NOT NULL, document VARCHAR NOT NULL, transcript VARCHAR)",
            "INSERT INTO new_runs (id, location, run, probe, target, failed, document, transcript) "
            "SELECT id, :location, run, probe, target, failed, document, transcript FROM runs",
            "DROP TABLE runs",
            "ALTER TABLE new_runs RENAME TO runs",
            "CREATE INDEX runs_by_route ON runs (location, probe, target, id)",
            "CREATE INDEX failed_runs_by_route ON runs (location, probe, target, failed, id)",
        ),
        # New runs are compressed. SQLite keeps octets in a column for text as they are, and the older texts
        # are read on, so that even a large ledger is upgraded at once.
        "4": (),
        "5": (
            "ALTER TABLE messages ADD COLUMN excused BOOLEAN NOT NULL DEFAULT FALSE",
            "ALTER TABLE totals ADD COLUMN excused INTEGER NOT NULL DEFAULT 0",
            "CREATE TABLE pauses (location VARCHAR NOT NULL, selection VARCHAR NOT NULL, "
            "begins_at FLOAT NOT NULL, ends_at FLOAT NOT NULL, comment VARCHAR NOT NULL, "
            "set_by VARCHAR NOT NULL, PRIMARY KEY (location, selection, begins_at))",
        ),
        "6": (
            "ALTER TABLE messages ADD COLUMN trace_looks INTEGER NOT NULL DEFAULT 0",
            "ALTER TABLE messages ADD COLUMN trace VARCHAR NOT NULL DEFAULT ''",
        ),
    }
)


class SqliteDatabase(Database):
    """The SQLite file at ``path``, made with mode 0600 if it does not exist.

    Raises LedgerError, which says what is wrong and what to do.
    """

    upgrades = _UPGRADES

    def __init__(self, path: Path) -> None:
        self._path = path
        _make_file(path)
        self._file = self._file_at_path()
        url = URL.create(
            "sqlite", database=f"file:{quote(str(path.absolute()))}", query={"mode": "rw", "uri": "true"}
        )
        self.engine = create_engine(
            url,
            connect_args={
                "timeout": BUSY_SECONDS,
                "isolation_level": None,
                "check_same_thread": False,
            },
            paramstyle="named",
            poolclass=NullPool,
            hide_parameters=True,
        )
        event.listen(self.engine, "connect", _configure)
        self._idle: list[Connection] = []

    @property
    def name(self) -> str:
        """The ledger's name in errors: its file."""
        return f"ledger {self._path}"

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction; see `Database`. Only one process writes at a time."""
        with self._transaction(writing=True) as connection:
            return work(connection)

    def read(self, query: Callable[[Connection], T]) -> T:
        """Return the result of ``query`` on the committed data; see `Database`."""
        with self._transaction(writing=False) as connection:
            try:
                return query(connection)
            except (ValueError, TypeError) as error:
                raise self._damaged(error) from error

    def _file_at_path(self) -> tuple[int, int] | None:
        """Return device and inode of the file at the ledger's path; ``None`` if there is none."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _require_own_file(self) -> None:
        """Raise LedgerError if the file was deleted, moved or replaced while it was open.

        SQLite would go on writing to it, and the next start would know nothing of what it wrote.
        """
        if (found := self._file_at_path()) != self._file:
            raise LedgerError(f"{self.name}: {_GONE if found is None else _REPLACED}; nothing was recorded")

    @contextmanager
    def _transaction(self, *, writing: bool) -> Iterator[Connection]:
        """Begin and end a transaction by the driver itself, on a connection that is kept if all went well.

        SQLAlchemy takes ten times as long for that, which is much for a transaction of one message.
        """
        self._require_own_file()
        with self._translated():
            connection = self._connection()
            driver = connection.connection
            try:
                # IMMEDIATE takes the write lock at once, where SQLite can wait for it. Later it would fail.
                driver.cursor().execute("BEGIN IMMEDIATE" if writing else "BEGIN")
                yield connection
                driver.commit()
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)

    def _connection(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self.engine.connect()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, sqlite3.Error) as error:
            cause = _cause(error)
            if not _is_database_failure(cause):
                raise
            what = _MEANINGS.get(_code(cause), "the database failed")
            kind = FullError if _code(cause) == sqlite3.SQLITE_FULL else LedgerError
            raise kind(f"{self.name}: {what} ({cause}); nothing was recorded") from error
        except UnicodeDecodeError as error:  # SQLite's own errors may quote the contents of a damaged file
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> LedgerError:
        return LedgerError(f"{self.name}: {_MEANINGS[sqlite3.SQLITE_CORRUPT]} ({error})")

    def dispose(self) -> None:
        """Close all connections."""
        while self._idle:
            self._idle.pop().close()


def _make_file(path: Path) -> None:
    try:
        require_replaceable(path)
    except OSError as error:
        raise LedgerError(f"ledger {path}: {error.strerror}; name a file, such as ledger.db") from error
    try:
        # An existing file is not opened: closing it would drop the locks of this process's connections.
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        elif path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except FileExistsError:
        pass  # another process made it first
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


def _cause(error: DBAPIError | sqlite3.Error) -> BaseException | None:
    """Return the driver's error, which SQLAlchemy wraps."""
    return error.orig if isinstance(error, DBAPIError) else error


def _is_database_failure(cause: BaseException | None) -> bool:
    """Return whether the database itself failed, and not just a value that could not be written."""
    of_a_value = sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError
    return not isinstance(cause, of_a_value)


def _code(cause: BaseException | None) -> int:
    return int(getattr(cause, "sqlite_errorcode", -1)) & 0xFF  # the primary part of an extended code
