"""Processor time of large configurations: of `validate`, and of `run` until the agent is ready.

``python -m tests.benchmarks start``
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from monitor.ledger.store import open_ledger
from monitor.runner import Result
from probes.core.clock import SystemClock
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer, Verdict
from tests.benchmarks.processes import cpu_seconds
from tests.real_servers.process import free_port
from tests.real_servers.site import MAILSONDE, AgentProcess

GOAL_VALID = 3.0
GOAL_READY = 6.0
ROUTES = (1000, 10_000)
ROUTES_A_MAILBOX = 10
RUNS_EACH = 3
"""Runs of each route that an earlier agent left in the ledger."""

ROUNDS = 3

_HEAD = """\
agent: {{listen: '127.0.0.1:{port}', ledger: 'sqlite:{directory}/ledger.db'}}
servers:
  smtp:
    protocol: smtp
    host: 127.0.0.1
    port: 9
    tls: starttls
    username: canary@example.com
    password: {{file: password}}
  imap:
    protocol: imap
    host: 127.0.0.1
    port: 9
    tls: implicit
mailboxes:
"""
_MAILBOX = """\
  box-{n}:
    address: canary-{n}@example.com
    server: imap
    username: canary-{n}@example.com
    password: {{file: password}}
"""
_PROBE = """\
  - name: trip-{n}
    kind: roundtrip
    interval: 1h
    deadline: 5m
    from: canary@example.com
    send_via: smtp
    to: box-{box}
"""


@dataclass
class Figures:
    """Processor seconds, one of each round."""

    version: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    ready_again: list[float] = field(default_factory=list)


def write_configuration(directory: Path, routes: int, port: int) -> Path:
    """Write a configuration as people do, in blocks; return its path. Its servers do not answer."""
    boxes = max(1, routes // ROUTES_A_MAILBOX)
    (directory / "password").write_text("secret")
    path = directory / "mailsonde.yaml"
    path.write_text(
        _HEAD.format(port=port, directory=directory)
        + "".join(_MAILBOX.format(n=n) for n in range(boxes))
        + "probes:\n"
        + "".join(_PROBE.format(n=n, box=n % boxes) for n in range(routes))
    )
    return path


def processor_seconds(*command: str | Path) -> float:
    """Run a command of mailsonde; return its processor time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*MAILSONDE, *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _ready(config: Path, port: int) -> float:
    agent = AgentProcess(config, config.parent / "agent.log", port, seconds=300.0)
    used = cpu_seconds(agent.process.pid)
    agent.stop()
    return used


async def _fill(ledger: Path, routes: int) -> None:
    """Leave the history of an earlier agent in a ledger."""
    verdict, clock = Verdict(Reason.NONE), SystemClock()
    for run in range(RUNS_EACH):
        async with open_ledger(f"sqlite:{ledger}", clock, f"earlier-{run}", "local") as earlier:
            for n in range(routes):
                result = Result(
                    run=f"{run}-{n}",
                    probe=f"trip-{n}",
                    kind="roundtrip",
                    target="smtp",
                    location="local",
                    verdict=verdict,
                    started_at=clock.time(),
                    duration_seconds=0.1,
                    transcript=PhaseTimer(clock).transcript,
                )
                earlier.record_run(result.with_transcript())


def measure(routes: int) -> Figures:
    """Return the figures of a configuration with so many routes."""
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="mailsonde-bench-", dir="/var/tmp") as name:
        directory, port = Path(name), free_port()
        config = write_configuration(directory, routes, port)
        for _ in range(ROUNDS):
            figures.version.append(processor_seconds("--version"))
            figures.valid.append(processor_seconds("validate", config))
            figures.ready.append(_ready(config, port))
        asyncio.run(_fill(directory / "ledger.db", routes))
        figures.ready_again = [_ready(config, port) for _ in range(ROUNDS)]
    return figures


def main() -> None:
    """Print the processor time of each command, in seconds."""
    print(f"processor time of a start, in seconds; medians of {ROUNDS}:")
    print(f"{'routes':>9}{'--version':>11}{'validate':>10}{'run, ready':>12}{'with a history':>16}")
    for routes in ROUTES:
        told = measure(routes)
        version, valid, ready, again = (
            statistics.median(each) for each in (told.version, told.valid, told.ready, told.ready_again)
        )
        print(f"{routes:9,}{version:11.2f}{valid:10.2f}{ready:12.2f}{again:16.2f}", flush=True)
    print(f"  goal at {ROUTES[-1]:,} routes: validate at most {GOAL_VALID:g}, ready at most {GOAL_READY:g}")


if __name__ == "__main__":
    main()
