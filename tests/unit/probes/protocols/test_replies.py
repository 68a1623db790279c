"""The tables that map refusals to reasons and remedies."""

from __future__ import annotations

import re
from typing import Literal

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.remedies import GENERAL
from probes.protocols import imap, pop3
from probes.protocols.replies import TABLES, TEXT_LIMIT, diagnose, remedy_of_report
from probes.protocols.smtp import Reply

R = Reason
BUSY = "Request is throttled. Suggested Backoff Time: 299910 milliseconds"
OLD_SERVER = "Connecting Exchange server version is out-of-date; connection to Exchange Online"
PRX = "Temporary server error. Please try again later. PRX"
NO_AUTH = "Authentication unsuccessful, SmtpClientAuthentication is disabled for the "

EXCHANGE = [
    # What Exchange and Exchange Online answer where they refuse, word for word.
    ("auth", "535 5.7.3 Authentication unsuccessful", R.AUTH_FAILED),
    ("auth", f"535 5.7.139 {NO_AUTH}Tenant.", R.AUTH_DISABLED),
    ("auth", f"535 5.7.139 {NO_AUTH}Mailbox.", R.AUTH_DISABLED),
    ("auth", "535 5.7.139 Authentication unsuccessful, basic authentication is disabled.", R.AUTH_DISABLED),
    ("auth", "550 5.7.30 Basic authentication is not supported for Client Submission.", R.AUTH_DISABLED),
    ("auth", "530 5.7.1 Client was not authenticated", R.AUTH_FAILED),
    ("smtp", "530 5.7.1 Client was not authenticated", R.SMTP_REJECTED),
    ("smtp", "432 4.3.2 Concurrent connections limit exceeded.", R.THROTTLED),
    (
        "smtp",
        r"452 4.3.1 Insufficient system resources (UsedDiskSpace[C:\Exchange\Queue])",
        R.BACK_PRESSURE,
    ),
    ("smtp", "421 4.3.2 Service not available", R.MAINTENANCE),
    ("smtp", "421 4.3.2 Service not active", R.MAINTENANCE),
    *[("smtp", f"451 4.7.0 {PRX}{number}", R.PROXY_FAILURE) for number in (2, 4, 5, 9)],
    ("smtp", f"450 4.7.230 {OLD_SERVER} throttled for 5 mins/hr.", R.VERSION_BLOCKED),
    ("smtp", f"550 5.7.230 {OLD_SERVER} blocked for 10 mins/hr.", R.VERSION_BLOCKED),
    (
        "smtp",
        "550 5.7.68 TenantInboundAttribution; Direct Send not allowed for this organization",
        R.DIRECT_SEND_REFUSED,
    ),
    ("smtp", "550 5.7.236 too many outside recipients", R.THROTTLED),
    ("pop3", "-ERR Logon failure: unknown user name or bad password.", R.AUTH_FAILED),
    ("pop3", "-ERR Authentication failure: unknown user name or bad password.", R.AUTH_FAILED),
    ("pop3", f"-ERR {BUSY}", R.THROTTLED),
    ("imap", "A01 NO AUTHENTICATE failed.", R.AUTH_FAILED),
    ("imap", "A02 BAD User is authenticated but not connected.", R.NOT_GRANTED),
    ("imap", "* BYE Connection closed. 14", R.IMAP_BYE),  # without anything before it
    ("imap", f"A03 NO {BUSY}", R.THROTTLED),
    ("imap", f"A03 BAD {BUSY}", R.THROTTLED),
]
OTHERS = [
    # Exchange and Exchange Online, further wordings
    (
        "smtp",
        "421 4.3.2 The maximum number of concurrent connections per source has exceeded a limit, "
        "closing transmission channel",
        R.THROTTLED,
    ),
    (
        "smtp",
        "421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing "
        "transmission channel",
        R.BACK_PRESSURE,
    ),
    (
        "smtp",
        "421 4.4.2 Message submission rate for this client has exceeded the configured limit",
        R.THROTTLED,
    ),
    ("smtp", "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77714)", R.THROTTLED),
    ("smtp", "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", R.THROTTLED),
    ("smtp", "530 5.7.57 Client not authenticated to send mail.", R.SMTP_REJECTED),
    (
        "smtp",
        "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
        R.NOT_GRANTED,
    ),
    ("smtp", "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain", R.SMTP_REJECTED),
    (
        "auth",
        "535 5.7.139 Authentication unsuccessful, the user credentials were incorrect.",
        R.AUTH_FAILED,
    ),
    (
        "auth",
        "535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults "
        "policy.",
        R.AUTH_DISABLED,
    ),
    ("pop3", "-ERR Server Unavailable. 21", R.LOGIN_REFUSED),
    ("imap", "A01 NO Server Unavailable. 15", R.IMAP_UNAVAILABLE),
    # Gmail
    ("auth", "534-5.7.9 Application-specific password required. For more\n5.7.9 go to it", R.AUTH_FAILED),
    ("auth", "535-5.7.8 Username and Password not accepted. For more\n5.7.8 go to it", R.AUTH_FAILED),
    ("auth", "454 4.7.0 Too many login attempts, please try again later.", R.THROTTLED),
    ("smtp", "530 5.7.0 Must issue a STARTTLS command first.", R.SMTP_REJECTED),
    ("smtp", "530-5.7.0 Authentication Required. For more information,\n5.7.0 go to it", R.SMTP_REJECTED),
    ("smtp", "550 5.4.5 Daily user sending limit exceeded.", R.THROTTLED),
    (
        "smtp",
        "450-4.2.1 The user you are trying to contact is receiving mail too\n4.2.1 quickly.",
        R.THROTTLED,
    ),
    ("smtp", "421 4.3.0 Temporary System Problem.  Try again later", R.SMTP_UNAVAILABLE),
    ("imap", "A01 NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)", R.AUTH_FAILED),
    ("imap", "A01 NO [ALERT] Invalid credentials (Failure)", R.AUTH_FAILED),
    ("imap", "A01 NO [ALERT] Application-specific password required (Failure)", R.AUTH_FAILED),
    ("imap", "A01 NO [ALERT] Your account is not enabled for IMAP use.", R.AUTH_DISABLED),
    ("imap", "A01 NO [ALERT] IMAP access is disabled for your domain.", R.AUTH_DISABLED),
    ("imap", "A01 NO [ALERT] Please log in via your web browser (Failure)", R.LOGIN_REFUSED),
    ("imap", "A01 NO [ALERT] Too many simultaneous connections. (Failure)", R.THROTTLED),
    ("imap", "A01 NO [OVERQUOTA] Account exceeded command or bandwidth limits. (Failure)", R.THROTTLED),
    ("pop3", "-ERR [SYS/PERM] Your account is not enabled for POP access.", R.AUTH_DISABLED),
    ("pop3", "-ERR [AUTH] Web login required", R.AUTH_FAILED),
    # Postfix
    ("smtp", "421 4.7.0 mx.example.test Error: too many connections from 192.0.2.1", R.THROTTLED),
    ("smtp", "450 4.7.1 Error: too much mail from 192.0.2.1", R.THROTTLED),
    ("smtp", "452 4.3.1 Insufficient system storage", R.BACK_PRESSURE),
    ("smtp", "421 4.3.2 All server ports are busy", R.SMTP_UNAVAILABLE),
    ("smtp", "554 5.7.1 <a@example.test>: Relay access denied", R.SMTP_REJECTED),
    ("smtp", "450 4.2.0 <a@example.test>: Recipient address rejected: Greylisted", R.SMTP_DEFERRED),
    ("auth", "535 5.7.8 Error: authentication failed: authentication failure", R.AUTH_FAILED),
    (
        "auth",
        "454 4.7.0 Temporary authentication failure: Connection lost to authentication server",
        R.SMTP_DEFERRED,
    ),
    ("auth", "538 5.7.11 Encryption required for requested authentication mechanism", R.AUTH_FAILED),
    # Exim
    (
        "smtp",
        "421 Too many concurrent SMTP connections from this IP address; please try again later.",
        R.THROTTLED,
    ),
    ("smtp", "421 Too many concurrent SMTP connections; please try again later.", R.BACK_PRESSURE),
    ("smtp", "421 Too much load; please try again later.", R.BACK_PRESSURE),
    ("smtp", "452 Space shortage, please try later", R.BACK_PRESSURE),
    ("smtp", "550 relay not permitted", R.SMTP_REJECTED),
    ("auth", "535 Incorrect authentication data", R.AUTH_FAILED),
    ("auth", "435 Unable to authenticate at present", R.SMTP_DEFERRED),
    # Sendmail
    ("smtp", "452 4.4.5 Insufficient disk space; try again later", R.BACK_PRESSURE),
    ("smtp", "421 4.3.2 Connection rate limit exceeded.", R.THROTTLED),
    # Dovecot
    ("imap", "A01 NO [AUTHENTICATIONFAILED] Authentication failed.", R.AUTH_FAILED),
    ("imap", "A01 NO [UNAVAILABLE] Temporary authentication failure.", R.IMAP_UNAVAILABLE),
    ("imap", "A01 NO [SERVERBUG] Internal error occurred. Refer to server log.", R.IMAP_UNAVAILABLE),
    (
        "imap",
        "A01 NO [LIMIT] Maximum number of connections from user+IP exceeded (mail_max_userip_connections=10)",
        R.IMAP_IN_USE,
    ),
    ("imap", "A01 NO [PRIVACYREQUIRED] Plaintext authentication disallowed", R.LOGIN_REFUSED),
    ("pop3", "-ERR [AUTH] Authentication failed.", R.AUTH_FAILED),
    ("pop3", "-ERR [SYS/TEMP] Temporary authentication failure.", R.POP3_SYS_TEMP),
    ("pop3", "-ERR [IN-USE] Mailbox is locked by another POP3 session.", R.POP3_IN_USE),
    # Courier
    ("imap", "A01 NO Login failed.", R.AUTH_FAILED),
    ("pop3", "-ERR Login failed.", R.AUTH_FAILED),
    ("pop3", "-ERR chdir Maildir failed", R.LOGIN_REFUSED),
    ("imap", "* BYE Maximum connection limit reached for 192.0.2.1", R.THROTTLED),
    # Cyrus
    ("imap", "A01 NO Login failed: authentication failure", R.AUTH_FAILED),
    ("imap", "A01 NO Login only available under a layer", R.AUTH_FAILED),
    ("imap", "A01 NO System I/O error", R.IMAP_UNAVAILABLE),
    ("imap", "A01 NO Mailbox has an invalid format", R.IMAP_UNAVAILABLE),
    ("pop3", "-ERR [AUTH] Invalid login", R.AUTH_FAILED),
    ("pop3", "-ERR [SYS/PERM] Unable to locate maildrop", R.POP3_SYS_PERM),
    ("pop3", "-ERR Unable to lock maildrop: Mailbox is locked by POP server", R.LOGIN_REFUSED),
    # Words that any server may use
    ("imap", "A01 NO The system is down for maintenance", R.MAINTENANCE),
    ("pop3", "-ERR The system is down for maintenance", R.MAINTENANCE),
    ("imap", "* BYE Server going down for maintenance", R.MAINTENANCE),
    ("smtp", "421 Down for maintenance", R.MAINTENANCE),
]


