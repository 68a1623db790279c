from __future__ import annotations

import re
from pathlib import Path

import pytest

from monitor.ledger.location import ledger_path


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
    """Slashes count as in a file URL, so that three of them already mean an absolute path."""
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
    """A URL that names no SQLite file is refused with the fault and an example to copy."""
    with pytest.raises(ValueError, match=f"^{re.escape(fault)}.*; write sqlite:///var/lib/"):
        ledger_path(url)
