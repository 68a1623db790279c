"""What the ledger needs of the database that it is kept in: transactions, and knowing which processes use it.

`monitor.ledger.backend` chooses an implementation by the ledger's URL. Nothing else in the ledger knows
which database it is: statements are SQL that SQLite and PostgreSQL both take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from probes.delivery.message_life import LedgerError

T = TypeVar("T")


class FullError(LedgerError):
    """The database has no room for a whole transaction; it may have room for a part of it."""


class Database(Protocol):
    """A database that holds a ledger. Its methods block, and any thread may call them.

    Trouble of the database's own is a LedgerError that says what to do. Nothing has changed then, and the
    next call tries again. The fault of a value that was to be written stays the driver's own error.
    """

    @property
    def name(self) -> str:
        """What errors call the ledger, such as ``ledger /var/lib/mailsonde/ledger.db``; without passwords."""
        ...

    @property
    def upgrades(self) -> Mapping[str, Sequence[str]]:
        """The SQL that turns an older schema, by its version, into the next one.

        ``:location`` stands for the location that gets the rows of a ledger that had no locations.
        """
        ...

    def write(self, work: Callable[[Connection], T]) -> T:
        """Return what ``work`` does in one transaction, which is durable by then.

        It has the effect that it would have if no other transaction ran at the same time. ``work`` may be
        called again where another transaction got in its way. FullError when there is no room.
        """
        ...

    def read(self, query: Callable[[Connection], T]) -> T:
        """Return the answer of ``query``, which sees one consistent state of what is committed.

        A ValueError or TypeError in ``query`` is a LedgerError too: the database holds what the ledger
        never wrote.
        """
        ...

    def dispose(self) -> None:
        """Close all connections."""
        ...


class Locks(Protocol):
    """Which processes use a ledger. The locks of a process end with it, however it ends.

    Methods raise LedgerError when the locks cannot be reached.
    """

    @property
    def instance(self) -> str:
        """The name of this process, which no other living process has."""
        ...

    def lock_for_agent(self) -> None:
        """Hold the ledger for this agent until `release`; LedgerError when another agent has it."""
        ...

    def living(self) -> frozenset[str]:
        """Return the instances whose processes are alive, this one among them."""
        ...

    def setting_up(self) -> AbstractContextManager[None]:
        """Return what keeps other processes from setting up the same ledger at the same time."""
        ...

    def release(self) -> None:
        """Drop the locks of this process; never raises."""
        ...
