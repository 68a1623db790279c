"""What counts as good, bad or neither in an error budget."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from probes.core.reasons import Reason
from probes.core.verdict import MessageReport, MessageState, Verdict
from probes.delivery.service_level import SloSettings, parse_percentage

SLO = SloSettings.model_validate({"objective": "99.5%", "within": "30s"})


def verdict(
    reason: Reason, seconds: float | None = None, uncertainty: float | None = 0.1, state: str = "delivered"
) -> Verdict:
    report = MessageReport(
        "0" * 32, MessageState(state), delivery_seconds=seconds, uncertainty_seconds=uncertainty
    )
    return Verdict(reason, message=report)


@pytest.mark.parametrize(
    ("run", "is_good"),
    [
        (verdict(Reason.NONE, 2.0), True),
        (verdict(Reason.NONE, 30.0), True),
        (verdict(Reason.NONE, 30.1), False),
        (verdict(Reason.GREYLISTED, 12.0), True),
        (verdict(Reason.GREYLISTED, 65.0), False),
        (verdict(Reason.MESSAGE_ALTERED, 2.0), True),
        (verdict(Reason.MESSAGE_LOST, state="lost"), False),
        (verdict(Reason.BOUNCE_POLICY, state="bounced"), False),
        (Verdict(Reason.SMTP_REJECTED), False),
        (Verdict(Reason.CONNECT_REFUSED), False),
        (Verdict(Reason.INTERNAL), None),
        (Verdict(Reason.LEDGER_UNAVAILABLE), None),
        (verdict(Reason.POP3_IN_USE, state="sent"), None),
        (verdict(Reason.NONE, 400.0, 399.0), None),
    ],
)
def test_runs(run: Verdict, is_good: bool | None) -> None:
    """Late, lost and refused messages are bad; our own faults and unmeasured arrivals are neither."""
    assert SLO.is_good(run) is is_good


def test_junk_in_time_is_bad() -> None:
    """A message in the junk folder is bad even in time, because people do not see it."""
    assert SLO.is_good(verdict(Reason.MESSAGE_JUNKED, 2.0)) is False


@pytest.mark.parametrize(("text", "ratio"), [("99.5%", 0.995), ("99.99 %", 0.9999), ("5%", 0.05)])
def test_percentages(text: str, ratio: float) -> None:
    """An objective is a percentage with its sign."""
    assert parse_percentage(text) == ratio


@pytest.mark.parametrize("value", ["100%", "0%", "99.5", 99.5, "-1%", "99,5%", "", None])
def test_what_is_no_percentage(value: object) -> None:
    """100 %, 0 %, or a number without the sign is refused with an example."""
    with pytest.raises(ValidationError, match=r"99\.5%"):
        SloSettings.model_validate({"objective": value, "within": "30s"})
