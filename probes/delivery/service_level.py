"""Service level objectives: which share of messages must arrive within which time."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from probes.core.reasons import Outcome
from probes.core.setting_types import Duration, between
from probes.core.settings import Settings
from probes.core.verdict import Verdict

_PERCENTAGE = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,4})?)\s?%")


def parse_percentage(value: object) -> float:
    """Return a percentage above 0 and below 100, such as ``99.5%``, as a ratio; raises ValueError."""
    match = _PERCENTAGE.fullmatch(value) if isinstance(value, str) else None
    if match is None or float(match[1]) <= 0.0:
        raise ValueError(f"{value!r} is not a percentage below 100 such as 99.5%")
    return round(float(match[1]) / 100.0, 8)


class SloSettings(Settings):
    """A service level objective: the share of a route's messages that must arrive in time."""

    objective: Annotated[
        float, BeforeValidator(parse_percentage), WithJsonSchema({"type": "string", "examples": ["99.5%"]})
    ] = Field(description="Share of messages that must be good, below 100%.")
    within: Annotated[Duration, between(0.01, 86400)] = Field(
        description="How long a message may take; a slower message counts as bad."
    )

    def is_good(self, verdict: Verdict) -> bool | None:
        """Return whether a run's message arrived in time; ``None`` if this is not known.

        It is not known if our own fault hid the outcome, or if the interval of the arrival contains the limit
        and is wider than the latency. Nor if the message may have been in time but for our own delay.
        """
        if verdict.outcome is Outcome.UNKNOWN:
            return None
        if verdict.outcome is Outcome.FAILED:
            return False
        message = verdict.message
        if message is None or message.delivery_seconds is None or not message.is_measured:
            return None
        if message.delivery_seconds <= self.within:
            return True
        at_the_latest = message.delivery_seconds + (message.uncertainty_seconds or 0.0)
        return None if at_the_latest - message.held_up_seconds <= self.within else False
