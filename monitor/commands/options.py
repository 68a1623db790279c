"""Shared by several commands: the option for the configuration file, and the report of its mistakes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from monitor.config.load import ConfigurationError, load
from monitor.config.models import Configuration

Loaded = TypeVar("Loaded")

UNUSABLE = 2
"""Exit status when the configuration cannot be used."""


class _ConfigPath(click.Path):
    def get_missing_message(
        self,
        param: click.Parameter,  # noqa: ARG002 # click's signature
        ctx: click.Context | None,  # noqa: ARG002 # click's signature
    ) -> str:
        return "Pass your configuration with it, or set the environment variable MAILSONDE_CONFIG."


config_option = click.option(
    "--config",
    "-c",
    "config",
    type=_ConfigPath(path_type=Path),
    required=True,
    envvar="MAILSONDE_CONFIG",
    help="The configuration file (YAML); can also be set in MAILSONDE_CONFIG.",
)


def load_or_exit(path: Path) -> Configuration:
    """Return the configuration in ``path``, or print every mistake in it and exit with status 2."""
    return sound_or_exit(lambda: load(path))


def sound_or_exit(read: Callable[[], Loaded]) -> Loaded:
    """Return the result of ``read``, or print every mistake in its file and exit with status 2."""
    try:
        return read()
    except ConfigurationError as error:
        for mistake in error.mistakes:
            click.echo(str(mistake), err=True)
        count = len(error.mistakes)
        click.echo(f"{count} mistake{'s' if count > 1 else ''}; nothing was started", err=True)
        sys.exit(UNUSABLE)
