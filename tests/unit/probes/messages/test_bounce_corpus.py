"""The bounces of each mail system are read, with the right reason."""

from __future__ import annotations

import pytest

from probes.core.reasons import Reason
from probes.delivery.mailboxes.mailbox import IDENTIFYING
from probes.messages import bounce
from probes.messages.header_section import split, values_of
from tests.corpus.files import ENVELOPE_ID, TOKEN, names, octets, text

NO_MAILBOX, DISABLED = Reason.BOUNCE_NO_MAILBOX, Reason.BOUNCE_MAILBOX_DISABLED
FULL, TOO_LARGE, EXPIRED = Reason.BOUNCE_MAILBOX_FULL, Reason.BOUNCE_TOO_LARGE, Reason.BOUNCE_EXPIRED
SYSTEM, ROUTING, PROTOCOL = Reason.BOUNCE_SYSTEM, Reason.BOUNCE_ROUTING, Reason.BOUNCE_PROTOCOL
CONTENT, POLICY, OTHER = Reason.BOUNCE_CONTENT, Reason.BOUNCE_POLICY, Reason.BOUNCE_OTHER

FAILED = {
    "domino-not-listed": ("5.0.0", NO_MAILBOX),
    "domino-router-loop": ("5.4.6", ROUTING),
    "domino-too-large": ("5.0.0", TOO_LARGE),
    "exchange-expired": ("4.4.7", EXPIRED),
    "exchange-loop": ("5.4.6", ROUTING),
    "exchange-mailbox-full": ("5.2.2", FULL),
    "exchange-no-resources": ("5.3.0", SYSTEM),
    "exchange-not-authorized": ("5.7.1", POLICY),
    "exchange-online-bad-sender": ("5.1.8", POLICY),
    "exchange-online-connection-refused": ("4.4.316", ROUTING),
    "exchange-online-daily-limit": ("5.1.90", POLICY),
    "exchange-online-edge-blocking": ("5.4.1", NO_MAILBOX),
    "exchange-online-loop": ("5.4.14", ROUTING),
    "exchange-online-message-expired": ("5.4.300", EXPIRED),
    "exchange-online-no-domain": ("5.4.310", NO_MAILBOX),
    "exchange-online-receive-limit": ("5.2.121", POLICY),
    "exchange-online-recipient-not-found": ("5.1.10", NO_MAILBOX),
    "exchange-online-submission-quota": ("5.2.2", POLICY),
    "exchange-online-unknown-recipient": ("5.1.351", NO_MAILBOX),
    "exchange-too-large": ("5.2.3", TOO_LARGE),
    "exchange-unknown-user": ("5.1.1", NO_MAILBOX),
    "exim-full-after-retries": ("5.0.0", FULL),
    "exim-full-in-the-text": ("5.0.0", FULL),
    "exim-quota-in-the-diagnostic": ("5.2.2", FULL),
    "exim-relay-denied": ("5.0.0", POLICY),
    "exim-retry-timeout": ("5.0.0", EXPIRED),
    "exim-text-quota": ("5.0.0", FULL),
    "exim-text-unrouteable": ("5.0.0", NO_MAILBOX),
    "exim-unknown-in-the-text": ("5.0.0", NO_MAILBOX),
    "gateway-action-expired": ("5.0.0", EXPIRED),
    "gateway-action-expired-without-a-status": ("5.4.7", EXPIRED),
    "gateway-blank-before-the-colon": ("5.1.1", NO_MAILBOX),
    "gateway-code-without-a-reply-code": ("5.4.7", EXPIRED),
    "gateway-connection-refused": ("5.4.0", ROUTING),
    "gateway-courier": ("5.0.0", NO_MAILBOX),
    "gateway-dovecot-quota": ("5.2.2", FULL),
    "gateway-encoded": ("5.7.0", POLICY),
    "gateway-message-without-a-status": ("5.0.0", NO_MAILBOX),
    "gateway-no-cause": ("5.0.0", OTHER),
    "gateway-protocol": ("5.5.2", PROTOCOL),
    "gateway-status-as-text": ("5.7.1", POLICY),
    "gateway-text-after-a-delay": ("5.0.0", ROUTING),
    "gateway-wrapped": ("5.2.1", DISABLED),
    "gmail-disabled": ("5.2.1", DISABLED),
    "gmail-over-quota": ("5.2.2", FULL),
    "gmail-sending-limit": ("5.4.5", POLICY),
    "gmail-unauthenticated": ("5.7.26", POLICY),
    "gmail-unknown-user": ("5.1.1", NO_MAILBOX),
    "opensmtpd-expired": ("5.0.0", EXPIRED),
    "opensmtpd-expired-as-delayed": ("4.4.7", EXPIRED),
    "opensmtpd-full-without-a-code": ("5.0.0", FULL),
    "opensmtpd-unknown-user": ("5.1.1", NO_MAILBOX),
    "postfix-8bit": ("5.6.0", CONTENT),
    "postfix-blocked": ("5.7.1", POLICY),
    "postfix-code-in-the-diagnostic": ("5.1.1", NO_MAILBOX),
    "postfix-expired": ("4.4.1", ROUTING),
    "postfix-host-not-found": ("5.4.4", NO_MAILBOX),
    "postfix-loop": ("5.4.6", ROUTING),
    "postfix-mailbox-full": ("5.2.2", FULL),
    "postfix-too-large": ("5.3.4", TOO_LARGE),
    "postfix-unknown-user": ("5.1.1", NO_MAILBOX),
    "postfix-without-our-message": ("5.1.1", NO_MAILBOX),
    "qmail-no-host": ("5.1.2", NO_MAILBOX),
    "qmail-no-mailbox": ("5.1.1", NO_MAILBOX),
    "qmail-over-quota": ("5.1.1", FULL),
    "qmail-queue-too-long": ("4.4.1", EXPIRED),
    "qmail-remote-refusal": ("5.7.1", POLICY),
    "sendmail-config-error": ("5.3.5", SYSTEM),
    "sendmail-expired": ("4.4.7", EXPIRED),
    "sendmail-host-unknown": ("5.1.2", NO_MAILBOX),
    "sendmail-mailer-exit-status": ("5.0.0", NO_MAILBOX),
    "sendmail-old-text": ("5.0.0", NO_MAILBOX),
    "sendmail-unknown-user": ("5.1.1", NO_MAILBOX),
}
OTHERWISE = {
    "exim-text-delayed": ("delayed", "4.0.0"),
    "gateway-delivered": ("delivered", "2.1.5"),
    "gmail-delayed": ("delayed", "4.4.1"),
    "opensmtpd-delayed": ("delayed", "4.0.0"),
    "postfix-delayed": ("delayed", "4.4.1"),
    "sendmail-delayed": ("delayed", "4.4.1"),
}
"""Reports of something else than a failure."""

