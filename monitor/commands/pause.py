"""``mailsonde pause``."""

from __future__ import annotations

import getpass
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import click

from monitor.commands.completion import probe_names
from monitor.commands.maintenance_options import (
    Chosen,
    choice_or_exit,
    label_option,
    on_ledger,
)
from monitor.commands.options import UNUSABLE, config_option, load_or_exit
from monitor.config.maintenance import LONGEST_WINDOW, SHORTEST_WINDOW
from monitor.config.models import Configuration
from monitor.maintenance import Maintenance
from monitor.pausing import Pausing, pausing
from probes.core.clock import SystemClock
from probes.core.faults import legible
from probes.core.setting_types import parse_duration

USER_NAME_LIMIT = 64
"""Maximum length of the name of the user who pauses."""


def _duration(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _instant(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Return a time of this machine's clock in unix seconds: a date and time, or the next HH:MM."""
    if value is None:
        return None
    try:
        if len(value) <= len("22:00"):
            now = datetime.fromtimestamp(time.time())  # without an offset, which may be another one by then
            clock = datetime.strptime(value, "%H:%M")  # only its time is used
            moment = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
            moment += timedelta(days=moment <= now)
        else:
            moment = datetime.fromisoformat(value)
        return moment.timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{value!r} is not a time; write one such as 22:00, 2026-12-01T22:00 or 2026-12-01T22:00+01:00"
        ) from None


def _comment(_: click.Context, __: click.Parameter, value: str) -> str:
    if len(value) > 255 or not (value.isprintable() or not value):
        raise click.BadParameter("write one line of up to 255 printable characters")
    return value


@click.command()
@click.argument("probes", nargs=-1, metavar="[PROBE]...", shell_complete=probe_names)
@config_option
@label_option
@click.option(
    "--for", "length", metavar="DURATION", callback=_duration, help="How long, such as 30m, 2h or 1d."
)
@click.option(
    "--until",
    metavar="TIME",
    callback=_instant,
    help="In place of --for: 22:00, or 2026-12-01T22:00, by this machine's clock unless it has an offset.",
)
@click.option("--comment", default="", callback=_comment, help="What is done, in one line.")
@click.option("--list", "lists", is_flag=True, help="Show the pauses and windows that are in effect.")
def pause(
    probes: tuple[str, ...],
    config: Path,
    labels: dict[str, str],
    length: float | None,
    until: float | None,
    comment: str,
    lists: bool,
) -> None:
    """Put probes into maintenance, from now on and for a time.

    They run on, and the live page shows their results. But their alerts are quiet, and objectives do not
    count their runs, until the time is over or `mailsonde resume` ends it. PROBE is a name, or a pattern in
    quotes. The agent notices within a few seconds; if it is not running, the pause is kept for it. Run this
    on the agent's machine, as its user or as root. A second pause of the same probes replaces the first.
    Exit status: 0 done, 2 mistakes, 3 the ledger cannot be used.

    \b
    Examples:
      mailsonde pause --config mailsonde.yaml hq-smtp --for 2h --comment "new firewall"
      mailsonde pause --config mailsonde.yaml "fra1-*" --until 22:00
      mailsonde pause --config mailsonde.yaml --label team=messaging --for 30m
      mailsonde pause --config mailsonde.yaml --list
    """
    configuration = load_or_exit(config, secrets=False)
    if lists:
        _show(configuration)
        return
    choice = choice_or_exit(configuration, probes, labels)
    ends_at = _end_or_exit(length, until)
    is_running = on_ledger(_paused(configuration, choice.selections, ends_at, comment))
    click.echo(f"Paused until {_told(ends_at)}: {_count(choice)}.")
    if not is_running:
        click.echo("No agent is running with this ledger. The pause is kept for when it starts.", err=True)


async def _paused(
    configuration: Configuration, selections: Sequence[str], ends_at: float, comment: str
) -> bool:
    by = legible(os.environ.get("SUDO_USER") or _user(), USER_NAME_LIMIT)
    async with pausing(configuration, SystemClock()) as ledger:
        return await ledger.begin(selections, ends_at, comment, by)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.geteuid()}"


def _end_or_exit(length: float | None, until: float | None) -> float:
    now = time.time()
    if (length is None) == (until is None):
        click.echo("say how long: --for 2h, or --until 22:00", err=True)
        sys.exit(UNUSABLE)
    ends_at = until if until is not None else now + (length or 0.0)
    if not SHORTEST_WINDOW <= ends_at - now <= LONGEST_WINDOW:
        days = LONGEST_WINDOW / 86400
        told = f"a pause lasts from 1 minute to {days:.0f} days; enabled: false leaves a probe out for longer"
        click.echo(told, err=True)
        sys.exit(UNUSABLE)
    return ends_at


def _show(configuration: Configuration) -> None:
    async def read() -> list[str]:
        async with pausing(configuration, SystemClock()) as ledger:
            return [*await _pauses(ledger), *_windows(configuration)]

    lines = on_ledger(read())
    click.echo("\n".join(lines) if lines else "No probe is in maintenance.")


async def _pauses(ledger: Pausing) -> list[str]:
    return [
        _line(each.shown, each.ends_at, f"pause by {each.set_by}", each.comment)
        for each in await ledger.current()
    ]


def _windows(configuration: Configuration) -> list[str]:
    now = time.time()
    maintenance = Maintenance.of(configuration)
    found = {
        (period.source, period.ends_at, period.comment): None
        for probe in maintenance.probes
        if (period := maintenance.current(probe, now)) is not None
    }
    return [_line(source, ends_at, "", comment) for source, ends_at, comment in found]


def _line(what: str, ends_at: float, source: str, comment: str) -> str:
    return ", ".join(filter(None, [f"{what}: until {_told(ends_at)}", source, comment]))


def _told(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _count(choice: Chosen) -> str:
    return f"{choice.probes} probe{'' if choice.probes == 1 else 's'}"
