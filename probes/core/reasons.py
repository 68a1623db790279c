"""The closed list of reasons that a run can end with, and the outcome that each stands for."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The three ways a run can end; ``unknown`` is for faults that are not the mail system's."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Area(StrEnum):
    """Where a reason can arise; a kind of probe names its areas, and so its known reasons."""

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
    """The closed list of reasons, each with its area, the outcome that it means, and one sentence.

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
        """The outcome in one word, with a warning told apart from ok."""
        return "warning" if self.outcome is Outcome.OK and self is not Reason.NONE else str(self.outcome)

    NONE = "none", Area.AGENT, Outcome.OK, "Everything was as it should be."
    TIMEOUT = "timeout", Area.AGENT, Outcome.FAILED, "The run's deadline passed; the phase says where."
    INTERNAL = "internal", Area.AGENT, Outcome.UNKNOWN, "A defect in mailsonde; the log has the traceback."
    INTERRUPTED = "interrupted", Area.AGENT, Outcome.UNKNOWN, "The agent stopped before the run could end."
    LOCAL_RESOURCES = (
        "local_resources",
        Area.AGENT,
        Outcome.UNKNOWN,
        "This machine ran out of files, memory, ports or time, or could not read a CA file.",
    )
    NETWORK_UNREACHABLE = (
        "network_unreachable",
        Area.NETWORK,
        Outcome.UNKNOWN,
        "This machine has no route to the server.",
    )

    DNS_NXDOMAIN = "dns_nxdomain", Area.DNS, Outcome.FAILED, "The name does not exist (NXDOMAIN)."
    DNS_NO_ADDRESS = "dns_no_address", Area.DNS, Outcome.FAILED, "The name exists without A or AAAA."
    DNS_SERVFAIL = "dns_servfail", Area.DNS, Outcome.UNKNOWN, "The resolver answered SERVFAIL."
    DNS_REFUSED = "dns_refused", Area.DNS, Outcome.UNKNOWN, "The resolver refused the question."
    DNS_TIMEOUT = "dns_timeout", Area.DNS, Outcome.UNKNOWN, "The resolver did not answer in time."
    DNS_TRUNCATED = (
        "dns_truncated",
        Area.DNS,
        Outcome.UNKNOWN,
        "The answer was cut over UDP and TCP gave none.",
    )
    DNS_MALFORMED = (
        "dns_malformed",
        Area.DNS,
        Outcome.UNKNOWN,
        "The resolver's answer was not well-formed DNS.",
    )

    CONNECT_REFUSED = (
        "connect_refused",
        Area.NETWORK,
        Outcome.FAILED,
        "Nothing listens on the server's port.",
    )
    CONNECT_TIMEOUT = (
        "connect_timeout",
        Area.NETWORK,
        Outcome.FAILED,
        "The server's port did not answer in time.",
    )
    HOST_UNREACHABLE = (
        "host_unreachable",
        Area.NETWORK,
        Outcome.FAILED,
        "The network says that the host cannot be reached.",
    )
    CONNECTION_LOST = (
        "connection_lost",
        Area.NETWORK,
        Outcome.FAILED,
        "The server closed or reset the connection in the middle.",
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
        "Bytes arrived in clear after the answer to STARTTLS: somebody may be injecting commands.",
    )
    CERTIFICATE_EXPIRED = (
        "certificate_expired",
        Area.TLS,
        Outcome.FAILED,
        "The certificate is past its last day.",
    )
    CERTIFICATE_UNTRUSTED = (
        "certificate_untrusted",
        Area.TLS,
        Outcome.FAILED,
        "The certificate's chain does not end at a trusted authority.",
    )
    CERTIFICATE_NAME = (
        "certificate_name",
        Area.TLS,
        Outcome.FAILED,
        "The certificate is for another name.",
    )
    CERTIFICATE_EXPIRING = (
        "certificate_expiring",
        Area.TLS,
        Outcome.OK,
        "The certificate expires within the configured warning time.",
    )

    PROTOCOL_ERROR = (
        "protocol_error",
        Area.DIALOGUE,
        Outcome.FAILED,
        "What the server sent is not the protocol that was expected.",
    )
    LINE_TOO_LONG = "line_too_long", Area.DIALOGUE, Outcome.FAILED, "The server sent an endless line."
    RESPONSE_TOO_LARGE = (
        "response_too_large",
        Area.DIALOGUE,
        Outcome.FAILED,
        "The server sent more than any sound answer holds.",
    )
    COMMAND_TIMEOUT = (
        "command_timeout",
        Area.DIALOGUE,
        Outcome.FAILED,
        "The server did not answer a command within the server's timeout.",
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
        "A 5xx reply: the server refuses permanently.",
    )
    SMTP_DEFERRED = "smtp_deferred", Area.SMTP, Outcome.FAILED, "A 4xx reply: the server refuses for now."
    SMTP_UNAVAILABLE = (
        "smtp_unavailable",
        Area.SMTP,
        Outcome.FAILED,
        "Reply 421: the service is closing or not available.",
    )
    FEATURE_MISSING = (
        "feature_missing",
        Area.SMTP,
        Outcome.FAILED,
        "An EHLO keyword of expect_features is not offered.",
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
        "[LOGIN-DELAY]: the server wants a longer pause between logins.",
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
        "[SYS/PERM]: the server has a fault that needs a person.",
    )

    IMAP_NO = "imap_no", Area.IMAP, Outcome.FAILED, "The server answered NO."
    IMAP_BAD = "imap_bad", Area.IMAP, Outcome.FAILED, "The server answered BAD: it did not understand."
    IMAP_BYE = "imap_bye", Area.IMAP, Outcome.FAILED, "BYE: the server ended the session."
    IMAP_IN_USE = "imap_in_use", Area.IMAP, Outcome.UNKNOWN, "[INUSE]: another session holds the mailbox."
    IMAP_THROTTLED = (
        "imap_throttled",
        Area.IMAP,
        Outcome.UNKNOWN,
        "The server wants a longer pause between requests.",
    )
    IMAP_UNAVAILABLE = (
        "imap_unavailable",
        Area.IMAP,
        Outcome.FAILED,
        "[UNAVAILABLE], [SERVERBUG] or [CONTACTADMIN]: the server has a fault of its own (RFC 5530).",
    )
    IMAP_NO_FOLDER = (
        "imap_no_folder",
        Area.IMAP,
        Outcome.FAILED,
        "A configured folder does not exist or cannot be opened.",
    )

    MX_MISSING = "mx_missing", Area.MX, Outcome.FAILED, "The domain has neither MX nor address records."
    MX_NULL = "mx_null", Area.MX, Outcome.FAILED, "A null MX says that the domain takes no mail (RFC 7505)."
    MX_NULL_MIXED = (
        "mx_null_mixed",
        Area.MX,
        Outcome.FAILED,
        "A null MX stands beside other MX records (RFC 7505 section 3).",
    )
    MX_IMPLICIT = (
        "mx_implicit",
        Area.MX,
        Outcome.OK,
        "No MX records: mail goes to the domain's own address (RFC 5321 section 5.1).",
    )
    MX_TARGET_INVALID = (
        "mx_target_invalid",
        Area.MX,
        Outcome.FAILED,
        "An MX target is an IP literal or no valid host name.",
    )
    MX_TARGET_UNRESOLVED = (
        "mx_target_unresolved",
        Area.MX,
        Outcome.FAILED,
        "No MX target has an A or AAAA record.",
    )
    MX_TARGET_PARTLY_UNRESOLVED = (
        "mx_target_partly_unresolved",
        Area.MX,
        Outcome.OK,
        "Some MX targets have neither A nor AAAA records.",
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
        "The answer has an MX host that `expect` does not name.",
    )
    MX_EXPECTED_ABSENT = (
        "mx_expected_absent",
        Area.MX,
        Outcome.OK,
        "The answer lacks an MX host that `expect` names.",
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
        "The message arrived with another subject, body or attachment than was sent.",
    )
    GREYLISTED = (
        "greylisted",
        Area.MESSAGE,
        Outcome.OK,
        "The server refused for now, and took the message at a later try (greylisting).",
    )
    BOUNCE_NO_MAILBOX = (
        "bounce_no_mailbox",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: the address or its domain is not known (X.1.x).",
    )
    BOUNCE_MAILBOX_DISABLED = (
        "bounce_mailbox_disabled",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: the mailbox takes no mail (X.2.1).",
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
        "Bounced: the message is larger than a system on its way takes (X.2.3, X.3.4).",
    )
    BOUNCE_SYSTEM = (
        "bounce_system",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: a mail system on its way has a fault (X.3.x).",
    )
    BOUNCE_ROUTING = (
        "bounce_routing",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: no way to the next host, or a loop (X.4.x).",
    )
    BOUNCE_EXPIRED = (
        "bounce_expired",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: a queue gave up after trying for long (X.4.7).",
    )
    BOUNCE_PROTOCOL = (
        "bounce_protocol",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: two servers on its way did not understand each other (X.5.x).",
    )
    BOUNCE_CONTENT = (
        "bounce_content",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: its content could not be carried or converted (X.6.x).",
    )
    BOUNCE_POLICY = (
        "bounce_policy",
        Area.MESSAGE,
        Outcome.FAILED,
        "Bounced: refused by a policy or a filter (X.7.x).",
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
