from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import ClauseElement, Executable, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from monitor.ledger import history, last_week, transaction
from monitor.ledger.backend import ledger_path
from monitor.ledger.compiled import CompiledStatement
from monitor.ledger.schema import metadata


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/lib/mailsonde/ledger.db", "/var/lib/mailsonde/ledger.db"),
        ("sqlite:////var/lib/mailsonde/ledger.db", "/var/lib/mailsonde/ledger.db"),
        ("sqlite:/var/lib/mailsonde/ledger.db", "/var/lib/mailsonde/ledger.db"),
        ("sqlite:relative.db", "relative.db"),
        ("sqlite:./state/ledger.db", "state/ledger.db"),
        ("sqlite:///var/my%20mail/ledger.db", "/var/my mail/ledger.db"),
    ],
)
def test_sqlite_urls(url: str, path: str) -> None:
    """Slashes work as in a file URL, so three of them mean an absolute path."""
    assert ledger_path(url) == Path(path)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("postgresql://db/mailsonde", "a ledger in PostgreSQL is not supported yet"),
        ("postgresql+psycopg://db/mailsonde", "a ledger in PostgreSQL is not supported yet"),
        ("/var/lib/mailsonde/ledger.db", "is not the URL of a ledger"),
        ("mysql://db/x", "is not the URL of a ledger"),
        ("sqlite", "is not the URL of a ledger"),
        ("sqlite://ledger.db", "names a host after the two slashes"),
        ("sqlite:///x.db?mode=ro", "has a '?' or '#'"),
        ("sqlite:", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///var/lib/", "names no file"),
        ("sqlite::memory:", "names no file"),
        ("sqlite:///x%00.db", "names no file"),
    ],
)
def test_other_urls_are_refused(url: str, fault: str) -> None:
    """A URL without an SQLite file is refused with the reason and an example."""
    with pytest.raises(ValueError, match=f"^{re.escape(fault)}.*; write sqlite:///var/lib/"):
        ledger_path(url)


def test_nothing_of_a_database_is_loaded_before_it_is_chosen() -> None:
    """A database's code and driver are loaded only when a ledger is opened in it."""
    program = (
        "import sys, monitor.ledger.store\n"
        "print([name for name in sys.modules if 'sqlite' in name or name == 'monitor.ledger.file_locks'])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def statements() -> dict[str, ClauseElement]:
    """Return the tables, and every statement in the ledger's modules, by name."""
    found: dict[str, ClauseElement] = {f"create {t.name}": CreateTable(t) for t in metadata.sorted_tables}
    for module in (transaction, history, last_week):
        found |= {
            f"{module.__name__}.{name}": value.statement if isinstance(value, CompiledStatement) else value
            for name, value in vars(module).items()
            if isinstance(value, (CompiledStatement, Executable)) and not isinstance(value, Table)
        }
    return found


@pytest.mark.parametrize("name", statements())
def test_statements_are_those_of_either_database(name: str) -> None:
    """The ledger's SQL is valid in PostgreSQL too, which will need only its own transactions."""
    assert str(statements()[name].compile(dialect=postgresql.dialect()))
