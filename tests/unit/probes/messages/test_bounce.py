"""Delivery reports as mail systems write them, and malformed or hostile ones."""

from __future__ import annotations

import base64
import quopri
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.core.reasons import Area, Outcome, Reason
from probes.messages import bounce
from probes.messages.bounce_words import reason_of
from probes.messages.token import HEADER
from tests.corpus import files

TOKEN = files.TOKEN
POSTFIX = files.text("bounces", "postfix-unknown-user")
BOUNDARY = "4SV0Xk2Zz3z1abc.1700000000/mail.example.com"
SAMPLES = {
    "postfix": POSTFIX,
    "exim": files.text("bounces", "exim-quota-in-the-diagnostic"),
    "exchange": files.text("bounces", "exchange-mailbox-full"),
    "sendmail": files.text("bounces", "sendmail-delayed"),
    "gmail": files.text("bounces", "gmail-unknown-user"),
}

RETURNED = f"""\
Date: Mon, 23 Nov 2026 20:00:00 +0000
From: mailsonde <canary@example.com>
To: <nobody@example.test>
Subject: mailsonde test message
 {TOKEN}
X-Mailsonde-Token: {TOKEN}
MIME-Version: 1.0
"""


def octets(lines: str, line_end: str = "\r\n") -> bytes:
    return lines.replace("\n", line_end).encode()


def read(lines: str) -> bounce.DeliveryReport:
    report = bounce.read_report(octets(lines))
    assert report is not None
    return report


def report_of(*recipients: str, about: str = "Reporting-MTA: dns; mx.example.com\n\n", head: str = "") -> str:
    """Return a report with these groups for recipients, and fields at the beginning of its part."""
    return (
        "Content-Type: multipart/report; report-type=delivery-status; boundary=b\n\n"
        f"--b\nContent-Type: message/delivery-status\n{head}\n{about}" + "\n".join(recipients) + "\n--b--\n"
    )


def block(action: str = "failed", status: str = "5.1.1", who: str = "a@example.test", more: str = "") -> str:
    return f"Final-Recipient: rfc822; {who}\nAction: {action}\nStatus: {status}\n{more}"


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


@given(st.binary(max_size=1000), st.integers(0, len(POSTFIX)))
def test_nothing_that_arrives_raises(octets: bytes, at: int) -> None:
    """Any contents or truncation of a report give a result with texts safe to show."""
    raw = POSTFIX.encode()
    for hostile in (octets, raw[:at], raw[:at] + octets + raw[at:]):
        report = bounce.read_report(hostile)
        if report is not None:
            assert (report.diagnostic + report.recipient + report.reporting_mta).isprintable()
            assert (report.reason is not None) is (report.action == "failed")


def test_endless_report_costs_no_more_than_its_limit() -> None:
    """The number of recipients examined is limited."""
    head, _, _ = POSTFIX.partition("Final-Recipient")
    raw = head + "Action: delayed\n\n" * 1_000_000
    report = bounce.read_report(raw.encode())
    assert report is not None
    assert report.action == "delayed"


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


@pytest.mark.parametrize(
    ("field", "is_report"),
    [
        ("Content-Type: multipart/report; report-type=delivery-status; boundary=b", True),
        ('CONTENT-TYPE: Multipart/Report;\n\tREPORT-TYPE="Delivery-Status";\n boundary=b', True),
        ('content-type:multipart/report;boundary="x; y";report-type=delivery-status', True),
        ('Content-Type: multipart/report; boundary="; report-type=delivery-status"', False),
        ("Content-Type: multipart/report; report-type=disposition-notification; boundary=b", False),
        ("Content-Type: multipart/report; boundary=b", False),
        ("Content-Type: multipart/mixed; report-type=delivery-status; boundary=b", False),
        ("X-Failed-Recipients: nobody@example.test", False),
        ("Subject: x\n\nContent-Type: multipart/report; report-type=delivery-status", False),
        ("", False),
    ],
)
def test_which_header_sections_are_of_a_report(field: str, is_report: bool) -> None:
    """Only the section's own Content-Type counts, with any folding, quoting and case."""
    assert bounce.may_be_report(octets(f"From: <>\n{field}\n")) is is_report
    if not is_report:
        assert (
            bounce.read_report(octets(f"{field}\n\n--b\nContent-Type: message/delivery-status\n\n{block()}"))
            is None
        )


