"""The ``autodiscover`` kind: whether all ways lead a domain's clients to one service, and what it offers.

`probes.protocols.autodiscover_client` asks, and `probes.posture.autodiscover` judges the answers.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from probes.core.context import Context
from probes.core.faults import ProbeFault, legible
from probes.core.finding import Check
from probes.core.probe import Probe
from probes.core.reasons import Area, Outcome, Reason
from probes.core.setting_types import CertificateFile, Duration, EmailAddress, HostName
from probes.core.settings import ProbeSettings
from probes.core.text_pattern import TextPattern
from probes.core.verdict import Run, Verdict
from probes.posture.autodiscover import AUTODISCOVER_REASONS, Expected, conclude, judge
from probes.protocols.autodiscover import Endpoint, Gathered, Question
from probes.protocols.dns import Resolver, ResolverSettings, a_labels
from probes.protocols.http_shown import shown_url
from probes.protocols.tls import expiry_warning

SHARE_OF_DEADLINE = 0.9
"""Share of the deadline for all requests, so that a slow step has the reason that tells where."""

Scheme = Literal["negotiate", "ntlm", "kerberos", "basic", "digest", "bearer"]
Schemes = dict[Endpoint, tuple[Scheme, ...]]


def _by_endpoint(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(  # noqa: TRY004 # pydantic reports no TypeError
            f"must be a list such as [{value}], or a table with one for each endpoint"
        )
    return {"autodiscover": value} if isinstance(value, list | tuple) else value


class AutodiscoverSettings(ProbeSettings):
    """Settings of an ``autodiscover`` probe."""

    kind: Literal["autodiscover"]
    email: EmailAddress = Field(
        description=(
            "The address to ask about, such as that of a canary mailbox. Its domain is checked, and is the "
            "target. Nobody logs in to the mailbox."
        )
    )
    expect_hosts: tuple[TextPattern, ...] = Field(
        default=(),
        description=(
            "All hosts that autodiscover may lead to, in which `*` stands for any characters. Without them, "
            "all steps must lead to one service: one host name or one address."
        ),
    )
    expect_auth: Annotated[
        Schemes,
        BeforeValidator(_by_endpoint, json_schema_input_type=Schemes | tuple[Scheme, ...]),
    ] = Field(
        default_factory=dict,
        description=(
            "The authentication that autodiscover must offer, such as `[negotiate, ntlm]`, neither more nor "
            "less. A table can have the endpoints `autodiscover`, `ews` and `activesync`. The last two are "
            "asked at the URLs that version 2 names. Default: any."
        ),
    )
    expect_authorization_uri: TextPattern | None = Field(
        default=None,
        description=(
            "Where each endpoint must send clients for modern authentication: the `authorization_uri` of the "
            "answer to an empty `Authorization: Bearer`, in which `*` stands for any characters."
        ),
    )
    addresses: dict[HostName, HostName] = Field(
        default_factory=dict,
        max_length=20,
        description=(
            "Host names or IP addresses to connect to in place of public names, such as an internal server. "
            "Host header, TLS and certificate still use the public name."
        ),
    )
    port: int = Field(
        default=443, ge=1, le=65535, description="The HTTPS port at the domain and at `autodiscover.DOMAIN`."
    )
    http_port: int = Field(
        default=80,
        ge=0,
        le=65535,
        description="The port at `autodiscover.DOMAIN` that may redirect clients. 0: it is not asked.",
    )
    resolver: ResolverSettings = Field(
        default_factory=ResolverSettings,
        description="The resolver to ask for all names. Default: the system's first name server.",
    )
    tls_ca: CertificateFile | None = Field(
        default=None,
        description=("PEM file to trust instead of the system's CAs; mailsonde rereads it when it changes."),
    )
    certificate_warning: Duration = Field(default=14 * 86400.0, description="Warn this long before expiry.")

    @field_validator("expect_auth")
    @classmethod
    def _schemes_once(cls, expected: Schemes) -> Schemes:
        for endpoint, schemes in expected.items():
            if not schemes:
                raise ValueError(f"{endpoint} has no scheme; name at least one, or remove it")
            if len(set(schemes)) < len(schemes):
                raise ValueError(f"{endpoint} has a scheme twice; keep one")
        return expected

    @property
    def domain(self) -> str:
        """The domain of the address, in A-labels."""
        return a_labels(self.email.partition("@")[2])


class Autodiscover(Probe):
    """Follows all steps of autodiscover as a client without credentials does, and compares them."""

    settings: AutodiscoverSettings
    settings_model = AutodiscoverSettings
    areas: ClassVar[frozenset[Area]] = frozenset(
        {Area.AGENT, Area.DNS, Area.NETWORK, Area.TLS, Area.DIALOGUE, Area.HTTP, Area.AUTODISCOVER}
    )
    checks: ClassVar[frozenset[Check]] = frozenset(check for check, _ in AUTODISCOVER_REASONS)

    def __init__(self, settings: AutodiscoverSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._expected = Expected(
            settings.expect_hosts, {**settings.expect_auth}, settings.expect_authorization_uri
        )
        self._question = Question(
            email=settings.email,
            domain=settings.domain,
            port=settings.port,
            http_port=settings.http_port,
            addresses={name.lower(): to for name, to in settings.addresses.items()},
            endpoints=tuple(each for each in settings.expect_auth if each != "autodiscover"),
            ca=settings.tls_ca,
        )
        from probes.protocols.https import http_context  # half a second, only for sites with this kind

        with suppress(ProbeFault):  # a run tells it
            http_context(settings.tls_ca)  # takes 20 ms, which would count in the first run's time

    @property
    def target(self) -> str:
        """The domain, in A-labels."""
        return self.settings.domain

    async def run(self, run: Run) -> Verdict:
        """Follow the steps one after the other, and judge what they lead to."""
        from probes.protocols.autodiscover_client import Search

        settings = self.settings
        seconds = SHARE_OF_DEADLINE * settings.deadline
        search = Search(self._question, Resolver(settings.resolver), run.phases, seconds)
        gathered = await search.gathered()
        run.phases.current = None  # a step that failed is judged here; the run itself has not failed
        findings = judge(self.target, gathered, self._expected)
        reason, detail = conclude(gathered, findings)
        expiry = search.certificate_expiry
        if reason is Reason.NONE:
            reason, detail = expiry_warning(expiry, self.context.clock.time(), settings.certificate_warning)
        return Verdict(
            reason,
            legible(detail),
            values=_values(gathered),
            certificate_not_after=expiry and expiry.not_after,
            findings=None if reason.outcome is Outcome.UNKNOWN else tuple(findings),
        )


def _values(gathered: Gathered) -> dict[str, object]:
    """Return the verdict's values, for people and programs."""
    ways = [
        {
            "step": str(way.step),
            "version": way.version,
            "url": shown_url(way.url),
            "leads_to": shown_url(way.service.url) if way.service is not None else None,
            "fault": str(way.fault) if way.fault is not None else None,
        }
        for way in gathered.ways
    ]
    offers = [
        {
            "endpoint": offer.endpoint,
            "url": shown_url(offer.url),
            "schemes": list(offer.schemes) if offer.schemes is not None else None,
            "authorization_uri": legible((offer.bearer or {}).get("authorization_uri", "")),
            "fault": str(offer.fault) if offer.fault is not None else None,
        }
        for offer in gathered.offers
    ]
    alias_of = legible(gathered.alias_of, 255) if gathered.alias_of is not None else None
    return {"cname": alias_of, "ways": ways, "authentication": offers}
