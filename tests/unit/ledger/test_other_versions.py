"""Rows that another version of mailsonde wrote with the same schema, and broken rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pytest

from monitor.ledger.packing import unpacked
from probes.core.verdict import MessageState
from tests.unit.ledger.conftest import RUN, NewMessage, OpenLedger, StandingClock

S = MessageState
MESSAGE = {
    "id": "0" * 32,
    "state": "delivered",
    "submission_seconds": 0.5,
    "transit_seconds": 1.0,
    "delivery_seconds": 1.5,
    "uncertainty_seconds": 0.25,
}
FROM_THE_FUTURE = RUN | {
    "run": "f" * 32,
    "kind": "jmap",
    "outcome": "failed",
    "reason": "quota_exceeded",
    "detail": "90 % used",
    "message": MESSAGE | {"state": "quarantined", "held_seconds": 2.0},
    "weather": "rain",
}


def write_runs(path: Path, *documents: object, transcript: str | None = None) -> None:
    """Write runs directly into the history: objects as JSON, and text and bytes as they are."""
    with sqlite3.connect(path) as other:
        for document in documents:
            run = document.get("run", "") if isinstance(document, Mapping) else ""
            text = document if isinstance(document, (str, bytes)) else json.dumps(document)
            other.execute(
                "INSERT INTO runs (location, run, probe, target, failed, document, transcript) "
                "VALUES ('fra1', ?, 'hq', 'mail', 0, ?, ?)",
                (run, text, transcript),
            )
    other.close()


async def test_a_run_of_a_newer_version_is_shown(path: Path, opened: OpenLedger) -> None:
    """Unknown words become "unknown", and the detail has the original reason."""
    async with opened():
        pass
    write_runs(path, FROM_THE_FUTURE, RUN | {"outcome": "splendid", "reason": "sunny", "detail": ""})
    async with opened() as ledger:
        splendid, failed = await ledger.recent_runs("hq", "mail")
        assert failed == FROM_THE_FUTURE | {
            "reason": "unknown",
            "detail": "this version does not know the reason 'quota_exceeded': 90 % used",
            "message": MESSAGE | {"state": "unknown", "held_seconds": 2.0},
        }
        assert (splendid["outcome"], splendid["reason"]) == ("unknown", "unknown")
        assert splendid["detail"] == "this version does not know the reason 'sunny'"
        assert await ledger.newest_runs({"hq"}, 40, 1000) == [failed, splendid]
        assert await ledger.find_run("hq", "f" * 32) == failed


async def test_a_newer_version_finds_its_own_words_again(path: Path, opened: OpenLedger) -> None:
    """Reading does not change the history, so a newer version still finds its own words later."""
    async with opened():
        pass
    write_runs(path, FROM_THE_FUTURE)
    async with opened() as ledger:
        await ledger.recent_runs("hq", "mail")
        ledger.record_run(RUN)
    with sqlite3.connect(path) as other:
        documents = [
            json.loads(unpacked(row[0])) for row in other.execute("SELECT document FROM runs ORDER BY id")
        ]
    other.close()
    assert documents == [FROM_THE_FUTURE, RUN]


async def test_a_reason_that_had_another_name(path: Path, opened: OpenLedger) -> None:
    """A run of an earlier version has the present name of its reason, and its detail as it was."""
    async with opened():
        pass
    write_runs(
        path, RUN | {"outcome": "unknown", "reason": "imap_throttled", "detail": "Request is throttled"}
    )
    async with opened() as ledger:
        (run,) = await ledger.recent_runs("hq", "mail")
    assert (run["outcome"], run["reason"], run["detail"]) == ("unknown", "throttled", "Request is throttled")


async def test_a_run_of_an_older_version_is_shown(path: Path, opened: OpenLedger) -> None:
    """Members that an older version did not write get neutral defaults."""
    needed = {name: RUN[name] for name in ("probe", "target", "started_at", "duration_seconds")}
    async with opened():
        pass
    write_runs(path, needed | {"reason": "none", "outcome": "ok", "message": {}}, needed)
    async with opened() as ledger:
        bare, sending = await ledger.recent_runs("hq", "mail")
    rest = {"kind": "unknown", "location": "", "detail": "", "phases": {}, "values": {}}
    times = ("submission_seconds", "transit_seconds", "delivery_seconds", "uncertainty_seconds")
    assert sending == needed | rest | {
        "reason": "none",
        "outcome": "ok",
        "message": {"state": "unknown", **dict.fromkeys(times)},
    }
    assert bare == needed | rest | {
        "reason": "unknown",
        "outcome": "unknown",
        "detail": "this version does not know the reason None",
    }


BROKEN: tuple[object, ...] = (
    "",
    "{",
    "null",
    "[]",
    "7",
    b"\xff{}",
    "[" * 100_000,
    {name: RUN[name] for name in RUN if name != "started_at"},
    {name: RUN[name] for name in RUN if name != "target"},
    RUN | {"started_at": "yesterday"},
    RUN | {"started_at": "0001-01-01T00:00:00+23:00"},
    RUN | {"started_at": 1_800_000_000},
    RUN | {"duration_seconds": "long"},
    RUN | {"duration_seconds": float("nan")},
    RUN | {"phases": []},
    RUN | {"phases": {"connect": "quick"}},
    RUN | {"values": 7},
    RUN | {"values": {"octets": float("inf")}},
    RUN | {"values": {"said": "\ud800"}},
    RUN | {"detail": "\ud800"},
    RUN | {"message": MESSAGE | {"delivery_seconds": "soon"}},
    RUN | {"message": "delivered"},
)


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
async def test_a_broken_run_is_left_out_and_told(
    path: Path, opened: OpenLedger, caplog: pytest.LogCaptureFixture, broken: object
) -> None:
    """A broken row is left out and logged, and has no other effect."""
    async with opened():
        pass
    write_runs(path, RUN, broken, broken)
    async with opened() as ledger:
        for _ in range(2):
            assert await ledger.newest_runs({"hq"}, 40, 1000) == [RUN]
            assert await ledger.recent_runs("hq", "mail") == [RUN]
    (told,) = caplog.messages
    assert told.startswith(f"ledger {path}: 2 broken runs of the history are left out; the first: ")


@pytest.mark.parametrize("transcript", ["", "{", '{"S": "220"}', "[7]"])
async def test_a_run_with_a_broken_transcript_is_not_found(
    path: Path, opened: OpenLedger, transcript: str
) -> None:
    """A run that cannot be shown counts as not found, and is not an internal error."""
    async with opened():
        pass
    write_runs(path, RUN, transcript=transcript)
    async with opened() as ledger:
        assert await ledger.find_run("hq", "0" * 32) is None


async def test_messages_in_states_of_a_newer_version_are_kept(
    path: Path,
    opened: OpenLedger,
    new_message: NewMessage,
    clock: StandingClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They are counted, but not shown, moved, adopted or purged, so a newer version finds them again."""
    async with opened("gone") as ledger:
        await ledger.intend(kept := new_message(instance="gone"))
        await ledger.intend(other := new_message(instance="gone"))
        await ledger.advance(other.id, S.SENT)
    with sqlite3.connect(path) as newer:
        newer.execute("UPDATE messages SET state = 'quarantined' WHERE id = ?", (kept.id,))
        newer.execute("UPDATE totals SET held = held - 1 WHERE state = 'intent'")
        newer.execute("INSERT INTO totals VALUES ('fra1', 'hq', 'submission', 'quarantined', 1, 1, 0, 0)")
        before = newer.execute("SELECT * FROM messages WHERE id = ?", (kept.id,)).fetchone()
    async with opened() as ledger:
        assert [message.id for message in await ledger.adopt()] == [other.id]
        assert await ledger.find(kept.id) is None
        assert await ledger.advance(kept.id, S.SENT) is None
        assert [message.id for message in await ledger.open_messages()] == [other.id]
        assert ledger.counters.flight("hq", "submission").messages == 1
        await ledger.advance(other.id, S.DELIVERED)
        clock.now += 1_000_000
        assert await ledger.forget(clock.now) == 1
        assert await ledger.discrepancies() == []
    assert newer.execute("SELECT * FROM messages").fetchall() == [before]
    newer.close()
    assert caplog.messages == [
        f"ledger {path}: 1 messages are in state quarantined, which this version does not know; "
        "they stay as they are"
    ]
