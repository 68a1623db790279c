"""``mailsonde doctor``."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import click

from monitor.commands.event_loop import run_on_loop
from monitor.commands.options import UNUSABLE, config_option, load_or_exit
from monitor.config.models import Configuration
from monitor.doctor.mailbox import MailboxDoctor, Step
from monitor.logs import set_up_logs
from monitor.runtime import open_runtime
from probes.core.clock import SystemClock
from probes.delivery.message_life import LedgerError

UNKNOWN = 3
"""Exit status when nothing can be examined."""

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "unknown": "magenta", "skipped": "cyan"}
_EXIT = {"ok": 0, "skipped": 0, "warning": 1, "failed": 2, "unknown": 3}


@click.group()
def doctor() -> None:
    """Examine a set-up step by step.

    \b
    Examples:
      mailsonde doctor mailbox canary --config mailsonde.yaml
    """


@doctor.command()
@click.argument("name")
@config_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="text: a line for each step; json: an object for each step.",
)
def mailbox(name: str, config: Path, form: str) -> None:
    """Walk from DNS to a message there and back.

    The steps are token, trace, health, dns, tcp, tls, login, folder, submission and message. It stops at the
    first that fails, and says what to do. Trace and health are the questions to the tenant that `oauth2`
    allows, if any. The message is a run of the first round trip to the mailbox, and takes until
    it arrives. Submission is the login at its server. Exit status: 0 ok, 1 warning, 2 failed, 3 unknown.

    \b
    Examples:
      mailsonde doctor mailbox canary --config mailsonde.yaml
      mailsonde doctor mailbox canary --config mailsonde.yaml --format json
    """
    configuration = load_or_exit(config)
    if name not in configuration.mailboxes:
        close = difflib.get_close_matches(name, configuration.mailboxes, n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        click.echo(f"{config}: no mailbox is named {name!r}{hint}", err=True)
        sys.exit(UNUSABLE)
    set_up_logs("auto")
    show = _show_json if form == "json" else _show_line
    try:
        sys.exit(run_on_loop(_examined(configuration, name, show)))
    except LedgerError as error:
        click.echo(f"mailsonde cannot examine the mailbox: {error}", err=True)
        sys.exit(UNKNOWN)


async def _examined(configuration: Configuration, name: str, show: Callable[[Step], None]) -> int:
    worst = 0
    async with open_runtime(configuration, SystemClock(), "doctor") as runtime:
        async for step in MailboxDoctor(name, runtime).steps():
            worst = max(worst, _EXIT[step.outcome])
            show(step)
    return worst


def _show_line(step: Step) -> None:
    outcome = click.style(f"{step.outcome:8}", fg=_COLOURS[step.outcome])
    reason = "" if step.reason == "none" else f"{step.reason}: "
    click.echo(f"{outcome} {step.name:10} {reason}{step.detail}")
    if step.remedy:
        click.echo(f"{'':19} → {step.remedy}")


def _show_json(step: Step) -> None:
    click.echo(json.dumps(dataclasses.asdict(step)))
