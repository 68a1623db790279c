"""Changes to the messages and totals of one location, in one transaction of the ledger.

A newer mailsonde may have left messages in states that this version does not know. These are counted as
rows, but never shown, moved, adopted or purged.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from math import inf
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    null,
    or_,
    select,
    text,
    update,
)

from monitor.ledger.compiled import CompiledStatement
from monitor.ledger.counters import Total
from monitor.ledger.last_week import ENDS, Ends, ends_of
from monitor.ledger.schema import messages, totals
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.message_life import AWAITED, IN_FLIGHT, SUCCESSORS, LedgerError, Message

_FIELDS = tuple(field.name for field in fields(Message))
_COLUMNS = tuple(messages.c[name] for name in _FIELDS)
_STATE = _FIELDS.index("state")
_STATES = frozenset(MessageState)
_OPEN = IN_FLIGHT | AWAITED
_ENDED = _STATES - IN_FLIGHT
_UNSETTLED = _OPEN - {MessageState.LOST}

CHANGEABLE = frozenset(_FIELDS) - {
    "id",
    "probe",
    "target",
    "mailbox",
    "state",
    "created_at",
    "instance",
    "boot",
    "excused",
}
"""Fields that may change when a message moves to another state."""


class Transaction:
    """The messages and totals of ``location``, in the current transaction of ``connection``.

    Message rows change at once, totals when `update_totals` is called. An exception in between rolls back
    both. ``counts_from`` is that of `monitor.ledger.store.SqlLedger`.
    """

    def __init__(
        self, connection: Connection, location: str, now: float, counts_from: Callable[[str, float], float]
    ) -> None:
        self.connection = connection
        self._location = location
        self._now = now
        self._counts_from = counts_from
        self._entered: Counter[tuple[str, str, str]] = Counter()
        self._left: Counter[tuple[str, str, str]] = Counter()
        self._purged: Counter[tuple[str, str, str]] = Counter()
        self._excused: Counter[tuple[str, str, str]] = Counter()
        self.ends: list[Ends] = []
        """How messages ended in this transaction."""

    def intend(self, new: Sequence[Message]) -> list[LedgerError | None]:
        """Record new messages; return an error in place of ``None`` for each message whose id is taken.

        Raises IntegrityError if one has a value that its column cannot hold.
        """
        answers: list[LedgerError | None] = []
        for message in new:
            values = {name: getattr(message, name) for name in _FIELDS}
            is_excused = message.created_at < self._counts_from(message.probe, self._now)
            values |= {"location": self._location, "changed_at": self._now, "excused": is_excused}
            if _INTEND.run(self.connection, values):
                self._entered[message.probe, message.target, message.state] += 1
                answers.append(None)
            else:
                answers.append(LedgerError(f"message {message.id} is in the ledger already"))
        return answers

    def advance(self, message_id: str, state: MessageState, changes: Mapping[str, Any]) -> Message | None:
        """Move a message as `probes.delivery.message_life.Ledger.advance` says."""
        of_message = {"of_location": self._location, "of_id": message_id}
        rows = _SELECT_TO_CHANGE.rows(self.connection, of_message)
        if not rows or state not in SUCCESSORS.get(rows[0][_STATE], ()):
            return None
        before = dict(zip(_FIELDS, rows[0], strict=True))
        # Whether a loss counts was decided when it was noticed.
        ends_now = state in ENDS and before["state"] != MessageState.LOST
        if ends_now and before["created_at"] < self._counts_from(before["probe"], self._now):
            changes = {**changes, "excused": True}
        self._move(before, state, changes)
        message = Message(**{**before, **changes, "state": state})
        if ends_now and message.excused:
            self._excused[message.probe, message.target, state] += 1
        elif ends_now and (ends := ends_of(message)) is not None:
            self.ends.append(ends)
        return message

    def _move(self, before: Mapping[str, Any], state: MessageState, changes: Mapping[str, Any]) -> None:
        values = {
            "of_location": self._location,
            "of_id": before["id"],
            "from_state": before["state"],
            "state": state,
            "changed_at": self._now,
            **changes,
        }
        if _move(frozenset(changes)).run(self.connection, values) != 1:
            raise LedgerError(f"message {before['id']} was moved by another process at the same moment")
        self._left[before["probe"], before["target"], before["state"]] += 1
        self._entered[before["probe"], before["target"], state] += 1

    def note_trace(self, message_id: str, looks: int, trace: str) -> None:
        """Do what `probes.delivery.message_life.Ledger.note_trace` says."""
        values = {
            "of_location": self._location,
            "of_id": message_id,
            "trace_looks": looks,
            "trace": trace,
        }
        _NOTE_TRACE.run(self.connection, values)

    def adopt(self, instance: str, living: Container[str]) -> list[Message]:
        """Make ``instance`` responsible for the open messages of instances that are not ``living``.

        Messages in ``intent`` become ``ambiguous``, because nobody knows whether they were sent.
        """
        here = {"of_location": self._location}
        opened = self.connection.execute(_OPEN_MESSAGES.with_for_update(), here | {"since": 0.0})
        orphans = [dict(zip(_FIELDS, row, strict=True)) for row in opened if row.instance not in living]
        gone = {orphan["instance"] for orphan in orphans}
        interrupted = {"reason": str(Reason.INTERRUPTED)}
        for orphan in orphans:
            orphan["instance"] = instance
            if orphan["state"] == MessageState.INTENT:
                self._move(orphan, MessageState.AMBIGUOUS, interrupted)
                orphan |= {"state": MessageState.AMBIGUOUS, **interrupted}
        self.connection.execute(
            update(messages)
            .where(_HERE, messages.c.state.in_(_OPEN), messages.c.instance.in_(gone))
            .values(instance=instance),
            here,
        )
        return [Message(**{**orphan, "state": MessageState(orphan["state"])}) for orphan in orphans]

    def forget(self, ids: Collection[str], before: float) -> int:
        """Remove those of these messages that ended, and were due, before that instant; return how many."""
        removed = 0
        for message_id in ids:
            values = {"of_location": self._location, "before": before, "of_id": message_id}
            for group in _SELECT_AGED.rows(self.connection, values):
                if group[-1] in _ENDED:
                    removed += _DELETE.run(self.connection, values)
                    self._purged[group] += 1
        return removed

    def update_totals(self) -> list[Total]:
        """Update the totals; return all totals of each probe and target that changed."""
        changed = self._entered.keys() | self._left.keys() | self._purged.keys()
        if not changed:
            return []
        for key in sorted(changed):
            values = {
                "location": self._location,
                "probe": key[0],
                "target": key[1],
                "state": key[2],
                "entered": self._entered[key],
                "held": self._entered[key] - self._left[key],
                "purged": self._purged[key],
                "excused": self._excused[key],
            }
            _ADD_TO_TOTALS.run(self.connection, values)
        totals: list[Total] = []
        for probe, target in {key[:2] for key in changed}:
            of_route = {"of_location": self._location, "of_probe": probe, "of_target": target}
            if (since := self._counts_from(probe, self._now)) > -inf:
                totals += _known(_TOTALS_SINCE.rows(self.connection, {**of_route, "since": since}))
            else:
                totals += _known(_TOTALS_OF_ROUTE.rows(self.connection, of_route))
        return totals


_HERE = messages.c.location == bindparam("of_location")
_SELECT = select(*_COLUMNS).where(_HERE, messages.c.id == bindparam("of_id"))
_FIND = CompiledStatement(_SELECT)
_NOTE_TRACE = CompiledStatement(
    update(messages).where(_HERE, messages.c.id == bindparam("of_id")), {"trace_looks", "trace"}
)
# SQLite has no FOR UPDATE and needs none: the transaction locks the whole file.
_SELECT_TO_CHANGE = CompiledStatement(_SELECT.with_for_update())
_OPEN_MESSAGES = (
    select(*_COLUMNS)
    .where(_HERE, messages.c.state.in_(_OPEN), messages.c.created_at >= bindparam("since"))
    .order_by(messages.c.created_at, messages.c.id)
)


@cache
def _move(changed: frozenset[str]) -> CompiledStatement:
    """Return the statement that moves a message to another state and changes these fields."""
    which = and_(_HERE, messages.c.id == bindparam("of_id"), messages.c.state == bindparam("from_state"))
    return CompiledStatement(update(messages).where(which), {"state", "changed_at", *changed})


_ALL = messages.c.keys()
# Text, because SQLAlchemy has ON CONFLICT only by dialect; this is valid in SQLite and PostgreSQL.
_INTEND = CompiledStatement(
    text(
        f"INSERT INTO messages ({', '.join(_ALL)}) VALUES (:{', :'.join(_ALL)}) "  # noqa: S608 # names of ours
        "ON CONFLICT (location, id) DO NOTHING"
    )
)
_ADD_TO_TOTALS = CompiledStatement(
    text(
        "INSERT INTO totals (location, probe, target, state, entered, held, purged, excused) "
        "VALUES (:location, :probe, :target, :state, :entered, :held, :purged, :excused) "
        "ON CONFLICT (location, probe, target, state) DO UPDATE SET "
        "entered = totals.entered + excluded.entered, held = totals.held + excluded.held, "
        "purged = totals.purged + excluded.purged, excused = totals.excused + excluded.excused"
    )
)
_IN_TOTAL = and_(
    messages.c.location == totals.c.location,
    messages.c.state == totals.c.state,
    messages.c.probe == totals.c.probe,
    messages.c.target == totals.c.target,
)
_OLDEST = select(func.min(messages.c.created_at)).where(_IN_TOTAL).scalar_subquery()
_OLDEST_COUNTED = (
    select(func.min(messages.c.created_at))
    .where(_IN_TOTAL, messages.c.created_at >= bindparam("since"))
    .scalar_subquery()
)


def _of_flights(oldest: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return ``oldest`` of messages in flight: that of others is never asked for, and may be on the disk."""
    return case((or_(*(totals.c.state == state for state in sorted(IN_FLIGHT))), oldest), else_=null())


