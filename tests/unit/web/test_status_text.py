"""The status text: one sentence for each possible state of mail."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.web.status_text import Flight, duration, sentence, share

DELIVERED = {
    "state": "delivered",
    "submission_seconds": 0.05,
    "transit_seconds": 3.2,
    "delivery_seconds": 3.214,
    "uncertainty_seconds": 0.01,
}
NOWHERE = dict.fromkeys(("submission_seconds", "transit_seconds", "delivery_seconds", "uncertainty_seconds"))


def _told(last: dict[str, Any] | None, **more: Any) -> str:
    return sentence(last, target="submission", mailbox="canary", **more)


def run(reason: str = "none", outcome: str = "ok", detail: str = "", **message: Any) -> dict[str, Any]:
    shown = {"target": "submission", "outcome": outcome, "reason": reason, "detail": detail}
    shown["duration_seconds"] = 0.25
    return shown | ({"message": {**NOWHERE, **message}} if message else {})


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (None, "No run has finished yet."),
        (run(**DELIVERED), "Mail flows: the last message took 3.21 s ± 10 ms to reach mailbox canary, "
         "including 50 ms until submission accepted it."),
        (run(**DELIVERED | {"uncertainty_seconds": None}), "The last message is delivered."),
        (run("local_resources", "unknown", "the latency is not known: the ledger took 8 s", **DELIVERED),
         "The last message arrived in mailbox canary, but the latency is not known: the ledger took 8 s."),
        (run("message_junked", "failed", **DELIVERED), "Mail goes to junk: the last message took 3.21 s ± "
         "10 ms to reach mailbox canary, including 50 ms until submission accepted it."),
        (run("message_altered", **DELIVERED), "Mail is altered on the way: the last message took 3.21 s ± "
         "10 ms to reach mailbox canary, including 50 ms until submission accepted it."),
        (run("message_lost", "failed", "not in the mailbox 300 s after it was sent", state="lost"),
         "submission accepted the last message, but it has not arrived in mailbox canary: "
         "it is stuck or lost in between."),
        (run("message_lost", "failed", state="lost") | {"values": {"message_trace": "it is in quarantine"}},
         "submission accepted the last message, but it has not arrived in mailbox canary: "
         "by the message trace, it is in quarantine."),
        (run("bounce_no_mailbox", "failed", "550 5.1.1 no such user", state="bounced"),
         "submission accepted the last message, but a later host returned it (550 5.1.1 no such user)."),
        (run("message_ambiguous", "failed", "in phase data: reset", state="ambiguous"),
         "It is unknown whether submission has the last message: in phase data: reset."),
        (run("connect_refused", "unknown", "mailbox cannot be read: refused", state="sent"),
         "submission accepted the last message, but its arrival cannot be confirmed "
         "(mailbox cannot be read: refused)."),
        (run("smtp_deferred", "failed", "in phase rcpt: 450 later"),
         "Mail is not going out: submission did not accept the last message (in phase rcpt: 450 later)."),
        (run("internal", "unknown"),
         "The state is unknown: A defect in mailsonde; the log has the traceback."),
    ],
)  # fmt: skip
def test_each_way_that_mail_can_stand(last: dict[str, Any] | None, expected: str) -> None:
    """The sentence says where mail is, between which two places."""
    assert _told(last, flight=Flight(0, 0.0, None)) == expected


def test_the_longest_hop_is_named() -> None:
    """If timestamps show a delay of a second or more, the sentence says where it was."""
    told = _told(run(**DELIVERED), hop_seconds={"submission": 0.0, "relay": 3.0})
    assert told.endswith(
        "until submission accepted it, and 3 s at the relays in between, according to its timestamps."
    )
    quick = _told(run(**DELIVERED), hop_seconds={"submission": 0.0})
    assert "timestamps" not in quick


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
    """Mail is late after twice the longest recent delivery, but never within 5 s."""
    assert flight.is_overdue == is_overdue


def test_late_mail_is_told_before_the_last_run() -> None:
    """Late mail takes precedence over the last arrival."""
    assert _told(run(**DELIVERED), flight=Flight(3, 42.0, 3.2)) == (
        "Mail is late: 3 messages have been between submission and mailbox canary for 42 s; "
        "recent ones took at most 3.2 s."
    )
    assert _told(None, flight=Flight(1, 42.0, None, trace="it is in quarantine")) == (
        "Mail is late: a message has been between submission and mailbox canary for 42 s; "
        "by the message trace, it is in quarantine."
    )


@pytest.mark.parametrize(
    ("last", "flight", "expected"),
    [
        (run(**DELIVERED), Flight(1, 42.0, 3.2, 1, 42.0),
         "Mail is not going out: a message has been waiting for submission to accept it for 42 s; "
         "recent ones took at most 3.2 s."),
        (None, Flight(2, 42.0, None, 2, 42.0),
         "Mail is not going out: 2 messages have been waiting for submission to accept it for 42 s."),
        (None, Flight(1, 1.0, None, 1, 1.0), "The first message is being handed over to submission."),
        (None, Flight(1, 1.0, None), "The first message is in flight."),
        (run(**DELIVERED), Flight(3, 42.0, None, 1, 2.0),
         "Mail is late: 2 messages have been between submission and mailbox canary for 42 s."),
        (None, Flight(1, 42.0, None),
         "Mail is late: a message has been between submission and mailbox canary for 42 s."),
    ],
)  # fmt: skip
def test_mail_is_not_past_a_server_that_has_not_accepted_it(
    last: dict[str, Any] | None, flight: Flight, expected: str
) -> None:
    """Only accepted messages are described as past the submission server."""
    assert _told(last, flight=flight) == expected


def test_other_kinds_tell_what_failed() -> None:
    """For a probe that sends no mail, the status text is about its last run."""
    assert sentence(run(), target="mail") == "All ok: the last run took 250 ms."
    told = sentence(run("certificate_expiring"), target="mail")
    assert told.startswith("Warning: ")
    assert told.endswith("; the last run took 250 ms.")
    failed = run("auth_failed", "failed", "in phase auth: 535 no")
    assert sentence(failed, target="mail") == "In phase auth: 535 no."


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.00032, "0.32 ms"), (0.0099, "9.9 ms"), (0.4444, "444 ms"), (0.9996, "1 s"), (59.96, "60 s"),
     (177.8, "2 min 58 s"), (240, "4 min"), (298.6, "4 min 59 s"), (3599.7, "60 min"), (5999, "99 min 59 s"),
     (7200, "2 h"), (9000, "2 h 30 min")],
)  # fmt: skip
def test_durations_for_people(seconds: float, shown: str) -> None:
    """Durations have a readable unit and significant digits."""
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(1959, 2027, "96.6 % of 2,027"), (100_000, 100_000, "100 % of 100,000"),
     (99_999, 100_000, "99.9 % of 100,000"), (0, 3, "0 % of 3")],
)  # fmt: skip
def test_only_all_is_100_per_cent(part: int, whole: int, shown: str) -> None:
    """A single loss among very many messages still shows."""
    assert share(part, whole) == shown
