"""The closed list of reasons for a run's result, each with its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Outcome(StrEnum):
    """The three ways a run can end; ``unknown`` is for faults outside the mail system."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Area(StrEnum):
    """The area where a reason arises. A kind of probe declares its areas, and so its possible reasons."""

    AGENT = "agent"
    DNS = "dns"
    NETWORK = "network"
    TLS = "tls"
    DIALOGUE = "dialogue"
    SMTP = "smtp"
    POP3 = "pop3"
    IMAP = "imap"
    GRAPH = "graph"
    HTTP = "http"
    EXCHANGE = "exchange"
    AUTODISCOVER = "autodiscover"
    MX = "mx"
    MESSAGE = "message"


def _ok(value: str, area: Area, meaning: str) -> tuple[str, Area, Outcome, str]:
    return value, area, Outcome.OK, meaning


def _failed(value: str, area: Area, meaning: str) -> tuple[str, Area, Outcome, str]:
    return value, area, Outcome.FAILED, meaning


def _unknown(value: str, area: Area, meaning: str) -> tuple[str, Area, Outcome, str]:
    return value, area, Outcome.UNKNOWN, meaning


class Reason(StrEnum):
    """The closed list of reasons, each with its area, its outcome and its meaning in one sentence.

    An ``ok`` outcome with a reason other than ``none`` is a warning.
    """

    area: Area
    outcome: Outcome
    meaning: str

    def __new__(cls, value: str, area: Area, outcome: Outcome, meaning: str) -> Reason:  # noqa: D102 # enum plumbing
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.area, reason.outcome, reason.meaning = area, outcome, meaning
        return reason

    @property
    def word(self) -> str:
        """The outcome in one word: ok, warning, failed or unknown."""
        return "warning" if self.outcome is Outcome.OK and self is not Reason.NONE else str(self.outcome)

    NONE = _ok("none", Area.AGENT, "Everything is ok.")
    TIMEOUT = _failed("timeout", Area.AGENT, "The run missed its deadline; the phase says where.")
    INTERNAL = _unknown("internal", Area.AGENT, "A defect in mailsonde; the log has the traceback.")
    INTERRUPTED = _unknown("interrupted", Area.AGENT, "The agent stopped before the run ended.")
    LOCAL_RESOURCES = _unknown(
        "local_resources",
        Area.AGENT,
        "This machine ran out of files, memory, ports, connections or time, or could not read a CA file.",
    )
    NETWORK_UNREACHABLE = _unknown(
        "network_unreachable", Area.NETWORK, "This machine has no route to the server."
    )

    DNS_NXDOMAIN = _failed("dns_nxdomain", Area.DNS, "The name does not exist (NXDOMAIN).")
    DNS_NO_ADDRESS = _failed(
        "dns_no_address",
        Area.DNS,
        "The name exists but has no A or AAAA record, or none of the configured `family`.",
    )
    DNS_SERVFAIL = _unknown("dns_servfail", Area.DNS, "The resolver answered SERVFAIL.")
    DNS_REFUSED = _unknown("dns_refused", Area.DNS, "The resolver refused the query.")
    DNS_TIMEOUT = _unknown("dns_timeout", Area.DNS, "The resolver did not answer in time.")
    DNS_TRUNCATED = _unknown(
        "dns_truncated", Area.DNS, "The answer was truncated over UDP, and TCP returned none."
    )
    DNS_MALFORMED = _unknown("dns_malformed", Area.DNS, "The resolver's answer was not valid DNS.")

    CONNECT_REFUSED = _failed(
        "connect_refused", Area.NETWORK, "The server refused the connection: nothing listens on the port."
    )
    CONNECT_TIMEOUT = _failed(
        "connect_timeout", Area.NETWORK, "The server did not accept the connection in time."
    )
    HOST_UNREACHABLE = _failed(
        "host_unreachable", Area.NETWORK, "The network reports that the host is unreachable."
    )
    CONNECTION_LOST = _failed(
        "connection_lost", Area.NETWORK, "The server closed or reset the connection during the dialogue."
    )

    TLS_HANDSHAKE = _failed("tls_handshake", Area.TLS, "The TLS handshake failed.")
    TLS_NOT_OFFERED = _failed("tls_not_offered", Area.TLS, "The server does not offer STARTTLS or STLS.")
    TLS_INJECTION = _failed(
        "tls_injection",
        Area.TLS,
        "Unencrypted bytes followed the answer to STARTTLS: someone may be injecting commands.",
    )
    CERTIFICATE_EXPIRED = _failed(
        "certificate_expired",
        Area.TLS,
        "The certificate, or one that its trust depends on, has expired; the detail says which.",
    )
    CERTIFICATE_UNTRUSTED = _failed(
        "certificate_untrusted", Area.TLS, "The certificate could not be verified up to a trusted CA."
    )
    CERTIFICATE_NOT_YET_VALID = _failed(
        "certificate_not_yet_valid",
        Area.TLS,
        "The certificate, or one that its trust depends on, is not valid yet, or our clock is slow.",
    )
    CERTIFICATE_WEAK = _failed(
        "certificate_weak",
        Area.TLS,
        "A key or signature in the certificate chain is too weak for this machine's OpenSSL.",
    )
    CERTIFICATE_NAME = _failed("certificate_name", Area.TLS, "The certificate is for a different name.")
    CERTIFICATE_EXPIRING = _ok(
        "certificate_expiring",
        Area.TLS,
        "The certificate, or one that its trust depends on, expires within the configured warning time.",
    )

    PROTOCOL_ERROR = _failed(
        "protocol_error", Area.DIALOGUE, "The server's answer violates the expected protocol."
    )
    LINE_TOO_LONG = _failed("line_too_long", Area.DIALOGUE, "The server sent a line that exceeds the limit.")
    RESPONSE_TOO_LARGE = _failed(
        "response_too_large", Area.DIALOGUE, "The server sent an answer that exceeds the limit."
    )
    COMMAND_TIMEOUT = _failed(
        "command_timeout", Area.DIALOGUE, "The server did not answer a command within its `timeout`."
    )
    LOGIN_REFUSED = _failed(
        "login_refused", Area.DIALOGUE, "The server refused the login without blaming the credentials."
    )
    AUTH_FAILED = _failed("auth_failed", Area.DIALOGUE, "The server refused the credentials.")
    TOKEN_UNAVAILABLE = _unknown(
        "token_unavailable",
        Area.DIALOGUE,
        "No access token could be had for the login: the token endpoint did not answer as it should.",
    )
    TOKEN_REFUSED = _unknown(
        "token_refused",
        Area.DIALOGUE,
        "The token endpoint refused to issue an access token; the detail has its error code.",
    )
    TICKET_UNAVAILABLE = _unknown(
        "ticket_unavailable",
        Area.DIALOGUE,
        "No Kerberos ticket could be had for the login: no KDC was found, or none answered in time.",
    )
    TICKET_REFUSED = _unknown(
        "ticket_refused",
        Area.DIALOGUE,
        "No Kerberos ticket was issued for the login; the detail has the error, such as an unknown service.",
    )
    AUTH_NOT_OFFERED = _failed(
        "auth_not_offered",
        Area.DIALOGUE,
        "The server offers no authentication mechanism that mailsonde may use.",
    )
    AUTH_DISABLED = _failed(
        "auth_disabled",
        Area.DIALOGUE,
        "The server does not allow this kind of login, or this protocol, for the account or organization.",
    )
    NOT_GRANTED = _failed(
        "not_granted",
        Area.DIALOGUE,
        "The server accepted the login, but the account has no right to this mailbox or sender.",
    )
    MAINTENANCE = _failed(
        "maintenance", Area.DIALOGUE, "The server is in maintenance, or an administrator made it inactive."
    )
    THROTTLED = _unknown(
        "throttled", Area.DIALOGUE, "The server limits how often or how much this client may ask or send."
    )

    SMTP_REJECTED = _failed("smtp_rejected", Area.SMTP, "The server refused permanently with a 5xx reply.")
    SMTP_DEFERRED = _failed("smtp_deferred", Area.SMTP, "The server refused temporarily with a 4xx reply.")
    SMTP_UNAVAILABLE = _failed(
        "smtp_unavailable", Area.SMTP, "The server answered 421: the service is closing or not available."
    )
    BACK_PRESSURE = _failed(
        "back_pressure",
        Area.SMTP,
        "The server is short of disk space, memory or connections, and takes no mail for now.",
    )
    PROXY_FAILURE = _failed(
        "proxy_failure", Area.SMTP, "The front end could not pass the session on to a server behind it."
    )
    VERSION_BLOCKED = _failed(
        "version_blocked",
        Area.SMTP,
        "Exchange Online delays or blocks mail from an Exchange server that is out of date (X.7.230).",
    )
    DIRECT_SEND_REFUSED = _failed(
        "direct_send_refused",
        Area.SMTP,
        "The organization refuses mail in its own name that does not come through a connector (5.7.68).",
    )
    FEATURE_MISSING = _failed(
        "feature_missing", Area.SMTP, "The server does not offer an EHLO keyword in `expect_features`."
    )

    POP3_ERROR = _failed("pop3_error", Area.POP3, "The server answered -ERR.")
    POP3_IN_USE = _unknown("pop3_in_use", Area.POP3, "[IN-USE]: another session holds the mailbox.")
    POP3_LOGIN_DELAY = _unknown(
        "pop3_login_delay", Area.POP3, "[LOGIN-DELAY]: the server requires a longer pause between logins."
    )
    POP3_SYS_TEMP = _failed("pop3_sys_temp", Area.POP3, "[SYS/TEMP]: the server has a temporary fault.")
    POP3_SYS_PERM = _failed(
        "pop3_sys_perm",
        Area.POP3,
        "[SYS/PERM]: the server has a permanent fault that needs an administrator.",
    )

    IMAP_NO = _failed("imap_no", Area.IMAP, "The server answered NO.")
    IMAP_BAD = _failed("imap_bad", Area.IMAP, "The server answered BAD: it did not understand the command.")
    IMAP_BYE = _failed("imap_bye", Area.IMAP, "BYE: the server ended the session.")
    IMAP_IN_USE = _unknown("imap_in_use", Area.IMAP, "[INUSE]: another session holds the mailbox.")
    IMAP_UNAVAILABLE = _failed(
        "imap_unavailable",
        Area.IMAP,
        "[UNAVAILABLE], [SERVERBUG] or [CONTACTADMIN]: the server has an internal fault (RFC 5530).",
    )
    IMAP_NO_FOLDER = _failed(
        "imap_no_folder", Area.IMAP, "A configured folder does not exist or cannot be opened."
    )
    IMAP_UIDS_CHANGED = _failed(
        "imap_uids_changed",
        Area.IMAP,
        "The server gave messages new numbers while their folder was open, so the session ended.",
    )

    GRAPH_ERROR = _failed("graph_error", Area.GRAPH, "Microsoft Graph refused a request.")
    GRAPH_UNAVAILABLE = _failed(
        "graph_unavailable", Area.GRAPH, "Microsoft Graph answered with a server error (5xx)."
    )
    GRAPH_NO_MAILBOX = _failed(
        "graph_no_mailbox", Area.GRAPH, "Microsoft Graph knows no mailbox with this address."
    )
    GRAPH_NOT_FOUND = _failed(
        "graph_not_found", Area.GRAPH, "The mailbox has no folder of a configured name."
    )

    HTTP_STATUS = _failed("http_status", Area.HTTP, "The status of the answer is not the expected one.")
    HTTP_UNAVAILABLE = _failed(
        "http_unavailable", Area.HTTP, "The web server answered with a server error (5xx)."
    )
    HTTP_BODY = _failed(
        "http_body",
        Area.HTTP,
        "The body or a header field of the answer lacks expected text, or has text that it must not have.",
    )
    REDIRECT_REFUSED = _failed(
        "redirect_refused", Area.HTTP, "A redirect leads to an address that mailsonde does not follow."
    )
    REDIRECT_LOOP = _failed(
        "redirect_loop", Area.HTTP, "The server redirects in a circle, or more often than is allowed."
    )

    EXCHANGE_UNHEALTHY = _failed(
        "exchange_unhealthy",
        Area.EXCHANGE,
        "The health page of a virtual directory is not the healthy one; the detail says what it is.",
    )
    EXCHANGE_WRONG_SERVER = _failed(
        "exchange_wrong_server",
        Area.EXCHANGE,
        "The health page is that of a different server than the node's `fqdn`.",
    )
    EXCHANGE_OLD_BUILD = _ok(
        "exchange_old_build", Area.EXCHANGE, "The server's build is older than `minimum_build`."
    )

    AUTODISCOVER_MISSING = _failed(
        "autodiscover_missing", Area.AUTODISCOVER, "No step of autodiscover leads clients to an answer of it."
    )
    AUTODISCOVER_UNEXPECTED = _failed(
        "autodiscover_unexpected",
        Area.AUTODISCOVER,
        "A step of autodiscover leads to a host that is not in `expect_hosts`.",
    )
    AUTODISCOVER_DISAGREES = _ok(
        "autodiscover_disagrees", Area.AUTODISCOVER, "Steps of autodiscover lead to different services."
    )
    AUTODISCOVER_AUTH_CHANGED = _ok(
        "autodiscover_auth_changed",
        Area.AUTODISCOVER,
        "An endpoint offers other authentication than `expect_auth` or `expect_authorization_uri` says.",
    )
    AUTODISCOVER_STEP_FAILED = _ok(
        "autodiscover_step_failed",
        Area.AUTODISCOVER,
        "A step of autodiscover is published but does not answer as it should, while another one does.",
    )

    MX_MISSING = _failed("mx_missing", Area.MX, "The domain has neither MX nor address records.")
    MX_NULL = _failed("mx_null", Area.MX, "A null MX says that the domain accepts no mail (RFC 7505).")
    MX_NULL_MIXED = _failed(
        "mx_null_mixed", Area.MX, "The domain has a null MX next to other MX records (RFC 7505 section 3)."
    )
    MX_IMPLICIT = _ok(
        "mx_implicit",
        Area.MX,
        "The domain has no MX records, so mail goes to its own address (RFC 5321 section 5.1).",
    )
    MX_TARGET_INVALID = _failed(
        "mx_target_invalid", Area.MX, "An MX target is an IP address or an invalid host name."
    )
    MX_TARGET_UNRESOLVED = _failed(
        "mx_target_unresolved",
        Area.MX,
        "No MX target has an A or AAAA record, or none of the configured `family`.",
    )
    MX_TARGET_PARTLY_UNRESOLVED = _ok(
        "mx_target_partly_unresolved",
        Area.MX,
        "Some MX targets have neither A nor AAAA records, or none of the configured `family`.",
    )
    MX_TARGET_CNAME = _ok("mx_target_cname", Area.MX, "An MX target is an alias (RFC 2181 section 10.3).")
    MX_PRIVATE_ADDRESS = _failed(
        "mx_private_address", Area.MX, "An MX target has a private or special address."
    )
    MX_UNEXPECTED = _failed("mx_unexpected", Area.MX, "The domain has an MX host that is not in `expect`.")
    MX_EXPECTED_ABSENT = _ok(
        "mx_expected_absent", Area.MX, "The domain lacks an MX host that is in `expect`."
    )

    MESSAGE_LOST = _failed(
        "message_lost", Area.MESSAGE, "The message was not in the mailbox at its deadline."
    )
    MESSAGE_AMBIGUOUS = _failed(
        "message_ambiguous",
        Area.MESSAGE,
        "The connection broke before the server confirmed the message, and it did not arrive.",
    )
    MESSAGE_JUNKED = _failed(
        "message_junked", Area.MESSAGE, "The message arrived, but in the junk folder or marked as junk."
    )
    MESSAGE_ALTERED = _ok(
        "message_altered", Area.MESSAGE, "The message arrived with a different subject, body or attachment."
    )
    GREYLISTED = _ok(
        "greylisted",
        Area.MESSAGE,
        "The server refused the message temporarily and accepted it at a later attempt (greylisting).",
    )
    BOUNCE_NO_MAILBOX = _failed(
        "bounce_no_mailbox", Area.MESSAGE, "Bounced: the address or its domain is unknown (X.1.x)."
    )
    BOUNCE_MAILBOX_DISABLED = _failed(
        "bounce_mailbox_disabled", Area.MESSAGE, "Bounced: the mailbox is disabled (X.2.1)."
    )
    BOUNCE_MAILBOX_FULL = _failed(
        "bounce_mailbox_full", Area.MESSAGE, "Bounced: the mailbox is full (X.2.2)."
    )
    BOUNCE_TOO_LARGE = _failed(
        "bounce_too_large",
        Area.MESSAGE,
        "Bounced: the message exceeds the size limit of a system on the route (X.2.3, X.3.4).",
    )
    BOUNCE_SYSTEM = _failed(
        "bounce_system", Area.MESSAGE, "Bounced: a mail system on the route has a fault (X.3.x)."
    )
    BOUNCE_ROUTING = _failed(
        "bounce_routing", Area.MESSAGE, "Bounced: there is no route to the next host, or a mail loop (X.4.x)."
    )
    BOUNCE_EXPIRED = _failed(
        "bounce_expired", Area.MESSAGE, "Bounced: the message expired in a queue (X.4.7)."
    )
    BOUNCE_PROTOCOL = _failed(
        "bounce_protocol", Area.MESSAGE, "Bounced: a protocol error between two servers on the route (X.5.x)."
    )
    BOUNCE_CONTENT = _failed(
        "bounce_content", Area.MESSAGE, "Bounced: the content could not be transferred or converted (X.6.x)."
    )
    BOUNCE_POLICY = _failed(
        "bounce_policy", Area.MESSAGE, "Bounced: a policy or filter refused the message (X.7.x)."
    )
    BOUNCE_OTHER = _failed("bounce_other", Area.MESSAGE, "Bounced: the report gives no known cause.")
    LEDGER_UNAVAILABLE = _unknown(
        "ledger_unavailable", Area.MESSAGE, "The ledger could not record the message, so it was not sent."
    )


FORMER_NAMES: Mapping[str, Reason] = MappingProxyType({"imap_throttled": Reason.THROTTLED})
"""Names of reasons in ledgers that earlier versions wrote."""