def _totals(counted: ColumnElement[Any]) -> Select[Any]:
    return select(
        totals.c.probe,
        totals.c.target,
        totals.c.state,
        totals.c.entered,
        totals.c.held,
        _of_flights(_OLDEST).label("oldest"),
        totals.c.excused,
        counted.label("oldest_counted"),
    ).where(totals.c.location == bindparam("of_location"))


_TOTALS = _totals(null())
_OF_ROUTE = and_(totals.c.probe == bindparam("of_probe"), totals.c.target == bindparam("of_target"))
_TOTALS_OF_ROUTE = CompiledStatement(_TOTALS.where(_OF_ROUTE))
_TOTALS_SINCE = CompiledStatement(_totals(_of_flights(_OLDEST_COUNTED)).where(_OF_ROUTE))


def read_totals(connection: Connection, location: str) -> list[Total]:
    """Return the totals of all known states."""
    return _known(connection.execute(_TOTALS, {"of_location": location}))


def _known(rows: Iterable[Sequence[Any]]) -> list[Total]:
    return [
        Total(probe, target, MessageState(state), int(entered), int(held), oldest, int(excused), counted)
        for probe, target, state, entered, held, oldest, excused, counted in rows
        if state in _STATES
    ]


_AGED = and_(
    messages.c.changed_at < bindparam("before"),
    messages.c.created_at + messages.c.deadline_seconds < bindparam("before"),
)
# One by one: with a list of ids, SQLite may choose another index, and read all messages.
_SELECT_AGED = CompiledStatement(
    select(messages.c.probe, messages.c.target, messages.c.state)
    .where(_HERE, messages.c.id == bindparam("of_id"), _AGED)
    .with_for_update()
)
_DELETE = CompiledStatement(delete(messages).where(_HERE, messages.c.id == bindparam("of_id")))
_AGED_GROUPS = select(totals.c.probe, totals.c.target, totals.c.state).where(
    totals.c.location == bindparam("of_location"),
    totals.c.state.in_(_ENDED),
    totals.c.held > totals.c.purged,
    bindparam("before") > _OLDEST,
)
# This needs no index of its own: a message was created before it ended.
_AGED_OF_GROUP = CompiledStatement(
    select(messages.c.id)
    .where(
        _HERE,
        messages.c.state == bindparam("of_state"),
        messages.c.probe == bindparam("of_probe"),
        messages.c.target == bindparam("of_target"),
        messages.c.created_at < bindparam("before"),
        _AGED,
    )
    .order_by(messages.c.created_at)
    .limit(bindparam("most"))
)

