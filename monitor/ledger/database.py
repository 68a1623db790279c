"""What the ledger needs from its database: transactions, and the names of the processes that use it.

`monitor.ledger.backend` chooses an implementation by the ledger's URL. Nothing else in the ledger knows
which database it is: all statements are valid in both SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection

from probes.delivery.message_life import LedgerError

T = TypeVar("T")


class FullError(LedgerError):
    """The database has no room for this transaction; a smaller one may still fit."""


class AgentProcess(NamedTuple):
    """The agent that has a ledger: its process id, and the text that it left last; empty if there is none."""

    pid: int
    text: str


class Database(Protocol):
    """A database that holds a ledger. Its methods block, and any thread may call them.

    If the database itself fails, they raise a LedgerError that says what to do. In that case nothing has
    changed, and the next call tries again. If a value cannot be written, the driver's own error is raised.
    """

    @property
    def name(self) -> str:
        """The ledger's name in errors, such as ``ledger /var/lib/mailsonde/ledger.db``; never a password."""
        ...

    @property
    def upgrades(self) -> Mapping[str, Sequence[str]]:
        """The SQL that upgrades each older version of the schema to the next one.

        Rows from before ledgers had locations are given the location ``:location``.
        """
        ...

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction, and return its result once the transaction is durable.

        Transactions are serializable. ``work`` may be called again after a conflict with another
        transaction. Raises FullError if there is no room.
        """
        ...

    def read(self, query: Callable[[Connection], T]) -> T:
        """Return the result of ``query``, which sees one consistent state of the committed data.

        A ValueError or TypeError in ``query`` is raised as LedgerError: the database contains something that
        the ledger never wrote.
        """
        ...

    def dispose(self) -> None:
        """Close all connections."""
        ...


class Locks(Protocol):
    """Which processes use a ledger. A process's locks are released when it ends, even if it is killed.

    Methods raise LedgerError if the locks cannot be accessed.
    """

    @property
    def instance(self) -> str:
        """The name of this process, unique among the running ones."""
        ...

    def lock_for_agent(self) -> None:
        """Reserve the ledger for this agent until `release`; raises LedgerError if another agent has it."""
        ...

    def leave(self, text: str) -> None:
        """Leave a text for other processes, which `monitor.ledger.backend.agent_process` returns to them."""
        ...

    def living(self) -> frozenset[str]:
        """Return the instances of all running processes, including this one."""
        ...

    def setting_up(self) -> AbstractContextManager[None]:
        """Return a context manager that keeps other processes from setting up the ledger at the same time."""
        ...

    def release(self) -> None:
        """Release the locks of this process; never raises."""
        ...
