"""Whether probes of healthy servers keep their time beside servers that never answer.

One agent runs `HEALTHY` probes every second, first alone, then beside black holes. Half of these let nobody
connect (a full backlog, so that SYNs are dropped) and the others say nothing: SMTP servers, POP3 and IMAP
mailboxes that messages are awaited in, and a resolver. All addresses are loopback addresses.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from math import inf
from pathlib import Path

import httpx
import yaml

from tests.benchmarks.processes import cpu_seconds, workplace
from tests.real_servers.process import free_port, wait_until
from tests.real_servers.site import AgentProcess

HEALTHY = 40
SECONDS = 60.0
"""How long each agent is watched."""

SCRAPE_INTERVAL = 15.0
"""Seconds between two scrapes of the agent meanwhile."""

TIME_LIMIT = 30.0
"""Seconds between two runs of a black hole's probe, and until each is given up."""

MAILBOXES = 0.1
"""The share of the black holes that are mailboxes, half by POP3 and half by IMAP."""

RESOLVERS = 0.1
"""The share that are domains whose resolver is silent."""

GOAL = 1.0
"""Seconds that 99 % of the runs may start late at most."""

Section = dict[str, object]


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Behave as an SMTP server that accepts every message."""
    writer.write(b"220 mail.example.com ESMTP\r\n")
    with suppress(ConnectionError):
        while line := await reader.readline():
            command = line[:4].upper()
            if command == b"DATA":
                writer.write(b"354 go on\r\n")
                while await reader.readline() not in {b".\r\n", b""}:
                    pass
            writer.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")
    writer.close()


async def _serve(hosts: list[str], port: int) -> None:
    async with await asyncio.start_server(_answer, hosts, port) as server:
        await server.serve_forever()


def _addresses(network: int, count: int) -> list[str]:
    return [f"127.{network}.{n // 250}.{n % 250 + 1}" for n in range(count)]


@contextmanager
def _healthy() -> Iterator[tuple[list[str], int]]:
    """Run the healthy servers in a separate process; yield their addresses and port."""
    hosts, port = _addresses(1, HEALTHY), free_port()
    process = subprocess.Popen([sys.executable, "-m", __name__, str(port), *hosts])
    try:
        wait_until(lambda: not socket.socket().connect_ex((hosts[-1], port)), "the servers listen")
        yield hosts, port
    finally:
        process.kill()
        process.wait()


def _hole(stack: ExitStack, host: str, *, lets_in: bool) -> int:
    """Listen at ``host`` and never accept; return the port. Unless ``lets_in``, the backlog is full."""
    listener = stack.enter_context(socket.socket())
    listener.bind((host, 0))
    listener.listen(4096 if lets_in else 0)
    if not lets_in:
        stack.enter_context(socket.create_connection(listener.getsockname()))
    return int(listener.getsockname()[1])


def _holes(stack: ExitStack, count: int, healthy: str) -> tuple[Section, Section, list[Section]]:
    """Make black holes; return their servers, mailboxes and probes."""
    limits = {"interval": f"{TIME_LIMIT:g}s", "deadline": f"{TIME_LIMIT:g}s"}
    unanswered = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    unanswered.bind(("127.2.255.1", 0))
    resolver = dict(zip(("address", "port"), unanswered.getsockname(), strict=True))
    servers: Section = {}
    mailboxes: Section = {}
    probes: list[Section] = []
    for n, host in enumerate(_addresses(2, count)):
        name = f"hole-{n}"
        if n < RESOLVERS * count:
            probes.append(
                {"name": name, "kind": "mx", "domain": f"{name}.example", "resolver": resolver, **limits}
            )
            continue
        is_mailbox = n < (RESOLVERS + MAILBOXES) * count
        protocol = ("pop3", "imap")[n % 2] if is_mailbox else "smtp"
        port = _hole(stack, host, lets_in=n // 2 % 2 == 0)
        servers[name] = {"protocol": protocol, "host": host, "port": port, "tls": "none"}
        if is_mailbox:
            servers[name]["allow_insecure_auth"] = True  # type: ignore[index] # a section
            address = f"{name}@example.com"
            mailboxes[name] = {
                "address": address,
                "server": name,
                "username": address,
                "password": {"env": "CANARY_PASSWORD"},
            }
            trip = {"name": name, "kind": "roundtrip", "from": address, "send_via": healthy, "to": name}
            probes.append({**trip, **limits})
        else:
            probes.append({"name": name, "kind": "smtp", "server": name, **limits})
    return servers, mailboxes, probes


class _Watched:
    """The changes of an agent's metrics over some time, during which it is scraped as usual."""

    def __init__(self, agent: AgentProcess, seconds: float) -> None:
        after = before = _samples(agent)
        cpu, begun = cpu_seconds(agent.process.pid), time.monotonic()
        for _ in range(int(seconds / SCRAPE_INTERVAL)):
            time.sleep(SCRAPE_INTERVAL)
            after = _samples(agent)
        self.seconds = time.monotonic() - begun
        self.cpu = (cpu_seconds(agent.process.pid) - cpu) / self.seconds
        self._grown = {key: value - before.get(key, 0.0) for key, value in after.items()}
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        self.megabytes = int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024
        self.descriptors = len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))

    def sum(self, name: str, *labels: str) -> float:
        """Return the increase of the samples with that name and all these labels."""
        return sum(value for _, value in self._with(name, *labels))

    def _with(self, name: str, *labels: str) -> Iterator[tuple[str, float]]:
        for key, value in self._grown.items():
            if key.partition("{")[0] == name and all(label in key for label in labels):
                yield key, value

    def quantile(self, name: str, share: float, *labels: str) -> float:
        """Return the upper bound of the histogram's bucket with this share of the observations."""
        counts: dict[float, float] = {}
        for key, value in self._with(f"{name}_bucket", *labels):
            bound = float(re.findall(r'le="([^"]+)"', key)[0])
            counts[bound] = counts.get(bound, 0.0) + value
        total = counts[inf]
        return next(bound for bound in sorted(counts) if counts[bound] >= share * total)


