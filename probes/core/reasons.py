"""The closed list of reasons for a run's result, each with its outcome."""

from __future__ import annotations

from enum import StrEnum


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
    MX = "mx"
    MESSAGE = "message"


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

    NONE = "none", Area.AGENT, Outcome.OK, "Everything is ok."
    TIMEOUT = "timeout", Area.AGENT, Outcome.FAILED, "The run missed its deadline; the phase says where."
    INTERNAL = "internal", Area.AGENT, Outcome.UNKNOWN, "A defect in mailsonde; the log has the traceback."
    INTERRUPTED = "interrupted", Area.AGENT, Outcome.UNKNOWN, "The agent stopped before the run ended."
    LOCAL_RESOURCES = (
        "local_resources",
        Area.AGENT,
        Outcome.UNKNOWN,
        "This machine ran out of files, memory, ports, connections or time, or could not read a CA file.",
    )
    NETWORK_UNREACHABLE = (
        "network_unreachable",
        Area.NETWORK,
        Outcome.UNKNOWN,
        "This machine has no route to the server.",
    )

    DNS_NXDOMAIN = "dns_nxdomain", Area.DNS, Outcome.FAILED, "The name does not exist (NXDOMAIN)."
    DNS_NO_ADDRESS = (
        "dns_no_address",
        Area.DNS,
        Outcome.FAILED,
        "The name exists but has no A or AAAA record, or none of the configured `family`.",
    )
    DNS_SERVFAIL = "dns_servfail", Area.DNS, Outcome.UNKNOWN, "The resolver answered SERVFAIL."
    DNS_REFUSED = "dns_refused", Area.DNS, Outcome.UNKNOWN, "The resolver refused the query."
    DNS_TIMEOUT = "dns_timeout", Area.DNS, Outcome.UNKNOWN, "The resolver did not answer in time."
    DNS_TRUNCATED = (
        "dns_truncated",
        Area.DNS,
        Outcome.UNKNOWN,
        "The answer was truncated over UDP, and TCP returned none.",
    )
    DNS_MALFORMED = (
        "dns_malformed",
        Area.DNS,
        Outcome.UNKNOWN,
        "The resolver's answer was not valid DNS.",
    )

    CONNECT_REFUSED = (
        "connect_refused",
        Area.NETWORK,
        Outcome.FAILED,
        "The server refused the connection: nothing listens on the port.",
    )
    CONNECT_TIMEOUT = (
        "connect_timeout",
        Area.NETWORK,
        Outcome.FAILED,
        "The server did not accept the connection in time.",
    )
    HOST_UNREACHABLE = (
        "host_unreachable",
        Area.NETWORK,
        Outcome.FAILED,
        "The network reports that the host is unreachable.",
    )
    CONNECTION_LOST = (
        "connection_lost",
        Area.NETWORK,
        Outcome.FAILED,
        "The server closed or reset the connection during the dialogue.",
    )

    TLS_HANDSHAKE = "tls_handshake", Area.TLS, Outcome.FAILED, "The TLS handshake failed."
    TLS_NOT_OFFERED = (
        "tls_not_offered",
        Area.TLS,
        Outcome.FAILED,
        "The server does not offer STARTTLS or STLS.",
    )
    TLS_INJECTION = (
        "tls_injection",
        Area.TLS,
        Outcome.FAILED,
        "Unencrypted bytes followed the answer to STARTTLS: someone may be injecting commands.",
    )
    CERTIFICATE_EXPIRED = (
        "certificate_expired",
        Area.TLS,
        Outcome.FAILED,
        "The certificate, or one that its trust depends on, has expired; the detail says which.",
    )
    CERTIFICATE_UNTRUSTED = (
        "certificate_untrusted",
        Area.TLS,
        Outcome.FAILED,
        "The certificate could not be verified up to a trusted CA.",
    )
    CERTIFICATE_NOT_YET_VALID = (
        "certificate_not_yet_valid",
        Area.TLS,
        Outcome.FAILED,
        "The certificate, or one that its trust depends on, is not valid yet, or our clock is slow.",
    )
    CERTIFICATE_WEAK = (
        "certificate_weak",
        Area.TLS,
        Outcome.FAILED,
        "A key or signature in the certificate chain is too weak for this machine's OpenSSL.",
    )
    CERTIFICATE_NAME = (
        "certificate_name",
        Area.TLS,
        Outcome.FAILED,
        "The certificate is for a different name.",
    )
    CERTIFICATE_EXPIRING = (
        "certificate_expiring",
        Area.TLS,
        Outcome.OK,
        "The certificate, or one that its trust depends on, expires within the configured warning time.",
    )

    PROTOCOL_ERROR = (
        "protocol_error",
        Area.DIALOGUE,
        Outcome.FAILED,
        "The server's answer violates the expected protocol.",
    )
    LINE_TOO_LONG = (
        "line_too_long",
        Area.DIALOGUE,
        Outcome.FAILED,
        ("The server sent a line that exceeds the limit."),
    )
    RESPONSE_TOO_LARGE = (
        "response_too_large",
        Area.DIALOGUE,
        Outcome.FAILED,
        "The server sent an answer that exceeds the limit.",
    )
    COMMAND_TIMEOUT = (
        "command_timeout",
        Area.DIALOGUE,
        Outcome.FAILED,
        "The server did not answer a command within its `timeout`.",
    )
    LOGIN_REFUSED = (
        "login_refused",
        Area.DIALOGUE,
        Outcome.FAILED,
        "The server refused the login without blaming the credentials.",
    )
    AUTH_FAILED = "auth_failed", Area.DIALOGUE, Outcome.FAILED, "The server refused the credentials."
    AUTH_NOT_OFFERED = (
        "auth_not_offered",
        Area.DIALOGUE,
        Outcome.FAILED,
        "The server offers no authentication mechanism that mailsonde may use.",
    )

    SMTP_REJECTED = (
        "smtp_rejected",
        Area.SMTP,
        Outcome.FAILED,
        "The server refused permanently with a 5xx reply.",
    )
    SMTP_DEFERRED = (
        "smtp_deferred",
        Area.SMTP,
        Outcome.FAILED,
        ("The server refused temporarily with a 4xx reply."),
    )
    SMTP_UNAVAILABLE = (
        "smtp_unavailable",
        Area.SMTP,
        Outcome.FAILED,
        "The server answered 421: the service is closing or not available.",
    )
    FEATURE_MISSING = (
        "feature_missing",
        Area.SMTP,
        Outcome.FAILED,
        "The server does not offer an EHLO keyword in `expect_features`.",
    )

    POP3_ERROR = "pop3_error", Area.POP3, Outcome.FAILED, "The server answered -ERR."
    POP3_IN_USE = (
        "pop3_in_use",
        Area.POP3,
        Outcome.UNKNOWN,
        "[IN-USE]: another session holds the mailbox.",
    )
    POP3_LOGIN_DELAY = (
        "pop3_login_delay",
        Area.POP3,
        Outcome.UNKNOWN,
        "[LOGIN-DELAY]: the server requires a longer pause between logins.",
    )
    POP3_SYS_TEMP = (
        "pop3_sys_temp",
        Area.POP3,
        Outcome.FAILED,
        "[SYS/TEMP]: the server has a temporary fault.",
    )
    POP3_SYS_PERM = (
        "pop3_sys_perm",
        Area.POP3,
        Outcome.FAILED,
        "[SYS/PERM]: the server has a permanent fault that needs an administrator.",
    )

    IMAP_NO = "imap_no", Area.IMAP, Outcome.FAILED, "The server answered NO."
    IMAP_BAD = (
        "imap_bad",
        Area.IMAP,
        Outcome.FAILED,
        ("The server answered BAD: it did not understand the command."),
    )
    IMAP_BYE = "imap_bye", Area.IMAP, Outcome.FAILED, "BYE: the server ended the session."
    IMAP_IN_USE = "imap_in_use", Area.IMAP, Outcome.UNKNOWN, "[INUSE]: another session holds the mailbox."
    IMAP_THROTTLED = (
        "imap_throttled",
        Area.IMAP,
        Outcome.UNKNOWN,
        "The server requires a longer pause between requests.",
    )
    IMAP_UNAVAILABLE = (
        "imap_unavailable",
        Area.IMAP,
        Outcome.FAILED,
        "[UNAVAILABLE], [SERVERBUG] or [CONTACTADMIN]: the server has an internal fault (RFC 5530).",
    )
    IMAP_NO_FOLDER = (
        "imap_no_folder",
        Area.IMAP,
        Outcome.FAILED,
        "A configured folder does not exist or cannot be opened.",
    )
    IMAP_UIDS_CHANGED = (
        "imap_uids_changed",
        Area.IMAP,
        Outcome.FAILED,
        "The server gave messages new numbers while their folder was open, so the session ended.",
    )

    MX_MISSING = "mx_missing", Area.MX, Outcome.FAILED, "The domain has neither MX nor address records."
    MX_NULL = "mx_null", Area.MX, Outcome.FAILED, "A null MX says that the domain accepts no mail (RFC 7505)."
    MX_NULL_MIXED = (
        "mx_null_mixed",
        Area.MX,
        Outcome.FAILED,
        "The domain has a null MX next to other MX records (RFC 7505 section 3).",
    )
    MX_IMPLICIT = (
        "mx_implicit",
        Area.MX,
        Outcome.OK,
        "The domain has no MX records, so mail goes to its own address (RFC 5321 section 5.1).",
    )
    MX_TARGET_INVALID = (
        "mx_target_invalid",
        Area.MX,
        Outcome.FAILED,
        "An MX target is an IP address or an invalid host name.",
    )
    MX_TARGET_UNRESOLVED = (
        "mx_target_unresolved",
        Area.MX,
        Outcome.FAILED,
        "No MX target has an A or AAAA record, or none of the configured `family`.",
    )
    MX_TARGET_PARTLY_UNRESOLVED = (
        "mx_target_partly_unresolved",
        Area.MX,
        Outcome.OK,
        "Some MX targets have neither A nor AAAA records, or none of the configured `family`.",
    )
    MX_TARGET_CNAME = (
        "mx_target_cname",
        Area.MX,
        Outcome.OK,
        "An MX target is an alias (RFC 2181 section 10.3).",
    )
    MX_PRIVATE_ADDRESS = (
        "mx_private_address",
        Area.MX,
        Outcome.FAILED,
        "An MX target has a private or special address.",
    )
    MX_UNEXPECTED = (
        "mx_unexpected",
        Area.MX,
        Outcome.FAILED,
        "The domain has an MX host that is not in `expect`.",
    )
    MX_EXPECTED_ABSENT = (
        "mx_expected_absent",
        Area.MX,
        Outcome.OK,
        "The domain lacks an MX host that is in `expect`.",
    )

    MESSAGE_LOST = (
        "message_lost",
        Area.MESSAGE,
        Outcome.FAILED,
        "The message was not in the mailbox at its deadline.",
    )
    MESSAGE_AMBIGUOUS = (
        "message_ambiguous",
        Area.MESSAGE,
        Outcome.FAILED,
        "The connection broke before the server confirmed the message, and it did not arrive.",
    )
    MESSAGE_JUNKED = (
        "message_junked",
        Area.MESSAGE,
        Outcome.FAILED,
        "The message arrived, but in the junk folder or marked as junk.",
    )
    MESSAGE_ALTERED = (
        "message_altered",
        Area.MESSAGE,
        Outcome.OK,
        "The message arrived with a different subject, body or attachment.",
    )
    GREYLISTED = (
        "greylisted",
        Area.MESSAGE,
        Outcome.OK,
        "The server refused the message temporarily and accepted it at a later attempt (greylisting).",
    )
    BOUNCE_NO_MAILBOX = (
        "bounce_no_mailbox",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: the address or its domain is unknown (X.1.x).",
    )
    BOUNCE_MAILBOX_DISABLED = (
        "bounce_mailbox_disabled",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: the mailbox is disabled (X.2.1).",
    )
    BOUNCE_MAILBOX_FULL = (
        "bounce_mailbox_full",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: the mailbox is full (X.2.2).",
    )
    BOUNCE_TOO_LARGE = (
        "bounce_too_large",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: the message exceeds the size limit of a system on the route (X.2.3, X.3.4).",
    )
    BOUNCE_SYSTEM = (
        "bounce_system",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: a mail system on the route has a fault (X.3.x).",
    )
    BOUNCE_ROUTING = (
        "bounce_routing",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: there is no route to the next host, or a mail loop (X.4.x).",
    )
    BOUNCE_EXPIRED = (
        "bounce_expired",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: the message expired in a queue (X.4.7).",
    )
    BOUNCE_PROTOCOL = (
        "bounce_protocol",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: a protocol error between two servers on the route (X.5.x).",
    )
    BOUNCE_CONTENT = (
        "bounce_content",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: the content could not be transferred or converted (X.6.x).",
    )
    BOUNCE_POLICY = (
        "bounce_policy",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: a policy or filter refused the message (X.7.x).",
    )
    BOUNCE_OTHER = (
        "bounce_other",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: the report gives no known cause.",
    )
    LEDGER_UNAVAILABLE = (
        "ledger_unavailable",
        Area.MESSAGE,
        Outcome.UNKNOWN,
        "The ledger could not record the message, so it was not sent.",
    )
