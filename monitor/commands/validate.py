"""``mailsonde validate``."""

from __future__ import annotations

from pathlib import Path

import click

from monitor.commands.options import load_or_exit


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def validate(file: Path) -> None:
    """Check a configuration, and list every mistake with its line.

    Secrets must be readable: run this on the agent's machine, as its user. Exit status: 0 valid, 2
    mistakes found.

    \b
    Examples:
      mailsonde validate mailsonde.yaml
    """
    configuration = load_or_exit(file)
    click.echo(f"{file}: valid, {len(configuration.probes)} probes")
