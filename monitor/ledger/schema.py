"""The ledger's tables. A change to them raises `SCHEMA_VERSION`."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, text

SCHEMA_VERSION = 3

UPGRADES = {
    "1": (
        "ALTER TABLE messages ADD COLUMN greylisted_seconds FLOAT",
        "ALTER TABLE messages ADD COLUMN octets INTEGER",
        "ALTER TABLE messages ADD COLUMN digest VARCHAR",
        "ALTER TABLE messages ADD COLUMN findings VARCHAR NOT NULL DEFAULT ''",
    ),
    "2": (
        "ALTER TABLE runs ADD COLUMN target VARCHAR NOT NULL DEFAULT ''",
        "ALTER TABLE runs ADD COLUMN run VARCHAR NOT NULL DEFAULT ''",
        "ALTER TABLE runs ADD COLUMN transcript VARCHAR",
        "DROP INDEX runs_by_probe",
        "DROP INDEX runs_by_failure",
        "UPDATE runs SET target = coalesce(json_extract(document, '$.target'), ''), "
        "run = coalesce(json_extract(document, '$.run'), ''), "
        "transcript = json_extract(document, '$.transcript'), "
        "document = json_remove(document, '$.transcript')",
        "CREATE INDEX runs_by_route ON runs (probe, target, id)",
        "CREATE INDEX failed_runs_by_route ON runs (probe, target, id) WHERE failed = 1",
    ),
}
"""What turns an older schema, by its version, into the next one."""

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
    Column("findings", String, nullable=False, server_default=""),
    Column("reason", String, nullable=False),
    Column("detail", String, nullable=False),
    Column("reply_code", Integer),
    Column("enhanced_status_code", String),
    Column("submission_seconds", Float),
    Column("transit_seconds", Float),
    Column("delivery_seconds", Float),
    Column("uncertainty_seconds", Float),
    Column("changed_at", Float, nullable=False),  # unix seconds; when it entered its state
    Index("messages_by_state", "state", "probe", "target", "created_at"),
)
"""One row a message: the fields of `probes.delivery.message_life.Message`, and ``changed_at``."""

totals = Table(
    "totals",
    metadata,
    Column("probe", String, primary_key=True),
    Column("target", String, primary_key=True),
    Column("state", String, primary_key=True),
    Column("entered", Integer, nullable=False),
    Column("held", Integer, nullable=False),
    Column("purged", Integer, nullable=False),
)
"""Counts over all history, changed in the transaction that changes the message.

``entered`` is how many times a message came into the state and never falls; ``held`` how many
messages are in it, those included whose rows are purged; ``purged`` how many those are.
"""

runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run", String, nullable=False, server_default=""),
    Column("probe", String, nullable=False),
    Column("target", String, nullable=False, server_default=""),
    Column("failed", Boolean, nullable=False),
    Column("document", String, nullable=False),  # the run as one JSON object, without its transcript
    Column("transcript", String),  # a JSON list of lines
    Index("runs_by_route", "probe", "target", "id"),
    Index("failed_runs_by_route", "probe", "target", "id", sqlite_where=text("failed = 1")),
    sqlite_autoincrement=True,
)
"""The last finished runs of each probe and target; ``failed`` means that the outcome was not ``ok``.

One run is found by its id among those of its probe: an index for it would cost every run more than
it would spare the few that are looked at.
"""
