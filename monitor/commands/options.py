"""Shared by several commands: the option for the configuration file, and the report of its mistakes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from monitor.config.load import ConfigurationError, load
from monitor.config.models import Configuration
from monitor.config.sources import Sources

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


no_secrets_option = click.option(
    "--no-secrets",
    "no_secrets",
    is_flag=True,
    help="Do not read passwords and other secrets; only check how the file refers to them.",
)


def load_or_exit(path: Path, *, secrets: bool = True, sources: Sources | None = None) -> Configuration:
    """Return the configuration in ``path``, or print every mistake in it and exit with status 2.

    ``sources`` notes which files are read.
    """
    return sound_or_exit(lambda: load(path, secrets=secrets, sources=sources))


def sound_or_exit(read: Callable[[], Loaded]) -> Loaded:
    """Return the result of ``read``, or print every mistake in its file and exit with status 2."""
    try:
        return read()
    except ConfigurationError as error:
        for mistake in error.mistakes:
            click.echo(str(mistake), err=True)
        count = sum(mistake.count for mistake in error.mistakes)
        click.echo(f"{count} mistake{'s' if count > 1 else ''}; nothing was started", err=True)
        if any(mistake.is_of_secret for mistake in error.mistakes) and _has_no_secrets_option():
            click.echo("Add --no-secrets to continue without the secrets.", err=True)
        sys.exit(UNUSABLE)


def _has_no_secrets_option() -> bool:
    return "no_secrets" in click.get_current_context().params
