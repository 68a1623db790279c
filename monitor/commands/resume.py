"""``mailsonde resume``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from monitor.commands.completion import probe_names
from monitor.commands.maintenance_options import NO_CHOICE, label_option, on_ledger
from monitor.commands.options import UNUSABLE, config_option, load_or_exit
from monitor.config.models import Configuration
from monitor.pausing import pausing, selections_of
from probes.core.clock import SystemClock


@click.command()
@click.argument("probes", nargs=-1, metavar="[PROBE]...", shell_complete=probe_names)
@config_option
@label_option
@click.option("--all", "everything", is_flag=True, help="End all pauses.")
def resume(probes: tuple[str, ...], config: Path, labels: dict[str, str], everything: bool) -> None:
    """End pauses now.

    Name what was paused, in the same words as for `mailsonde pause`; `mailsonde pause --list` shows them. A
    pause by a pattern or by labels ends as a whole. Windows of the configuration cannot be ended here. If
    some of what you name is not paused, the rest ends nevertheless. Exit status: 0 done, 2 mistakes, or
    something was not paused, 3 the ledger cannot be used.

    \b
    Examples:
      mailsonde resume --config mailsonde.yaml hq-smtp "fra1-*"
      mailsonde resume --config mailsonde.yaml --label team=messaging
      mailsonde resume --config mailsonde.yaml --all
    """
    configuration = load_or_exit(config, secrets=False)
    selections = selections_of(probes, labels)  # of probes, too, that are no longer configured
    if bool(selections) is everything:
        click.echo("say either which probes, or --all" if everything else NO_CHOICE, err=True)
        sys.exit(UNUSABLE)
    resumed, missing, others = on_ledger(_ended(configuration, selections, everything=everything))
    if resumed:
        click.echo(f"Resumed: {'; '.join(resumed)}.")
    elif everything:
        click.echo("Nothing is paused.")
    if missing:
        click.echo(f"Not paused: {'; '.join(missing)}.", err=True)
        click.echo(f"Paused are: {'; '.join(others)}." if others else "Nothing else is paused.", err=True)
        sys.exit(UNUSABLE)


async def _ended(
    configuration: Configuration, selections: Sequence[str], *, everything: bool
) -> tuple[list[str], list[str], list[str]]:
    """End pauses; return the selections that had one, those that had none, and what else is paused."""
    async with pausing(configuration, SystemClock()) as ledger:
        if everything:
            selections = [pause.selection for pause in await ledger.current()]
        missing = await ledger.end(selections)
        others = await ledger.current()
    resumed = [each for each in selections if each not in missing]
    return [*map(_told, resumed)], [*map(_told, missing)], [each.shown for each in others]


def _told(selection: str) -> str:
    return ", ".join(selection.splitlines())