def test_the_recipient_that_failed_wins() -> None:
    """The first failed recipient counts, or else the first one."""
    delivered = block("delivered", "2.0.0", "one@example.test")
    failed = block("failed", "5.2.2", "two@example.test")
    late = block("Failed", "5.7.1", "three@example.test")
    assert read(report_of(delivered, failed, late)).recipient == "two@example.test"
    assert read(report_of(delivered, late, failed)).enhanced_status_code == "5.7.1"
    relayed = block("relayed", "2.0.0", "four@example.test")
    assert read(report_of(delivered, relayed)).recipient == "one@example.test"


def test_a_report_without_fields_of_the_message() -> None:
    """A report that begins with a recipient is read."""
    assert read(report_of(block(), about="")).recipient == "a@example.test"


@pytest.mark.parametrize("action", ["failed", "delayed", "delivered", "relayed", "expanded"])
def test_known_actions(action: str) -> None:
    """The five actions of RFC 3464 section 2.3.3 count in any case, with or without a comment."""
    assert read(report_of(block(action.upper()))).action == action
    assert read(report_of(block(f"{action} (says who)"))).action == action


@pytest.mark.parametrize(
    ("status", "code"), [("5.0.0", "5.0.0"), ("4.4.1", "4.4.1"), ("", "5.4.7"), ("soon", "5.4.7")]
)
def test_a_message_that_expired_has_failed(status: str, code: str) -> None:
    """The action expired, which some gateways use, is a failure with its own cause."""
    report = read(report_of(block("delayed"), block("expired", status, "b@example.test")))
    assert (report.action, report.recipient) == ("failed", "b@example.test")
    assert (report.enhanced_status_code, report.reason) == (code, Reason.BOUNCE_EXPIRED)


def test_the_envelope_id() -> None:
    """The ENVID of the submission is in the fields about the message (RFC 3464 section 2.2.1)."""
    about = "Original-Envelope-Id: QQ314159\nReporting-MTA: dns; mx.example.com\n\n"
    assert read(report_of(block(), about=about)).envelope_id == "QQ314159"
    assert read(report_of(block(more="Original-Envelope-Id: x\n"))).envelope_id is None


@pytest.mark.parametrize("action", ["bounced", "failed-so-to-say", "failedx", "", "\x00"])
def test_an_unknown_action_is_no_report(action: str) -> None:
    """A report with an unknown action is not reliable."""
    assert bounce.read_report(octets(report_of(block(action)))) is None


@pytest.mark.parametrize(
    ("action", "status", "code"),
    [
        ("failed", "4.4.7", "4.4.7"),
        ("failed", "5.1.1 (bad destination mailbox address)", "5.1.1"),
        ("failed", "5.123.999", "5.123.999"),
        ("failed", "3.1.1", "5.0.0"),
        ("failed", "5.1", "5.0.0"),
        ("failed", "5.1.1234", "5.0.0"),
        ("failed", "5.1.1.1", "5.0.0"),
        ("failed", "5.1.\u0661", "5.0.0"),
        ("failed", "", "5.0.0"),
        ("delayed", "", "4.0.0"),
        ("delivered", "soon", "2.0.0"),
    ],
)
def test_the_enhanced_status_code(action: str, status: str, code: str) -> None:
    """An invalid status (RFC 3463 section 2) is replaced by the class of the action."""
    assert read(report_of(block(action, status))).enhanced_status_code == code


