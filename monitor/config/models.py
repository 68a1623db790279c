"""The whole configuration file as one model; each kind of probe adds its own settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails

from monitor.config.cross_checks import cross_errors, init_errors
from monitor.config.defaults import DefaultsSettings, with_defaults
from monitor.config.hybrid import HybridSettings, hybrid_probes, told_of_entries
from monitor.config.listen import LISTEN, parse_listen
from monitor.config.maintenance import WindowSettings, useless_windows
from monitor.ledger.backend import ledger_path
from monitor.ledger.limits import RUNS_KEPT
from probes.core.header_fields import RequestFieldName, SecretFieldValue
from probes.core.secret import Secret
from probes.core.setting_types import (
    CertificateFile,
    Duration,
    HostName,
    Name,
    OrVariable,
    ServerName,
    between,
    relative_to_config,
)
from probes.core.settings import (
    CommonAlertSettings,
    MailboxSettings,
    ProbeSettings,
    ServerSettings,
    Settings,
    Site,
)
from probes.oauth2.settings import RESOURCES, AnyOAuth2
from probes.registry import KINDS

if TYPE_CHECKING:
    from probes.protocols.https import Origin

    AnyProbe = ProbeSettings
else:
    AnyProbe = Annotated[
        Union[tuple(kind.settings_model for kind in KINDS.values())],  # noqa: UP007 # made at run time
        Field(discriminator="kind"),
    ]


def _ledger_url(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text such as sqlite:///var/lib/mailsonde/ledger.db")  # noqa: TRY004 # pydantic's way
    ledger_path(value)
    return value


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError("needs the path of a file, such as web.yml")
    return relative_to_config(value, info)


def _origin_of(url: str) -> Origin:
    from probes.protocols.https import origin_of  # half a second, which only sites with OTLP need

    return origin_of(url)


def _http_url(value: str) -> str:
    _origin_of(value)
    return value


BASE_URL = re.compile(r"https?://[^\s'\"{}?#]{1,500}")
"""An address that links begin with: HTTP, without query, and safe in an alert's template."""


def _base_url(value: str) -> str:
    if not BASE_URL.fullmatch(value) or not urlsplit(value).hostname:
        raise ValueError("must be the address of the live page, such as https://mailsonde.example.com")
    return value.rstrip("/")


def _one_or_several(value: object) -> object:
    """Return a list of one text for the text alone."""
    return (value,) if isinstance(value, str) else value


def _at_least_one(probes: tuple[ProbeSettings, ...]) -> tuple[ProbeSettings, ...]:
    if not probes:
        raise ValueError("there are no probes, so nothing would be monitored; see config/example.yaml")
    if not any(probe.enabled for probe in probes):
        raise ValueError("no probe is enabled, so nothing would be monitored")
    return probes


class OtlpSettings(Settings):
    """Where to send metrics by OTLP over HTTP, in addition to serving them."""

    endpoint: Annotated[str, AfterValidator(_http_url)] = Field(
        description="The collector's address for metrics, such as https://collector.example.com/v1/metrics."
    )
    interval: Annotated[Duration, between(1, 3600)] = Field(
        default=60.0, description="Time between two exports."
    )
    headers: dict[RequestFieldName, SecretFieldValue] = Field(
        default_factory=dict, description="Header fields that the collector requires, such as a token."
    )
    tls_ca: CertificateFile | None = Field(
        default=None,
        description=("PEM file to trust instead of the system's CAs; mailsonde rereads it when it changes."),
    )

    @model_validator(mode="after")
    def _no_secret_in_clear(self) -> Self:
        origin = _origin_of(self.endpoint)
        if self.headers and origin.scheme == "http" and origin.host not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError("headers would be sent unencrypted; use an https:// endpoint")
        return self


class AgentSettings(Settings):
    """The agent itself."""

    location: Annotated[Name, OrVariable()] = Field(
        default="local", description="Where the agent runs, such as fra1; part of every result."
    )
    listen: Annotated[
        tuple[str, int],
        BeforeValidator(parse_listen),
        WithJsonSchema({"type": "string", "examples": [LISTEN]}),
        OrVariable(),
    ] = Field(
        default=parse_listen(LISTEN),
        description="Address of /metrics and the live page.",
    )
    url: Annotated[str, AfterValidator(_base_url)] | None = Field(
        default=None,
        description=(
            "Where people open the live page, such as https://mailsonde.example.com. Alerts link to it, and "
            "the page opens under its host name."
        ),
    )
    hosts: tuple[HostName, ...] = Field(
        default=(),
        description=(
            "Names under which the live page opens, in addition to IP addresses, localhost, this machine's "
            "name and the hosts in `listen` and `url`."
        ),
    )
    ledger: Annotated[str, BeforeValidator(_ledger_url), WithJsonSchema({"type": "string"}), OrVariable()] = (
        Field(
            default="sqlite:///var/lib/mailsonde/ledger.db",
            description="The database of messages and results.",
        )
    )
    token_key: Secret | None = Field(
        default=None,
        description=(
            "The key that signs messages. Default: one that mailsonde creates and keeps in the ledger."
        ),
    )
    retention: Annotated[Duration, between(3600, 366 * 86400)] = Field(
        default=7 * 86400.0, description="How long messages stay in the ledger after they end."
    )
    runs_kept: int = Field(
        default=RUNS_KEPT,
        ge=1,
        le=10_000,
        description="How many of its latest runs, and of its latest failed runs, each route keeps.",
    )
    web_config: Annotated[Path, BeforeValidator(_path), WithJsonSchema({"type": "string"})] | None = Field(
        default=None,
        description=(
            "TLS, users and header fields of the live page and `/metrics`: a file in the format of "
            "Prometheus' exporter-toolkit, which mailsonde rereads when it changes. Default: all who can "
            "connect may read."
        ),
    )
    max_connections: int | None = Field(
        default=None,
        ge=2,
        le=100_000,
        description=(
            "Maximum concurrent connections to all servers. Servers that have not answered in time can have "
            "half of them. Default: a third of the file descriptors that the agent may open, up to 5000."
        ),
    )
    reload: Annotated[
        tuple[Literal["watch", "http"], ...],
        BeforeValidator(_one_or_several),
        WithJsonSchema(
            {
                "anyOf": [
                    {"enum": ["watch", "http"]},
                    {"type": "array", "items": {"enum": ["watch", "http"]}},
                ]
            }
        ),
    ] = Field(
        default=(),
        description=(
            "When to read the configuration again, beside SIGHUP and `mailsonde reload`: with `watch`, when "
            "one of its files has changed; with `http`, at a POST to `/-/reload`. Both: `[watch, http]`."
        ),
    )
    otlp: OtlpSettings | None = Field(
        default=None, description="Also sends the metrics by OTLP; needs `pip install 'mailsonde[otlp]'`."
    )


