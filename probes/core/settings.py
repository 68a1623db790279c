"""Settings shared by all kinds of probe: durations, secrets, servers, mailboxes, references.

Models are frozen and refuse unknown keys. Their error messages are for administrators, who see them
next to a file and line number.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

SECRET_LIMIT = 4096
"""Maximum size of a password file, in bytes."""

LABEL_LIMIT = 63
"""Maximum length of a host name's label, in octets (RFC 1035 section 2.3.4)."""

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)")
_UNIT_SECONDS = MappingProxyType({"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LOCAL_PART = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}")
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*(?!\d+\Z){_LABEL}", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9.])?|[0-9A-Fa-f:.]{2,45}")


def parse_duration(value: object) -> float:
    """Return the seconds of a duration such as ``500ms``, ``30s``, ``5m`` or ``1d``; else ValueError."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return float(match[1]) * _UNIT_SECONDS[match[2]]
    raise ValueError(
        f"{value!r} is not a duration; write a number with its unit, such as 500ms, 30s, 5m, 1h or 1d"
    )


def read_secret(value: object, info: ValidationInfo) -> SecretStr:
    """Return the secret that ``{env: NAME}`` or ``{file: PATH}`` refers to; no error shows its content."""
    if not isinstance(value, Mapping) or len(value) != 1 or not set(value) <= {"env", "file"}:
        raise ValueError("secrets are never written in this file; write {env: NAME} or {file: PATH}")
    ((source, where),) = value.items()
    if not isinstance(where, str) or not where:
        raise ValueError(f"{source}: needs a text; write {{env: NAME}} or {{file: PATH}}")
    secret = _secret_of_environment(where) if source == "env" else _secret_of_file(where, info)
    return sound_secret(secret, f"the secret in {source} {where}")


def sound_secret(text: str, named: str) -> SecretStr:
    """Return ``text`` as a secret; raises ValueError, with the name ``named``, if no protocol can send it."""
    if not text or any(c in text for c in "\r\n\0"):
        raise ValueError(f"{named} is empty or has line breaks; it must be one line of text")
    if any("\ud800" <= c <= "\udfff" for c in text):  # what Python makes of octets that are no UTF-8
        raise ValueError(f"{named} is not UTF-8 text; write it in UTF-8, or choose another")
    return SecretStr(text)


def _secret_of_environment(name: str) -> str:
    if name not in os.environ:
        raise ValueError(f"environment variable {name} is not set; set it, or use {{file: PATH}}")
    return os.environ[name]


def _secret_of_file(where: str, info: ValidationInfo) -> str:
    path = relative_to_config(where, info)
    try:
        with path.open("rb") as file:
            raw = file.read(SECRET_LIMIT + 1)
    except OSError as error:
        raise ValueError(f"secret file {path} cannot be read: {error.strerror}") from None
    if len(raw) > SECRET_LIMIT:
        raise ValueError(f"secret file {path} is longer than {SECRET_LIMIT} bytes")
    try:
        return raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError(f"secret file {path} is not UTF-8 text") from None


def relative_to_config(where: str, info: ValidationInfo) -> Path:
    """Return the path ``where``; a relative path is relative to the configuration file."""
    directory = info.context.get("directory", Path()) if isinstance(info.context, dict) else Path()
    return Path(directory) / Path(where).expanduser()


def _certificate_file(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError("needs the path of a PEM file")
    path = relative_to_config(value, info)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"file {path} contains no PEM certificate") from None
    except OSError as error:
        raise ValueError(f"file {path} cannot be read: {error.strerror}") from None
    return path


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name; use up to 63 letters, digits, dots, dashes and underscores, "
            "starting with a letter or digit"
        )
    return value


def _line(value: str) -> str:
    if not 1 <= len(value) <= 255 or not value.isprintable():
        raise ValueError("must be one line of 1 to 255 printable characters")
    return value


def _email_address(value: str) -> str:
    local_part, _, domain = value.partition("@")
    if not _LOCAL_PART.fullmatch(local_part) or ".." in local_part or not is_host_name(domain):
        raise ValueError(f"{value!r} is not an e-mail address such as canary@example.com")
    return value


def is_host_name(text: str) -> bool:
    """Return whether ``text`` is a host name by RFC 5321 section 2.3.5 and RFC 1123 section 2.1.

    IP literals, names with underscores and names with an all-numeric last label are not host names.
    """
    return len(text) <= 253 and _HOST_NAME.fullmatch(text) is not None


def _host_name(value: str) -> str:
    if not _HOST.fullmatch(value) or ".." in value or max(map(len, value.split("."))) > LABEL_LIMIT:
        raise ValueError(f"{value!r} is not a host name or IP address")
    return value


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\d{1,9}(\.\d{1,6})?(ms|s|m|h|d)$", "examples": ["30s", "5m"]}
    ),
]
"""Seconds, written with a unit."""


def between(low: float, high: float) -> AfterValidator:
    """Return a validator that refuses durations outside ``low`` to ``high`` seconds."""

    def check(seconds: float) -> float:
        if not low <= seconds <= high:
            raise ValueError(f"must be from {low:g}s to {high:g}s")
        return seconds

    return AfterValidator(check)


Secret = Annotated[
    SecretStr,
    BeforeValidator(read_secret),
    WithJsonSchema(
        {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {key: {"type": "string"}},
                    "required": [key],
                    "additionalProperties": False,
                }
                for key in ("env", "file")
            ]
        }
    ),
]
"""A password or key from the environment or a file; no repr shows it."""

Name = Annotated[
    str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})
]
"""A name safe in labels, links and tokens: letters, digits, dot, dash, underscore; up to 63 characters."""

EmailAddress = Annotated[str, AfterValidator(_email_address)]
HostName = Annotated[str, AfterValidator(_host_name)]
CertificateFile = Annotated[Path, BeforeValidator(_certificate_file), WithJsonSchema({"type": "string"})]
"""A PEM file of certificates to trust."""
Line = Annotated[str, AfterValidator(_line)]
"""Text for a protocol line: 1 to 255 printable characters, including spaces."""
FolderName = Line
"""An IMAP folder's name as people write it, with the server's separator between its levels."""


class Settings(BaseModel):
    """Base of all settings: frozen, refuses unknown keys, never repeats input in errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class Reference:
    """Marks a setting that names an entry of ``servers`` or ``mailboxes`` with one of the given protocols.

    A mailbox has its server's protocol. No protocols means any. ``besides`` lists values with another
    meaning, which do not name an entry.
    """

    table: Literal["servers", "mailboxes"]
    protocols: frozenset[str] = frozenset()
    besides: frozenset[str] = frozenset()


