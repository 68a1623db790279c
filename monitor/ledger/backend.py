"""The databases that a ledger can be kept in, by the scheme of the ``ledger`` setting's URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:  # a configuration is validated without loading SQLAlchemy, which takes a third of a second
    from monitor.ledger.database import AgentProcess, Database, Locks

_EXAMPLE = "write sqlite:///var/lib/mailsonde/ledger.db, or sqlite:ledger.db for a relative path"


def connected(url: str, instance: str) -> tuple[Database, Locks]:
    """Return the database at ``url``, and this process's locks on it, held under the name ``instance``.

    ``instance`` is 1 to 64 letters, digits, dots, dashes and underscores. Raises ValueError as `ledger_path`
    does, and LedgerError if the database cannot be used or another process has this name.
    """
    path = ledger_path(url)
    # Imported here, so that only the driver of the chosen database is loaded.
    from monitor.ledger.file_locks import FileLocks
    from monitor.ledger.sqlite import SqliteDatabase

    # The locks lie beside the real file, so that every symbolic link to it leads to the same locks.
    path = Path(os.path.realpath(path))
    return SqliteDatabase(path), FileLocks(path, instance)


def agent_process(url: str) -> AgentProcess | None:
    """Return the agent that has the ledger at ``url``; ``None`` if there is none.

    Raises ValueError as `ledger_path` does, and LedgerError if that cannot be told.
    """
    path = Path(os.path.realpath(ledger_path(url)))
    from monitor.ledger import file_locks

    return file_locks.agent_process(path)


def user_of(url: str) -> os.stat_result:
    """Return the state of what belongs to the agent's user: its locks, or else the ledger's directory.

    Raises ValueError as `ledger_path` does, and LedgerError if there is no such directory.
    """
    path = Path(os.path.realpath(ledger_path(url)))
    from monitor.ledger import file_locks

    return file_locks.user_of(path)


def ledger_path(url: str) -> Path:
    """Return the path of the SQLite file at ``url``; raises ValueError, which says what is wrong.

    Slashes work as in a ``file:`` URL (RFC 8089): ``sqlite:///var/x.db``, ``sqlite:/var/x.db`` and
    ``sqlite:////var/x.db`` all give the absolute path ``/var/x.db``. ``sqlite:x.db`` is relative to the
    working directory. Percent-encoding is decoded.
    """
    scheme, colon, rest = url.partition(":")
    if scheme.partition("+")[0] in {"postgresql", "postgres"}:
        raise ValueError(f"a ledger in PostgreSQL is not supported yet; {_EXAMPLE}")
    if scheme != "sqlite" or not colon:
        raise ValueError(f"is not the URL of a ledger; {_EXAMPLE}")
    if re.match("//[^/]", rest):
        raise ValueError(f"names a host after the two slashes, and SQLite has none; {_EXAMPLE}")
    if "?" in rest or "#" in rest:
        raise ValueError(f"has a '?' or '#', and a ledger takes no options; {_EXAMPLE}")
    name = unquote(rest)
    if not name.strip("/") or name.endswith("/") or "\0" in name or ":memory:" in name:
        raise ValueError(f"names no file; {_EXAMPLE}")
    return Path(re.sub("^/+", "/", name))
