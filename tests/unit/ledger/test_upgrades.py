"""Upgrades of ledgers with older schemas, which these tests create."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path

import pytest

from monitor.ledger.sqlite import SqliteDatabase
from monitor.ledger.store import open_ledger
from probes.core.verdict import MessageState
from probes.delivery.message_life import LedgerError
from tests.unit.ledger.conftest import RUN, START, OpenLedger, StandingClock

MESSAGES = """
CREATE TABLE messages (
    id VARCHAR(32) NOT NULL, probe VARCHAR NOT NULL, target VARCHAR NOT NULL, mailbox VARCHAR NOT NULL,
    state VARCHAR NOT NULL, created_at FLOAT NOT NULL, deadline_seconds FLOAT NOT NULL,
    instance VARCHAR NOT NULL, boot VARCHAR NOT NULL, created_mono FLOAT NOT NULL, connected_mono FLOAT,
    dot_mono FLOAT, accepted_mono FLOAT, {since_2} mailbox_uid VARCHAR, {findings}
    reason VARCHAR NOT NULL, detail VARCHAR NOT NULL, reply_code INTEGER, enhanced_status_code VARCHAR,
    submission_seconds FLOAT, transit_seconds FLOAT, delivery_seconds FLOAT, uncertainty_seconds FLOAT,
    changed_at FLOAT NOT NULL, PRIMARY KEY (id)
);
CREATE INDEX messages_by_state ON messages (state, probe, target, created_at);
CREATE TABLE meta (name VARCHAR NOT NULL, value BLOB NOT NULL, PRIMARY KEY (name));
CREATE TABLE totals (
    probe VARCHAR NOT NULL, target VARCHAR NOT NULL, state VARCHAR NOT NULL, entered INTEGER NOT NULL,
    held INTEGER NOT NULL, purged INTEGER NOT NULL, PRIMARY KEY (probe, target, state)
);
"""
RUNS_UNTIL_2 = """
CREATE TABLE runs (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, probe VARCHAR NOT NULL, failed BOOLEAN NOT NULL,
    document VARCHAR NOT NULL
);
CREATE INDEX runs_by_probe ON runs (probe, id);
CREATE INDEX runs_by_failure ON runs (probe, failed, id);
"""
RUNS_IN_3 = """
CREATE TABLE runs (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, run VARCHAR DEFAULT '' NOT NULL, probe VARCHAR NOT NULL,
    target VARCHAR DEFAULT '' NOT NULL, failed BOOLEAN NOT NULL, document VARCHAR NOT NULL,
    transcript VARCHAR
);
CREATE INDEX runs_by_route ON runs (probe, target, id);
CREATE INDEX failed_runs_by_route ON runs (probe, target, id) WHERE failed = 1;
"""
MESSAGE = {
    "id": "a" * 32,
    "probe": "hq",
    "target": "submission",
    "mailbox": "canary",
    "state": "intent",
    "created_at": START,
    "deadline_seconds": 300.0,
    "instance": "agent-0",
    "boot": "boot",
    "created_mono": START,
    "reason": "",
    "detail": "ünïcode ✉",
    "changed_at": START,
}
FAILED = RUN | {"run": "1" * 32, "target": "mx1", "outcome": "failed", "reason": "smtp_rejected"}
TRANSCRIPT = ["S: 220 Grüße"]
KEY = b"k" * 32

TABLES = 'SELECT m.name, c.name, c."notnull", c.pk FROM sqlite_master m, pragma_table_info(m.name) c'
INDEXES = "SELECT m.name, c.name, c.seqno FROM sqlite_master m, pragma_index_info(m.name) c"
OURS = " WHERE m.name NOT LIKE 'sqlite_%'"


def make_older(path: Path, version: int, *documents: str) -> None:
    """Make a ledger with an older schema, a message, two runs, and these broken runs."""
    since_2 = "" if version < 2 else "greylisted_seconds FLOAT, octets INTEGER, digest VARCHAR,"
    findings = "" if version < 2 else "findings VARCHAR DEFAULT '' NOT NULL,"
    with sqlite3.connect(path) as other:
        other.executescript(MESSAGES.format(since_2=since_2, findings=findings))
        other.executescript(RUNS_UNTIL_2 if version < 3 else RUNS_IN_3)
        meta = {"schema_version": b"%d" % version, "token_key": KEY}
        other.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        names, marks = ", ".join(MESSAGE), ", ".join("?" * len(MESSAGE))
        insert = f"INSERT INTO messages ({names}) VALUES ({marks})"  # noqa: S608 # the names above
        other.execute(insert, [*MESSAGE.values()])
        other.execute("INSERT INTO totals VALUES ('hq', 'submission', 'intent', 7, 7, 6)")
        for run, said in ((RUN, TRANSCRIPT), (FAILED, None)):
            add_run(other, version, run, said)
        for document in documents:
            other.execute("INSERT INTO runs (probe, failed, document) VALUES ('hq', 0, ?)", (document,))
    other.close()


def add_run(other: sqlite3.Connection, version: int, run: dict[str, object], said: list[str] | None) -> None:
    failed = run["outcome"] != "ok"
    if version < 3:
        document = run if said is None else run | {"transcript": said}
        values = (run["probe"], failed, json.dumps(document))
        other.execute("INSERT INTO runs (probe, failed, document) VALUES (?, ?, ?)", values)
        return
    transcript = None if said is None else json.dumps(said)
    other.execute(
        "INSERT INTO runs (run, probe, target, failed, document, transcript) VALUES (?, ?, ?, ?, ?, ?)",
        (run["run"], run["probe"], run["target"], failed, json.dumps(run), transcript),
    )


def layout(path: Path) -> list[tuple[object, ...]]:
    """Return a file's tables and indexes with their columns, without regard to the order in a table."""
    with sqlite3.connect(path) as other:
        found = sorted(row for query in (TABLES, INDEXES) for row in other.execute(query + OURS))
    other.close()
    return found


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_an_older_schema_is_upgraded(
    path: Path, opened: OpenLedger, clock: StandingClock, version: int
) -> None:
    """An older ledger keeps its messages, totals, runs and key."""
    new = path.with_name("new.db")
    async with open_ledger(f"sqlite://{new}", clock, "agent-1", "fra1"):
        pass
    make_older(path, version)
    async with opened() as ledger:
        assert layout(path) == layout(new)
        assert ledger.token_key == KEY
        message = await ledger.find("a" * 32)
        assert message is not None
        assert asdict(message) | {"changed_at": START} == asdict(message) | MESSAGE
        assert (message.findings, message.digest) == ("", None)
        assert ledger.counters.entered("hq", "submission", MessageState.INTENT) == 7
        assert await ledger.advance(message.id, MessageState.SENT)
        arrived = await ledger.advance(message.id, MessageState.DELIVERED, findings="junked")
        assert arrived is not None
        assert arrived.findings == "junked"
        assert await ledger.recent_runs("hq", "mail") == [RUN]
        assert await ledger.recent_runs("hq", "mx1", failures=True) == [FAILED]
        assert await ledger.find_run("hq", "0" * 32) == RUN | {"transcript": TRANSCRIPT}
        ledger.record_run(RUN | {"run": "2" * 32})
        assert [run["run"][0] for run in await ledger.recent_runs("hq", "mail")] == ["2", "0"]


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_what_had_no_location_belongs_to_the_first_that_opens_it(
    path: Path, opened: OpenLedger, version: int
) -> None:
    """Rows without a location go to the first location that opens the ledger, and to no other."""
    make_older(path, version)
    async with opened("agent-1", "fra1") as first, opened("agent-2", "ams1") as second:
        assert [message.id for message in await second.adopt()] == []
        assert second.counters.entered("hq", "submission", MessageState.INTENT) == 0
        assert await second.newest_runs({"hq"}, 40, 1000) == []
        assert [message.id for message in await first.adopt()] == ["a" * 32]
        assert first.counters.entered("hq", "submission", MessageState.INTENT) == 7
        assert len(await first.newest_runs({"hq"}, 40, 1000)) == 2


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_a_broken_run_does_not_stop_an_upgrade(path: Path, opened: OpenLedger, version: int) -> None:
    """Broken runs in the history do not stop an upgrade."""
    make_older(path, version, "", "{", "[]", "null")
    async with opened() as ledger:
        assert await ledger.newest_runs({"hq"}, 40, 1000) == [RUN, FAILED]


