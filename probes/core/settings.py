"""Settings shared by all kinds of probe: servers, mailboxes, references, and every probe's own settings.

Models are frozen and refuse unknown keys. Their error messages are for administrators, who see them
next to a file and line number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from probes.core.kerberos_user import require_kerberos
from probes.core.mail_protocols import AUTH_METHODS, DEFAULT_PORTS, SaslMechanism
from probes.core.presets import preset_values
from probes.core.secret import Secret
from probes.core.setting_types import (
    AddressFamily,
    CertificateFile,
    Duration,
    EmailAddress,
    FolderName,
    ForEach,
    HostName,
    Line,
    Name,
    ServerName,
    SiteLabels,
    between,
    is_ip_address,
)


class Settings(BaseModel):
    """Base of all settings: frozen, refuses unknown keys, never repeats input in errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class Reference:
    """Marks a setting that names an entry of a table; a server or mailbox with one of the given protocols.

    A mailbox has its server's protocol. No protocols means any. ``other_values`` lists values with another
    meaning, which do not name an entry.
    """

    table: Literal["servers", "mailboxes", "oauth2"]
    protocols: frozenset[str] = frozenset()
    other_values: frozenset[str] = frozenset()


SmtpServerName = Annotated[ServerName, Reference("servers", frozenset({"smtp"}))]
SendVia = Annotated[ServerName, Reference("servers", frozenset({"smtp", "graph"}), frozenset({"mx"}))]
"""A server that takes messages, or ``mx`` for every MX host of the recipient's domain."""
Pop3ServerName = Annotated[ServerName, Reference("servers", frozenset({"pop3"}))]
ImapServerName = Annotated[ServerName, Reference("servers", frozenset({"imap"}))]
MailboxServerName = Annotated[ServerName, Reference("servers", frozenset({"pop3", "imap", "graph"}))]
MailboxName = Annotated[Name, Reference("mailboxes")]
OAuth2Name = Annotated[Name, Reference("oauth2")]
Pop3MailboxName = Annotated[Name, Reference("mailboxes", frozenset({"pop3"}))]
ImapMailboxName = Annotated[Name, Reference("mailboxes", frozenset({"imap"}))]


def _required_without_preset(schema: dict[str, Any]) -> None:
    schema["required"] = ["protocol"]
    graph = {"properties": {"protocol": {"const": "graph"}}}
    schema["anyOf"] = [{"required": ["preset"]}, {"required": ["host", "tls"]}, graph]


