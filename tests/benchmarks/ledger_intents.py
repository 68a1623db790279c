"""Durable intents per second with 100 concurrent senders, with and without group commit.

Run it in the project's root: the ledgers are made there, on a disk and not in memory. Prints a line for
people and one JSON object, with the median of all rounds.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from time import perf_counter, process_time

from monitor.ledger import writer
from monitor.ledger.store import SqlLedger, open_ledger
from probes.core.clock import SystemClock
from probes.core.verdict import MessageState
from tests.fakes.message import intent

SENDERS = 100
ROUNDS = 5
ROUND_TRIPS_A_SECOND, SECONDS = 100, 4
GOAL = 0.0012
"""Maximum processor time of a round trip, in seconds."""

GROUPED = writer.GROUP_LIMIT
INTENTS_A_SENDER = {GROUPED: 40, 1: 5}


async def intents_per_second(group_limit: int) -> float:
    """Return how many intents per second a new ledger takes with this maximum per transaction."""
    writer.GROUP_LIMIT = group_limit
    clock = SystemClock()
    count = INTENTS_A_SENDER[group_limit]

    with tempfile.TemporaryDirectory(dir=".", prefix=".benchmark-") as directory:
        async with open_ledger(f"sqlite:{directory}/ledger.db", clock, "benchmark", "fra1") as ledger:

            async def sender(number: int) -> None:
                for _ in range(count):
                    await ledger.intend(intent(clock, probe=f"probe-{number}"))

            begun = perf_counter()
            await asyncio.gather(*map(sender, range(SENDERS)))
            seconds = perf_counter() - begun
            if faults := await ledger.discrepancies():
                raise SystemExit("\n".join(faults))
    return SENDERS * count / seconds


async def _life(ledger: SqlLedger, clock: SystemClock, number: int) -> None:
    """Record what a round trip records."""
    message = intent(clock, probe=f"trip-{number % SENDERS}")
    await ledger.intend(message)
    await asyncio.sleep(0.05)
    now = clock.monotonic()
    times = {"connected_mono": now, "dot_mono": now, "accepted_mono": now, "submission_seconds": 0.05}
    await ledger.advance(message.id, MessageState.SENT, **times, reply_code=250, octets=1892)
    await asyncio.sleep(0.1)
    await ledger.find(message.id)
    latencies = {"transit_seconds": 0.1, "delivery_seconds": 0.15, "uncertainty_seconds": 0.01}
    await ledger.advance(message.id, MessageState.DELIVERED, **latencies, mailbox_uid=f"INBOX {number}")


async def processor_seconds_a_round_trip() -> float:
    """Return the processor time that the ledger takes for a round trip, at `ROUND_TRIPS_A_SECOND`."""
    clock, count = SystemClock(), ROUND_TRIPS_A_SECOND * SECONDS
    with tempfile.TemporaryDirectory(dir=".", prefix=".benchmark-") as directory:
        async with open_ledger(f"sqlite:{directory}/ledger.db", clock, "me", "fra1") as ledger:
            begun, used = perf_counter(), process_time()
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    await asyncio.sleep(begun + number / ROUND_TRIPS_A_SECOND - perf_counter())
                    group.create_task(_life(ledger, clock, number))
            return (process_time() - used) / count


def main() -> None:
    """Measure both ways in turn, so that other load on the machine affects them equally."""
    rates: dict[int, list[float]] = {GROUPED: [], 1: []}
    for _ in range(ROUNDS):
        for group_limit, measured in rates.items():
            measured.append(asyncio.run(intents_per_second(group_limit)))
    grouped, single = (statistics.median(measured) for measured in rates.values())
    print(
        f"ledger: {grouped:,.0f} durable intents/s with {SENDERS} senders; "
        f"{single:,.0f}/s with a transaction for each (medians of {ROUNDS} rounds)"
    )
    trips = [asyncio.run(processor_seconds_a_round_trip()) for _ in range(ROUNDS)]
    print(
        f"ledger: {1000 * statistics.median(trips):.2f} ms of processor time a round trip, at "
        f"{ROUND_TRIPS_A_SECOND} a second, with the tasks that ask for it; goal: {1000 * GOAL:.1f} ms"
    )
    print(
        json.dumps(
            {
                "benchmark": "ledger_intents",
                "senders": SENDERS,
                "rounds": ROUNDS,
                "group_commit_per_second": round(grouped),
                "single_commit_per_second": round(single),
                "group_commit_rates": [round(rate) for rate in rates[GROUPED]],
                "single_commit_rates": [round(rate) for rate in rates[1]],
            }
        )
    )


if __name__ == "__main__":
    main()
