"""The fields and parts of a delivery report (RFC 3464), one by one."""

from __future__ import annotations

import base64
import quopri

import pytest

from probes.core.reasons import Reason
from probes.messages import bounce
from tests.fakes.bounces import RETURNED, SAMPLES, TOKEN, block, octets, read, report_of


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
