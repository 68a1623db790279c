"""A replayed week with an incident of each kind: notifications, their delay, and false pages."""

from __future__ import annotations

from tests.replay import exchange_incidents
from tests.replay.replay import EXCHANGE_SITE, replay

WEEK = 7 * 86400.0
DAYS = 3 * 86400.0
AFTERMATH = 1800.0
SEEDS = (1, 2)


def main() -> None:
    """Print the figures for each seed."""
    for seed in SEEDS:
        print(f"alerts over three replayed days of Exchange's incidents, seed {seed}:", flush=True)
        print(replay(seed, DAYS, AFTERMATH, exchange_incidents.KINDS, site=EXCHANGE_SITE).table(), flush=True)
        print(f"alerts over a replayed week of incidents, seed {seed}:", flush=True)
        print(replay(seed, WEEK, AFTERMATH).table(), flush=True)
