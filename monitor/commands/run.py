"""``mailsonde run``."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
from pathlib import Path
from typing import get_args

import click

from monitor.agent import Agent, StartError, running_agent
from monitor.commands.event_loop import run_on_loop
from monitor.commands.options import UNUSABLE, config_option, load_or_exit
from monitor.config.models import Configuration
from monitor.logs import LogFormat, set_up_logs
from monitor.notify import notify, report

_SIGHUP = "SIGHUP changes nothing; restart the agent to read the configuration again"

_log = logging.getLogger("mailsonde.agent")


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

    \b
    Examples:
      mailsonde run --config mailsonde.yaml
      mailsonde run --config mailsonde.yaml --log-format json
      MAILSONDE_CONFIG=mailsonde.yaml mailsonde run
    """
    faulthandler.enable()  # systemd's watchdog ends a hanging agent by SIGABRT: its log says where it hung
    notify("STATUS=Reading the configuration")
    configuration = load_or_exit(config)
    set_up_logs(log_format)
    try:
        run_on_loop(_run(configuration))
    except StartError as error:
        click.echo(f"mailsonde cannot start: {error}", err=True)
        raise SystemExit(UNUSABLE) from None


async def _run(configuration: Configuration) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # By default SIGHUP would end the agent. Administrators send it to make a service reload.
    loop.add_signal_handler(signal.SIGHUP, _log.warning, _SIGHUP)
    async with running_agent(configuration) as agent:
        notify("READY=1")
        reporting = asyncio.create_task(report(lambda: _status(agent)), name="report to systemd")
        await stop.wait()
        reporting.cancel()
        notify("STOPPING=1\nSTATUS=Runs in progress may finish")


def _status(agent: Agent) -> str:
    """Return what `systemctl status` shows."""
    shortage = agent.runtime.state.shortage
    return f"{len(agent.runtime.assembly.probes)} probes; {shortage or 'keeps up with them'}"
