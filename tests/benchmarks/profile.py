"""What the processor time of a round trip goes to, by part.

An agent works on a processor of its own, in front of servers with STARTTLS and AUTH, and reads by IMAP. It
does so twice: as users run it, for the total, and while it samples itself, for the shares of the parts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.mail_load import Load, Running, running, wait
from tests.real_servers.process import wait_until

ROUTES, INTERVAL, SECONDS = 240, 60.0, 60.0
GOAL, GOAL_LEDGER = 5.0, 1.2
"""Milliseconds a round trip: in all, and of the ledger."""


def _delivered(at_work: Running) -> float:
    return at_work.metrics().total("mailsonde_messages_total", state="delivered")


def _warm_up(at_work: Running) -> None:
    wait_until(lambda: _delivered(at_work) >= at_work.load.routes, "a message a route", 300.0)


def _milliseconds(load: Load, seconds: float) -> float:
    """Return the processor time of a message, with all that the agent does meanwhile."""
    with running(load) as at_work:
        _warm_up(at_work)
        delivered, (used, _) = _delivered(at_work), at_work.cpu()
        wait(seconds, "as users run it")
        used = at_work.cpu()[0] - used
        return 1000 * used / (_delivered(at_work) - delivered)


def _shares(load: Load, seconds: float) -> dict[str, float]:
    """Return the share of each part in the processor time."""
    with TemporaryDirectory() as directory:
        result = Path(directory) / "parts.json"
        command = (sys.executable, "-m", "tests.benchmarks.sampled", str(result))
        with running(load, command=command) as at_work:
            _warm_up(at_work)
            at_work.agent.process.send_signal(signal.SIGUSR1)
            wait(seconds, "with samples")
            at_work.agent.process.send_signal(signal.SIGUSR1)
            wait_until(result.exists, "the samples are written", 30.0)
            parts: dict[str, float] = json.loads(result.read_text())
    return {part: used / sum(parts.values()) for part, used in parts.items()}


def main(arguments: Sequence[str] = ()) -> bool:
    """Print the table; return whether the goals are reached."""
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks profile")
    options.add_argument("--routes", type=int, default=ROUTES)
    options.add_argument("--interval", type=float, default=INTERVAL, help="seconds between two messages")
    options.add_argument("--seconds", type=float, default=SECONDS, help="of each of the two measurements")
    options.add_argument("--protocol", choices=("imap", "pop3"), default="imap")
    told = options.parse_args(arguments)
    load = Load(told.routes, told.interval, protocol=told.protocol)
    total, shares = _milliseconds(load, told.seconds), _shares(load, told.seconds)
    print(
        f"processor time of a round trip by {told.protocol}, {told.routes} routes, {told.interval:g} s, "
        f"a machine with {os.cpu_count()} processors:"
    )
    for part, share in sorted(shares.items(), key=lambda one: -one[1]):
        print(f"  {part:32}{share * total:8.2f} ms{share:8.1%}")
    ledger = total * sum(share for part, share in shares.items() if "ledger" in part)
    print(f"  {'in all':32}{total:8.2f} ms           goal: at most {GOAL:g}")
    print(f"  {'of this, the ledger':32}{ledger:8.2f} ms           goal: at most {GOAL_LEDGER:g}", flush=True)
    return total <= GOAL and ledger <= GOAL_LEDGER
