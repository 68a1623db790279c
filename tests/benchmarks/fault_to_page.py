"""Seconds from a fault to the page with the shipped thresholds and Alertmanager example."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from tests.replay.incidents import KINDS
from tests.replay.replay import replay

SCRAPE = 15.0
"""Seconds: what `mailsonde render prometheus` writes for probes that run every minute."""

AFTERMATH = 1800.0
FAULTS = {
    "queue held": "mail held in a queue",
    "one message lost": "a message lost",
    "a bounce": "a bounce",
    "submission server down": "a server that refuses connections",
    "agent killed": "the agent gone",
}
EACH = 8


def main() -> None:
    """Print the shortest, median and longest time for each fault, for incidents at random moments."""
    kinds = [kind for kind in KINDS if kind.name in FAULTS] * EACH
    length = sum(60.0 * kind.minutes + AFTERMATH for kind in kinds) + 2 * AFTERMATH
    delays = defaultdict(list)
    for told in replay(1, length, AFTERMATH, kinds, step=SCRAPE).told:
        assert told.delay is not None, told.incident.kind.name
        delays[told.incident.kind.name].append(told.delay)
    print(f"from fault to page in s, probes every 60 s, deadline 5 min, scrapes every {SCRAPE:.0f} s:")
    for name, shown in FAULTS.items():
        some = delays[name]
        print(f"  {shown:34} {min(some):4.0f} to {max(some):4.0f}, median {median(some):4.0f}")
