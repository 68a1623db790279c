"""Compares an agent's ledger with the log of the server that it talked to."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from tests.crash.mail_server import Entry, RecordingServer

TOLERANCE = 0.001
"""Seconds that an interval may be off: a clock is read before or after what it times."""

_S = MessageState
_ENDS = (_S.DELIVERED, _S.LATE, _S.LOST, _S.BOUNCED, _S.REJECTED, _S.DEFERRED, _S.AMBIGUOUS)
_IN_FLIGHT = (_S.INTENT, _S.SENT)


@dataclass
class Books:
    """What ledger and server say of all messages, and where they disagree; of several ledgers together."""

    rows: dict[str, Any] = field(default_factory=dict)
    intents: int = 0
    states: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    unrecorded: list[str] = field(default_factory=list)
    """Accepted by the server, and in no state that says so."""
    falsely_lost: list[str] = field(default_factory=list)
    """Called lost, though they came in time."""
    sent_twice: list[str] = field(default_factory=list)
    """Their content came to the server more than once."""
    misjudged: list[str] = field(default_factory=list)
    """Any other state than what became of them, and latencies outside their stated error."""
    left_behind: list[str] = field(default_factory=list)
    """Copies of ours that are still in a mailbox, and real mail that is not."""
    defects: list[str] = field(default_factory=list)
    """Tracebacks in an agent's log, and totals that do not add up to the rows."""

    @classmethod
    def of(cls, ledger: Path) -> Books:
        """Read a ledger by SQL alone; another process may use it. One without tables is empty."""
        with closing(sqlite3.connect(ledger, isolation_level=None)) as database:
            database.row_factory = sqlite3.Row
            if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                return cls()
            database.execute("BEGIN")  # one consistent state
            books = cls(rows={row["id"]: row for row in database.execute("SELECT * FROM messages")})
            totals = list(database.execute("SELECT state, entered, held FROM totals"))
        books.intents = sum(row["entered"] for row in totals if row["state"] == _S.INTENT)
        books.states = Counter(row["state"] for row in books.rows.values())
        held = Counter({state: sum(row["held"] for row in totals if row["state"] == state) for state in _S})
        if +held != books.states:
            books.defects.append(f"totals {dict(held)}, rows {dict(books.states)}")
        if books.intents != books.states.total():
            books.defects.append(f"{books.intents} intents, {books.states.total()} messages")
        return books

    @classmethod
    def after_kill(cls, ledger: Path) -> Books:
        """Read a copy of the files that a killed agent left, for to open them would recover them."""
        with tempfile.TemporaryDirectory() as directory:
            for suffix in ("", "-wal"):
                if (file := ledger.with_name(ledger.name + suffix)).exists():
                    shutil.copy(file, directory)
            return cls.of(Path(directory) / ledger.name)

    def compare(self, server: RecordingServer) -> None:
        """Hold each message against the server's log, and the mailboxes against what must be in them."""
        for message in self.rows.keys() | server.log.keys():
            self._compare(message, self.rows.get(message), server.log.get(message, Entry()))
        self.left_behind += server.ours_left
        if (left := server.foreign_left) != server.foreign:
            self.left_behind.append(f"{left} of {server.foreign} real mails are left")

    def _compare(self, message: str, row: Any, entry: Entry) -> None:
        state = row["state"] if row is not None else "nowhere"
        said = f"{message}: {state}, and to the server: {entry}"
        self.accepted += bool(entry.accepted)
        if entry.begun > 1 or len(entry.accepted) > 1:
            self.sent_twice.append(said)
        if entry.accepted and state in {"nowhere", _S.INTENT, _S.REJECTED, _S.DEFERRED}:
            self.unrecorded.append(said)
        elif row is not None and state not in _right_states(row, entry):
            came_in_time = entry.arrived_at is not None and entry.arrived_at <= _deadline(row)
            (self.falsely_lost if state == _S.LOST and came_in_time else self.misjudged).append(said)
        elif row is not None and row["delivery_seconds"] is not None:
            arrived = row["connected_mono"] or row["created_mono"]
            arrived += row["delivery_seconds"]
            if abs(arrived - entry.arrived_at) > row["uncertainty_seconds"] + TOLERANCE:
                off = abs(arrived - entry.arrived_at)
                self.misjudged.append(f"{said}; {off:.4f} s off, ± {row['uncertainty_seconds']:.4f} s stated")

    @property
    def is_open(self) -> bool:
        """Whether an agent still has something to settle or to delete."""
        return bool(self.in_flight or self.falsely_lost or self.misjudged or self.left_behind)

    @property
    def in_flight(self) -> int:
        """How many messages are not settled."""
        return sum(self.states[state] for state in _IN_FLIGHT)

    @property
    def faults(self) -> list[str]:
        """Everything that must not be."""
        sorts = {each.name: getattr(self, each.name) for each in fields(self) if each.type == "list[str]"}
        return [f"{name}: {text}" for name, texts in sorts.items() for text in texts]

    def __iadd__(self, other: Books) -> Books:
        for each in fields(self):
            if each.name != "rows":
                setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        return self

    @property
    def equation(self) -> str:
        """Intents as the sum of what became of them."""
        terms = [f"{self.states[state]} {state}" for state in _ENDS]
        return f"{self.intents} intents = {' + '.join(terms)} + {self.in_flight} in flight"

    def __str__(self) -> str:
        return "\n".join(
            [
                self.equation,
                f"accepted by the server: {self.accepted}",
                f"accepted but unrecorded = {len(self.unrecorded)}",
                f"falsely lost = {len(self.falsely_lost)}",
                f"sent twice = {len(self.sent_twice)}",
                f"any other wrong state or latency = {len(self.misjudged)}",
                f"left behind in a mailbox, or missing there = {len(self.left_behind)}",
                f"defects in the log or the totals = {len(self.defects)}",
            ]
        )


def _deadline(row: Any) -> float:
    begun = row["created_mono"] if row["connected_mono"] is None else row["connected_mono"]
    return begun + row["deadline_seconds"]


def _right_states(row: Any, entry: Entry) -> Iterable[str]:
    """Return the states in which a message may be for what the server says that became of it."""
    unsure = {_S.AMBIGUOUS} if row["reason"] == Reason.INTERRUPTED else set()
    if entry.reported_at is not None:
        return {_S.BOUNCED}
    if entry.arrived_at is not None:
        return {_S.DELIVERED} if entry.arrived_at <= _deadline(row) else {_S.DELIVERED, _S.LATE}
    if entry.accepted:
        return {_S.LOST} | unsure
    if entry.fate.startswith("5"):
        return {_S.REJECTED} | unsure
    return {_S.DEFERRED, _S.REJECTED} | unsure
