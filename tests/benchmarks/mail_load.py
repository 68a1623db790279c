"""An agent with many round-trip routes in front of the fake site, each on a processor of its own."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.benchmarks.processes import cpu_seconds, workplace
from tests.fakes.mail_site.connection import Pace
from tests.fakes.mail_site.process import MailSite, mail_site, servers_of
from tests.real_servers.process import free_port
from tests.real_servers.site import MAILSONDE, AgentProcess

PROCESSORS = sorted(os.sched_getaffinity(0))
AGENT_ON, SITE_ON = PROCESSORS[0], PROCESSORS[-1]

_SAMPLE = re.compile(r"^([a-z_]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')


@dataclass(frozen=True)
class Load:
    """What the agent is to do: so many routes, each at the interval, with some routes a mailbox."""

    routes: int
    interval: float = 60.0
    routes_a_mailbox: int = 10
    protocol: str = "imap"
    deadline: float = 120.0
    delay: float = 0.0
    pace: Pace = field(default_factory=Pace)
    within: float | None = None
    """Seconds of the objective of each route, if it has one."""

    @property
    def mailboxes(self) -> int:
        return -(-self.routes // self.routes_a_mailbox)

    def address(self, mailbox: int) -> str:
        """Return the address of a mailbox, which decides how it behaves (see `mail_site`)."""
        return f"canary-{mailbox}@example.com"

    @property
    def settings(self) -> dict[str, object]:
        """Settings of the mailboxes' server beyond its address."""
        return {"logins_per_minute": 60000}


def configuration(load: Load, site: MailSite, authority: Path, directory: Path, port: int) -> dict[str, Any]:
    """Return the configuration of an agent with this load."""
    login = {"password": {"file": "password"}}
    servers = servers_of(site, authority, **load.settings)
    servers["smtp"] |= {"username": "canary", "max_connections": 1000, **login}
    del servers["pop3" if load.protocol == "imap" else "imap"]
    return {
        "agent": {"listen": f"127.0.0.1:{port}", "ledger": f"sqlite:{directory}/ledger.db"},
        "servers": servers,
        "mailboxes": {
            f"box-{n}": {
                "address": load.address(n),
                "server": load.protocol,
                "username": load.address(n),
                **login,
            }
            for n in range(load.mailboxes)
        },
        "probes": [
            {
                "name": f"trip-{n}",
                "kind": "roundtrip",
                "interval": f"{load.interval:g}s",
                "deadline": f"{load.deadline:g}s",
                "from": "canary@example.com",
                "send_via": "smtp",
                "to": f"box-{n % load.mailboxes}",
                **({"slo": {"objective": "99%", "within": f"{load.within:g}s"}} if load.within else {}),
            }
            for n in range(load.routes)
        ],
    }


class Metrics:
    """One scrape, parsed: the sums of its samples."""

    def __init__(self, text: str) -> None:
        self.octets = len(text)
        self.samples = 0
        self._sums: dict[str, Counter[tuple[tuple[str, str], ...]]] = {}
        for name, labels, value in _SAMPLE.findall(text):
            self.samples += 1
            kept = tuple(
                (key, told)
                for key, told in _LABEL.findall(labels)
                if key in {"reason", "outcome", "state", "result", "shortage", "le"}
            )
            self._sums.setdefault(name, Counter())[kept] += float(value)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all samples with these labels."""
        wanted = labels.items()
        return sum(value for kept, value in self._sums.get(name, {}).items() if wanted <= dict(kept).items())

    def by(self, name: str, label: str) -> Counter[str]:
        """Return the sums by the values of a label."""
        sums: Counter[str] = Counter()
        for kept, value in self._sums.get(name, {}).items():
            if label in dict(kept):
                sums[dict(kept)[label]] += value
        return sums


@dataclass(frozen=True)
class Published:
    """A published latency, its error against the site's own log, and its uncertainty, in seconds."""

    latency: float
    error: float
    uncertainty: float

    @property
    def is_within(self) -> bool:
        """Whether the truth is within the uncertainty, but for the time it takes to read a clock."""
        return self.error <= self.uncertainty + 1e-4


