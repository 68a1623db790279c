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
    pause by a pattern or by labels ends as a whole. Windows of the configuration cannot be ended here. Exit
    status: 0 done, 2 mistakes, or it was not paused, 3 the ledger cannot be used.

    \b
    Examples:
      mailsonde resume --config mailsonde.yaml hq-smtp
      mailsonde resume --config mailsonde.yaml --label team=messaging
      mailsonde resume --config mailsonde.yaml --all
    """
    configuration = load_or_exit(config, secrets=False)
    selections = selections_of(probes, labels)  # of probes, too, that are no longer configured
    if not selections and not everything:
        click.echo(NO_CHOICE, err=True)
        sys.exit(UNUSABLE)
    not_paused, others = on_ledger(_ended(configuration, selections, everything=everything))
    for each in not_paused:
        click.echo(f"not paused: {each}", err=True)
    if not_paused:
        click.echo(f"paused are: {'; '.join(others) or 'none'}", err=True)
        sys.exit(UNUSABLE)
    click.echo("Resumed.")


async def _ended(
    configuration: Configuration, selections: Sequence[str], *, everything: bool
) -> tuple[list[str], list[str]]:
    """End pauses; return the selections that have none, and what else is paused, in words."""
    async with pausing(configuration, SystemClock()) as ledger:
        if everything:
            selections = [pause.selection for pause in await ledger.current()]
        missing = await ledger.end(selections)
        paused = [each.shown for each in await ledger.current()]
        return [", ".join(each.splitlines()) for each in missing], paused