async def test_runs_that_are_not_compressed_are_read_on(path: Path, opened: OpenLedger) -> None:
    """A ledger of schema 4, which has texts, keeps its runs beside those that are compressed."""
    async with opened():
        pass
    with sqlite3.connect(path) as other:
        other.execute("UPDATE meta SET value = X'34' WHERE name = 'schema_version'")
        for newer in ("messages DROP COLUMN excused", "totals DROP COLUMN excused"):
            other.execute(f"ALTER TABLE {newer}")
        for since_7 in ("trace_looks", "trace"):
            other.execute(f"ALTER TABLE messages DROP COLUMN {since_7}")
        other.execute("DROP TABLE pauses")
        other.execute(
            "INSERT INTO runs (location, run, probe, target, failed, document, transcript) "
            "VALUES ('fra1', ?, 'hq', 'mail', 0, ?, ?)",
            (RUN["run"], json.dumps(RUN), json.dumps(TRANSCRIPT)),
        )
    other.close()
    newer = RUN | {"run": "2" * 32, "transcript": ["S: 220 newer"]}
    async with opened() as ledger:
        ledger.record_run(newer)
        assert [run["run"][0] for run in await ledger.recent_runs("hq", "mail")] == ["2", "0"]
        assert await ledger.find_run("hq", "0" * 32) == RUN | {"transcript": TRANSCRIPT}
        assert await ledger.find_run("hq", "2" * 32) == newer


async def test_an_upgrade_that_fails_changes_nothing(
    path: Path, opened: OpenLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk fills up during an upgrade, the older ledger is unchanged, and a retry is possible."""
    make_older(path, 1)
    before = layout(path)
    halfway = dict(SqliteDatabase.upgrades)
    halfway["3"] = (*halfway["3"][:-1], "CREATE INDEX failed_runs_by_route ON absent (location)")
    with monkeypatch.context() as patch:
        patch.setattr(SqliteDatabase, "upgrades", halfway)
        with pytest.raises(LedgerError, match="no such table"):
            async with opened():
                pass
    assert layout(path) == before
    async with opened() as ledger:
        assert await ledger.recent_runs("hq", "mail") == [RUN]
