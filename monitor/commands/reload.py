"""``mailsonde reload``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

from monitor.commands.options import config_option
from monitor.config.load import ConfigurationError, load
from monitor.reload_request import NoAnswerError, request_reload

_RUNS_ON = "the agent runs on with its earlier configuration"


@click.command()
@config_option
def reload(config: Path) -> None:
    """Make the running agent read its configuration again.

    The agent uses the new configuration at once and as a whole, or refuses it and runs on with the earlier
    one. The exit status is 0 if it uses it, else 1. Run it as the agent's user, or as root.

    \b
    Examples:
      mailsonde reload --config mailsonde.yaml
      MAILSONDE_CONFIG=mailsonde.yaml mailsonde reload
    """
    try:
        # Without secrets: they may be in the agent's environment only.
        ledger = load(config, secrets=False).agent.ledger
    except ConfigurationError as error:
        _fail(*map(str, error.mistakes), f"not reloaded: {_RUNS_ON}")
    try:
        outcome = request_reload(ledger)
    except NoAnswerError as error:
        _fail(f"not reloaded: {error}")
    if not outcome.is_applied:
        _fail(*outcome.told, f"refused: {_RUNS_ON}")
    for line in outcome.told:
        click.echo(line)


def _fail(*lines: str) -> NoReturn:
    for line in lines:
        click.echo(line, err=True)
    sys.exit(1)