class ServerSettings(Settings):
    """A server that probes connect to, with its TLS and credentials."""

    model_config = ConfigDict(json_schema_extra=_required_without_preset)

    for_each: ForEach = None
    protocol: Literal["smtp", "pop3", "imap", "graph"]
    preset: (
        Literal[
            "exchange-online",
            "exchange-online-gcc-high",
            "exchange-online-dod",
            "exchange-online-21vianet",
            "gmail",
            "exchange-2019",
            "postfix-dovecot",
        ]
        | None
    ) = Field(
        default=None,
        description=(
            "A widely used service whose host, TLS and limits become the defaults of this server. "
            "`mailsonde validate --explain` shows them."
        ),
    )
    host: HostName = Field(
        description=(
            "Host name or IP address. Default for Microsoft Graph: graph.microsoft.com, or that of the "
            "`cloud` of its `oauth2`."
        )
    )
    family: AddressFamily = Field(default="any", description="Which addresses of `host` are connected to.")
    port: int = Field(
        default=0,
        ge=1,
        le=65535,
        description="The TCP port. Default: the standard port of `protocol` and `tls`.",
    )
    tls: Literal["implicit", "starttls", "opportunistic", "none"] = Field(
        description=(
            "How the connection is encrypted. `opportunistic` (SMTP only) uses STARTTLS if offered, with "
            "any certificate, as mail servers do among themselves. Default for Graph: `implicit`."
        )
    )
    tls_ca: CertificateFile | None = Field(
        default=None,
        description=("PEM file to trust instead of the system's CAs; mailsonde rereads it when it changes."),
    )
    tls_server_name: HostName | None = Field(
        default=None, description="Name in the certificate, if it differs from `host`."
    )
    username: Line | None = Field(
        default=None,
        description=(
            "Login name. Without one, probes of the server stop before login. Graph: the mailbox to send "
            "from. Default for Graph: the sender's address."
        ),
    )
    password: Secret | None = Field(default=None, description="`{env: NAME}` or `{file: PATH}`.")
    oauth2: OAuth2Name | None = Field(
        default=None, description="An entry of `oauth2`, whose tokens are used in place of a password."
    )
    auth: Literal["auto", SaslMechanism, "user", "apop"] = Field(
        default="auto",
        description=(
            "How to log in. `user` (USER and PASS) and `apop` are for POP3; `login` includes IMAP's LOGIN. "
            "`xoauth2` and `oauthbearer` send a token of `oauth2`. `gssapi` is Kerberos, with a username "
            "such as `user` or `user@REALM`; it needs `pip install 'mailsonde[kerberos]'`. `auto` takes the "
            "best method offered except `gssapi`: with TLS `ntlm`, then those that send the password. If the "
            "server refuses a proof of the password (NTLM, APOP, CRAM-MD5), `auto` tries once to send the "
            "password itself."
        ),
    )
    allow_insecure_auth: bool = Field(
        default=False, description="Allow credentials on an unencrypted connection."
    )
    ehlo_name: HostName | None = Field(
        default=None, description=("Name in EHLO. Default: this machine's address.")
    )
    timeout: Annotated[Duration, between(0.1, 3600)] = Field(
        default=60.0, description="Time limit for the answer to one command."
    )
    logins_per_minute: float = Field(
        default=120.0,
        gt=0,
        le=60000,
        description=(
            "Maximum logins per minute to all watched mailboxes of this server together, after an initial "
            "burst."
        ),
    )
    messages_per_minute: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description=(
            "SMTP: how many messages a minute the server takes from us. `validate` refuses probes that need "
            "more. Default: no limit."
        ),
    )
    saves_sent_copies: bool = Field(
        default=False,
        description=(
            "SMTP and Graph: whether the server puts a copy of each message into the account's sent folder. "
            "mailsonde removes the copies of its own messages, if the account is that of a mailbox here that "
            "is read by IMAP or Graph."
        ),
    )
    max_connections: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description=(
            "Maximum concurrent connections to this server. A run that gets none within 20 s is `unknown`. "
            "Default: 20, plus one for each of its IMAP and Graph mailboxes, which keep one open."
        ),
    )
    labels: SiteLabels = Field(
        default_factory=dict,
        description="Labels of all probes that use this server, unless a probe has its own value.",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """Add the preset's values, and the port that protocol and TLS usually have."""
        if not isinstance(data, dict):
            return data
        usual = "exchange-online" if data.get("protocol") == "graph" else None
        data = {**preset_values(data.get("preset", usual), data.get("protocol")), **data}
        port = DEFAULT_PORTS.get((str(data.get("protocol")), str(data.get("tls"))), 25)
        return {"port": port, **data}

    def __hash__(self) -> int:
        """Return a hash without the labels, which have none; MX hosts and connections are found by server."""
        return hash((self.protocol, self.host, self.port, self.tls, self.username))

    @field_validator("auth")
    @classmethod
    def _auth_of_protocol(cls, auth: str, info: ValidationInfo) -> str:
        protocol = info.data.get("protocol", "")  # missing where the protocol itself is wrong
        known = {"auto", *AUTH_METHODS.get(protocol, {auth})}
        if auth not in known:
            raise ValueError(
                f"{protocol} has no mechanism {auth!r}; choose one of {', '.join(sorted(known))}"
            )
        if auth == "gssapi":
            require_kerberos(info.data.get("username"))
        return auth

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.password is not None and self.username is None:
            raise ValueError("password without username; add username or remove password")
        if self.protocol == "graph" and self.oauth2 is None:
            raise ValueError("Graph takes access tokens only; add oauth2: NAME")
        if self.protocol == "graph" and self.tls == "starttls":
            raise ValueError("Graph has no STARTTLS; choose tls: implicit")
        if self.oauth2 is not None and self.username is None and self.protocol != "graph":
            raise ValueError("oauth2 without username; add username or remove oauth2")
        if self.oauth2 is not None and self.password is not None:
            raise ValueError("password and oauth2 exclude each other; remove one")
        if self.auth in {"xoauth2", "oauthbearer"} and self.password is not None:
            raise ValueError(f"auth: {self.auth} sends no password; set oauth2 in place of password")
        has_secret = self.password is not None or self.oauth2 is not None
        if self.username is not None and not has_secret and self.protocol == "smtp":
            raise ValueError("username without password; add password: {env: NAME} or {file: PATH}")
        if self.family != "any" and is_ip_address(self.host):
            raise ValueError("family does not apply to an IP address; remove it, or make host a name")
        if self.ehlo_name is not None and self.protocol != "smtp":
            raise ValueError(f"ehlo_name does not apply to {self.protocol}; remove it")
        if self.messages_per_minute is not None and self.protocol not in {"smtp", "graph"}:
            raise ValueError(f"messages_per_minute does not apply to {self.protocol}; remove it")
        if self.saves_sent_copies and self.protocol not in {"smtp", "graph"}:
            raise ValueError(f"saves_sent_copies does not apply to {self.protocol}; remove it")
        if self.tls == "opportunistic" and self.protocol != "smtp":
            raise ValueError("tls: opportunistic is for SMTP between servers; choose implicit or starttls")
        unverified = self.tls in {"none", "opportunistic"}
        if unverified and (self.tls_ca or self.tls_server_name):
            raise ValueError(f"tls_ca and tls_server_name do not apply with tls: {self.tls}")
        if unverified and (self.username or self.oauth2) and not self.allow_insecure_auth:
            raise ValueError(
                "credentials would be sent unencrypted; use tls: implicit or starttls, "
                "or accept it with allow_insecure_auth: true"
            )
        return self


def _username_without_oauth2(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"required": ["username", "password"]}, {"required": ["oauth2"]}]


