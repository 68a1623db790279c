"""Delivery reports as mail systems write them: what is a report, and what it says."""

from __future__ import annotations

import base64

import pytest

from probes.core.reasons import Area, Outcome, Reason
from probes.messages import bounce
from probes.messages.bounce_words import reason_of
from probes.messages.token import HEADER
from tests.fakes.bounces import BOUNDARY, POSTFIX, SAMPLES, TOKEN, block, octets, read, report_of


def test_postfix() -> None:
    """Postfix's report is read completely, with the token of the returned message."""
    report = read(POSTFIX)
    assert report.action == "failed"
    assert report.enhanced_status_code == "5.1.1"
    assert report.diagnostic.startswith("550 5.1.1 <nobody@example.test>: Recipient address")
    assert (report.reporting_mta, report.recipient) == ("mail.example.com", "nobody@example.test")
    assert report.token == TOKEN


def test_exchange() -> None:
    """Exchange's report is read despite its nested notification, with the whole returned message."""
    report = bounce.read_report(SAMPLES["exchange"].encode())
    assert report is not None
    assert (report.enhanced_status_code, report.token) == ("5.2.2", TOKEN)
    assert report.reason is Reason.BOUNCE_MAILBOX_FULL


def test_encoded_status_part() -> None:
    """The status part is read even if a gateway encoded it."""
    head, marker, rest = POSTFIX.partition("Reporting-MTA")
    status, _, tail = (marker + rest).partition(f"\n--{BOUNDARY}")
    encoded = base64.encodebytes(status.encode()).decode()
    raw = head.rstrip("\n") + "\nContent-Transfer-Encoding: base64\n\n" + encoded + f"\n--{BOUNDARY}" + tail
    report = bounce.read_report(raw.encode())
    assert report is not None
    assert (report.enhanced_status_code, report.token) == ("5.1.1", TOKEN)


def test_the_recipient_that_failed_comes_first() -> None:
    """Of several recipients, the failed one is reported."""
    delayed = "Final-Recipient: rfc822; a@example.net\nAction: delayed\nStatus: 4.4.1\n\n"
    raw = POSTFIX.replace("Final-Recipient", delayed + "Final-Recipient", 1)
    report = bounce.read_report(raw.encode())
    assert report is not None
    assert (report.action, report.recipient) == ("failed", "nobody@example.test")


def test_delay_is_no_failure() -> None:
    """A report of a delay is not a failure."""
    report = bounce.read_report(POSTFIX.replace("Action: failed", "Action: Delayed").encode())
    assert report is not None
    assert report.action == "delayed"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("report-type=delivery-status", "report-type=disposition-notification"),
        ("multipart/report", "multipart/mixed"),
        ("Action: failed", "Action: exploded"),
        ("message/delivery-status", "text/plain"),
        (f'boundary="{BOUNDARY}"', 'boundary=""'),
    ],
)
def test_what_is_no_report(before: str, after: str) -> None:
    """Without the type, the parts or a known action, a person's message is not a report."""
    of_a_person = POSTFIX.replace("From: MAILER-DAEMON@", "From: anne@")
    assert bounce.read_report(of_a_person.encode()) is not None
    assert bounce.read_report(of_a_person.replace(before, after).encode()) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("report-type=delivery-status", "report-type=disposition-notification"),
        ("Action: failed", "Action: exploded"),
        (f'boundary="{BOUNDARY}"', 'boundary=""'),
    ],
)
def test_what_is_no_report_of_a_mail_system(before: str, after: str) -> None:
    """A mail system's message about something else, or without our message, is not a report."""
    assert bounce.read_report(POSTFIX.replace(before, after).encode()) is None


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [("multipart/report", "multipart/mixed", "5.1.1"), ("message/delivery-status", "text/plain", "5.1.1")],
)
def test_other_types_of_a_mail_system(before: str, after: str, code: str) -> None:
    """A mail system's report of another type is read by its status part or its text."""
    report = read(POSTFIX.replace(before, after))
    assert (report.action, report.enhanced_status_code, report.token) == ("failed", code, TOKEN)