Group = tuple[str, str, str]
"""The probe, target and state of messages."""


def aged_groups(connection: Connection, location: str, before: float) -> list[Group]:
    """Return the groups of ended messages in which some were created before that instant."""
    return [
        tuple(row) for row in connection.execute(_AGED_GROUPS, {"of_location": location, "before": before})
    ]


def aged(location: str, groups: deque[Group], before: float, most: int, connection: Connection) -> list[str]:
    """Return the ids of up to ``most`` messages that ended, and were due, before that instant.

    Groups in which there are no more are removed from ``groups``.
    """
    ids: list[str] = []
    while groups:
        probe, target, state = groups[0]
        group = {"of_location": location, "of_state": state, "of_probe": probe, "of_target": target}
        values = {**group, "before": before, "most": most - len(ids)}
        ids += [message_id for (message_id,) in _AGED_OF_GROUP.rows(connection, values)]
        if len(ids) == most:
            break
        groups.popleft()
    return ids


def find(connection: Connection, location: str, message_id: str) -> Message | None:
    """Return the message with this id; ``None`` if there is none or its state is unknown."""
    rows = _FIND.rows(connection, {"of_location": location, "of_id": message_id})
    return message_of(rows[0]) if rows and rows[0][_STATE] in _STATES else None


def open_messages(connection: Connection, location: str, since: float) -> list[Message]:
    """Return, oldest first, messages created since ``since`` that are in flight or may still arrive."""
    return [
        message_of(row)
        for row in connection.execute(_OPEN_MESSAGES, {"of_location": location, "since": since})
    ]