class MailboxSettings(Settings):
    """A watched address, with the server and credentials for its mailbox."""

    model_config = ConfigDict(json_schema_extra=_username_without_oauth2)

    for_each: ForEach = None
    address: EmailAddress = Field(description="The mail address whose messages arrive here.")
    server: MailboxServerName = Field(description="The POP3, IMAP or Graph server, an entry of `servers`.")
    username: Line = Field(
        default_factory=lambda data: data.get("address", ""),
        description="Login name, required with `password`. Default: the address.",
    )
    password: Secret | None = Field(
        default=None, description="`{env: NAME}` or `{file: PATH}`, relative to this file."
    )
    oauth2: OAuth2Name | None = Field(
        default=None, description="An entry of `oauth2`, whose tokens are used in place of a password."
    )
    folder: FolderName = Field(
        default="INBOX", description="IMAP and Graph: the folder where messages arrive."
    )
    junk_folder: FolderName | None = Field(
        default=None,
        description="IMAP and Graph: the junk folder. Default: the folder that the server marks as junk.",
    )
    sent_folder: FolderName | None = Field(
        default=None,
        description=(
            "IMAP and Graph: the folder with copies of what this account sends, which is read only if its "
            "server has `saves_sent_copies`. Default: the folder that the server marks as sent."
        ),
    )
    authserv_id: HostName | None = Field(
        default=None,
        description="The host whose Authentication-Results count. Default: the host of the topmost field.",
    )
    polls_per_message: float | None = Field(
        default=None,
        ge=2,
        le=10000,
        description=(
            "Average number of polls per message, once a route's latency is known. A poll is a login "
            "(POP3), a NOOP (IMAP) or a request (Graph). Default: 6 for POP3 and Graph, 200 for IMAP."
        ),
    )

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.password is None) == (self.oauth2 is None):
            raise ValueError("needs either password, {env: NAME} or {file: PATH}, or oauth2")
        if self.password is not None and "username" not in self.model_fields_set:
            raise ValueError("password without username; add username")
        if self.sent_folder in {self.folder, self.junk_folder} - {None}:
            raise ValueError("messages arrive in folder and junk_folder; sent_folder must be another one")
        return self