def fault_of(exchange: str, said: str) -> ProbeFault:
    """Return the fault of a refusal as a session reads it; ``auth`` is an SMTP login."""
    if exchange in {"auth", "smtp"}:
        return Reply(int(said[:3]), said[4:]).fault(login=exchange == "auth")
    if exchange == "pop3":
        with pytest.raises(ProbeFault) as caught:
            pop3.status(said.encode(), Reason.AUTH_FAILED)
        return caught.value
    response = imap.Response.parse(said.encode())
    is_coded = response.code[0] != b""
    otherwise = Reason.LOGIN_REFUSED if is_coded else Reason.AUTH_FAILED
    return imap.refusal(response, Reason.IMAP_BYE if response.kind == b"BYE" else otherwise)


@pytest.mark.parametrize(("exchange", "said", "reason"), EXCHANGE + OTHERS)
def test_what_a_refusal_means(exchange: str, said: str, reason: Reason) -> None:
    """Each wording of each dialect has its reason, and a refusal with a known cure has a remedy."""
    fault = fault_of(exchange, said)
    assert fault.reason is reason
    assert fault.remedy or reason not in GENERAL


@pytest.mark.parametrize(
    ("exchange", "said", "remedy"),
    [
        ("auth", f"535 5.7.139 {NO_AUTH}Mailbox.", "Set-CASMailbox"),
        ("smtp", "530 5.7.1 Client was not authenticated", "`username`"),
        ("smtp", "554 5.7.1 <a@example.test>: Relay access denied", "relay"),
        ("smtp", "450 4.2.0 Greylisted, see the page", "`retry`"),
        ("smtp", "421 4.3.2 Service not active", "Get-ServerComponentState"),
        ("imap", "A02 BAD User is authenticated but not connected.", "Add-MailboxPermission"),
        ("imap", "A01 NO [LIMIT] Maximum number of connections from user+IP exceeded", "userip"),
        ("pop3", "-ERR [AUTH] Web login required", "browser"),
        ("pop3", "-ERR [AUTH] no", GENERAL[Reason.AUTH_FAILED]),
    ],
)
def test_a_remedy_fits_what_was_said(exchange: str, said: str, remedy: str) -> None:
    """A wording with a remedy of its own has that one, and any other has its reason's."""
    assert remedy in fault_of(exchange, said).remedy


