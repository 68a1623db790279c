"""The whole configuration file as one model; each kind of probe brings its own settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self, Union
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from monitor.ledger.location import ledger_path
from probes.registry import KINDS
from probes.settings import (
    CertificateFile,
    Duration,
    MailboxSettings,
    Name,
    ProbeSettings,
    Secret,
    ServerSettings,
    Settings,
    Site,
    between,
)

if TYPE_CHECKING:
    AnyProbe = ProbeSettings
else:
    AnyProbe = Annotated[
        Union[tuple(kind.settings_model for kind in KINDS.values())],  # noqa: UP007 # made at run time
        Field(discriminator="kind"),
    ]


def parse_listen(value: object) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; port 0 takes a free one. Else ValueError."""
    if isinstance(value, str):
        host, _, port = value.rpartition(":")
        if host and port.isdecimal() and int(port) <= 65535:
            return host.removeprefix("[").removesuffix("]"), int(port)
    raise ValueError("must be HOST:PORT, such as 127.0.0.1:9725 or [::1]:9725")


def _ledger_url(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text such as sqlite:///var/lib/mailsonde/ledger.db")  # noqa: TRY004 # pydantic's way
    ledger_path(value)
    return value


def _http_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in {"http", "https"} or not url.hostname or url.username is not None:
        raise ValueError(
            "must be a URL such as https://collector.example.com/v1/metrics, without credentials"
        )
    return value


def _at_least_one(probes: tuple[ProbeSettings, ...]) -> tuple[ProbeSettings, ...]:
    if not probes:
        raise ValueError(
            "there is no probe, so nothing would be monitored; config/example.yaml shows each kind"
        )
    return probes


class OtlpSettings(Settings):
    """Where metrics are sent by OTLP over HTTP, beside being served."""

    endpoint: Annotated[str, AfterValidator(_http_url)] = Field(
        description="The collector's address for metrics, such as https://collector.example.com/v1/metrics."
    )
    interval: Annotated[Duration, between(1, 3600)] = Field(
        default=60.0, description="Time between two exports."
    )
    headers: dict[str, Secret] = Field(
        default_factory=dict, description="Header fields that the collector asks for, such as a token."
    )
    tls_ca: CertificateFile | None = Field(
        default=None, description="PEM file of the authority to trust instead of the system's."
    )

    @model_validator(mode="after")
    def _no_secret_in_clear(self) -> Self:
        url = urlsplit(self.endpoint)
        if self.headers and url.scheme == "http" and url.hostname not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError("headers would cross the network in clear; use an https:// endpoint")
        return self


class AgentSettings(Settings):
    """The agent itself."""

    location: Name = Field(
        default="local", description="The vantage point, such as fra1; shown in every result."
    )
    listen: Annotated[
        tuple[str, int],
        BeforeValidator(parse_listen),
        WithJsonSchema({"type": "string", "examples": ["127.0.0.1:9725"]}),
    ] = Field(default=("127.0.0.1", 9725), description="Where /metrics is served. Default: 127.0.0.1:9725.")
    ledger: Annotated[str, BeforeValidator(_ledger_url), WithJsonSchema({"type": "string"})] = Field(
        default="sqlite:///var/lib/mailsonde/ledger.db", description="The database of messages and results."
    )
    token_key: Secret | None = Field(
        default=None, description="Key that signs messages. Default: one made once and kept in the ledger."
    )
    retention: Annotated[Duration, between(3600, 366 * 86400)] = Field(
        default=7 * 86400.0, description="How long ended messages stay in the ledger. Default: 7d."
    )
    otlp: OtlpSettings | None = Field(
        default=None, description="Also send the metrics by OTLP; needs `pip install 'mailsonde[otlp]'`."
    )


class Configuration(Settings):
    """A configuration file of mailsonde."""

    agent: AgentSettings = AgentSettings()
    servers: dict[Name, ServerSettings] = Field(default_factory=dict)
    mailboxes: dict[Name, MailboxSettings] = Field(default_factory=dict)
    probes: Annotated[tuple[AnyProbe, ...], AfterValidator(_at_least_one)]

    @property
    def site(self) -> Site:
        """What probes look up by name."""
        return Site(self.agent.location, self.servers, self.mailboxes)
