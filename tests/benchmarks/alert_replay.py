"""A replayed week with an incident of each kind: who is told, how soon, and who is called for nothing."""

from __future__ import annotations

from tests.replay.replay import replay

WEEK = 7 * 86400.0
AFTERMATH = 1800.0
SEEDS = (1, 2)


def main() -> None:
    """Print the figures of each seed."""
    for seed in SEEDS:
        print(f"alerts over a replayed week of incidents, seed {seed}:", flush=True)
        print(replay(seed, WEEK, AFTERMATH).table(), flush=True)
