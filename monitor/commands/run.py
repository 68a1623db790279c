"""``mailsonde run``."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
from contextlib import suppress
from pathlib import Path
from typing import get_args

import click

from monitor.agent import Agent, StartError, running_agent
from monitor.commands.event_loop import run_on_loop
from monitor.commands.options import UNUSABLE, config_option, load_or_exit
from monitor.config.models import Configuration
from monitor.config.sources import Sources
from monitor.logs import LogFormat, set_up_logs
from monitor.notify import notify, report
from monitor.reloading import Source


@click.command()
@config_option
@click.option(
    "--log-format",
    type=click.Choice(get_args(LogFormat)),
    default="auto",
    help="auto: text on a terminal, otherwise JSON objects.",
)
def run(config: Path, log_format: LogFormat) -> None:
    """Run the agent until SIGTERM or Ctrl-C.

    An invalid configuration starts nothing. To stop, the agent lets dialogues finish, records open
    messages, and exits within 10 seconds. The next start resumes watching for every open message.

    SIGHUP and `mailsonde reload` make it read the configuration again, while it runs.

    \b
    Examples:
      mailsonde run --config mailsonde.yaml
      mailsonde run --config mailsonde.yaml --log-format json
      MAILSONDE_CONFIG=mailsonde.yaml mailsonde run
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # it waits until the agent can reload
    with suppress(RuntimeError, OSError):  # there may be no standard error
        faulthandler.enable()  # systemd's watchdog ends a hanging agent by SIGABRT: the log says where
    notify("STATUS=Reading the configuration")
    source = Source(config, Sources())
    configuration = load_or_exit(config, sources=source.files)
    set_up_logs(log_format)
    try:
        run_on_loop(_run(configuration, source))
    except StartError as error:
        click.echo(f"mailsonde cannot start: {error}", err=True)
        raise SystemExit(UNUSABLE) from None


async def _run(configuration: Configuration, source: Source) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running_agent(configuration, source=source) as agent:
        assert agent.reloader is not None  # noqa: S101 # there is a source
        loop.add_signal_handler(signal.SIGHUP, agent.reloader.request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        notify("READY=1")
        reporting = asyncio.create_task(report(lambda: _status(agent)), name="report to systemd")
        await stop.wait()
        reporting.cancel()
        notify("STOPPING=1\nSTATUS=Runs in progress may finish")


def _status(agent: Agent) -> str:
    """Return what `systemctl status` shows."""
    shortage = agent.runtime.state.shortage
    return f"{len(agent.runtime.assembly.probes)} probes; {shortage or 'keeps up with them'}"
