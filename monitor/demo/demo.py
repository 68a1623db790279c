"""The demo: the sandbox mail server, an agent that watches it, and a live view."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live

from monitor.agent import Agent, running_agent
from monitor.config.models import Configuration
from monitor.demo.sandbox_process import Sandbox, started_sandbox
from monitor.demo.view import DemoView, plain_line, totals

if TYPE_CHECKING:
    from monitor.runner import Result

PROBE = "sandbox-roundtrip"
PREFERRED_PORT = 9725


async def run_demo(stop: asyncio.Event, *, interval: str = "2s") -> None:
    """Show all of mailsonde on this machine until ``stop`` is set. Opens loopback ports only."""
    with tempfile.TemporaryDirectory(prefix="mailsonde-demo-") as name:
        directory = Path(name)
        async with started_sandbox(directory) as sandbox:
            configuration = demo_configuration(sandbox, directory, interval)
            async with running_agent(configuration) as agent:
                view = DemoView(agent.address, (PROBE, "sandbox-submission"))
                if sys.stdout.isatty():
                    await _live(view, agent, stop)
                else:
                    await _plain(agent, stop)
    click.echo(totals(agent.runtime.ledger.counters, view.route))


def demo_configuration(sandbox: Sandbox, directory: Path, interval: str) -> Configuration:
    """Return the configuration of an agent that measures the sandbox."""
    tls = {"host": "127.0.0.1", "tls_server_name": "localhost", "tls_ca": str(sandbox.ca_file)}
    account = {"username": sandbox.username, "password": {"file": str(sandbox.password_file)}}
    return Configuration.model_validate(
        {
            "agent": {
                "location": "demo",
                "listen": f"127.0.0.1:{_free(PREFERRED_PORT)}",
                "ledger": f"sqlite://{directory}/ledger.db",
            },
            "servers": {
                "sandbox-submission": {
                    "protocol": "smtp",
                    "port": sandbox.smtp_port,
                    "tls": "starttls",
                    **tls,
                    **account,
                },
                "sandbox-pop": {"protocol": "pop3", "port": sandbox.pop3_port, "tls": "implicit", **tls},
            },
            "mailboxes": {"canary": {"address": sandbox.address, "server": "sandbox-pop", **account}},
            "probes": [
                {
                    "name": PROBE,
                    "kind": "roundtrip",
                    "interval": interval,
                    "deadline": "10s",
                    "from": sandbox.address,
                    "send_via": "sandbox-submission",
                    "to": "canary",
                },
                {"name": "sandbox-smtp", "kind": "smtp", "interval": "10s", "server": "sandbox-submission"},
                {"name": "sandbox-pop3", "kind": "pop3", "interval": "10s", "mailbox": "canary"},
            ],
        }
    )


def _free(port: int) -> int:
    """Return ``port`` if nothing listens on it, else 0 for any free port."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port


async def _live(view: DemoView, agent: Agent, stop: asyncio.Event) -> None:
    counters = agent.runtime.ledger
    with Live(view.render(counters.counters), console=Console(), refresh_per_second=4, screen=True) as live:
        while not stop.is_set():
            result = await _next_result(agent, stop)
            if result is not None and result.probe == PROBE:
                view.add(result)
            live.update(view.render(counters.counters))


async def _plain(agent: Agent, stop: asyncio.Event) -> None:
    click.echo(f"live page: {agent.address}  metrics: {agent.address}/metrics  (stop with Ctrl-C)")
    while not stop.is_set():
        result = await _next_result(agent, stop)
        if result is not None and result.probe == PROBE:
            click.echo(plain_line(result))


async def _next_result(agent: Agent, stop: asyncio.Event) -> Result | None:
    """Return the next finished run, or ``None`` after half a second or when the demo ends."""
    getting = asyncio.ensure_future(agent.results.get())
    stopping = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait({getting, stopping}, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if getting in done:
        return getting.result()
    getting.cancel()
    return None