SmtpServerName = Annotated[Name, Reference("servers", frozenset({"smtp"}))]
SendVia = Annotated[Name, Reference("servers", frozenset({"smtp"}), frozenset({"mx"}))]
"""A submission server, or ``mx`` for every MX host of the recipient's domain."""
Pop3ServerName = Annotated[Name, Reference("servers", frozenset({"pop3"}))]
ImapServerName = Annotated[Name, Reference("servers", frozenset({"imap"}))]
MailboxServerName = Annotated[Name, Reference("servers", frozenset({"pop3", "imap"}))]
MailboxName = Annotated[Name, Reference("mailboxes")]
Pop3MailboxName = Annotated[Name, Reference("mailboxes", frozenset({"pop3"}))]
ImapMailboxName = Annotated[Name, Reference("mailboxes", frozenset({"imap"}))]

_DEFAULT_PORTS = MappingProxyType(
    {
        ("smtp", "starttls"): 587,
        ("smtp", "implicit"): 465,
        ("smtp", "opportunistic"): 25,
        ("smtp", "none"): 25,
        ("pop3", "starttls"): 110,
        ("pop3", "implicit"): 995,
        ("pop3", "none"): 110,
        ("imap", "starttls"): 143,
        ("imap", "implicit"): 993,
        ("imap", "none"): 143,
    }
)


SaslMechanism = Literal["plain", "login", "cram-md5"]
"""The SASL mechanisms of `probes.protocols.sasl`, in lower case."""

AUTH_METHODS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "smtp": frozenset(get_args(SaslMechanism)),
        "pop3": frozenset({*get_args(SaslMechanism), "user", "apop"}),
        "imap": frozenset(get_args(SaslMechanism)),
    }
)
"""The login methods of each protocol."""