EXPECTED = {name: ("failed", *expected) for name, expected in FAILED.items()} | {
    name: (*expected, None) for name, expected in OTHERWISE.items()
}


def identifying(raw: bytes) -> bytes:
    """Return the header fields that a poll by IMAP requests."""
    header_section = split(raw)[0]
    fields = (f"{name}: {value}\r\n" for name in IDENTIFYING for value in values_of(header_section, name))
    return "".join(fields).encode()


@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
@pytest.mark.parametrize("name", EXPECTED)
def test_reason(name: str, line_end: str) -> None:
    """A report gives the outcome, the right code, and the reason that a person would give."""
    report = bounce.read_report(text("bounces", name).replace("\n", line_end).encode())
    assert report is not None
    assert (report.action, report.enhanced_status_code, report.reason) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_what_proves_the_message(name: str) -> None:
    """A report has the token of the returned message, or else the envelope id."""
    report = bounce.read_report(octets("bounces", name))
    assert report is not None
    returns_nothing = name == "postfix-without-our-message"
    assert (report.token, report.envelope_id) == ((None, ENVELOPE_ID) if returns_nothing else (TOKEN, None))


@pytest.mark.parametrize("name", EXPECTED)
def test_recognized_by_the_identifying_fields(name: str) -> None:
    """The few fields that a poll fetches show that a message may be a report."""
    assert bounce.may_be_report(identifying(octets("bounces", name)))


@pytest.mark.parametrize("name", names("not_bounces"))
def test_mail_of_people_is_no_bounce(name: str) -> None:
    """Forwards, replies, receipts and auto-replies are not bounces, whatever they quote."""
    assert bounce.read_report(octets("not_bounces", name)) is None


@pytest.mark.parametrize(
    "name",
    ["forward-as-attachment", "forward-of-a-bounce", "forward-inline", "reply-that-quotes", "auto-responder"],
)
def test_mail_of_people_is_not_even_fetched(name: str) -> None:
    """For mail from people and auto-responders, only the identifying fields are read."""
    assert not bounce.may_be_report(identifying(octets("not_bounces", name)))


@pytest.mark.parametrize("name", EXPECTED)
def test_cut_off_anywhere(name: str) -> None:
    """A truncated report never gives a different action from the whole one."""
    raw = octets("bounces", name)
    for length in range(0, len(raw), 41):
        report = bounce.read_report(raw[:length])
        assert report is None or report.action == EXPECTED[name][0]


def test_the_whole_corpus() -> None:
    """Every file has an expectation, and `pytest -s` prints how many are read and named correctly."""
    assert sorted(EXPECTED) == names("bounces")
    reports = {name: bounce.read_report(octets("bounces", name)) for name in EXPECTED}
    read = [name for name, report in reports.items() if report is not None]
    named = [
        name
        for name in read
        if name in FAILED and (report := reports[name]) and report.reason is FAILED[name][1]
    ]
    systems = {name.partition("-")[0] for name in EXPECTED}
    told_apart = [
        name for name in names("not_bounces") if bounce.read_report(octets("not_bounces", name)) is None
    ]
    print(
        f"\nreports of {len(systems)} kinds of mail system: {len(read)} of {len(EXPECTED)} read, "
        f"{len(named)} of {len(FAILED)} bounces rightly named; "
        f"{len(told_apart)} of {len(names('not_bounces'))} look-alikes told apart"
    )
    assert (len(read), len(named)) == (len(EXPECTED), len(FAILED))
