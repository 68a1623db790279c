"""``mailsonde validate``."""

from __future__ import annotations

from pathlib import Path

import click

from monitor.commands.options import load_or_exit, no_secrets_option


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@no_secrets_option
def validate(file: Path, no_secrets: bool) -> None:
    """Check a configuration, and list every mistake with its line.

    Secrets must be readable: run this on the agent's machine, as its user. Elsewhere, such as in CI, use
    --no-secrets. Exit status: 0 valid, 2 mistakes found.

    \b
    Examples:
      mailsonde validate mailsonde.yaml
      mailsonde validate --no-secrets mailsonde.yaml
    """
    configuration = load_or_exit(file, secrets=not no_secrets)
    remark = "; secrets were not read" if no_secrets else ""
    count = len(configuration.probes)
    click.echo(f"{file}: valid, {count} probe{'s' if count > 1 else ''}{remark}")