def _samples(agent: AgentProcess) -> dict[str, float]:
    text = httpx.get(f"{agent.address}/metrics", trust_env=False, timeout=60).text
    return {key: float(value) for key, value in re.findall(r"^(\w+(?:\{.*\})?) ([0-9.e+-]+)$", text, re.M)}


def _measure(title: str, count: int, descriptors: int | None = None) -> None:
    """Run an agent with ``count`` black holes, perhaps with few file descriptors, and print its figures."""
    with workplace() as (directory, _), ExitStack() as stack, _healthy() as (hosts, port):
        servers: Section = {
            f"mail-{n}": {"protocol": "smtp", "host": host, "port": port, "tls": "none"}
            for n, host in enumerate(hosts)
        }
        holes, mailboxes, probes = _holes(stack, count, "mail-0")
        good = [
            {"name": name, "kind": "smtp", "server": name, "interval": "1s", "deadline": "1s"}
            for name in servers
        ]
        listen = free_port()
        configuration = {
            "agent": {"listen": f"127.0.0.1:{listen}", "ledger": f"sqlite:{directory}/ledger.db"},
            "servers": servers | holes,
            "mailboxes": mailboxes,
            "probes": good + probes,
        }
        config = directory / "mailsonde.yaml"
        config.write_text(yaml.safe_dump(configuration))

        def limit() -> None:
            if descriptors is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

        environment = {**os.environ, "CANARY_PASSWORD": "secret"}
        agent = AgentProcess(config, directory / "agent.log", listen, env=environment, preexec_fn=limit)
        try:
            if count:
                time.sleep(2 * TIME_LIMIT + 5)  # until every black hole was tried and has timed out
            _show(title, _Watched(agent, SECONDS))
        finally:
            agent.stop()


def _show(title: str, watched: _Watched) -> None:
    lag, healthy = "mailsonde_schedule_lag_seconds", 'probe="mail-'
    starts = watched.sum(f"{lag}_count")
    late = starts - watched.sum(f"{lag}_bucket", 'le="1.0"')
    runs = watched.sum("mailsonde_probe_runs_total", healthy)
    failed = runs - watched.sum("mailsonde_probe_runs_total", healthy, 'outcome="ok"')
    skipped = watched.sum("mailsonde_schedule_skipped_total", healthy)
    seconds = watched.sum("mailsonde_probe_duration_seconds_total", healthy)
    half, most = (1000 * watched.quantile(lag, share) for share in (0.5, 0.99))
    print(
        f"  {title}: {starts:.0f} starts, lag p50 <= {half:g} ms, p99 <= {most:g} ms "
        f"(goal: under {GOAL:g} s), {late:.0f} more than 1 s late\n"
        f"    healthy: {runs:.0f} of about {HEALTHY * watched.seconds:.0f} runs, {failed:.0f} not ok, "
        f"{skipped:.0f} skipped, mean duration {1000 * seconds / max(runs, 1):.0f} ms\n"
        f"    agent: {watched.megabytes:.0f} MB, {watched.descriptors} descriptors, "
        f"{100 * watched.cpu:.0f} % of a processor",
        flush=True,
    )


def main() -> None:
    """Print the figures."""
    print(f"{HEALTHY} healthy SMTP servers, each probed every second, for {SECONDS:g} s:")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _measure("alone", 0)
    _measure("beside 200 black holes", 200)
    _measure("beside 2,000 black holes", 2000)
    _measure("beside 2,000 black holes, with 1,024 descriptors", 2000, 1024)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[2:], int(sys.argv[1])))