HEADS = [
    ("Return-Path: <>\nFrom: MAILER-DAEMON@a.example", True),
    ("Return-Path: <>\nFrom: Mail Delivery System <Mailer-Daemon@a.example>", True),
    ("Return-Path: <>\nFrom: MAILER-DAEMON (Mail Delivery System)", True),
    ("Return-Path: <MAILER-DAEMON>\nFrom: MAILER-DAEMON", True),
    ("Return-Path: <>\nFrom: postmaster@a.example", True),
    ("Return-Path: <>\nFrom: Anne <anne@a.example>\nX-Failed-Recipients: b@b.example", True),
    ("Return-Path: <>\nReturn-Path: <anne@a.example>\nFrom: postmaster@a.example", True),
    ("From: MAILER-DAEMON@a.example", True),
    ("From: postmaster@a.example\nAuto-Submitted: auto-replied (failure)", True),
    ("From: Anne <anne@a.example>\nX-Failed-Recipients: b@b.example\nAuto-Submitted: auto-generated", True),
    ("From: postmaster@a.example", False),
    ("From: postmaster@a.example\nAuto-Submitted: no", False),
    ("Return-Path: <postmaster@a.example>\nFrom: postmaster@a.example\nAuto-Submitted: auto-replied", False),
    ("Return-Path: <anne@a.example>\nFrom: MAILER-DAEMON@a.example", False),
    ("Return-Path: <>\nFrom: Anne <anne@a.example>\nAuto-Submitted: auto-replied", False),
    ('Return-Path: <>\nFrom: "MAILER-DAEMON@a.example" <anne@a.example>', False),
    ("Return-Path: <>\nFrom: Anne (MAILER-DAEMON@a.example) <anne@a.example>", False),
    ("From: Anne <anne@a.example>\nX-Failed-Recipients: b@b.example", False),
    ("Return-Path: <>\nSubject: failure notice", False),
    ("", False),
]


@pytest.mark.parametrize(("head", "is_from_one"), HEADS)
def test_who_is_a_mail_system(head: str, is_from_one: bool) -> None:
    """A mail system is recognized by a null return path together with the daemon's name, not by one alone."""
    for media_type in ("text/plain", "multipart/mixed; boundary=b"):
        assert bounce.may_be_report(octets(f"Content-Type: {media_type}\n{head}\n")) is is_from_one
    assert not bounce.may_be_report(octets(f"Content-Type: image/png\n{head}\n"))


def test_report_without_our_message_has_no_token() -> None:
    """A token in the notice does not count, because anybody can quote it."""
    raw = POSTFIX.replace("text/rfc822-headers", "text/plain").replace(
        "The mail system", f"{HEADER}: {TOKEN}\n\nThe mail system"
    )
    report = bounce.read_report(raw.encode())
    assert report is not None
    assert report.token is None


def test_unreadable_status_is_unknown() -> None:
    """A failure without a valid code or known words has an unknown cause."""
    assert read(report_of(block(status="five", more="Diagnostic-Code: smtp; 550 so be it\n"))).reason is (
        Reason.BOUNCE_OTHER
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("5.1.1", Reason.BOUNCE_NO_MAILBOX),
        ("5.1.10", Reason.BOUNCE_NO_MAILBOX),
        ("5.2.1", Reason.BOUNCE_MAILBOX_DISABLED),
        ("4.2.2", Reason.BOUNCE_MAILBOX_FULL),
        ("5.2.3", Reason.BOUNCE_TOO_LARGE),
        ("5.3.4", Reason.BOUNCE_TOO_LARGE),
        ("5.3.0", Reason.BOUNCE_SYSTEM),
        ("5.4.6", Reason.BOUNCE_ROUTING),
        ("4.4.7", Reason.BOUNCE_EXPIRED),
        ("5.5.0", Reason.BOUNCE_PROTOCOL),
        ("5.6.1", Reason.BOUNCE_CONTENT),
        ("5.7.1", Reason.BOUNCE_POLICY),
        ("5.7.509", Reason.BOUNCE_POLICY),
        ("5.0.0", Reason.BOUNCE_OTHER),
        ("5.2.999", Reason.BOUNCE_OTHER),
        ("5.9.9", Reason.BOUNCE_OTHER),
        ("5.1.0", Reason.BOUNCE_NO_MAILBOX),
        ("4.1.2", Reason.BOUNCE_NO_MAILBOX),
        ("5.1.8", Reason.BOUNCE_OTHER),
        ("5.71.1", Reason.BOUNCE_OTHER),
        ("", Reason.BOUNCE_OTHER),
        ("5", Reason.BOUNCE_OTHER),
        ("5.1.1.1", Reason.BOUNCE_OTHER),
    ],
)
def test_reasons(code: str, reason: Reason) -> None:
    """Every enhanced status code has one of a closed list of reasons, and each is a failure."""
    assert reason_of(code) is reason
    assert (reason.area, reason.outcome) == (Area.MESSAGE, Outcome.FAILED)


