"""What is done to messages and totals inside one transaction of the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import fields

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Row,
    and_,
    bindparam,
    delete,
    func,
    select,
    tuple_,
    update,
)

from monitor.ledger.counters import Total
from monitor.ledger.database import insert
from monitor.ledger.schema import messages, totals
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.message_life import AWAITED, IN_FLIGHT, SUCCESSORS, LedgerError, Message

_FIELDS = tuple(field.name for field in fields(Message))
_COLUMNS = tuple(messages.c[name] for name in _FIELDS)
_OPEN = IN_FLIGHT | AWAITED

CHANGEABLE = frozenset(_FIELDS) - {
    "id",
    "probe",
    "target",
    "mailbox",
    "state",
    "created_at",
    "instance",
    "boot",
}
"""The fields that may change when a message moves to another state."""


class Transaction:
    """The messages and their totals, inside the one transaction of ``connection``.

    Message rows change at once, the totals once `balanced` is called; an exception in
    between leaves both to the rollback.
    """

    def __init__(self, connection: Connection, now: float) -> None:
        self._connection = connection
        self._now = now
        self._entered: Counter[tuple[str, str, str]] = Counter()
        self._left: Counter[tuple[str, str, str]] = Counter()
        self._purged: Counter[tuple[str, str, str]] = Counter()

    def intend(self, new: Sequence[Message]) -> list[LedgerError | None]:
        """Record new messages; the answer has an error for each one whose id is already taken.

        IntegrityError when two of them share an id, or one has a value that no column takes.
        """
        ids = [message.id for message in new]
        taken = set(self._connection.scalars(select(messages.c.id).where(messages.c.id.in_(ids))))
        answers: list[LedgerError | None] = []
        rows = []
        for message in new:
            if message.id in taken:
                answers.append(LedgerError(f"message {message.id} is in the ledger already"))
                continue
            rows.append({name: getattr(message, name) for name in _FIELDS} | {"changed_at": self._now})
            self._entered[message.probe, message.target, message.state] += 1
            answers.append(None)
        if rows:
            self._connection.execute(insert(messages), rows)
        return answers

    def advance(self, message_id: str, state: MessageState, changes: Mapping[str, object]) -> Message | None:
        """Move a message as `probes.delivery.message_life.Ledger.advance` says."""
        row = self._connection.execute(_SELECT_TO_CHANGE, {"of_id": message_id}).one_or_none()
        if row is None or state not in SUCCESSORS[MessageState(row.state)]:
            return None
        self._move([row], state, changes)
        return message_of(self._connection.execute(_SELECT_TO_CHANGE, {"of_id": message_id}).one())

    def _move(
        self, rows: Iterable[Row[tuple[object, ...]]], state: MessageState, changes: Mapping[str, object]
    ) -> None:
        for row in rows:
            moved = self._connection.execute(
                _MOVE,
                {
                    "of_id": row.id,
                    "from_state": row.state,
                    "state": state,
                    "changed_at": self._now,
                    **changes,
                },
            )
            if moved.rowcount != 1:
                raise LedgerError(f"message {row.id} was moved by another process at the same moment")
            self._left[row.probe, row.target, row.state] += 1
            self._entered[row.probe, row.target, state] += 1

    def adopt(self, instance: str, living: Container[str]) -> list[Message]:
        """Make ``instance`` answer for each open message whose own instance is not ``living``.

        Those in ``intent`` become ``ambiguous``: whether they were sent, nobody can tell.
        """
        query = select(*_COLUMNS).where(messages.c.state.in_(_OPEN)).with_for_update()
        orphans = [row for row in self._connection.execute(query) if row.instance not in living]
        intents = [row for row in orphans if row.state == MessageState.INTENT]
        self._move(intents, MessageState.AMBIGUOUS, {"reason": Reason.INTERRUPTED})
        ids = {row.id for row in orphans}
        gone = {row.instance for row in orphans}
        self._connection.execute(
            update(messages)
            .where(messages.c.state.in_(_OPEN), messages.c.instance.in_(gone))
            .values(instance=instance)
        )
        return [message for message in open_messages(self._connection, 0.0) if message.id in ids]

    def forget(self, before: float, limit: int) -> int:
        """Remove up to ``limit`` messages that ended, and were due, before that instant; return how many."""
        aged: ColumnElement[bool] = and_(
            messages.c.state.not_in(IN_FLIGHT),
            messages.c.changed_at < before,
            messages.c.created_at + messages.c.deadline_seconds < before,
        )
        columns = (messages.c.id, messages.c.probe, messages.c.target, messages.c.state)
        rows = self._connection.execute(select(*columns).where(aged).limit(limit).with_for_update()).all()
        self._connection.execute(delete(messages).where(messages.c.id.in_([row.id for row in rows])))
        self._purged.update((row.probe, row.target, row.state) for row in rows)
        return len(rows)

    def balanced(self) -> list[Total]:
        """Bring the totals up to date; return all those of each probe and target that changed."""
        changed = self._entered.keys() | self._left.keys() | self._purged.keys()
        if not changed:
            return []
        rows = [
            {
                "probe": key[0],
                "target": key[1],
                "state": key[2],
                "entered": self._entered[key],
                "held": self._entered[key] - self._left[key],
                "purged": self._purged[key],
            }
            for key in sorted(changed)
        ]
        self._connection.execute(_ADD_TO_TOTALS, rows)
        return read_totals(self._connection, {(probe, target) for probe, target, _ in changed})


def _add_to_totals() -> Executable:
    upsert = insert(totals)
    added = {name: totals.c[name] + upsert.excluded[name] for name in ("entered", "held", "purged")}
    return upsert.on_conflict_do_update(index_elements=["probe", "target", "state"], set_=added)


# What each message needs is built once: building a statement costs more than running it.
_SELECT = select(*_COLUMNS).where(messages.c.id == bindparam("of_id"))
# FOR UPDATE says nothing in SQLite, where the transaction holds the whole file.
_SELECT_TO_CHANGE = _SELECT.with_for_update()
_MOVE = update(messages).where(
    messages.c.id == bindparam("of_id"), messages.c.state == bindparam("from_state")
)
_ADD_TO_TOTALS = _add_to_totals()
_OLDEST = (
    select(func.min(messages.c.created_at))
    .where(
        messages.c.state == totals.c.state,
        messages.c.probe == totals.c.probe,
        messages.c.target == totals.c.target,
    )
    .scalar_subquery()
)
_TOTALS = select(
    totals.c.probe,
    totals.c.target,
    totals.c.state,
    totals.c.entered,
    totals.c.held,
    _OLDEST.label("oldest"),
)
_TOTALS_OF = _TOTALS.where(tuple_(totals.c.probe, totals.c.target).in_(bindparam("pairs", expanding=True)))


def read_totals(connection: Connection, targets: Iterable[tuple[str, str]] | None = None) -> list[Total]:
    """Return the totals, of all or of the given pairs of probe and target."""
    result = (
        connection.execute(_TOTALS)
        if targets is None
        else connection.execute(_TOTALS_OF, {"pairs": list(targets)})
    )
    return [
        Total(row.probe, row.target, MessageState(row.state), row.entered, row.held, row.oldest)
        for row in result
    ]


def find(connection: Connection, message_id: str) -> Message | None:
    """Return the message with this id, or ``None``."""
    row = connection.execute(_SELECT, {"of_id": message_id}).one_or_none()
    return None if row is None else message_of(row)


def open_messages(connection: Connection, since: float) -> list[Message]:
    """Return, oldest first, what is under way or may still arrive and was created at ``since`` or later."""
    query = (
        select(*_COLUMNS)
        .where(messages.c.state.in_(_OPEN), messages.c.created_at >= since)
        .order_by(messages.c.created_at, messages.c.id)
    )
    return [message_of(row) for row in connection.execute(query)]


def discrepancies(connection: Connection) -> list[str]:
    """Return a sentence for each count that does not add up: none, unless there is a defect.

    For each probe and target, intents must equal the sum of messages held in all states, and
    for each state the rows present plus those purged must equal the messages held.
    """
    present = {
        (row.probe, row.target, row.state): row.n
        for row in connection.execute(
            select(messages.c.probe, messages.c.target, messages.c.state, func.count().label("n")).group_by(
                messages.c.probe, messages.c.target, messages.c.state
            )
        )
    }
    faults = []
    balance: Counter[tuple[str, str]] = Counter()
    for row in connection.execute(select(totals)):
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


def message_of(row: Row[tuple[object, ...]]) -> Message:
    """Return the message that a row holds."""
    values = dict(row._mapping)
    return Message(**{**values, "state": MessageState(row.state)})
