from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event

from monitor.ledger.run_recorder import PENDING_RUNS
from monitor.ledger.store import SqlLedger, open_ledger
from probes.core.clock import SystemClock
from probes.core.verdict import MessageState
from probes.delivery.message_life import LedgerError
from tests.unit.ledger.conftest import RUN, NewMessage, OpenLedger

PRAGMAS = {"journal_mode": "wal", "synchronous": 2}


def prepare(ledger: SqlLedger, pragma: str) -> Callable[[], None]:
    """Set an SQLite pragma on all new connections, until the returned function is called."""

    def set_pragma(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA {pragma}")

    engine = ledger._database.engine
    event.listen(engine, "connect", set_pragma)
    ledger._database.dispose()
    return lambda: event.remove(engine, "connect", set_pragma)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_all(path: Path) -> None:
    path.chmod(0o644)


def damage(path: Path, start: int) -> None:
    """Overwrite the file from byte ``start``."""
    content = path.read_bytes()
    path.write_bytes(content[:start] + b"\xff" * (len(content) - start))


def replace(path: Path, aside: Path, replacement: bytes | None) -> None:
    """Move a file away, and put another one in its place or nothing."""
    path.rename(aside)
    if replacement is not None:
        path.write_bytes(replacement)


def put_back(path: Path, aside: Path) -> None:
    aside.rename(path)


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def replace_in(path: Path, right: bytes, wrong: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(right, wrong))


async def test_a_full_disk_is_told_and_survived(
    path: Path, opened: OpenLedger, new_message: NewMessage
) -> None:
    """Callers get an error that nothing was recorded; once there is room, the same call succeeds."""
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
        ledger.record_run(RUN | {"detail": secrets.token_hex(200_000)})  # does not get small by compression
        advancing = ledger.advance(first.id, MessageState.SENT)  # small enough, next to a run that is not
        _, advanced = await asyncio.gather(ledger.recent_runs("hq", "mail"), advancing)
        assert advanced
        assert ledger.runs_dropped == 1
        assert ledger.counters.flight("hq", "submission").messages == 1 + len(recorded)
        assert await ledger.discrepancies() == []
        prepare(ledger, "max_page_count = 100000")
        await asyncio.gather(*(ledger.intend(m) for m in bulky if m not in recorded))
        assert ledger.counters.flight("hq", "submission").messages == 101
        assert await ledger.discrepancies() == []


async def test_a_read_only_ledger_is_told(opened: OpenLedger, new_message: NewMessage) -> None:
    """Recording stops while the file system is mounted read-only, and then continues."""
    async with opened() as ledger:
        end = prepare(ledger, "query_only = 1")
        with pytest.raises(
            LedgerError, match=r"it is read-only; check its file system.*nothing was recorded"
        ):
            await ledger.intend(message := new_message())
        end()
        assert await ledger.find(message.id) is None
        await ledger.intend(message)


@pytest.mark.parametrize("is_connected", [True, False])
@pytest.mark.parametrize(
    ("replacement", "told"),
    [(None, "its file was deleted or moved away"), (b"", "its file was replaced")],
)
async def test_a_ledger_that_vanished_is_told(
    replacement: bytes | None,
    told: str,
    is_connected: bool,
    path: Path,
    opened: OpenLedger,
    new_message: NewMessage,
) -> None:
    """Nothing is written to a file that is gone or to one in its place; moved back, it serves as before."""
    aside = path.with_name("aside.db")
    async with opened() as ledger:
        await ledger.intend(kept := new_message())
        if not is_connected:
            ledger._database.dispose()
        replace(path, aside, replacement)
        with pytest.raises(LedgerError, match=f"{told} while mailsonde was running"):
            await ledger.intend(refused := new_message())
        with pytest.raises(LedgerError, match=f"{told} while mailsonde was running"):
            await ledger.find("0" * 32)
        assert content(path) == replacement
        put_back(path, aside)
        await ledger.intend(after := new_message())
        found = [message.id for message in await ledger.open_messages()]
        assert sorted(found) == sorted([kept.id, after.id])
        assert refused.id not in found
        assert await ledger.discrepancies() == []


async def test_a_damaged_file_is_told(path: Path, opened: OpenLedger, new_message: NewMessage) -> None:
    """Damage at the start is found on opening, and other damage on reading."""
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
    """Damage that SQLite does not notice is reported by every read."""
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


@pytest.mark.parametrize("column", ["entered", "held"])
async def test_a_senseless_total_is_told(
    path: Path, opened: OpenLedger, new_message: NewMessage, column: str
) -> None:
    """SQLite lets a damaged count be a text: the ledger is refused on opening, and no metric breaks later."""
    async with opened() as ledger:
        await ledger.intend(new_message())
    with sqlite3.connect(path) as other:
        other.execute(f"UPDATE totals SET {column} = 'many'")  # noqa: S608 # one of two names
    other.close()
    with pytest.raises(LedgerError, match="it is damaged; move it away"):
        async with opened():
            pass


async def test_an_empty_token_key_is_refused(path: Path, opened: OpenLedger) -> None:
    """An empty key is refused, because anyone could sign messages with it."""
    async with opened():
        pass
    with sqlite3.connect(path) as other:
        other.execute("UPDATE meta SET value = X'' WHERE name = 'token_key'")
    other.close()
    with pytest.raises(LedgerError, match="its token key is empty; restore it from a backup"):
        async with opened():
            pass


async def test_a_commit_survives_a_power_cut(opened: OpenLedger) -> None:
    """SQLite must sync each commit to the disk, which killing a process cannot test."""
    async with opened() as ledger:
        settings = ledger._database.write(
            lambda connection: [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in PRAGMAS]
        )
        assert settings == list(PRAGMAS.values())


@pytest.mark.parametrize("table", ["songs (title)", "meta (name, value)"])
async def test_a_foreign_database_is_left_alone(path: Path, opened: OpenLedger, table: str) -> None:
    """No tables are created in another program's SQLite file."""
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
    """An older mailsonde refuses a ledger with a newer schema."""
    async with opened():
        pass
    with sqlite3.connect(path) as other:
        other.execute("UPDATE meta SET value = X'3939' WHERE name = 'schema_version'")
    other.close()
    with pytest.raises(LedgerError, match=r"a newer mailsonde made it \(schema 99, this one knows 7\)"):
        async with opened():
            pass


async def test_the_key_is_made_once_and_kept_private(path: Path, opened: OpenLedger) -> None:
    """The token key survives restarts, and only the owner can read the files that contain it."""
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
    """Other users cannot take our locks, whatever the umask, even after an upgrade."""
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
    """If several processes create the file at once, it gets one schema and one key."""

    async def key(instance: str) -> bytes:
        async with opened(instance) as ledger:
            return ledger.token_key

    assert len(set(await asyncio.gather(*(key(f"check-{n}") for n in range(8))))) == 1


async def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    """The error says which directory to create."""
    with pytest.raises(LedgerError, match=r"directory .*/missing does not exist; create it"):
        async with open_ledger(f"sqlite://{tmp_path}/missing/ledger.db", SystemClock(), "agent-1", "fra1"):
            pass


async def test_a_place_that_takes_no_file_is_told(tmp_path: Path) -> None:
    """The error says which directory must be writable."""
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match=r"Not a directory; make .*/file and it writable for user \d+"):
        async with open_ledger(f"sqlite://{tmp_path}/file/ledger.db", SystemClock(), "agent-1", "fra1"):
            pass