class Running:
    """A site and an agent at work."""

    def __init__(self, load: Load, site: MailSite, agent: AgentProcess, directory: Path) -> None:
        self.load = load
        self.site = site
        self.agent = agent
        self.ledger = directory / "ledger.db"

    @property
    def pid(self) -> int:
        return self.agent.process.pid

    def metrics(self) -> Metrics:
        """Scrape the agent."""
        return Metrics(httpx.get(f"{self.agent.address}/metrics", trust_env=False, timeout=120.0).text)

    def cpu(self) -> tuple[float, float]:
        """Return the processor seconds of the agent and of the site."""
        return cpu_seconds(self.pid), cpu_seconds(self.site.pid)

    def resident(self) -> float:
        """Return the agent's resident memory in KiB."""
        told = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert told is not None
        return float(told[1])

    def ledger_octets(self) -> int:
        """Return the size of the ledger's files."""
        return sum(path.stat().st_size for path in self.ledger.parent.glob("ledger.db*"))

    def published(self, since: float = float("-inf")) -> list[Published]:
        """Return the published latencies of messages sent after ``since`` (monotonic).

        The agent must have stopped, because the site's log has to be newer than the ledger.
        """
        arrived = self.site.seen().arrived
        ledger = sqlite3.connect(self.ledger)
        rows = ledger.execute(
            "SELECT id, delivery_seconds, connected_mono, uncertainty_seconds FROM messages "
            "WHERE state = 'delivered' AND connected_mono > ?",
            (since,),
        ).fetchall()
        ledger.close()
        return [
            Published(latency, abs(connected + latency - arrived[key]), uncertainty)
            for key, latency, connected, uncertainty in rows
        ]


@contextmanager
def running(
    load: Load,
    *,
    pinned: bool = True,
    configure: Callable[..., dict[str, Any]] = configuration,
    command: Sequence[str] = MAILSONDE,
) -> Iterator[Running]:
    """Run a site and an agent with this load during the block; the agent is ready.

    If ``pinned``, the agent has a processor of its own, and the site has another. ``configure`` is called as
    `configuration` is, and ``command`` runs mailsonde.
    """
    with workplace() as (directory, tls), mail_site(load.pace, tls, SITE_ON if pinned else None) as site:
        site.set(delay=load.delay)
        port, config = free_port(), directory / "mailsonde.yaml"
        (directory / "password").write_text("secret")
        document = configure(load, site, tls.authority, directory, port)
        config.write_text(yaml.dump(document, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))
        agent = AgentProcess(
            config,
            directory / "agent.log",
            port,
            seconds=300.0,  # on a busy machine
            command=command,
            preexec_fn=(lambda: os.sched_setaffinity(0, {AGENT_ON})) if pinned else None,
        )
        try:
            yield Running(load, site, agent, directory)
        finally:
            agent.stop()


def wait(seconds: float, told: str) -> None:
    """Wait, and count the seconds down on a terminal."""
    from rich.console import Console

    ends, console = time.monotonic() + seconds, Console(stderr=True)
    with console.status(told) as status:
        while (left := ends - time.monotonic()) > 0:
            status.update(f"{told}: {left:.0f} s left")
            time.sleep(min(1.0, left))


def quantile(buckets: Mapping[str, float], share: float) -> float:
    """Return a quantile of a histogram's cumulative counts by upper bound, as PromQL's histogram_quantile."""
    ordered = sorted((float(bound), count) for bound, count in buckets.items())
    if not ordered or not ordered[-1][1]:
        return float("nan")
    rank, lower, below = share * ordered[-1][1], 0.0, 0.0
    for bound, count in ordered:
        if count >= rank and count > below:
            return (
                lower if bound == float("inf") else lower + (bound - lower) * (rank - below) / (count - below)
            )
        lower, below = bound, count
    return lower
