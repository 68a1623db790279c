"""What several commands share: the configuration file they are given, and how its mistakes are told."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from monitor.config.load import ConfigurationError, load
from monitor.config.models import Configuration

UNUSABLE = 2
"""Exit status when the configuration cannot be used."""

config_option = click.option(
    "--config",
    "-c",
    "config",
    type=click.Path(path_type=Path),
    required=True,
    envvar="MAILSONDE_CONFIG",
    help="The configuration file (YAML). Also read from MAILSONDE_CONFIG.",
)


def load_or_exit(path: Path) -> Configuration:
    """Return the configuration in ``path``, or print every mistake in it and exit with status 2."""
    try:
        return load(path)
    except ConfigurationError as error:
        for mistake in error.mistakes:
            click.echo(str(mistake), err=True)
        count = len(error.mistakes)
        click.echo(f"{count} mistake{'s' if count > 1 else ''}; nothing was started", err=True)
        sys.exit(UNUSABLE)
