"""The ledger at size: how long an intent waits while old messages are purged, and what a start costs.

``python -m tests.benchmarks.ledger_at_size 10000000`` measures with another number of messages. Plain SQL
makes the file in /var/tmp, about 480 octets a message.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time

from monitor.ledger.store import open_ledger
from probes.core.clock import SystemClock
from tests.fakes.message import intent

ROWS = 1_000_000
ROUTES = 10_000
HOURS = 7 * 24 + 1
"""Age of the oldest message. The purge removes those of its first hour."""

GOAL = 0.1
"""Maximum seconds that an intent may wait."""

_MESSAGES = """
WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :rows)
INSERT INTO messages (location, id, probe, target, mailbox, state, created_at, deadline_seconds, instance,
    boot, created_mono, connected_mono, dot_mono, accepted_mono, octets, digest, mailbox_uid, findings,
    reason, detail, reply_code, enhanced_status_code, submission_seconds, transit_seconds, delivery_seconds,
    uncertainty_seconds, changed_at, excused, trace_looks, trace)
SELECT 'fra1', lower(hex(randomblob(16))), 'trip-' || (n % :routes), 'submission', 'canary',
    CASE WHEN n % 97 = 0 THEN 'lost' ELSE 'delivered' END,
    :begin + n * :step, 300.0, 'agent-0123456789abcdef', '0b3c1f6a-7d1c-4d0a-9a51-1f6f4f2a9e11',
    n * :step, n * :step + 0.01, n * :step + 0.11, n * :step + 0.12, 1892,
    lower(hex(randomblob(32))), 'INBOX 1721890000 ' || n, '', '', '', 250, '2.0.0', 0.11, 1.23, 1.34,
    0.012, :begin + n * :step + CASE WHEN n % 97 = 0 THEN 300.0 ELSE 1.5 END, FALSE, 0, ''
FROM numbers
"""
_TOTALS = """
INSERT INTO totals SELECT 'fra1', probe, target, state, count(*), count(*), 0 FROM messages
GROUP BY probe, target, state
UNION ALL
SELECT 'fra1', probe, target, 'intent', count(*), 0, 0 FROM messages GROUP BY probe, target
UNION ALL
SELECT 'fra1', probe, target, 'sent', count(*), 0, 0 FROM messages GROUP BY probe, target
"""


def _fill(path: str, rows: int) -> None:
    """Add messages of `HOURS`, evenly spread over all routes, and their totals."""
    database = sqlite3.connect(path, isolation_level=None)
    for pragma in ("synchronous=OFF", "cache_size=-2000000", "wal_autocheckpoint=100000"):
        database.execute(f"PRAGMA {pragma}")
    index = "messages_by_state ON messages (location, state, probe, target, created_at)"
    database.execute("DROP INDEX messages_by_state")  # one that is made at the end takes less time
    step = HOURS * 3600 / rows
    begin = time.time() - HOURS * 3600
    database.execute(_MESSAGES, {"rows": rows, "routes": ROUTES, "begin": begin, "step": step})
    database.execute(f"CREATE INDEX {index}")
    database.execute(_TOTALS)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


async def _measure(path: str, rows: int) -> None:
    clock, url = SystemClock(), f"sqlite://{path}"
    async with open_ledger(url, clock, "maker", "fra1"):
        pass
    await asyncio.to_thread(_fill, path, rows)
    begun, used = time.monotonic(), time.process_time()
    async with open_ledger(url, clock, "agent", "fra1") as ledger:
        adopted = len(await ledger.adopt())
        print(
            f"ledger of {rows:,} messages: opened, and {adopted:,} open messages adopted, in "
            f"{time.monotonic() - begun:.1f} s, {time.process_time() - used:.1f} s of processor time"
        )
        used = time.process_time()
        purge = asyncio.create_task(ledger.forget(clock.time() - (HOURS - 1) * 3600))
        waits = []
        while not purge.done():
            begun = time.monotonic()
            await ledger.intend(intent(clock, probe=f"trip-{len(waits) % ROUTES}", target="submission"))
            waits.append(time.monotonic() - begun)
            await asyncio.sleep(0.01)
        print(
            f"  purge of {await purge:,}: {time.process_time() - used:.1f} s of processor time; "
            f"an intent waited {1000 * statistics.median(waits):.1f} ms (median), {1000 * max(waits):.0f} "
            f"ms at most; goal: {1000 * GOAL:.0f} ms"
        )
        if faults := await ledger.discrepancies():
            raise SystemExit("\n".join(faults))


def main(rows: int = ROWS) -> None:
    """Print what a start costs, and how long an intent waits during a purge."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="mailsonde-bench-") as directory:
        asyncio.run(_measure(f"{directory}/ledger.db", rows))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