@pytest.mark.parametrize(
    ("status", "diagnostic", "code"),
    [
        ("5.0.0", "smtp; 550 5.7.1 Access denied", "5.7.1"),
        ("5.0.0", "smtp; 550-5.7.1 [192.0.2.1] Our system", "5.7.1"),
        ("5.0.0", "smtp; 550 #5.1.0 Address rejected.", "5.1.0"),
        ("5.0.0", "smtp; 450 4.7.1 greylisted", "5.0.0"),
        ("5.0.0", "smtp; 550 no code 5.1.1", "5.0.0"),
        ("5.0.0", "x-unix; 550 5.7.1 not SMTP", "5.0.0"),
        ("5.1.1", "smtp; 550 5.7.1 another", "5.1.1"),
        ("five", "smtp; 550 5.7.1 another", "5.7.1"),
        ("", "smtp; 451 4.4.7 given up", "4.4.7"),
        ("5.0.0", "x-postfix; host mx said: 550 5.1.1 <a>: unknown (in reply to RCPT)", "5.1.1"),
        ("5.0.0", "smtp; 450 4.7.1 later: 550 5.7.1 never", "5.7.1"),
        ("5.0.0", "smtp; 5.4.7 - Delivery expired", "5.4.7"),
        ("5.0.0", "smtp; 550 sorry, no mailbox (#5.1.1)", "5.1.1"),
        ("5.0.0", "smtp; 550 refused by 5.1.1.25 and server (5.1.1)", "5.0.0"),
        ("5.0.0", "smtp; 1550 5.1.1 and 550 5.1.1.1", "5.0.0"),
    ],
)
def test_a_status_without_detail(status: str, diagnostic: str, code: str) -> None:
    """If the status is vague, as Exim's is, the remote server's code of the same class counts."""
    more = f"Diagnostic-Code: {diagnostic}\n"
    assert read(report_of(block(status=status, more=more))).enhanced_status_code == code


def test_texts_are_fit_to_show() -> None:
    """Texts are bounded and have no control characters."""
    more = f"Diagnostic-Code: smtp; 550 \x1b[2J\x07{'x' * 5000}\n"
    report = read(report_of(block(who="\x1b]0;a\x07@example.test", more=more)))
    assert report.diagnostic.startswith(r"550 \x1b[2J\x07x")
    assert len(report.diagnostic) <= 300
    assert report.recipient.isprintable()


def test_a_diagnostic_without_a_type() -> None:
    """A text with a semicolon but without a type is kept whole."""
    more = "Diagnostic-Code: 550 no such user; try again\n"
    assert read(report_of(block(more=more))).diagnostic == "550 no such user; try again"


@pytest.mark.parametrize("encoding", ["base64", "Quoted-Printable"])
@pytest.mark.parametrize("system", ["postfix", "exchange"])
def test_encoded_parts(system: str, encoding: str) -> None:
    """A report with encoded parts is read like any other."""
    plain = SAMPLES[system]
    boundary = "--" + plain.partition('boundary="')[2].partition('"')[0]
    pieces = plain.split(boundary)
    for number in (2, 3):
        header_section, _, body = pieces[number].partition("\n\n")
        encoded = (
            base64.encodebytes(body.encode()) if encoding == "base64" else quopri.encodestring(body.encode())
        )
        fields = f"{header_section}\nContent-Transfer-Encoding: {encoding}"
        pieces[number] = f"{fields}\n\n{encoded.decode()}\n"
    assert read(boundary.join(pieces)) == read(plain)


@pytest.mark.parametrize("missing", [1, 2, 3, 4])
def test_encoded_parts_that_are_cut_off(missing: int) -> None:
    """A returned message in truncated base64 still gives its token."""
    returned = base64.encodebytes((RETURNED + "\n" + "x" * 900).encode()).decode().rstrip()[:-missing]
    text = (
        report_of(block()).removesuffix("--b--\n")
        + f"--b\nContent-Type: message/global\nContent-Transfer-Encoding: base64\n\n{returned}"
    )
    assert read(text).token == TOKEN


@pytest.mark.parametrize(
    "media_type",
    ["message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers", "Message/RFC822"],
)
def test_where_the_token_may_stand(media_type: str) -> None:
    """The token is found in every type of part that returns the message."""
    text = (
        report_of(block()).removesuffix("--b--\n") + f"--b\nContent-Type: {media_type}\n\n{RETURNED}\n--b--\n"
    )
    assert read(text).token == TOKEN


@pytest.mark.parametrize(
    "part",
    [
        f"Content-Type: text/plain\n\n{RETURNED}",
        f"Content-Type: message/rfc822\n\nSubject: quoted\n\n{RETURNED}",
        f"X-Mailsonde-Token: {TOKEN}\nContent-Type: message/rfc822\n\nSubject: x\n",
        f"Content-Type: multipart/mixed; boundary=c\n\n--c\nContent-Type: message/rfc822\n\n{RETURNED}",
    ],
)
def test_where_the_token_may_not_stand(part: str) -> None:
    """A quoted token, or one in a nested part, proves nothing."""
    assert read(report_of(block()).removesuffix("--b--\n") + f"--b\n{part}\n--b--\n").token is None


