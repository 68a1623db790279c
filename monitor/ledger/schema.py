"""The ledger's tables, and how a database gets them. Every change to them must raise `SCHEMA_VERSION`.

Each row belongs to a location. An agent reads and writes only the rows of its own location, so agents at
several locations can share a database.
"""

from __future__ import annotations

import secrets

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    insert,
    inspect,
    select,
    text,
    update,
)

from monitor.ledger.database import Database
from probes.delivery.message_life import LedgerError

SCHEMA_VERSION = 7

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
"""``schema_version`` in decimal digits, and ``token_key``."""

messages = Table(
    "messages",
    metadata,
    Column("location", String, primary_key=True),
    Column("id", String(32), primary_key=True),
    Column("probe", String, nullable=False),
    Column("target", String, nullable=False),
    Column("mailbox", String, nullable=False),
    Column("state", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("deadline_seconds", Float, nullable=False),
    Column("instance", String, nullable=False),
    Column("boot", String, nullable=False),
    Column("created_mono", Float, nullable=False),
    Column("connected_mono", Float),
    Column("dot_mono", Float),
    Column("accepted_mono", Float),
    Column("greylisted_seconds", Float),
    Column("octets", Integer),
    Column("digest", String),
    Column("mailbox_uid", String),
    Column("findings", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("detail", String, nullable=False),
    Column("reply_code", Integer),
    Column("enhanced_status_code", String),
    Column("submission_seconds", Float),
    Column("transit_seconds", Float),
    Column("delivery_seconds", Float),
    Column("uncertainty_seconds", Float),
    Column("changed_at", Float, nullable=False),  # unix seconds; when it entered its state
    Column("trace_looks", Integer, nullable=False),
    Column("trace", String, nullable=False),
    Column("excused", Boolean, nullable=False),
    Index("messages_by_state", "location", "state", "probe", "target", "created_at"),
)
"""One row per message: the fields of `probes.delivery.message_life.Message`, and two more."""

totals = Table(
    "totals",
    metadata,
    Column("location", String, primary_key=True),
    Column("probe", String, primary_key=True),
    Column("target", String, primary_key=True),
    Column("state", String, primary_key=True),
    Column("entered", Integer, nullable=False),
    Column("held", Integer, nullable=False),
    Column("purged", Integer, nullable=False),
    Column("excused", Integer, nullable=False),
)
"""Counts since the ledger was made, updated in the same transaction as the messages.

``entered`` is how many messages ever entered the state; it never falls. ``held`` is how many are in it now,
including those whose rows have been purged. ``purged`` is how many of these there are. ``excused`` is how
many of ``entered`` ended in maintenance.
"""

runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),  # newer runs have greater ids
    Column("location", String, nullable=False),
    Column("run", String, nullable=False),
    Column("probe", String, nullable=False),
    Column("target", String, nullable=False),
    Column("failed", Boolean, nullable=False),
    Column("document", LargeBinary, nullable=False),  # the run as one JSON object, without its transcript
    Column("transcript", LargeBinary),  # a JSON list of lines
    Index("runs_by_route", "location", "probe", "target", "id"),
    Index("failed_runs_by_route", "location", "probe", "target", "failed", "id"),
)
"""The latest finished runs of each probe and target; ``failed`` means that the outcome was not ``ok``.

``document`` and ``transcript`` are compressed by `monitor.ledger.packing`. Before schema 5, they were text.

There is no index on ``run``: it would slow down every insert, and runs are rarely looked up by it.
"""


pauses = Table(
    "pauses",
    metadata,
    Column("location", String, primary_key=True),
    Column("selection", String, primary_key=True),
    Column("begins_at", Float, primary_key=True),  # unix seconds, as is the next
    Column("ends_at", Float, nullable=False),
    Column("comment", String, nullable=False),
    Column("set_by", String, nullable=False),
)
"""Maintenance that people began on the command line. ``selection`` is a `monitor.ledger.pauses.Pause`'s."""


def prepare(connection: Connection, database: Database, location: str) -> bytes:
    """Make the tables in an empty database, or upgrade older ones; return the key for signing tokens.

    Rows from before ledgers had locations are given the location ``location``. Raises LedgerError if the
    tables belong to a newer mailsonde or another program, or if the key is missing.
    """
    tables = inspect(connection).get_table_names()
    if not tables:
        metadata.create_all(connection)
        values = {"schema_version": str(SCHEMA_VERSION).encode(), "token_key": secrets.token_bytes(32)}
        rows = [{"name": name, "value": value} for name, value in values.items()]
        connection.execute(insert(meta), rows)
    elif meta.name not in tables:
        raise _foreign(database)
    version = _meta(connection, database, "schema_version").decode()
    while version in database.upgrades:
        for statement in database.upgrades[version]:
            connection.execute(text(statement), {"location": location})
        version = str(int(version) + 1)
        connection.execute(update(meta).where(meta.c.name == "schema_version").values(value=version.encode()))
    if version != str(SCHEMA_VERSION):
        raise LedgerError(
            f"{database.name}: a newer mailsonde made it "
            f"(schema {version}, this one knows {SCHEMA_VERSION}); "
            "upgrade mailsonde, or name another database in agent.ledger"
        )
    token_key = _meta(connection, database, "token_key")
    if not token_key:  # anyone could sign with it
        raise LedgerError(
            f"{database.name}: its token key is empty; restore it from a backup, or move it away"
        )
    return token_key


def version(connection: Connection) -> bytes | None:
    """Return the version of the schema, in decimal digits."""
    return connection.scalar(select(meta.c.value).where(meta.c.name == "schema_version"))


def _meta(connection: Connection, database: Database, name: str) -> bytes:
    value = connection.scalar(select(meta.c.value).where(meta.c.name == name))
    if not isinstance(value, bytes):
        raise _foreign(database)
    return value


def _foreign(database: Database) -> LedgerError:
    return LedgerError(
        f"{database.name}: another program's tables are in it; name another database in agent.ledger"
    )
