from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event

from monitor.ledger.store import PENDING_RUNS, SqlLedger, open_ledger
from probes.core.clock import SystemClock
from probes.core.verdict import MessageState
from probes.delivery.message_life import LedgerError
from tests.unit.ledger.conftest import RUN, NewMessage, OpenLedger

PRAGMAS = {"journal_mode": "wal", "synchronous": 2}


def prepare(ledger: SqlLedger, pragma: str) -> Callable[[], None]:
    """Set a pragma of SQLite on all connections made from now on, until the returned function is called."""

    def set_pragma(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA {pragma}")

    engine = ledger._database.engine
    event.listen(engine, "connect", set_pragma)
    engine.dispose()
    return lambda: event.remove(engine, "connect", set_pragma)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_all(path: Path) -> None:
    path.chmod(0o644)


def damage(path: Path, start: int) -> None:
    """Overwrite what the file holds from byte ``start`` on."""
    content = path.read_bytes()
    path.write_bytes(content[:start] + b"\xff" * (len(content) - start))


def replace_in(path: Path, right: bytes, wrong: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(right, wrong))


def remove(path: Path) -> None:
    path.unlink()


async def test_a_full_disk_is_told_and_survived(
    path: Path, opened: OpenLedger, new_message: NewMessage
) -> None:
    """Callers learn that nothing was recorded; when there is room again, the same call succeeds."""
    async with opened() as ledger:
        await ledger.intend(first := new_message())
        prepare(ledger, "max_page_count = 30")
        bulky = [new_message(detail="x" * 4000) for _ in range(100)]
        answers = await asyncio.gather(*map(ledger.intend, bulky), return_exceptions=True)
        recorded = [m for m, answer in zip(bulky, answers, strict=True) if answer is None]
        assert [m.id for m in (await ledger.open_messages())] == [first.id, *(m.id for m in recorded)]
        assert {str(answer) for answer in answers if answer is not None} == {
            f"ledger {path}: its disk is full; free some space (database or disk is full); "
            "nothing was recorded"
        }
        ledger.record_run(RUN | {"detail": "x" * 200_000})
        advancing = ledger.advance(first.id, MessageState.SENT)  # small enough, beside a run that is not
        _, advanced = await asyncio.gather(ledger.recent_runs("hq", "mail"), advancing)
        assert advanced
        assert ledger.runs_dropped == 1
        assert ledger.counters.in_flight("hq", "submission") == 1 + len(recorded)
        assert await ledger.discrepancies() == []
        prepare(ledger, "max_page_count = 100000")
        await asyncio.gather(*(ledger.intend(m) for m in bulky if m not in recorded))
        assert ledger.counters.in_flight("hq", "submission") == 101
        assert await ledger.discrepancies() == []


async def test_a_read_only_ledger_is_told(opened: OpenLedger, new_message: NewMessage) -> None:
    """A file system that was mounted read-only stops recording only while it is."""
    async with opened() as ledger:
        end = prepare(ledger, "query_only = 1")
        with pytest.raises(
            LedgerError, match=r"it is read-only; check its file system.*nothing was recorded"
        ):
            await ledger.intend(message := new_message())
        end()
        assert await ledger.find(message.id) is None
        await ledger.intend(message)


async def test_a_ledger_that_vanished_is_told(
    path: Path, opened: OpenLedger, new_message: NewMessage
) -> None:
    """A file deleted under the agent is not silently made anew, without the messages it answers for."""
    async with opened() as ledger:
        await ledger.intend(new_message())
        ledger._database.dispose()
        remove(path)
        with pytest.raises(LedgerError, match="its file cannot be opened; check that it exists"):
            await ledger.intend(new_message())
        with pytest.raises(LedgerError, match="its file cannot be opened; check that it exists"):
            await ledger.find("0" * 32)


async def test_a_damaged_file_is_told(path: Path, opened: OpenLedger, new_message: NewMessage) -> None:
    """Damage at the start is found on opening, damage further in when it is read."""
    async with opened() as ledger:
        await asyncio.gather(*(ledger.intend(new_message()) for _ in range(100)))
    damage(path, start=2 * 4096)
    with pytest.raises(LedgerError, match="it is damaged; move it away"):
        async with opened() as ledger:
            await ledger.open_messages()
    damage(path, start=0)
    with pytest.raises(LedgerError, match="its file is damaged or no SQLite database; move it away"):
        async with opened():
            pass


async def test_senseless_content_is_told(path: Path, opened: OpenLedger, new_message: NewMessage) -> None:
    """Damage that SQLite itself does not notice is told, wherever it is read."""
    async with opened() as ledger:
        await ledger.intend(message := new_message())
        with sqlite3.connect(path) as other:
            other.execute("UPDATE messages SET detail = CAST(X'ff' AS TEXT)")
            other.execute("UPDATE totals SET purged = 'many'")
        other.close()
        with pytest.raises(LedgerError, match="it is damaged; move it away"):
            await ledger.discrepancies()
        with pytest.raises(LedgerError, match=r"the database failed .*Could not decode to UTF-8"):
            await ledger.find(message.id)
        with pytest.raises(LedgerError, match=r"the database failed .*Could not decode to UTF-8"):
            await ledger.advance(message.id, MessageState.SENT)
    replace_in(path, b"CREATE TABLE", b"CREATE \xffABLE")
    with pytest.raises(LedgerError, match="it is damaged; move it away"):
        async with opened():
            pass


async def test_an_empty_token_key_is_refused(path: Path, opened: OpenLedger) -> None:
    """Anyone could sign messages with an empty key, so that no agent takes one."""
    async with opened():
        pass
    with sqlite3.connect(path) as other:
        other.execute("UPDATE meta SET value = X'' WHERE name = 'token_key'")
    other.close()
    with pytest.raises(LedgerError, match="its token key is empty; restore it from a backup"):
        async with opened():
            pass


async def test_a_commit_survives_a_power_cut(opened: OpenLedger) -> None:
    """SQLite is told to have each commit on the disk before it returns, which no kill could show."""
    async with opened() as ledger:
        settings = ledger._database.write(
            lambda connection: [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in PRAGMAS]
        )
        assert settings == list(PRAGMAS.values())


@pytest.mark.parametrize("table", ["songs (title)", "meta (name, value)"])
async def test_a_foreign_database_is_left_alone(path: Path, opened: OpenLedger, table: str) -> None:
    """An SQLite file of another program gets no tables of ours."""
    with sqlite3.connect(path) as other:
        other.execute(f"CREATE TABLE {table}")
    other.close()
    with pytest.raises(LedgerError, match="another program's tables are in it; name another database"):
        async with opened():
            pass
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [(table.split()[0],)]
    other.close()


async def test_a_newer_schema_is_refused(path: Path, opened: OpenLedger) -> None:
    """An older mailsonde does not touch what it does not understand."""
    async with opened():
        pass
    with sqlite3.connect(path) as other:
        other.execute("UPDATE meta SET value = X'3939' WHERE name = 'schema_version'")
    other.close()
    with pytest.raises(LedgerError, match=r"a newer mailsonde made it \(schema 99, this one knows 4\)"):
        async with opened():
            pass


async def test_the_key_is_made_once_and_kept_private(path: Path, opened: OpenLedger) -> None:
    """The token key outlives restarts, and only the owner can read any file that holds it."""
    async with opened() as one, opened("check-1") as two:
        assert len(one.token_key) == 32
        assert two.token_key == one.token_key
        for suffix in ("", "-wal", "-shm"):
            assert mode(path.with_name(path.name + suffix)) == 0o600
    open_to_all(path)
    async with opened() as again:
        assert again.token_key == one.token_key
        assert mode(path) == 0o600


async def test_the_locks_are_private(path: Path, opened: OpenLedger) -> None:
    """Another user of the machine can lock nothing of ours, whatever the umask, and after an upgrade too."""
    locks = path.with_name("ledger.db.locks")
    before = os.umask(0)
    try:
        async with opened() as ledger:
            ledger.lock_for_agent()
            open_to_all(locks / "agent")
            modes = {file.name: mode(file) for file in locks.iterdir()}
        async with opened() as ledger:
            ledger.lock_for_agent()
            after = {file.name: mode(file) for file in locks.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"agent": 0o644, "instance-agent-1": 0o600, "setup": 0o600}
    assert after == dict.fromkeys(modes, 0o600)


async def test_many_processes_may_make_the_same_ledger(opened: OpenLedger) -> None:
    """A new file opened by several at once gets one schema and one key."""

    async def key(instance: str) -> bytes:
        async with opened(instance) as ledger:
            return ledger.token_key

    assert len(set(await asyncio.gather(*(key(f"check-{n}") for n in range(8))))) == 1


async def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    """The administrator reads which directory to make."""
    with pytest.raises(LedgerError, match=r"directory .*/missing does not exist; create it"):
        async with open_ledger(f"sqlite://{tmp_path}/missing/ledger.db", SystemClock(), "agent-1", "fra1"):
            pass


async def test_a_place_that_takes_no_file_is_told(tmp_path: Path) -> None:
    """The administrator reads which place has to be made writable."""
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match=r"Not a directory; make .*/file and it writable for user \d+"):
        async with open_ledger(f"sqlite://{tmp_path}/file/ledger.db", SystemClock(), "agent-1", "fra1"):
            pass


async def test_runs_beyond_the_queue_are_dropped_and_counted(opened: OpenLedger) -> None:
    """Runs never pile up without bound in front of a slow disk."""
    async with opened() as ledger:
        for _ in range(PENDING_RUNS + 3):
            ledger.record_run(RUN)
        assert ledger.runs_dropped == 3
    ledger.record_run(RUN)
    assert ledger.runs_dropped == 4


async def test_closing_a_stuck_ledger_ends(
    path: Path, opened: OpenLedger, new_message: NewMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shutdown is bounded: what could not be written in time is answered with an error."""
    monkeypatch.setattr("monitor.ledger.sqlite.BUSY_SECONDS", 0.3)
    monkeypatch.setattr("monitor.ledger.store.CLOSE_SECONDS", 0.05)
    monkeypatch.setattr("monitor.ledger.writer.GROUP_LIMIT", 1)
    other = sqlite3.connect(path, isolation_level=None)
    async with opened() as ledger:
        other.execute("BEGIN IMMEDIATE")
        tasks = [asyncio.create_task(ledger.intend(new_message())) for _ in range(2)]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert "another process kept it locked" in str(answers[0])
    assert str(answers[1]) == f"ledger {path} was closed before this was recorded"
    other.close()