@pytest.mark.parametrize(
    ("code", "diagnostic", "notice", "reason"),
    [
        ("5.1.8", "550 5.1.8 Access denied, bad outbound sender", "", Reason.BOUNCE_POLICY),
        ("5.2.0", "550 5.2.0 Mailbox full", "", Reason.BOUNCE_MAILBOX_FULL),
        ("5.1.1", "550 5.1.1 account blocked as spam", "", Reason.BOUNCE_NO_MAILBOX),
        ("5.2.2", "552 5.2.2 message too large for the mailbox", "", Reason.BOUNCE_MAILBOX_FULL),
        ("5.7.1", "554 5.7.1 too many messages to unknown users", "", Reason.BOUNCE_POLICY),
        ("5.4.1", "550 5.4.1 No route to host", "", Reason.BOUNCE_ROUTING),
        ("5.7.1", "554 5.7.1 Recipient address rejected: Access denied", "", Reason.BOUNCE_POLICY),
        ("5.5.0", "550 5.5.0 Requested action not taken: mailbox unavailable", "", Reason.BOUNCE_NO_MAILBOX),
        ("5.0.0", "550 Requested action not taken", "The mailbox is full.", Reason.BOUNCE_MAILBOX_FULL),
        ("5.0.0", "550 no such user", "Perhaps the mailbox is full.", Reason.BOUNCE_NO_MAILBOX),
        ("5.4.0", "550 no", "Perhaps the mailbox is full.", Reason.BOUNCE_ROUTING),
        (
            "5.0.0",
            "",
            "The quota of this user\n   is exceeded: mailbox\n\tis full.",
            Reason.BOUNCE_MAILBOX_FULL,
        ),
        ("5.0.0", "", "x" * 20_000 + " mailbox is full", Reason.BOUNCE_OTHER),
    ],
)
def test_code_and_words_together(code: str, diagnostic: str, notice: str, reason: Reason) -> None:
    """A precise code decides, then the diagnostic; the notice only if the code says nothing."""
    assert reason_of(code, diagnostic, notice) is reason


@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
@pytest.mark.parametrize(
    ("system", "action", "code", "mta", "diagnostic"),
    [
        ("exim", "failed", "5.2.2", "exim.example.net", "552 5.2.2 <nobody@example.test> quota exceeded"),
        (
            "sendmail",
            "delayed",
            "4.4.1",
            "sm.example.net",
            "451 4.4.1 reply: read error from mx.example.test.",
        ),
        (
            "gmail",
            "failed",
            "5.1.1",
            "example.net",
            "550-5.1.1 The email account that you tried to reach does not exist.",
        ),
    ],
)
def test_what_mail_systems_report(
    system: str, action: str, code: str, mta: str, diagnostic: str, line_end: str
) -> None:
    """The report of each known mail system gives the outcome of our message, and proves which one it was."""
    raw = octets(SAMPLES[system], line_end)
    assert bounce.may_be_report(raw)
    assert bounce.read_report(raw) == bounce.DeliveryReport(
        action,
        code,
        diagnostic,
        mta,
        "nobody@example.test",
        token=TOKEN,
        envelope_id=None,
        reason=reason_of(code) if action == "failed" else None,
    )
