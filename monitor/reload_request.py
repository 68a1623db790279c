"""Makes the agent that has a ledger reload: a signal to its process, and its answer beside its lock."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from monitor.ledger.backend import agent_process
from monitor.ledger.database import AgentProcess
from probes.delivery.message_life import LedgerError

ANSWERED_WITHIN = 120.0
"""Seconds to wait for the agent's answer: it may have thousands of probes, and other work."""

_PAUSE = 0.1


class NoAnswerError(Exception):
    """The agent has not answered; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a reload: whether the configuration is in use, when reading it began, and what to tell."""

    is_applied: bool
    began_at: float  # unix seconds
    told: Sequence[str]
    """Sentences and mistakes, a line each."""

    def as_text(self) -> str:
        """Return it as `of_text` reads it."""
        return json.dumps([self.is_applied, self.began_at, [*self.told]])

    @classmethod
    def of_text(cls, text: str) -> Self | None:
        """Return the outcome in a text; ``None`` if there is none."""
        try:
            is_applied, began_at, told = json.loads(text)
            return cls(bool(is_applied), float(began_at), [str(line) for line in told])
        except (ValueError, TypeError):
            return None


def request_reload(ledger: str, seconds: float = ANSWERED_WITHIN) -> Outcome:
    """Make the agent that has the ledger at this URL reload, and return what came of it.

    Raises `NoAnswerError` if there is no agent, or no answer within ``seconds``.
    """
    agent = _agent(ledger)
    if agent is None:
        raise NoAnswerError(f"no agent runs with the ledger {ledger}; start one with: mailsonde run")
    named, asked_at = f"the agent (process {agent.pid})", time.time()
    try:
        os.kill(agent.pid, signal.SIGHUP)
    except OSError as error:
        told = f"cannot signal {named}: {error.strerror}; run this as the agent's user, or as root"
        raise NoAnswerError(told) from error
    outcome, until = None, time.monotonic() + seconds
    while outcome is None or outcome.began_at < asked_at:
        if time.monotonic() > until:
            raise NoAnswerError(f"{named} did not answer within {seconds:g} s; its log says what it does")
        time.sleep(_PAUSE)
        now = _agent(ledger)
        if now is None or now.pid != agent.pid:
            raise NoAnswerError(f"{named} has ended")
        outcome = Outcome.of_text(now.text)
    return outcome


def _agent(ledger: str) -> AgentProcess | None:
    try:
        return agent_process(ledger)
    except LedgerError as error:
        raise NoAnswerError(str(error)) from error