@pytest.mark.parametrize("exchange", ["pop3", "imap"])
def test_a_suggested_pause_is_kept(exchange: str) -> None:
    """The pause that a server suggests is in the fault, in seconds."""
    said = f"-ERR {BUSY}" if exchange == "pop3" else f"A01 NO {BUSY}"
    fault = fault_of(exchange, said)
    assert fault.retry_after == pytest.approx(299.91)
    assert fault.asks_to_wait


@pytest.mark.parametrize("said", ["Server Unavailable. 21", "maintenance", "too many connections"])
def test_a_refusal_about_one_message_says_nothing_of_the_mailbox(said: str) -> None:
    """In POP3 a text without a code decides only about logins: elsewhere it may be about a single message."""
    with pytest.raises(ProbeFault) as caught:
        pop3.status(f"-ERR {said}".encode())
    assert caught.value.reason is Reason.POP3_ERROR


def test_a_delivery_report_has_a_remedy() -> None:
    """A report's enhanced status code and text find a remedy, or else its reason does."""
    old = remedy_of_report(R.BOUNCE_POLICY, "5.7.230", f"{OLD_SERVER} blocked")
    assert old == GENERAL[R.VERSION_BLOCKED]
    direct = remedy_of_report(R.BOUNCE_POLICY, "5.7.68", "550 5.7.68 TenantInboundAttribution")
    assert direct == GENERAL[R.DIRECT_SEND_REFUSED]
    assert remedy_of_report(R.BOUNCE_MAILBOX_FULL, "5.0.0", "full") == GENERAL[R.BOUNCE_MAILBOX_FULL]
    full = remedy_of_report(R.BOUNCE_SYSTEM, "4.3.1", "Insufficient system storage")
    assert full == GENERAL[R.BACK_PRESSURE]
    assert remedy_of_report(R.BOUNCE_OTHER, "", "") == ""


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        ("400", "ErrorInvalidRequest", R.GRAPH_ERROR),
        ("401", "InvalidAuthenticationToken", R.AUTH_FAILED),
        ("403", "ErrorAccessDenied", R.NOT_GRANTED),
        ("403", "ErrorSendAsDenied", R.NOT_GRANTED),
        ("404", "ErrorInvalidUser", R.GRAPH_NO_MAILBOX),
        ("404", "MailboxNotEnabledForRESTAPI", R.GRAPH_NO_MAILBOX),
        ("404", "ErrorItemNotFound", R.GRAPH_NOT_FOUND),
        ("429", "ApplicationThrottled", R.THROTTLED),
        ("500", "ErrorInternalServerError", R.GRAPH_UNAVAILABLE),
        ("504", "", R.GRAPH_UNAVAILABLE),
    ],
)
def test_what_graph_means(status: str, code: str, reason: Reason) -> None:
    """Each of Graph's errors has its reason, and one with a known cure has a remedy."""
    found = diagnose("graph", status, "whatever", R.GRAPH_ERROR, code)
    assert found.reason is reason
    assert found.remedy or reason not in GENERAL


