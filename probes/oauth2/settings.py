"""Settings of the ``oauth2`` table: who issues tokens, and how mailsonde proves who it is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, model_validator

from probes.core.credentials import Resource
from probes.core.secret import Secret
from probes.core.setting_types import (
    CertificateFile,
    HostName,
    Line,
    note_read,
    reference_schema,
    relative_to_config,
)
from probes.core.settings import Settings
from probes.oauth2.keys import read_certificate, read_service_account

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

Cloud = Literal["global", "usgov", "dod", "china"]
Clouds = Mapping[str, str]
AUTHORITIES: Clouds = MappingProxyType(
    {
        "global": "https://login.microsoftonline.com",
        "usgov": "https://login.microsoftonline.us",
        "dod": "https://login.microsoftonline.us",
        "china": "https://login.partner.microsoftonline.cn",
    }
)
"""Where each of Microsoft's clouds issues tokens."""

RESOURCES: Mapping[Resource, Clouds] = MappingProxyType(
    {
        "mail": MappingProxyType(
            {
                "global": "https://outlook.office365.com",
                "usgov": "https://outlook.office365.us",
                "dod": "https://outlook-dod.office365.us",
                "china": "https://partner.outlook.cn",
            }
        ),
        "graph": MappingProxyType(
            {
                "global": "https://graph.microsoft.com",
                "usgov": "https://graph.microsoft.us",
                "dod": "https://dod-graph.microsoft.us",
                "china": "https://microsoftgraph.chinacloudapi.cn",
            }
        ),
    }
)
"""The resource that a token of each of Microsoft's clouds is for."""

GOOGLE_TOKENS = "https://oauth2.googleapis.com/token"
GOOGLE_MAIL = "https://mail.google.com/"
"""Google's scope for IMAP, POP3 and SMTP."""


def _url(value: str) -> str:
    from probes.protocols.https import origin_of  # half a second, which only sites with OAuth2 need

    origin = origin_of(value)
    if origin.scheme == "http" and origin.host not in _LOOPBACK:
        raise ValueError("secrets would be sent unencrypted; use an https:// URL")
    return value.rstrip("/")


def _proxy(value: str) -> str:
    from probes.protocols.https import proxy_origin

    proxy_origin(value)
    return value


def _path_of(value: object, info: ValidationInfo) -> Path:
    """Return the path in ``{file: PATH}``, relative to the configuration file."""
    if not isinstance(value, Mapping) or set(value) != {"file"} or not isinstance(value["file"], str):
        raise ValueError("write {file: PATH}")
    return relative_to_config(value["file"], info)


def _are_secrets_read(info: ValidationInfo) -> bool:
    return not isinstance(info.context, dict) or bool(info.context.get("secrets", True))


def _certificate(value: object, info: ValidationInfo) -> Path:
    path = _path_of(value, info)
    if _are_secrets_read(info):
        note_read(path, info, by_path=True)
        read_certificate(path)
    return path


def _service_account(value: object, info: ValidationInfo) -> Path:
    path = _path_of(value, info)
    if _are_secrets_read(info):
        note_read(path, info, by_path=True)
        read_service_account(path)
    return path


_FILE = WithJsonSchema(reference_schema("file"))
Url = Annotated[str, AfterValidator(_url)]
ProxyUrl = Annotated[str, AfterValidator(_proxy)]
KeyAndCertificate = Annotated[Path, BeforeValidator(_certificate), _FILE]
"""A PEM file with a private key and its certificate; read at each use, so that a new one counts at once."""
ServiceAccount = Annotated[Path, BeforeValidator(_service_account), _FILE]
"""A service account's key, as Google's console makes it in JSON; read at each use."""
TokenFile = Annotated[Path, BeforeValidator(_path_of), _FILE]


class OAuth2Settings(Settings):
    """The common part of all providers."""

    credential_expires: date | None = Field(
        default=None,
        description=(
            "When the client secret expires, such as 2027-05-01. mailsonde warns before that. A certificate "
            "says so itself."
        ),
    )
    proxy: ProxyUrl | None = Field(
        default=None,
        description="An HTTP proxy, such as http://proxy.example:3128. Default: `HTTPS_PROXY`, if it is set.",
    )
    tls_ca: CertificateFile | None = Field(
        default=None,
        description="PEM file to trust in addition to the system's CAs, such as that of an inspecting proxy.",
    )

    @property
    def credential_expires_at(self) -> float | None:
        """The beginning of the day `credential_expires`, in unix seconds (UTC)."""
        day = self.credential_expires
        return None if day is None else datetime.combine(day, time(), UTC).timestamp()