def left_alone(connection: Connection, location: str, living: Container[str]) -> list[str]:
    """Return a sentence for each group of messages that `Transaction.adopt` leaves and no process settles.

    These are messages of ``location`` in states that this version does not know, and unsettled messages of
    other locations whose instance is not ``living``.
    """
    held = select(totals.c.location, totals.c.state, func.sum(totals.c.held - totals.c.purged).label("n"))
    rows = connection.execute(held.group_by(totals.c.location, totals.c.state)).all()
    sentences = [
        f"{row.n} messages are in state {row.state}, which this version does not know; they stay as they are"
        for row in rows
        if row.n and row.location == location and row.state not in _STATES
    ]
    elsewhere = {row.location for row in rows if row.n and row.state in _UNSETTLED} - {location}
    by_instance = (
        select(messages.c.location, messages.c.instance, func.count().label("n"))
        .where(messages.c.location.in_(elsewhere), messages.c.state.in_(_UNSETTLED))
        .group_by(messages.c.location, messages.c.instance)
    )
    unsettled: Counter[str] = Counter()
    for row in connection.execute(by_instance):
        unsettled[row.location] += 0 if row.instance in living else row.n
    return sentences + [
        f"{n} messages of location {name} are not settled, and this agent is at {location}: "
        f"run an agent with location {name} on this ledger until they are"
        for name, n in unsettled.items()
        if n
    ]


def discrepancies(connection: Connection, location: str) -> list[str]:
    """Return a sentence for each count that does not add up. Any sentence means a defect.

    For each probe and target, the intents must equal the sum of the messages held in all states. For each
    state, the rows present plus those purged must equal the messages held.
    """
    columns = (messages.c.probe, messages.c.target, messages.c.state)
    counts = select(*columns, func.count().label("n")).where(messages.c.location == location)
    present = {
        (row.probe, row.target, row.state): row.n for row in connection.execute(counts.group_by(*columns))
    }
    faults = []
    balance: Counter[tuple[str, str]] = Counter()
    for row in connection.execute(select(totals).where(totals.c.location == location)):
        rows = present.pop((row.probe, row.target, row.state), 0)
        if rows + row.purged != row.held:
            faults.append(
                f"{row.probe} {row.target} {row.state}: {rows} rows + {row.purged} purged != {row.held} held"
            )
        balance[row.probe, row.target] += row.held
        balance[row.probe, row.target] -= row.entered if row.state == MessageState.INTENT else 0
    faults += [f"{' '.join(key)}: {n} rows without a total" for key, n in present.items()]
    faults += [f"{' '.join(key)}: {n:+} messages against intents" for key, n in balance.items() if n]
    return faults


def message_of(row: Sequence[Any]) -> Message:
    """Return the message in a row, whose columns are in the order of its fields."""
    values = list(row)
    values[_STATE] = MessageState(values[_STATE])
    return Message(*values)
