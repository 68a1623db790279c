"""Where mail is stuck, in words: one sentence for each way that it can stand."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.web.status_text import Flight, duration, sentence

DELIVERED = {
    "state": "delivered",
    "submission_seconds": 0.05,
    "transit_seconds": 3.2,
    "delivery_seconds": 3.214,
    "uncertainty_seconds": 0.01,
}
NOWHERE = dict.fromkeys(("submission_seconds", "transit_seconds", "delivery_seconds", "uncertainty_seconds"))


def run(reason: str = "none", outcome: str = "ok", detail: str = "", **message: Any) -> dict[str, Any]:
    shown = {"target": "submission", "outcome": outcome, "reason": reason, "detail": detail}
    shown["duration_seconds"] = 0.25
    return shown | ({"message": {**NOWHERE, **message}} if message else {})


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (None, "No run has ended yet."),
        (run(**DELIVERED), "Mail flows: the last message took 3.21 s ± 10 ms into mailbox canary, "
         "50 ms of it until submission had taken it."),
        (run("message_junked", "failed", **DELIVERED), "Mail arrives as junk: the last message took 3.21 s ± "
         "10 ms into mailbox canary, 50 ms of it until submission had taken it."),
        (run("message_altered", **DELIVERED), "Mail is changed on its way: the last message took 3.21 s ± "
         "10 ms into mailbox canary, 50 ms of it until submission had taken it."),
        (run("message_lost", "failed", "not in the mailbox 300 s after it was sent", state="lost"),
         "submission took the last message, and it has not come to mailbox canary: "
         "it is stuck or gone between the two."),
        (run("bounce_no_mailbox", "failed", "550 5.1.1 no such user", state="bounced"),
         "submission took the last message, and a host after it sent it back (550 5.1.1 no such user)."),
        (run("message_ambiguous", "failed", "in phase data: reset", state="ambiguous"),
         "Nobody knows whether submission has the last message: in phase data: reset."),
        (run("connect_refused", "unknown", "mailbox cannot be read: refused", state="sent"),
         "submission took the last message; whether it arrived cannot be seen "
         "(mailbox cannot be read: refused)."),
        (run("smtp_deferred", "failed", "in phase rcpt: 450 later"),
         "Mail does not get away: submission did not take the last message (in phase rcpt: 450 later)."),
        (run("internal", "unknown"),
         "Nothing can be said: A defect in mailsonde; the log has the traceback."),
    ],
)  # fmt: skip
def test_each_way_that_mail_can_stand(last: dict[str, Any] | None, expected: str) -> None:
    """The sentence names the two places that the mail is between, and says what is known."""
    assert sentence(last, mailbox="canary", flight=Flight(0, 0.0, None)) == expected


def test_the_longest_hop_is_named() -> None:
    """Where stamps tell of a wait of a second or more, the sentence says where that was."""
    told = sentence(run(**DELIVERED), mailbox="canary", hop_seconds={"submission": 0.0, "relay": 3.0})
    assert told.endswith("until submission had taken it, and 3 s at the relays between, by its stamps.")
    quick = sentence(run(**DELIVERED), mailbox="canary", hop_seconds={"submission": 0.0})
    assert "stamps" not in quick


@pytest.mark.parametrize(
    ("flight", "is_overdue"),
    [
        (Flight(0, 0.0, 3.0), False),
        (Flight(1, 5.9, 3.0), False),
        (Flight(1, 6.1, 3.0), True),
        (Flight(1, 4.9, 0.1), False),
        (Flight(1, 9.0, None), False),
        (Flight(1, 11.0, None), True),
    ],
)
def test_when_mail_is_late(flight: Flight, is_overdue: bool) -> None:
    """Mail is late when it takes twice as long as any of the latest, but never within 5 s."""
    assert flight.is_overdue == is_overdue


def test_late_mail_is_told_before_the_last_run() -> None:
    """Mail that is late now matters more than that the last one came."""
    told = sentence(run(**DELIVERED), mailbox="canary", flight=Flight(3, 42.0, 3.2))
    assert told == (
        "Mail is late now: 3 messages are between submission and mailbox canary, since 42 s; "
        "the latest ones took at most 3.2 s."
    )


def test_other_kinds_tell_what_failed() -> None:
    """A probe that sends no mail says how its run went."""
    assert sentence(run()) == "All well: the last run took 250 ms."
    told = sentence(run("certificate_expiring"))
    assert told.startswith("All well: the last run took 250 ms, and ")
    assert sentence(run("auth_failed", "failed", "in phase auth: 535 no")) == "In phase auth: 535 no."


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.00032, "0.32 ms"), (0.0099, "9.9 ms"), (0.4444, "444 ms"), (0.9996, "1 s"), (59.96, "60 s"),
     (240, "4 min"), (7200, "2.0 h")],
)  # fmt: skip
def test_durations_for_people(seconds: float, shown: str) -> None:
    """Durations have the unit and the digits that matter."""
    assert duration(seconds) == shown