class MicrosoftOAuth2(OAuth2Settings):
    """An application registered in Microsoft Entra: for Exchange Online by IMAP, POP3, SMTP or Graph."""

    provider: Literal["microsoft"]
    tenant: HostName = Field(description="The tenant: a domain such as contoso.onmicrosoft.com, or its id.")
    client_id: Line = Field(description="The application's (client) id.")
    client_secret: Secret | None = Field(
        default=None, description="Its secret: `{env: NAME}` or `{file: PATH}`."
    )
    certificate: KeyAndCertificate | None = Field(
        default=None,
        description="In place of a secret: `{file: app.pem}` with private key and certificate in PEM.",
    )
    token_file: TokenFile | None = Field(
        default=None,
        description=(
            "For delegated use in place of a secret: `{file: PATH}`, which `mailsonde login NAME` writes."
        ),
    )
    cloud: Cloud = Field(
        default="global",
        description=(
            "Which of Microsoft's clouds the tenant is in: `global`, also for GCC, `usgov` for GCC High, "
            "`dod`, or `china` for 21Vianet."
        ),
    )
    authority: Url | None = Field(
        default=None, description="Where tokens are issued, if not at the cloud's own address."
    )
    message_trace: bool = Field(
        default=False,
        description=(
            "Whether to ask the tenant where an overdue message ended, if its mailbox or server has this "
            "entry. Needs the application permission ExchangeMessageTrace.Read.All."
        ),
    )
    service_health: bool = Field(
        default=False,
        description=(
            "Whether to tell, beside an overdue message, which issues Exchange Online has. Needs the "
            "application permission ServiceHealth.Read.All."
        ),
    )

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        given = [self.client_secret, self.certificate, self.token_file]
        if sum(credential is not None for credential in given) != 1:
            raise ValueError("needs exactly one of client_secret, certificate and token_file")
        if self.token_file is not None and (self.message_trace or self.service_health):
            raise ValueError(
                "message_trace and service_health need an application's own rights; set client_secret or "
                "certificate in place of token_file"
            )
        return self

    @property
    def _base(self) -> str:
        return f"{self.authority or AUTHORITIES[self.cloud]}/{self.tenant}/oauth2/v2.0"

    @property
    def token_endpoint(self) -> str:
        """The token endpoint (RFC 6749 section 3.2)."""
        return f"{self._base}/token"

    @property
    def device_endpoint(self) -> str:
        """The device authorization endpoint (RFC 8628 section 3.1)."""
        return f"{self._base}/devicecode"

    def scope(self, resource: Resource) -> str:
        """Return the scope to ask for. A delegated token names each permission; others have had consent."""
        base = RESOURCES[resource][self.cloud]
        if self.token_file is None:
            return f"{base}/.default"
        if resource == "graph":
            return f"{base}/Mail.ReadWrite {base}/Mail.Send offline_access"
        base = base.replace("office365.com", "office.com")
        return f"{base}/IMAP.AccessAsUser.All {base}/POP.AccessAsUser.All {base}/SMTP.Send offline_access"


class GoogleOAuth2(OAuth2Settings):
    """Google Workspace: a service account with domain-wide delegation; it acts as each mailbox."""

    provider: Literal["google"]
    service_account: ServiceAccount = Field(
        description="`{file: key.json}`, the service account's key as Google's console makes it."
    )
    token_url: Url = Field(default=GOOGLE_TOKENS, description="The token endpoint.")

    @property
    def token_endpoint(self) -> str:
        """The token endpoint (RFC 7523)."""
        return self.token_url

    def scope(self, resource: Resource) -> str:  # noqa: ARG002 # Graph is Microsoft's
        """Return the scope to ask for."""
        return GOOGLE_MAIL


class GenericOAuth2(OAuth2Settings):
    """Any other provider, by client credentials or with a refresh token."""

    provider: Literal["generic"]
    token_url: Url = Field(description="The token endpoint.")
    client_id: Line = Field(description="The client's id.")
    client_secret: Secret | None = Field(
        default=None, description="Its secret: `{env: NAME}` or `{file: PATH}`."
    )
    scope_: Line | None = Field(default=None, alias="scope", description="The scope to ask for.")
    refresh_token: Secret | None = Field(
        default=None, description="A refresh token that never changes, in place of client credentials."
    )
    device_url: Url | None = Field(
        default=None, description="The device authorization endpoint, for `mailsonde login NAME`."
    )
    token_file: TokenFile | None = Field(
        default=None, description="`{file: PATH}`, which `mailsonde login NAME` writes; needs `device_url`."
    )

    @model_validator(mode="after")
    def _one_grant(self) -> Self:
        if (self.device_url is None) != (self.token_file is None):
            raise ValueError("device_url and token_file belong together; add the other, or remove both")
        if self.refresh_token is not None and self.token_file is not None:
            raise ValueError("refresh_token and token_file exclude each other; remove one")
        if self.client_secret is None and self.refresh_token is None and self.token_file is None:
            raise ValueError("needs client_secret, refresh_token or token_file")
        return self

    @property
    def token_endpoint(self) -> str:
        """The token endpoint (RFC 6749 section 3.2)."""
        return self.token_url

    @property
    def device_endpoint(self) -> str | None:
        """The device authorization endpoint (RFC 8628 section 3.1)."""
        return self.device_url

    def scope(self, resource: Resource) -> str:  # noqa: ARG002 # one scope for all
        """Return the scope to ask for; empty for the client's default."""
        return self.scope_ or ""


PROVIDERS: Mapping[str, type[Settings]] = MappingProxyType(
    {"microsoft": MicrosoftOAuth2, "google": GoogleOAuth2, "generic": GenericOAuth2}
)
"""The settings by the values of ``provider``."""

AnyOAuth2 = Annotated[MicrosoftOAuth2 | GoogleOAuth2 | GenericOAuth2, Field(discriminator="provider")]
