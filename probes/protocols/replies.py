"""The only place that maps a mail server's refusals to reasons and remedies.

The tables hold what the RFCs define, and the wordings of Exchange, Exchange Online, Gmail, Postfix, Exim,
Sendmail, Dovecot, Courier and Cyrus. Only refusals are looked up, so a successful run does not pay for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.remedies import GENERAL

LONGEST_PAUSE = 3600.0
"""Maximum pause in seconds that a server can ask for; after this, it is polled again anyway."""

TEXT_LIMIT = 1000
"""Maximum characters of a refusal that are searched for a wording."""

_BACKOFF = re.compile(r"Suggested Backoff Time: ([0-9]{1,9}) milliseconds", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One entry of a table. Its patterns are regular expressions; an empty one matches anything.

    ``code`` matches the whole reply code (SMTP), response code (POP3, IMAP) or HTTP status (Graph),
    ``status`` the whole enhanced status code or error code (Graph), and ``words`` a part of the text, in any
    case. Patterns must take linear time.
    """

    reason: Reason | None = None  # None: the row only knows a remedy
    remedy: str = ""  # empty: that of the reason
    code: str = ""
    status: str = ""
    words: str = ""
    instead_of: frozenset[Reason] = frozenset()  # the row only replaces these reasons, or any if empty

    def matches(self, code: str, status: str, text: str, otherwise: Reason) -> bool:
        """Whether the row applies to a refusal."""
        return (
            (not self.instead_of or otherwise in self.instead_of)
            and (not self.code or re.fullmatch(self.code, code) is not None)
            and (not self.status or re.fullmatch(self.status, status) is not None)
            and (not self.words or re.search(self.words, text, re.IGNORECASE) is not None)
        )


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a refusal means, what to do about it, and the pause in seconds that the server asked for."""

    reason: Reason
    remedy: str
    retry_after: float | None


def diagnose(
    protocol: Literal["smtp", "pop3", "imap", "graph"],
    code: str,
    text: str | bytes,
    otherwise: Reason,
    status: str = "",
) -> Diagnosis:
    """Return what a refusal means. The first row of the table that matches and has a reason decides.

    ``code`` is SMTP's reply code, or the response code of POP3 (RFC 2449 section 8) or IMAP (RFC 5530) in
    upper case, empty if there is none. ``status`` is the enhanced status code (RFC 3463). For Microsoft
    Graph, they are the HTTP status and the error's own code. ``otherwise`` is the reason if no row matches.
    For a login whose credentials may be wrong, it is `AUTH_FAILED`.
    """
    cut = text[:TEXT_LIMIT]
    said = cut.decode("ascii", "replace") if isinstance(cut, bytes) else cut
    if status:
        said = said.replace(f"\n{status}", "\n")  # a long text repeats it in each line (RFC 2034 section 4)
    said = " ".join(said.split())
    reason, remedy = otherwise, ""
    for row in TABLES[protocol]:
        if row.matches(code, status, said, otherwise):
            remedy = remedy or row.remedy
            if row.reason is not None:
                reason = row.reason
                break
    backoff = _BACKOFF.search(said)
    pause = min(int(backoff[1]) / 1000, LONGEST_PAUSE) if backoff else None
    return Diagnosis(reason, remedy or GENERAL.get(reason, ""), pause)


def refusal(protocol: Literal["pop3", "imap"], code: bytes, text: bytes, otherwise: Reason) -> ProbeFault:
    """Return the fault for a refusal by POP3 or IMAP; see `diagnose`."""
    found = diagnose(protocol, code.decode("ascii", "replace").upper(), text, otherwise)
    return ProbeFault(found.reason, text, retry_after=found.retry_after, remedy=found.remedy)


def remedy_of_report(reason: Reason, status: str, text: str) -> str:
    """Return what to do about a delivery report with this enhanced status code and diagnostic text.

    A report often has no reply code; 450 and 550 stand for any of the class that the status code has.
    """
    return diagnose("smtp", f"{status[:1]}50", text, reason, status).remedy


_LOGIN = frozenset({Reason.AUTH_FAILED, Reason.LOGIN_REFUSED})
_BLAMED = frozenset({Reason.AUTH_FAILED})
_ANY_SMTP = frozenset({Reason.AUTH_FAILED, Reason.PROTOCOL_ERROR})

_FOR_GOOGLE = "Use OAuth2 or an app password: Google takes no account passwords."
_FEWER_CONNECTIONS = (
    "Lower `max_connections` of the server in the configuration, or let this client have more of them."
)
_NO_PASSWORDS = "Use OAuth2: passwords are turned off here."
_ENCRYPT = "Use TLS: the server takes no password without it."

_ASKS_FOR_PEACE = Row(reason=Reason.THROTTLED, words=r"request is throttled|suggested backoff time: \d")

_SMTP = (
    # Exchange and Exchange Online
    Row(
        reason=Reason.VERSION_BLOCKED,
        status=r"[45]\.7\.230",
    ),
    Row(reason=Reason.DIRECT_SEND_REFUSED, status=r"5\.7\.68"),
    Row(reason=Reason.DIRECT_SEND_REFUSED, code="5..", words=r"direct send not allowed"),
    Row(
        reason=Reason.AUTH_DISABLED,
        words=r"smtpclientauthentication is disabled for the tenant",
        remedy=(
            "Use OAuth2, or turn SMTP AUTH on for the mailbox alone: "
            "Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled $false."
        ),
    ),
    Row(
        reason=Reason.AUTH_DISABLED,
        words=r"smtpclientauthentication is disabled",
        remedy="Use OAuth2, or Set-CASMailbox MAILBOX -SmtpClientAuthenticationDisabled $false.",
    ),
    Row(
        reason=Reason.AUTH_DISABLED,
        words=r"basic authentication is (?:disabled|not supported)",
        remedy=_NO_PASSWORDS,
    ),
    Row(
        reason=Reason.AUTH_DISABLED,
        words=r"locked by your organization's security defaults",
        remedy="Use OAuth2: the tenant's security defaults allow no login by password.",
    ),
    Row(
        status=r"5\.7\.139",
        words=r"did not meet the criteria",
        remedy="Look at the sign-in log of Entra: Conditional Access or security defaults refused the login.",
    ),
    Row(
        reason=Reason.NOT_GRANTED,
        words=r"permissions? to send as this sender|sendasdenied",
        remedy="Give the account the right SendAs for the probe's `from`, or send from its own address.",
    ),
    Row(
        reason=Reason.THROTTLED,
        status=r"5\.7\.236",
        remedy="Send from another domain: onmicrosoft.com may have 100 outside recipients a day.",
    ),
    Row(
        reason=Reason.THROTTLED,
        code="4..",
        words=(
            r"concurrent connections (?:limit|per source has) exceeded|thread limit exceeded|"
            r"too many (?:concurrent smtp )?connections from"
        ),
        remedy=_FEWER_CONNECTIONS,
    ),
    Row(
        reason=Reason.PROXY_FAILURE,
        code="4..",
        words=r"\bprx\d",
    ),
    Row(
        reason=Reason.MAINTENANCE,
        code="4..",
        status=r"4\.3\.2",
        words=r"service not (?:available|active)",
        remedy=(
            "Look for inactive components with Get-ServerComponentState, or set a `maintenance` window for "
            "planned work."
        ),
    ),
    Row(reason=Reason.MAINTENANCE, code="4..", words=r"\bmaintenance\b"),
    Row(
        reason=Reason.BACK_PRESSURE,
        code="4..",
        words=r"insufficient system resources",
        remedy="Free the resource that the reply names, and look at the growth of the queues.",
    ),
    # Postfix, Exim, Sendmail: no room, or too much load
    Row(
        reason=Reason.BACK_PRESSURE,
        code="4..",
        words=(
            r"insufficient (?:system storage|disk space)|space shortage|too much load|"
            r"too many concurrent smtp connections; please|maximum number of concurrent connections"
        ),
    ),
    # How much one client or sender may send: Exchange, Exchange Online, Gmail, Postfix
    Row(
        reason=Reason.THROTTLED,
        words=(
            r"message submission rate for this client|submission quota exceeded|too much mail from|"
            r"too many login attempts|sending limit exceeded|relay limit exceeded|"
            r"receiving (?:mail|email) (?:too quickly|at a rate)|server busy\. please try again later from|"
            r"unusual rate of unsolicited|connection rate limit exceeded"
        ),
    ),
    Row(reason=Reason.THROTTLED, status=r"5\.(?:1\.90|2\.12[12])"),
    _ASKS_FOR_PEACE,
    # Remedies for logins
    Row(
        words=r"application-specific password required|username and password not accepted",
        remedy=_FOR_GOOGLE,
    ),
    Row(
        words=r"must issue a starttls command first",
        remedy="Set `tls: starttls` on the server.",
    ),
    Row(code="538", remedy=_ENCRYPT),
    Row(
        words=r"temporary authentication failure",
        remedy="Look at the log of the SASL server, such as Dovecot or saslauthd: it did not answer.",
    ),
    Row(
        code="530",
        words=r"authenticat",
        instead_of=frozenset({Reason.PROTOCOL_ERROR}),
        remedy=(
            "Set `username` and `password` of the server, or allow this client to send without a login there."
        ),
    ),
    # Remedies for mail
    Row(
        words=r"unable to relay|relay(?:ing)? (?:access )?(?:denied|not permitted)",
        remedy="Log in to the server, or allow this machine to relay.",
    ),
    Row(
        words=r"greylist|graylist",
        remedy="Set `retry`: the server accepts the message at a later attempt.",
    ),
    Row(
        words=r"blocked using|banned sending ip|block(?:list| list)",
        remedy="Have this machine's address taken off the block list that the reply names.",
    ),
    Row(
        status=r"[45]\.7\.(?:26|509|515)",
        remedy="Publish SPF and DMARC for the sender's domain, and sign its mail with DKIM.",
    ),
    Row(
        status=r"[45]\.2\.2",
        remedy=GENERAL[Reason.BOUNCE_MAILBOX_FULL],
    ),
    Row(
        status=r"5\.1\.(?:1|10)",
        remedy=GENERAL[Reason.BOUNCE_NO_MAILBOX],
    ),
    # RFC 4954 section 6, and RFC 5321 section 4.2.1
    Row(reason=Reason.AUTH_FAILED, code="53[0458]", instead_of=_BLAMED),
    Row(reason=Reason.SMTP_UNAVAILABLE, code="421", instead_of=_ANY_SMTP),
    Row(reason=Reason.SMTP_DEFERRED, code="4..", instead_of=_ANY_SMTP),
    Row(reason=Reason.SMTP_REJECTED, code="5..", instead_of=_ANY_SMTP),
    Row(reason=Reason.PROTOCOL_ERROR, instead_of=_BLAMED),
)

# Rows that need a certain login keep what a server says about one message to that message.
_SWITCHED_OFF = Row(
    reason=Reason.AUTH_DISABLED,
    words=(
        r"not enabled for (?:pop3?|imap)|"
        r"(?:pop3?|imap4?) (?:access )?is (?:disabled|not (?:enabled|allowed))"
    ),
    remedy="Turn the protocol on for the mailbox and its organization.",
    instead_of=_LOGIN,
)
_PASSWORDS_OFF = Row(
    reason=Reason.AUTH_DISABLED,
    words=r"basic authentication is (?:disabled|not supported)",
    remedy=_NO_PASSWORDS,
    instead_of=_LOGIN,
)
_TOO_MANY_CONNECTIONS = (
    r"too many (?:[a-z]{1,20} ){0,2}(?:connections|sessions)|connection limit|bandwidth limit"
)
_APP_PASSWORD_WANTED = Row(
    reason=Reason.AUTH_FAILED,
    words=r"application-specific password required",
    remedy=_FOR_GOOGLE,
    instead_of=_LOGIN,
)
_BROWSER_WANTED = Row(
    words=r"web login required|log in (?:via|by) your (?:web )?browser",
    remedy="Log in to the account once by a browser, and confirm that it was you; or use OAuth2.",
)
_OTHER_TROUBLE = (
    Row(reason=Reason.MAINTENANCE, words=r"\bmaintenance\b", instead_of=_LOGIN | {Reason.IMAP_BYE}),
    Row(
        reason=Reason.LOGIN_REFUSED,
        words=r"server unavailable\. \d",  # Exchange
        remedy="Check the back-end service and the mailbox's database: the front end works.",
        instead_of=_LOGIN,
    ),
    Row(
        reason=Reason.LOGIN_REFUSED,
        words=(
            r"temporar|\blater\b|unavailable|server error|internal|chdir|maildir|maildrop|\block\b|locked by|"
            r"too many|connections|timed? ?out"
        ),
        instead_of=_BLAMED,
    ),
)

_USER_CONNECTIONS = Row(
    words=r"maximum number of connections from user\+ip",  # Dovecot
    remedy="Close other clients of the mailbox, or raise mail_max_userip_connections.",
)

_POP3 = (
    _SWITCHED_OFF,
    _PASSWORDS_OFF,
    _APP_PASSWORD_WANTED,
    _BROWSER_WANTED,
    _USER_CONNECTIONS,
    # RFC 2449 section 8.1, RFC 3206
    Row(reason=Reason.POP3_IN_USE, code="IN-USE"),
    Row(reason=Reason.POP3_LOGIN_DELAY, code="LOGIN-DELAY"),
    Row(reason=Reason.AUTH_FAILED, code="AUTH"),
    Row(reason=Reason.POP3_SYS_TEMP, code="SYS/TEMP"),
    Row(reason=Reason.POP3_SYS_PERM, code="SYS/PERM"),
    _ASKS_FOR_PEACE,
    Row(
        reason=Reason.THROTTLED,
        words=_TOO_MANY_CONNECTIONS,
        remedy=_FEWER_CONNECTIONS,
        instead_of=_LOGIN,
    ),
    *_OTHER_TROUBLE,
)

_IMAP = (
    Row(
        reason=Reason.NOT_GRANTED,
        words=r"user is authenticated but not connected",  # Exchange
        remedy=(
            "Grant FullAccess with Add-MailboxPermission, to a service principal that was made with the "
            "object id of the Enterprise application, and check that IMAP is on for the mailbox."
        ),
    ),
    _SWITCHED_OFF,
    _PASSWORDS_OFF,
    _APP_PASSWORD_WANTED,
    Row(reason=Reason.AUTH_FAILED, words=r"invalid credentials \(failure\)", instead_of=_LOGIN),  # Gmail
    _BROWSER_WANTED,
    _USER_CONNECTIONS,
    Row(code="PRIVACYREQUIRED", remedy=_ENCRYPT),
    Row(words=r"login only available under a layer", remedy=_ENCRYPT),  # Cyrus
    # RFC 5530 section 3
    Row(reason=Reason.AUTH_FAILED, code="AUTHENTICATIONFAILED|AUTHORIZATIONFAILED|EXPIRED"),
    Row(reason=Reason.IMAP_UNAVAILABLE, code="UNAVAILABLE|CONTACTADMIN|SERVERBUG"),
    Row(reason=Reason.IMAP_IN_USE, code="INUSE|LIMIT"),  # LIMIT: Dovecot's answer to one session too many
    Row(reason=Reason.THROTTLED, code="THROTTLED"),  # Gmail
    _ASKS_FOR_PEACE,
    Row(reason=Reason.THROTTLED, words=_TOO_MANY_CONNECTIONS, remedy=_FEWER_CONNECTIONS),
    Row(
        reason=Reason.IMAP_UNAVAILABLE,
        words=r"server unavailable\. \d",  # Exchange
        remedy="Check the IMAP4 back-end service and the mailbox's database: the front end works.",
    ),
    Row(
        reason=Reason.IMAP_UNAVAILABLE,
        words=r"^system i/o error|^mailbox has an invalid format",  # Cyrus
        remedy="Look at the server's log and disk; repair a broken mailbox with reconstruct.",
    ),
    *_OTHER_TROUBLE,
)

_GRAPH = (
    Row(
        reason=Reason.NOT_GRANTED,
        status="ErrorSendAsDenied",
        remedy="Grant Mail.Send for the mailbox of the sender, or correct `from`.",
    ),
    Row(
        reason=Reason.NOT_GRANTED,
        code="403",
        status="ErrorAccessDenied|Authorization_RequestDenied|AccessDenied|Forbidden",
        remedy=(
            "Grant the application Mail.ReadWrite for the mailbox that it reads, and Mail.Send for the one "
            "that it sends from. Exchange Online may take two hours to apply it."
        ),
    ),
    Row(
        reason=Reason.AUTH_FAILED,
        code="401",
        remedy="Check that the token is for Microsoft Graph, and that this machine's clock is right.",
    ),
    Row(reason=Reason.THROTTLED, code="429"),
    Row(reason=Reason.GRAPH_NOT_FOUND, code="404", status="ErrorFolderNotFound|ErrorItemNotFound"),
    Row(
        reason=Reason.GRAPH_NO_MAILBOX,
        code="404",
        status=(
            "ErrorInvalidUser|ResourceNotFound|Request_ResourceNotFound|ErrorNonExistentMailbox|"
            "MailboxNotEnabledForRESTAPI|MailboxNotSupportedForRESTAPI"
        ),
    ),
    Row(reason=Reason.GRAPH_UNAVAILABLE, code="5.."),
)

TABLES: Mapping[str, tuple[Row, ...]] = MappingProxyType(
    {"smtp": _SMTP, "pop3": _POP3, "imap": _IMAP, "graph": _GRAPH}
)
"""The rows of each protocol, the more particular first."""