def test_a_token_behind_the_last_boundary_is_not_read() -> None:
    """Text after the closing boundary is not a part (RFC 2046 section 5.1.1)."""
    assert read(report_of(block()) + f"--b\nContent-Type: message/rfc822\n\n{RETURNED}").token is None


def test_the_first_part_of_a_kind_counts() -> None:
    """A second delivery-status or returned message, as in a nested report, changes nothing."""
    more = "--b\nContent-Type: message/"
    second = f"{more}delivery-status\n\n{block('delayed', '4.4.1', 'second@example.test')}\n"
    returned = "".join(
        f"{more}rfc822\n\n\n\n{text}\n" for text in (RETURNED, RETURNED.replace("mailsonde1", "x"))
    )
    report = read(report_of(block()).removesuffix("--b--\n") + second + returned + "--b--\n")
    assert (report.action, report.recipient, report.token) == ("failed", "a@example.test", TOKEN)


def test_a_boundary_that_is_too_long() -> None:
    """A boundary of 70 characters separates parts, one of 71 does not (RFC 2046 section 5.1.1)."""
    for length, is_report in ((70, True), (71, False)):
        text = report_of(block()).replace("boundary=b", f"boundary={'b' * length}")
        text = text.replace("--b", "--" + "b" * length)
        assert (bounce.read_report(octets(text)) is not None) is is_report


def test_what_lies_beyond_the_limit_is_not_read() -> None:
    """Only the beginning of a long report counts."""
    padding = "x" * 70 + "\n"
    head, tail = report_of(block()).split("--b\n", 1)
    for lines, is_report in ((100, True), (bounce.REPORT_LIMIT // len(padding), False)):
        raw = octets(f"{head}{padding * lines}--b\n{tail}", "\n")
        assert (bounce.read_report(raw) is not None) is is_report


@pytest.mark.parametrize("system", SAMPLES)
def test_a_report_cut_off_anywhere(system: str) -> None:
    """A truncated report never gives a different action, recipient or MTA from the whole one."""
    raw = octets(SAMPLES[system])
    whole = bounce.read_report(raw)
    assert whole is not None
    for length in range(len(raw)):
        report = bounce.read_report(raw[:length])
        if report is not None:
            assert report.action == whole.action
            assert report.recipient in f"rfc822;{whole.recipient}"
            assert report.reporting_mta == whole.reporting_mta
            assert report.token is None or TOKEN.startswith(report.token)


PIECES = [
    b"--b\n",
    b"\n",
    b"\n \t",
    b" ",
    b";",
    b'a="',
    b"X-Mailsonde-Token:\n ",
    b"Action: failed\n\n",
    b"Action: x\n\n",
    b"=\n",
    b"Diagnostic-Code: smtp; \n ",
]


WORDS = [
    "user ",
    "account x",
    "550 5.",
    "(#5.",
    "X-Mailsonde-Token: ",
    "the past 1",
    "\n\n",
    "exceeds the ",
    "\u00a0",
]


@pytest.mark.parametrize("parts", ["text/plain", "multipart/mixed; boundary=b\n\n--b"])
@pytest.mark.parametrize("word", WORDS)
def test_no_notice_takes_long(word: str, parts: str) -> None:
    """The worst possible notice within the limit is read quickly."""
    raw = octets(f"Return-Path: <>\nFrom: MAILER-DAEMON\nContent-Type: {parts}\n\nfailure notice\n")
    more = f"\n\nMessage-ID: x\nX-Mailsonde-Token: {TOKEN}\n"
    started = thread_time()
    bounce.read_report(raw + octets(word) * (bounce.REPORT_LIMIT // len(word)))
    bounce.read_report(raw + octets(word) * 1000 + octets(more))
    assert thread_time() - started < 2


@pytest.mark.parametrize("head", ["delivery-status", "rfc822", "rfc822\nContent-Transfer-Encoding: base64"])
@pytest.mark.parametrize("piece", PIECES)
def test_no_repetition_takes_long(piece: bytes, head: str) -> None:
    """The worst possible report within the limit is read quickly."""
    raw = octets(report_of("").removesuffix("--b--\n")) + f"--b\nContent-Type: message/{head}\n\n".encode()
    raw = raw.replace(b"\n--b", b"", 1) if head == "delivery-status" else raw
    started = thread_time()
    bounce.read_report(raw + piece * (bounce.REPORT_LIMIT // len(piece)))
    assert thread_time() - started < 2
