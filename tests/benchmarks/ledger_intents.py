"""Durable intents per second with 100 concurrent senders, with and without group commit.

Run it in the project's root: the ledgers are made there, on a disk and not in memory. Prints a line for
people and one JSON object, with the median of all rounds.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from time import perf_counter

from monitor.ledger import writer
from monitor.ledger.store import open_ledger
from probes.core.clock import SystemClock
from tests.fakes.message import intent

SENDERS = 100
ROUNDS = 5
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