@pytest.mark.parametrize(("make", "why"), [(Path.mkdir, "Is a directory"), (os.mkfifo, "no regular file")])
async def test_what_is_no_file_keeps_its_permissions(
    tmp_path: Path, make: Callable[[Path], None], why: str
) -> None:
    """A folder or device that the configuration names by mistake stays as it is: others may need it."""
    make(tmp_path / "named")
    (tmp_path / "named").chmod(0o755)
    with pytest.raises(LedgerError, match=f"{why}; name a file"):
        async with open_ledger(f"sqlite://{tmp_path}/named", SystemClock(), "agent-1", "fra1"):
            pass
    assert mode(tmp_path / "named") == 0o755


async def test_runs_beyond_the_queue_are_dropped_and_counted(opened: OpenLedger) -> None:
    """With a slow disk, the queue of runs is bounded, and dropped runs are counted."""
    async with opened() as ledger:
        for _ in range(PENDING_RUNS + 3):
            ledger.record_run(RUN)
        assert ledger.runs_dropped == 3
    ledger.record_run(RUN)
    assert ledger.runs_dropped == 4


async def test_closing_a_stuck_ledger_ends(
    path: Path, opened: OpenLedger, new_message: NewMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing has a time limit; changes that could not be written in time get an error."""
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
