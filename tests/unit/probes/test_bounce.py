"""Delivery reports as mail systems write them, and as nobody should."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import bounce
from probes.reasons import Area, Outcome, Reason
from probes.token import HEADER

TOKEN = "mailsonde1:trip:" + "0" * 32 + ":1700000000000000:" + "a" * 32

POSTFIX = f"""\
Return-Path: <>
From: MAILER-DAEMON@mail.example.com (Mail Delivery System)
Subject: Undelivered Mail Returned to Sender
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="4Abc.1700000000/mail.example.com"

This is a MIME-encapsulated message.

--4Abc.1700000000/mail.example.com
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

I could not deliver your message.

--4Abc.1700000000/mail.example.com
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mail.example.com
X-Postfix-Queue-ID: 4Abc
Arrival-Date: Tue, 14 Nov 2023 22:13:20 +0000 (UTC)

Final-Recipient: rfc822; canary@example.net
Original-Recipient: rfc822;canary@example.net
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.example.net
Diagnostic-Code: smtp; 550 5.1.1 <canary@example.net>: Recipient address
    rejected: User unknown

--4Abc.1700000000/mail.example.com
Content-Description: Undelivered Message Headers
Content-Type: text/rfc822-headers

Subject: mailsonde test message
 {TOKEN}
{HEADER}: {TOKEN}

--4Abc.1700000000/mail.example.com--
"""

EXCHANGE = f"""\
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="_7f1c_"
Subject: Undeliverable: mailsonde test message

--_7f1c_
Content-Type: multipart/alternative; differences=Content-Type; boundary="_in_"

--_in_
Content-Type: text/plain

Your message wasn't delivered. Diagnostic information for administrators: 550 5.2.2
--_in_--

--_7f1c_
Content-Type: message/delivery-status

Reporting-MTA: dns;mbx-1.example.com
Received-From-MTA: dns;edge.example.com

Final-Recipient: rfc822;canary@example.com
Action: failed
Status: 5.2.2
Diagnostic-Code: smtp;554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException
Remote-Server: mbx-1.example.com

--_7f1c_
Content-Type: message/rfc822

Received: from a by b; Tue, 14 Nov 2023 22:13:20 +0000
{HEADER}: {TOKEN}
Subject: x

body
--_7f1c_--
"""


def test_postfix() -> None:
    """Postfix's report is read with all that it says, and the token of what it returns."""
    report = bounce.read_report(POSTFIX.replace("\n", "\r\n").encode())
    assert report is not None
    assert report.action == "failed"
    assert report.enhanced_status_code == "5.1.1"
    assert report.diagnostic.startswith("550 5.1.1 <canary@example.net>: Recipient address")
    assert (report.reporting_mta, report.recipient) == ("mail.example.com", "canary@example.net")
    assert report.token == TOKEN


def test_exchange() -> None:
    """Exchange's report is read past its nested notification, from the whole message that it returns."""
    report = bounce.read_report(EXCHANGE.encode())
    assert report is not None
    assert (report.enhanced_status_code, report.token) == ("5.2.2", TOKEN)
    assert bounce.reason_of(report.enhanced_status_code) is Reason.BOUNCE_MAILBOX_FULL


def test_encoded_status_part() -> None:
    """A gateway may have encoded the status part; it is read all the same."""
    head, marker, rest = POSTFIX.partition("Reporting-MTA")
    status, _, tail = (marker + rest).partition("\n--4Abc")
    encoded = base64.encodebytes(status.encode()).decode()
    raw = head.rstrip("\n") + "\nContent-Transfer-Encoding: base64\n\n" + encoded + "\n--4Abc" + tail
    report = bounce.read_report(raw.encode())
    assert report is not None
    assert (report.enhanced_status_code, report.token) == ("5.1.1", TOKEN)


def test_the_recipient_that_failed_comes_first() -> None:
    """Of several recipients, the one that failed is told of."""
    delayed = "Final-Recipient: rfc822; a@example.net\nAction: delayed\nStatus: 4.4.1\n\n"
    raw = POSTFIX.replace("Final-Recipient", delayed + "Final-Recipient", 1)
    report = bounce.read_report(raw.encode())
    assert report is not None
    assert (report.action, report.recipient) == ("failed", "canary@example.net")


def test_delay_is_no_failure() -> None:
    """A report of a delay is told from one of a failure."""
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
        ('boundary="4Abc.1700000000/mail.example.com"', 'boundary=""'),
    ],
)
def test_what_is_no_report(before: str, after: str) -> None:
    """Without its type, its parts or a known action, a message is no report."""
    assert bounce.read_report(POSTFIX.replace(before, after).encode()) is None


def test_report_without_our_message_has_no_token() -> None:
    """A token in the notification's text, where anybody could quote it, is none."""
    raw = POSTFIX.replace("text/rfc822-headers", "text/plain").replace(
        "I could not", f"{HEADER}: {TOKEN}\n\nI"
    )
    report = bounce.read_report(raw.encode())
    assert report is not None
    assert report.token is None


def test_unreadable_status_is_unknown() -> None:
    """A report that fails without a sound code is a bounce of unknown cause."""
    report = bounce.read_report(POSTFIX.replace("Status: 5.1.1", "Status: five").encode())
    assert report is not None
    assert bounce.reason_of(report.enhanced_status_code) is Reason.BOUNCE_OTHER


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
    ],
)
def test_reasons(code: str, reason: Reason) -> None:
    """Every enhanced status code becomes one of a closed list of reasons, and each is a failure."""
    assert bounce.reason_of(code) is reason
    assert (reason.area, reason.outcome) == (Area.MESSAGE, Outcome.FAILED)


@given(st.binary(max_size=1000), st.integers(0, len(POSTFIX)))
def test_nothing_that_arrives_raises(octets: bytes, at: int) -> None:
    """Whatever is put into a report, or cut off it, reading it ends in an answer, with texts fit to show."""
    raw = POSTFIX.encode()
    for hostile in (octets, raw[:at], raw[:at] + octets + raw[at:]):
        report = bounce.read_report(hostile)
        if report is not None:
            assert (report.diagnostic + report.recipient + report.reporting_mta).isprintable()
            assert isinstance(bounce.reason_of(report.enhanced_status_code), Reason)


def test_endless_report_costs_no_more_than_its_limit() -> None:
    """Recipients without end are looked at up to a limit."""
    head, _, _ = POSTFIX.partition("Final-Recipient")
    raw = head + "Action: delayed\n\n" * 1_000_000
    report = bounce.read_report(raw.encode())
    assert report is not None
    assert report.action == "delayed"
