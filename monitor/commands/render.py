"""``mailsonde render``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from monitor.commands.options import UNUSABLE, config_option, load_or_exit, sound_or_exit
from monitor.rendering import RENDERERS, render_alerts, write_files
from monitor.thresholds import load_thresholds


@click.command()
@click.argument("what", type=click.Choice(sorted(RENDERERS)))
@config_option
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Directory to write to; created if missing."
)
@click.option(
    "--thresholds",
    type=click.Path(path_type=Path),
    help="For alerts: your own thresholds (YAML), which override those in alerts/thresholds.yaml.",
)
def render(what: str, config: Path, out: Path, thresholds: Path | None) -> None:
    """Write alerts, dashboards or a Prometheus configuration.

    They are generated from your own configuration:

    \b
    alerts      rule files, one per subsystem, with your probes' own times
    dashboards  Grafana dashboards (JSON to import or provision)
    prometheus  a prometheus.yml that scrapes this agent and loads the rules

    \b
    Examples:
      mailsonde render alerts --config mailsonde.yaml --out rules/
      mailsonde render alerts --config mailsonde.yaml --thresholds ours.yaml --out rules/
      mailsonde render dashboards --config mailsonde.yaml --out dashboards/
      mailsonde render prometheus --config mailsonde.yaml --out .

    Replaces files with the same name. Prints the path of each file.
    """
    configuration = load_or_exit(config)
    if what == "alerts":
        files = render_alerts(configuration, sound_or_exit(lambda: load_thresholds(thresholds)))
    elif thresholds is not None:
        raise click.UsageError(f"--thresholds is for alerts, not for {what}")
    else:
        files = RENDERERS[what](configuration)
    try:
        for path in write_files(files, out):
            click.echo(path)
    except OSError as error:
        click.echo(
            f"cannot write to {out}: {error.strerror}; --out must name a directory that is writable "
            f"for user {os.geteuid()}, or can be created",
            err=True,
        )
        sys.exit(UNUSABLE)