def _with_graph_hosts(data: dict[str, Any]) -> dict[str, Any]:
    """Return raw ``data`` in which Graph servers without ``host`` have that of their tenant's cloud."""
    servers, oauth2 = data.get("servers"), data.get("oauth2")
    if not isinstance(servers, Mapping) or not isinstance(oauth2, Mapping):
        return data
    found = {}
    for name, server in servers.items():
        if isinstance(server, Mapping) and server.get("protocol") == "graph" and "host" not in server:
            entry = oauth2.get(str(server.get("oauth2")))
            cloud = entry.get("cloud") if isinstance(entry, Mapping) else None
            if url := RESOURCES["graph"].get(str(cloud)):
                found[name] = {**server, "host": urlsplit(url).hostname}
    return {**data, "servers": {**servers, **found}} if found else data


def _of_the_file(schema: dict[str, Any]) -> None:
    schema["patternProperties"] = {"^x-": {}}
    del schema["required"]  # each part may be in another file


class Configuration(Settings):
    """A configuration file of mailsonde. Top-level keys that begin with ``x-`` hold a site's own anchors."""

    model_config = ConfigDict(json_schema_extra=_of_the_file)

    include: tuple[str, ...] = Field(
        default=(),
        description=(
            "Further files, such as `[conf.d/*.yaml]`, relative to this one. Their servers, mailboxes, "
            "probes and other entries join those of this file. Paths are relative to the file that has them."
        ),
    )
    agent: AgentSettings = AgentSettings()
    defaults: DefaultsSettings = Field(
        default=DefaultsSettings(),
        description=(
            "Settings of entries that do not say otherwise: by kind of probe, and for all `probes`, "
            "`servers` and `mailboxes`."
        ),
    )
    oauth2: dict[Name, AnyOAuth2] = Field(default_factory=dict)
    servers: dict[ServerName, ServerSettings] = Field(default_factory=dict)
    mailboxes: dict[Name, MailboxSettings] = Field(default_factory=dict)
    hybrid: dict[Name, HybridSettings] = Field(default_factory=dict)
    alerts: CommonAlertSettings = CommonAlertSettings()
    maintenance: dict[Name, WindowSettings] = Field(default_factory=dict)
    probes: Annotated[tuple[AnyProbe, ...], AfterValidator(_at_least_one)]

    @model_validator(mode="wrap")
    @classmethod
    def _agrees_with_itself(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse parts that disagree, and report that together with the mistakes within the parts.

        ``probes`` also gets those that the entries of ``hybrid`` amount to, after the written ones.
        """
        written, hybrid = 0, []
        if isinstance(data, Mapping):
            data = {key: value for key, value in data.items() if not str(key).startswith("x-")}
            data = _with_graph_hosts(with_defaults(data, "servers", "mailboxes", "maintenance"))
            probes = data.get("probes", [])
            if isinstance(probes, list | tuple) and (hybrid := list(hybrid_probes(data))):
                written = len(probes)
                data["probes"] = [*probes, *(each.settings for each in hybrid)]
            data = with_defaults(data, "probes", "hybrid")
        try:
            configuration = handler(data)
        except ValidationError as error:
            errors = [*cross_errors(data), *init_errors(error)]
            if isinstance(data, Mapping) and "hybrid" in data and "probes" not in data:
                errors = [error for error in errors if error.get("loc") != ("probes",)]
        else:
            errors = [*cross_errors(configuration), *configuration._mistaken_windows()]
            if not errors:
                return configuration
        errors = list(told_of_entries(errors, written, hybrid))
        raise ValidationError.from_exception_data(cls.__name__, errors, hide_input=True)

    def _mistaken_windows(self) -> Iterator[InitErrorDetails]:
        for at, told in useless_windows(self.maintenance, self.probes, self.site):
            yield InitErrorDetails(type="value_error", loc=at, input=None, ctx={"error": ValueError(told)})

    @property
    def enabled_probes(self) -> tuple[ProbeSettings, ...]:
        """The probes to run: those without ``enabled: false``."""
        return tuple(probe for probe in self.probes if probe.enabled)

    @property
    def site(self) -> Site:
        """What probes look up by name."""
        return Site(self.agent.location, self.servers, self.mailboxes, self.alerts)
