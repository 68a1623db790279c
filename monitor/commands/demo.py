"""``mailsonde demo``."""

from __future__ import annotations

import asyncio
import logging
import signal

import click

from monitor.agent import StartError
from monitor.commands.event_loop import run_on_loop
from monitor.commands.options import UNUSABLE
from monitor.demo.demo import run_demo
from monitor.demo.sandbox_process import SandboxError
from monitor.logs import set_up_logs


@click.command()
@click.option("--seconds", type=click.FloatRange(min=1), help="Stop after this long.")
def demo(seconds: float | None) -> None:
    """Show mailsonde at work, with no mail server needed.

    Starts a sandbox mail server (SMTP with STARTTLS and AUTH, POP3 over TLS, its own CA) with
    varying delays and an occasional lost message, and the agent with a round trip every
    2 seconds. Uses loopback ports only and leaves nothing behind. Press Ctrl-C to stop.

    \b
    The sandbox needs additional libraries:
      pip install 'mailsonde[demo]'

    \b
    Examples:
      mailsonde demo
      mailsonde demo --seconds 60
    """
    set_up_logs("auto", logging.ERROR)
    try:
        run_on_loop(_demo(seconds))
    except (StartError, SandboxError) as error:
        click.echo(f"the demo cannot start: {error}", err=True)
        raise SystemExit(UNUSABLE) from None


async def _demo(seconds: float | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if seconds is not None:
        loop.call_later(seconds, stop.set)
    await run_demo(stop)