class ServerSettings(Settings):
    """A server that probes connect to, with its TLS and credentials."""

    protocol: Literal["smtp", "pop3", "imap"]
    host: HostName
    port: int = Field(
        default=0, ge=1, le=65535, description=("Default: the protocol's standard port for this `tls`.")
    )
    tls: Literal["implicit", "starttls", "opportunistic", "none"] = Field(
        description=(
            "How the connection is encrypted. `opportunistic` (SMTP only) uses STARTTLS if offered, with "
            "any certificate, as mail servers do among themselves."
        )
    )
    tls_ca: CertificateFile | None = Field(
        default=None,
        description=("PEM file to trust instead of the system's CAs; mailsonde rereads it when it changes."),
    )
    tls_server_name: HostName | None = Field(
        default=None, description="Name in the certificate, if it differs from `host`."
    )
    username: Line | None = None
    password: Secret | None = None
    auth: Literal["auto", SaslMechanism, "user", "apop"] = Field(
        default="auto",
        description=(
            "How to log in. `user` (USER and PASS) and `apop` are for POP3; `login` includes IMAP's LOGIN. "
            "`auto` takes the best method offered. If the server refuses it, `auto` tries one other "
            "method, which sends the password instead of a digest or the reverse."
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

    @model_validator(mode="before")
    @classmethod
    def _default_port(cls, data: Any) -> Any:
        if isinstance(data, dict) and "port" not in data:
            port = _DEFAULT_PORTS.get((str(data.get("protocol")), str(data.get("tls"))), 25)
            return {**data, "port": port}
        return data

    @field_validator("auth")
    @classmethod
    def _auth_of_protocol(cls, auth: str, info: ValidationInfo) -> str:
        protocol = info.data.get("protocol", "")  # missing where the protocol itself is wrong
        known = {"auto", *AUTH_METHODS.get(protocol, {auth})}
        if auth not in known:
            raise ValueError(
                f"{protocol} has no mechanism {auth!r}; choose one of {', '.join(sorted(known))}"
            )
        return auth

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.password is not None and self.username is None:
            raise ValueError("password without username; add username or remove password")
        if self.username is not None and self.password is None and self.protocol == "smtp":
            raise ValueError("username without password; add password: {env: NAME} or {file: PATH}")
        if self.ehlo_name is not None and self.protocol != "smtp":
            raise ValueError(f"ehlo_name does not apply to {self.protocol}; remove it")
        if self.tls == "opportunistic" and self.protocol != "smtp":
            raise ValueError("tls: opportunistic is for SMTP between servers; choose implicit or starttls")
        unverified = self.tls in {"none", "opportunistic"}
        if unverified and (self.tls_ca or self.tls_server_name):
            raise ValueError(f"tls_ca and tls_server_name do not apply with tls: {self.tls}")
        if unverified and self.username is not None and not self.allow_insecure_auth:
            raise ValueError(
                "credentials would be sent unencrypted; use tls: implicit or starttls, "
                "or accept it with allow_insecure_auth: true"
            )
        return self


class MailboxSettings(Settings):
    """A watched address, with the server and credentials for its mailbox."""

    address: EmailAddress
    server: MailboxServerName
    username: Line
    password: Secret
    folder: FolderName = Field(default="INBOX", description="IMAP: the folder where messages arrive.")
    junk_folder: FolderName | None = Field(
        default=None, description="IMAP: the junk folder. Default: the folder that the server marks as junk."
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
            "(POP3) or a NOOP (IMAP). Default: 6 for POP3, 200 for IMAP."
        ),
    )


class AlertSettings(Settings):
    """Thresholds of one probe's rendered alerts that differ from the common ones."""

    down: Annotated[Duration, between(1, 7 * 86400)] | None = Field(
        default=None, description="How long the probe may fail before its alert fires."
    )


class ProbeSettings(Settings):
    """Settings of every kind of probe."""

    name: Name
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
    alerts: AlertSettings = Field(
        default_factory=AlertSettings,
        description="Thresholds of this probe's alerts, which override the common ones.",
    )

    runs_overlap: ClassVar[bool] = False
    """Whether the next run may start while this one is still waiting."""

    @property
    def run_limit(self) -> float:
        """Seconds after which the runner cancels a run."""
        return self.deadline

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
    """The configured servers and mailboxes by name."""

    location: str
    servers: Mapping[str, ServerSettings]
    mailboxes: Mapping[str, MailboxSettings]