Protocol = Literal["smtp", "pop3", "imap", "graph"]
PROTOCOLS: tuple[Protocol, ...] = ("smtp", "pop3", "imap", "graph")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "word", ["too many aaa ", "concurrent connections ", "[", "\x1b]0;x\x07\0", "é", "5.7.1\n"]
)
def test_hostile_texts(protocol: Protocol, word: str) -> None:
    """Of a text of 64 KB only the beginning is searched, and nothing of it is in the remedy."""
    text = word * (65536 // len(word.encode()))
    for said in (text, text.encode()):
        found = diagnose(protocol, "450", said, Reason.AUTH_FAILED, "4.7.1")
        assert found.remedy in {row.remedy for row in TABLES[protocol]} | {*GENERAL.values(), ""}
    fault = ProbeFault(found.reason, text, remedy=found.remedy)
    assert fault.detail.isprintable()
    hidden = word * TEXT_LIMIT + " server unavailable. 15 maintenance basic authentication is disabled"
    assert diagnose(protocol, "", hidden, R.LOGIN_REFUSED) == diagnose(
        protocol, "", word * TEXT_LIMIT, R.LOGIN_REFUSED
    )


def test_the_tables_are_sound() -> None:
    """Each pattern compiles, each row does something, and each remedy is a sentence fit to show."""
    remedies = set(GENERAL.values())
    for row in (row for rows in TABLES.values() for row in rows):
        for pattern in (row.code, row.status, row.words):
            re.compile(pattern)
        assert row.reason is not None or row.remedy
        assert row.words == row.words.lower()
        remedies.add(row.remedy)
    for remedy in remedies - {""}:
        assert remedy[0].isupper()
        assert remedy.endswith(".")
        assert remedy.isprintable()
        assert len(remedy) < 240
