"""``mailsonde validate``."""

from __future__ import annotations

from pathlib import Path

import click

from monitor.commands.options import load_or_exit, no_secrets_option
from monitor.config.explanation import explained
from monitor.config.exposure import exposure
from monitor.config.web_config import WebConfig, read_web_config


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@no_secrets_option
@click.option(
    "--explain",
    is_flag=True,
    help="Also show every setting of every server, and what for_each, defaults and hybrid amount to.",
)
def validate(file: Path, no_secrets: bool, explain: bool) -> None:
    """Check a configuration, and list every mistake with its line.

    Secrets must be readable: run this on the agent's machine, as its user. Elsewhere, such as in CI, use
    --no-secrets. Exit status: 0 valid, 2 mistakes found.

    \b
    Examples:
      mailsonde validate mailsonde.yaml
      mailsonde validate --no-secrets mailsonde.yaml
      mailsonde validate --explain mailsonde.yaml      # what presets and defaults amount to
    """
    configuration = load_or_exit(file, secrets=not no_secrets)
    remark = "; secrets were not read" if no_secrets else ""
    count = len(configuration.enabled_probes)
    left_out = len(configuration.probes) - count
    if explain:
        for line in explained(configuration, file):
            click.echo(line)
    web_config = configuration.agent.web_config
    found = read_web_config(web_config) if web_config and not no_secrets else None
    if warning := exposure(configuration.agent, found if isinstance(found, WebConfig) else None):
        click.echo(f"{file}: warning: {warning}", err=True)
    more = f", {left_out} more not enabled" if left_out else ""
    click.echo(f"{file}: valid, {count} probe{'s' if count > 1 else ''}{more}{remark}")
