"""The ``http`` kind: whether a URL answers as expected, and how long each part of the answer takes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from probes.core.context import Context
from probes.core.faults import ProbeFault, legible
from probes.core.header_fields import FieldName, FieldValue, RequestFieldName, withhold
from probes.core.kerberos_user import require_kerberos
from probes.core.probe import Probe
from probes.core.reasons import Area, Reason
from probes.core.secret import Secret
from probes.core.setting_types import (
    AddressFamily,
    CertificateFile,
    Duration,
    HostName,
    Line,
    is_ip_address,
)
from probes.core.settings import ProbeSettings
from probes.core.text_pattern import TextPattern, matches, occurs
from probes.core.verdict import Run, Verdict
from probes.protocols.http_shown import shown_field, shown_url
from probes.protocols.tls import expiry_warning

if TYPE_CHECKING:
    from probes.protocols.http_login import HttpLogin
    from probes.protocols.https import Origin, Response

SHARE_OF_DEADLINE = 0.9
"""Share of the deadline for connection and answer, so that a slow server has the reason that tells where."""

MOST_REDIRECTS = 10
"""Maximum number of redirects that a probe can be told to follow."""

HttpAuth = Literal["auto", "kerberos", "ntlm", "basic"]
"""How to log in."""

_CREDENTIALS = frozenset({"authorization", "proxy-authorization", "cookie"})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def _origin_of(url: str) -> Origin:
    from probes.protocols.https import origin_of  # half a second, which only sites with this kind need

    return origin_of(url)


def _url(value: str) -> str:
    if len(value) > 2000 or not value.isprintable() or "#" in value:
        raise ValueError("must be a URL of up to 2,000 printable characters, without a fragment (#)")
    try:
        _origin_of(value)
    except ValueError:
        raise ValueError(
            "must be a URL such as https://mail.example.com/owa/, without credentials; its host must be a "
            "host name or IP address, and its port from 1 to 65535"
        ) from None
    return value


def _require_encryption(url: str) -> None:
    origin = _origin_of(url)
    if origin.scheme == "http" and origin.host not in _LOOPBACK:
        raise ValueError("secrets would be sent unencrypted; use an https:// url")


class HttpSettings(ProbeSettings):
    """Settings of an ``http`` probe."""

    kind: Literal["http"]
    url: Annotated[str, AfterValidator(_url)] = Field(
        description="What to request, such as https://mail.example.com/owa/healthcheck.htm."
    )
    method: Literal["GET", "HEAD", "POST", "OPTIONS"] = Field(
        default="GET", description="The method of the request, which has no body."
    )
    address: HostName | None = Field(
        default=None,
        description=(
            "Host name or IP address to connect to, such as one server behind a load balancer. Host header, "
            "TLS and certificate still use the host of `url`. Default: the host of `url`."
        ),
    )
    family: AddressFamily = Field(default="any", description="Which addresses of the host are connected to.")
    headers: dict[RequestFieldName, FieldValue] = Field(
        default_factory=dict,
        max_length=20,
        description=(
            "Header fields of the request. Credentials, such as Authorization, are `{env: NAME}` or "
            "`{file: PATH}`. They are not sent to another host that a redirect leads to."
        ),
    )
    username: Line | None = Field(
        default=None,
        description=(
            "Login name, such as `user`, `DOMAIN\\user` or `user@domain`. mailsonde logs in if the server "
            "answers 401, and not at another host that a redirect leads to."
        ),
    )
    password: Secret | None = Field(default=None, description="`{env: NAME}` or `{file: PATH}`.")
    auth: HttpAuth = Field(
        default="auto",
        description=(
            "How to log in. `ntlm` also works where the server offers only Negotiate, and fulfils Extended "
            "Protection. So does `kerberos`, in Negotiate; it takes a username such as `user` or "
            "`user@REALM`, and needs `pip install 'mailsonde[kerberos]'`. `auto` takes `ntlm` if it is "
            "offered, otherwise `basic`."
        ),
    )
    follow_redirects: int = Field(
        default=0, ge=0, le=MOST_REDIRECTS, description="How many redirects to follow, to https only."
    )
    expect_status: tuple[Annotated[int, Field(ge=200, le=599)], ...] | None = Field(
        default=None,
        min_length=1,
        description="The statuses that are ok. Default: any from 200 to 299.",
    )
    expect_redirect: TextPattern | None = Field(
        default=None,
        description=(
            "Where a redirect must lead: a URL in which `*` stands for any characters. With "
            "`follow_redirects`, where they must end."
        ),
    )
    expect_body: TextPattern | None = Field(
        default=None,
        description=(
            "Text that the body must contain, in which `*` stands for any characters. The first 256 KiB "
            "count."
        ),
    )
    reject_body: TextPattern | None = Field(
        default=None, description="Text that the body must not contain, written as in `expect_body`."
    )
    expect_headers: dict[FieldName, TextPattern] = Field(
        default_factory=dict,
        max_length=20,
        description="Header fields that the answer must have: the whole value, in which `*` may stand.",
    )
    tls_ca: CertificateFile | None = Field(
        default=None,
        description=("PEM file to trust instead of the system's CAs; mailsonde rereads it when it changes."),
    )
    certificate_warning: Duration = Field(default=14 * 86400.0, description="Warn this long before expiry.")

    @field_validator("auth")
    @classmethod
    def _kerberos_is_possible(cls, auth: str, info: ValidationInfo) -> str:
        if auth == "kerberos":
            require_kerberos(info.data.get("username"))
        return auth

    @field_validator("headers")
    @classmethod
    def _credentials_are_secret(
        cls, headers: dict[str, str | SecretStr], info: ValidationInfo
    ) -> dict[str, str | SecretStr]:
        for name, value in headers.items():
            if name.lower() in _CREDENTIALS and isinstance(value, str):
                raise ValueError(f"{name} is secret; write {{env: NAME}} or {{file: PATH}}")
        if "url" in info.data and any(isinstance(value, SecretStr) for value in headers.values()):
            _require_encryption(info.data["url"])
        return headers

    @field_validator("password")
    @classmethod
    def _password_is_encrypted(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if "url" in info.data and password is not None:
            _require_encryption(info.data["url"])
        return password

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method == "HEAD" and (self.expect_body or self.reject_body):
            raise ValueError("the answer to HEAD has no body; remove expect_body and reject_body, or use GET")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together; add the other one")
        if self.username is None and "auth" in self.model_fields_set:
            raise ValueError("auth without username; add username and password")
        if self.username is not None and "authorization" in {name.lower() for name in self.headers}:
            raise ValueError("Authorization and username exclude each other; remove one")
        is_tls = _origin_of(self.url).scheme == "https" or self.follow_redirects
        if not is_tls and not self.model_fields_set.isdisjoint({"tls_ca", "certificate_warning"}):
            raise ValueError("tls_ca and certificate_warning do not apply to an http:// url; remove them")
        if self.family != "any" and is_ip_address(self.address or _origin_of(self.url).host):
            raise ValueError("family does not apply to an IP address; remove it")
        return self


class Http(Probe):
    """Sends one request, follows redirects if it may, and judges the answer."""

    settings: HttpSettings
    settings_model = HttpSettings
    areas: ClassVar[frozenset[Area]] = frozenset(
        {Area.AGENT, Area.DNS, Area.NETWORK, Area.TLS, Area.DIALOGUE, Area.HTTP}
    )

    def __init__(self, settings: HttpSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._origin = _origin_of(settings.url)
        from probes.protocols.https import http_context

        with suppress(ProbeFault):  # a run tells it
            http_context(settings.tls_ca)  # takes 20 ms, which would count in the first run's time

    @property
    def target(self) -> str:
        """The host of the URL."""
        return self._origin.host

    @property
    def place(self) -> tuple[str, int]:
        """The host and port that it connects to."""
        return self.settings.address or self._origin.host, self._origin.port

    async def run(self, run: Run) -> Verdict:
        """Send the request, and judge status, redirects, header fields, body and certificate."""
        from probes.protocols.https import HttpClient

        settings = self.settings
        fields = {name: _text(name, value, run) for name, value in settings.headers.items()}
        if settings.password is not None:
            run.phases.transcript.redaction.add(settings.password.get_secret_value())
        async with HttpClient(
            run.phases,
            seconds=SHARE_OF_DEADLINE * settings.deadline,
            ca=settings.tls_ca,
            addresses={self._origin.host: settings.address} if settings.address else {},
            family=settings.family,
            login=_login(settings),
        ) as client:
            response = await client.request(
                settings.method, settings.url, headers=fields, redirects=settings.follow_redirects
            )
        response.record(run.phases.transcript)
        reason, detail = self._judged(response)
        expiry = response.certificate_expiry
        if reason is Reason.NONE:
            reason, detail = expiry_warning(expiry, self.context.clock.time(), settings.certificate_warning)
        return Verdict(
            reason,
            detail,
            values={
                "status": response.status,
                "url": shown_url(response.url),
                "redirects": [shown_url(url) for url in response.redirects],
                "location": shown_url(response.location),
                "body_octets": len(response.body),
                **({"login": response.login} if response.login else {}),
            },
            certificate_not_after=expiry and expiry.not_after,
        )

    def _judged(self, response: Response) -> tuple[Reason, str]:
        """Return what is wrong with an answer, and what was seen; `NONE` if it is as expected."""
        settings = self.settings
        leads_to = response.location or (response.url if response.redirects else "")
        if (reason := self._status_reason(response.status)) is not Reason.NONE:
            from probes.protocols.https import status_text

            led = f", which redirects to {shown_url(leads_to)}" if response.is_redirect else ""
            return reason, legible(f"{status_text(response.status)}{led}")
        if settings.expect_redirect is not None and not matches(settings.expect_redirect, leads_to):
            seen = f"leads to {shown_url(leads_to)}" if leads_to else "there is no redirect"
            return Reason.REDIRECT_REFUSED, legible(f"{seen}, expected {settings.expect_redirect}")
        for name, pattern in settings.expect_headers.items():
            if not any(matches(pattern, value) for value in response.header_lines(name)):
                seen = response.header(name) and shown_field(name, response.header(name))
                return Reason.HTTP_BODY, legible(
                    f"header field {name}: {seen or 'no such field'}, expected {pattern}"
                )
        return self._judged_body(response)

    def _status_reason(self, status: int) -> Reason:
        expected = self.settings.expect_status
        if status in expected if expected is not None else 200 <= status < 300:
            return Reason.NONE
        return Reason.HTTP_UNAVAILABLE if status >= 500 else Reason.HTTP_STATUS

    def _judged_body(self, response: Response) -> tuple[Reason, str]:
        wanted, unwanted = self.settings.expect_body, self.settings.reject_body
        if wanted is None and unwanted is None:
            return Reason.NONE, ""
        if response.is_encoded:
            return Reason.HTTP_BODY, "the body is compressed, although this was not asked for"
        text = response.body.decode("utf-8", "replace")
        size = f"the {'first ' if response.is_cut else ''}{len(response.body):,} octets of the body"
        if wanted is not None and not occurs(wanted, text):
            return Reason.HTTP_BODY, legible(f"{size} lack {wanted!r}")
        if unwanted is not None and occurs(unwanted, text):
            return Reason.HTTP_BODY, legible(f"{size} have {unwanted!r}")
        return Reason.NONE, ""


def _login(settings: HttpSettings) -> HttpLogin | None:
    if settings.username is None or settings.password is None:
        return None
    from probes.protocols.http_login import HttpLogin

    return HttpLogin(settings.username, settings.password, settings.auth)


def _text(name: str, value: str | SecretStr, run: Run) -> str:
    """Return a header field's value; one that is secret is withheld from now on."""
    if isinstance(value, str):
        return value
    withhold(name, value, run.phases.transcript.redaction)
    return value.get_secret_value()
