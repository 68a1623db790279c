"""``python -m tests.crash``: kills agents a thousand times, and prints what became of every message.

Interrupted, or told of a fault, it names the seed to go on from or to repeat the round with.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time

from tests.crash.rounds import Outcome, kill_agents

ROUND = 50
"""Kills of one round; each round begins with empty ledgers and its own seed."""


def main() -> None:
    """Run the rounds; exits 1 as soon as one shows a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="how many, in rounds of 50 (default: 1000)")
    parser.add_argument("--seed", type=int, help="of the first round; the next ones count up from it")
    arguments = parser.parse_args()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    total, begun = Outcome(), time.monotonic()
    try:
        while total.kills.total() < arguments.kills:
            outcome = asyncio.run(kill_agents(seed, min(ROUND, arguments.kills - total.kills.total())))
            total += outcome
            seconds, kills = time.monotonic() - begun, total.kills.total()
            print(f"{seconds:5.0f} s: seed {seed}, {kills} kills; {outcome.settled.equation}", flush=True)
            if faults := outcome.settled.faults:
                print(*faults, sep="\n")
                print(f"to repeat this round: make soak SEED={seed} KILLS={ROUND}")
                break
            seed += 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; to go on: make soak SEED={seed} KILLS={arguments.kills - total.kills.total()}")
    print(total)
    sys.exit(bool(total.settled.faults))


if __name__ == "__main__":
    main()