class CommonAlertSettings(Settings):
    """Thresholds for the alerts of all probes. The agent exports them for the rules of Prometheus."""

    overdue_share_of_deadline: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description=(
            "Until the agent has learned from a route's latencies when its messages are overdue: after this "
            "share of the deadline (5m -> 60s)."
        ),
    )
    slow_share_of_deadline: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Deliveries that take longer than this share of the deadline are slow (5m -> 30s).",
    )
    stale_intervals: float = Field(
        default=3.0,
        gt=0,
        le=1e6,
        description=(
            "A probe is stale when no run ended for this many intervals plus the time limit of one run."
        ),
    )


class AlertSettings(Settings):
    """Thresholds of one probe's alerts that differ from the common ones."""

    down: Annotated[Duration, between(1, 7 * 86400)] | None = Field(
        default=None,
        description=(
            "How long the probe may fail before its alert fires, but at least 1.5 intervals. Default: "
            "`down_intervals` of the rules."
        ),
    )


class ProbeSettings(Settings):
    """Settings of every kind of probe."""

    for_each: ForEach = None
    name: Name = Field(description="A unique name: up to 63 letters, digits, dots, dashes and underscores.")
    kind: str
    interval: Annotated[Duration, between(1, 86400)] = Field(
        default=60.0, description="Time between the starts of two runs."
    )
    deadline: Annotated[Duration, between(0.1, 86400)] = Field(
        default_factory=lambda data: min(30.0, data.get("interval", 30.0)),
        description="Time limit of a run. Default: 30s, or `interval` if that is shorter.",
    )
    scheduled: bool = Field(
        default=True,
        description=(
            "Whether the agent runs the probe every `interval`. With `false`, only `check` and `/probe` "
            "run it."
        ),
    )
    severity: Literal["critical", "warning"] = Field(
        default="critical",
        description=(
            "The highest severity of this probe's alerts. With `warning`, none of them is critical, so none "
            "pages."
        ),
    )
    description: Line | None = Field(
        default=None,
        description="What the probe is for, in one line. The live page and the probe's alerts show it.",
    )
    labels: SiteLabels = Field(
        default_factory=dict,
        description=(
            "The site's own labels, such as `{team: messaging}`: in `mailsonde_probe_info`, for rules and "
            "routing. Labels of the server that the probe uses are added."
        ),
    )
    enabled: bool = Field(
        default=True, description="With `false`, the probe is checked by `validate`, and else left out."
    )
    alerts: AlertSettings = Field(
        default=AlertSettings(),
        description="Thresholds of this probe's alerts, which override the common ones.",
    )

    runs_overlap: ClassVar[bool] = False
    """Whether the next run may start while this one is waiting."""

    @property
    def run_limit(self) -> float:
        """Seconds after which the runner cancels a run."""
        return self.deadline

    def thresholds(self, common: CommonAlertSettings) -> dict[str, float]:
        """Return in seconds, by name, after what time alerts of this probe fire; a few have no such time."""
        limits = {"stale": common.stale_intervals * self.interval + self.run_limit}
        if self.alerts.down is not None:
            limits["down"] = max(self.alerts.down, 1.5 * self.interval)
        return limits

    @model_validator(mode="after")
    def _deadline_fits(self) -> Self:
        if not self.runs_overlap and self.deadline > self.interval:
            raise ValueError(
                f"deadline ({self.deadline:g}s) is longer than interval ({self.interval:g}s), "
                "so runs would pile up; shorten deadline or lengthen interval"
            )
        return self


@dataclass(frozen=True, slots=True)
class Site:
    """The configured servers and mailboxes by name, and what the alerts of all probes have in common."""

    location: str
    servers: Mapping[str, ServerSettings]
    mailboxes: Mapping[str, MailboxSettings]
    alerts: CommonAlertSettings = field(default_factory=CommonAlertSettings)
