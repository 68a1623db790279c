"""``mailsonde reload``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import click

from monitor.commands.options import config_option
from monitor.config.load import ConfigurationError, load
from monitor.ledger.backend import agent_process
from monitor.reloading import Outcome
from probes.delivery.message_life import LedgerError

PATIENCE = 120.0
"""Seconds to wait for the agent's answer: it may have thousands of probes, and other work."""

_PAUSE = 0.1
_REFUSED = "the agent runs on with its earlier configuration"


@click.command()
@config_option
def reload(config: Path) -> None:
    """Make the running agent read its configuration again.

    The agent uses the new configuration at once and as a whole, or refuses it and runs on with the earlier
    one. The exit status is 0 if it uses it, else 1. Run it as the agent's user, or as root.

    \b
    Examples:
      mailsonde reload --config mailsonde.yaml
      systemctl reload mailsonde
    """
    try:
        # Without secrets: they may be in the agent's environment only.
        ledger = load(config, secrets=False).agent.ledger
    except ConfigurationError as error:
        _fail(*(str(mistake) for mistake in error.mistakes), f"not reloaded: {_REFUSED}")
    try:
        outcome = _answer(ledger)
    except LedgerError as error:
        _fail(f"not reloaded: {error}")
    if not outcome.is_applied:
        _fail(*outcome.told, f"refused: {_REFUSED}")
    click.echo("reloaded: " + "\n".join(outcome.told))


def _answer(ledger: str) -> Outcome:
    """Make the agent of a ledger reload, and return what came of it."""
    agent = agent_process(ledger)
    if agent is None:
        _fail(f"not reloaded: no agent runs with the ledger {ledger}; start one with: mailsonde run")
    asked_at = time.time()
    try:
        os.kill(agent.pid, signal.SIGHUP)
    except PermissionError:
        _fail(
            f"not reloaded: the agent (process {agent.pid}) is another user's; run this as that user or root"
        )
    outcome, until = None, time.monotonic() + PATIENCE
    while outcome is None or outcome.began_at < asked_at:
        if time.monotonic() > until:
            told = f"did not answer within {PATIENCE:g} s; its log says what it does"
            _fail(f"the agent (process {agent.pid}) {told}")
        time.sleep(_PAUSE)
        now = agent_process(ledger)
        if now is None or now.pid != agent.pid:
            _fail(f"not reloaded: the agent (process {agent.pid}) has ended")
        outcome = Outcome.of_text(now.text)
    return outcome


def _fail(*lines: str) -> NoReturn:
    for line in lines:
        click.echo(line, err=True)
    sys.exit(1)
