"""``mailsonde render``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from monitor.commands.options import UNUSABLE, config_option, load_or_exit
from monitor.rendering import RENDERERS, write_files


@click.command()
@click.argument("what", type=click.Choice(sorted(RENDERERS)))
@config_option
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Directory to write to; made if missing."
)
def render(what: str, config: Path, out: Path) -> None:
    """Write files for Prometheus and Grafana, made for your configuration.

    \b
    alerts      rule files, one a subsystem, with your probes' own times
    dashboards  Grafana dashboards (JSON to import or provision)
    prometheus  a prometheus.yml that scrapes this agent and loads the rules

    Files of the same name are replaced. Prints the path of each file.
    """
    files = RENDERERS[what](load_or_exit(config))
    try:
        for path in write_files(files, out):
            click.echo(path)
    except OSError as error:
        click.echo(f"cannot write to {out}: {error.strerror}", err=True)
        sys.exit(UNUSABLE)
