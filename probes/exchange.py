"""The ``exchange`` kind: every virtual directory of every Exchange server behind a public name.

A load balancer shows only healthy servers. So each server is asked at its own address, under the public name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from probes.core.clock import Clock
from probes.core.context import Context
from probes.core.faults import ProbeFault, legible
from probes.core.finding import Check, Finding, Severity
from probes.core.probe import Probe
from probes.core.reasons import Area, Reason
from probes.core.setting_types import CertificateFile, Duration, HostName, Name, is_host_name
from probes.core.settings import ProbeSettings, ServerSettings, Settings
from probes.core.verdict import PhaseTimer, Run, Verdict
from probes.posture.exchange import (
    auth_certificate,
    build_of,
    build_text,
    healthy_server,
    judge_build,
    known_builds,
)
from probes.protocols.http_shown import shown_url
from probes.protocols.smtp_session import smtp_session
from probes.protocols.tls import expiry_warning

if TYPE_CHECKING:
    from probes.protocols.https import HttpClient, Response

MOST_NODES = 50
"""Maximum number of nodes of a probe. All are asked at the same time, each by one request at a time."""

SHARE_OF_DEADLINE = 0.9
"""Share of the deadline for the requests to a node, so that a slow node has the reason that tells where."""

HEALTH_PAGE_LIMIT = 16 * 1024
"""Maximum octets to read of a health page."""

SMTP_SECONDS = 5.0
"""Maximum seconds to ask a node's transport service whether it is in maintenance."""

AUTH_CERTIFICATE = "auth-certificate"
"""The target of the organization's Auth certificate."""

NODE_LABEL, DIRECTORY_LABEL = "exchange_node", "exchange_directory"
"""Labels of `mailsonde_probe_info`. Their prefix keeps them apart from labels that scraping may set."""

_METADATA = "/autodiscover/metadata/json/1"
_BUILD_HEADER = "x-owa-version"
_CLOUD = (
    *("outlook.office365.com", "outlook.office.com", "outlook.office365.us"),
    *("outlook-dod.office365.us", "partner.outlook.cn"),
)

Directory = Literal[
    "owa",
    "ecp",
    "ews",
    "mapi",
    "rpc",
    "oab",
    "autodiscover",
    "Microsoft-Server-ActiveSync",
    "PowerShell",
]
"""The virtual directories that have a health page."""


def _build(value: str) -> str:
    if build_of(value) is None:
        raise ValueError(f"{value!r} is not a build; write four numbers, such as 15.2.1748.39")
    return value


class NodeSettings(Settings):
    """One Exchange server."""

    address: HostName | None = Field(
        default=None,
        description=(
            "The server's own host name or IP address. Default: `host`, which is the way through the load "
            "balancer."
        ),
    )
    fqdn: HostName | None = Field(
        default=None,
        description=(
            "The server's name, which its health pages must give. Default: `address` if that is a name; "
            "otherwise any name is accepted."
        ),
    )


class ExchangeSettings(ProbeSettings):
    """Settings of an ``exchange`` probe."""

    kind: Literal["exchange"]
    host: HostName = Field(
        description="The public name of the servers, for Host header, TLS and certificate of each request."
    )
    port: int = Field(default=443, ge=1, le=65535, description="The HTTPS port of each node.")
    nodes: dict[Name, NodeSettings] = Field(
        max_length=MOST_NODES,
        description=(
            "The servers by name. Each directory of each is a target of its own, such as `owa@ex1`."
        ),
    )
    directories: tuple[Directory, ...] = Field(
        default=("owa", "ecp", "ews", "mapi", "rpc", "oab", "autodiscover", "Microsoft-Server-ActiveSync"),
        min_length=1,
        description="The virtual directories to check. Default: all but PowerShell.",
    )
    smtp_port: int = Field(
        default=25,
        ge=0,
        le=65535,
        description=(
            "Port of each node's transport service. It is asked only about a node with a directory that is "
            "not healthy, and tells whether the node is in maintenance. 0: it is not asked."
        ),
    )
    minimum_build: (
        Annotated[
            str,
            AfterValidator(_build),
            WithJsonSchema({"type": "string", "pattern": r"^[0-9]{1,5}(\.[0-9]{1,5}){3}$"}),
        ]
        | None
    ) = Field(
        default=None,
        description=(
            "Warn about servers with an older build. The build is in the answers of `owa`, unless a site "
            "removes it there."
        ),
    )
    auth_certificate: bool = Field(
        default=True,
        description=(
            "Whether to check the expiry of the organization's Auth certificate, at `host`, in the metadata "
            f"document of Autodiscover. Its target is `{AUTH_CERTIFICATE}`."
        ),
    )
    tls_ca: CertificateFile | None = Field(
        default=None,
        description=("PEM file to trust instead of the system's CAs; mailsonde rereads it when it changes."),
    )
    certificate_warning: Duration = Field(
        default=30 * 86400.0,
        description="Warn this long before a node's certificate or the Auth certificate expires.",
    )

    @field_validator("host")
    @classmethod
    def _is_on_premises(cls, host: str) -> str:
        if host.lower() in _CLOUD:
            raise ValueError(
                f"{host} is Exchange Online, which has no health pages; use kind: http with "
                "expect_status: [401, 403] for its EWS"
            )
        return host

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if not self.nodes:
            raise ValueError("nodes is empty; name at least one server")
        if len(set(self.directories)) < len(self.directories):
            raise ValueError("directories has an entry twice; keep one")
        if self.minimum_build is not None and "owa" not in self.directories:
            raise ValueError("minimum_build needs owa in directories, whose answers have the build; add it")
        names = [node.fqdn.lower() for node in self.nodes.values() if node.fqdn is not None]
        if len(set(names)) < len(names):
            raise ValueError("two nodes have the same fqdn; keep one, or correct it")
        places = [(node.address or self.host).lower() for node in self.nodes.values()]
        if twice := next((place for place in places if places.count(place) > 1), None):
            raise ValueError(f"two nodes have the address {twice}; keep one, or correct it")
        return self


class _Node:
    """One server in its latest runs: its connection, and what is known of it while they last."""

    def __init__(self, name: str, settings: ExchangeSettings) -> None:
        from probes.protocols.https import HttpClient  # half a second, which only sites with this kind need
        from probes.protocols.shared_connection import SharedConnection

        own = settings.nodes[name]
        self.name = name
        self.address = own.address or settings.host
        is_named = own.address is not None and is_host_name(own.address) and own.address != settings.host
        self.fqdn = (own.fqdn or (self.address if is_named else "")).lower()

        def client(phases: PhaseTimer) -> HttpClient:
            return HttpClient(
                phases,
                seconds=SHARE_OF_DEADLINE * settings.deadline,
                ca=settings.tls_ca,
                addresses={settings.host: self.address},
            )

        self.connection = SharedConnection(client)
        self._said_in: tuple[int, str] = 0, ""  # a round, and what its transport service said then

    async def maintenance(self, port: int, seconds: float, run: Run, clock: Clock) -> str:
        """Return what its transport service says of a maintenance; empty if it says nothing.

        It is asked once for all concurrent runs.
        """
        now = self.connection.round
        if port and self._said_in[0] != now:
            with run.phases.phase("smtp"):
                said = await _greeting(self.address, port, min(SMTP_SECONDS, seconds), clock)
            run.phases.transcript.note(f"SMTP on port {port}: {said}")
            self._said_in = now, said.detail if said.reason is Reason.MAINTENANCE else ""
        return self._said_in[1] if port else ""

    def require_own(self, server: str) -> None:
        """Raise `ProbeFault` if a health page is not this node's."""
        if self.fqdn and server != self.fqdn:
            raise ProbeFault(
                Reason.EXCHANGE_WRONG_SERVER, f"the page is that of {server}, expected {self.fqdn}"
            )


class Exchange(Probe):
    """Checks the health page of one virtual directory of one node; the other ones are its siblings."""

    settings: ExchangeSettings
    settings_model = ExchangeSettings
    areas: ClassVar[frozenset[Area]] = frozenset(
        {Area.AGENT, Area.DNS, Area.NETWORK, Area.TLS, Area.DIALOGUE, Area.HTTP, Area.EXCHANGE}
    )
    checks: ClassVar[frozenset[Check]] = frozenset(
        {Check.EXCHANGE_BUILD_BELOW_MINIMUM, Check.EXCHANGE_BUILD_UNKNOWN, Check.EXCHANGE_BUILD_OUTDATED}
    )

    def __init__(
        self,
        settings: ExchangeSettings,
        context: Context,
        of: tuple[_Node, Directory] | None = None,
    ) -> None:
        """Make the probe ``of`` a directory; without one, that of the first, with all others beside it."""
        super().__init__(settings, context)
        self._siblings: list[Probe] = []
        if of is None:
            from probes.protocols.https import http_context

            with suppress(ProbeFault):  # a run tells it
                http_context(settings.tls_ca)  # takes 20 ms, which would count in the first run's time
            nodes = [_Node(name, settings) for name in settings.nodes]
            of, *others = [(node, directory) for node in nodes for directory in settings.directories]
            self._siblings += [Exchange(settings, context, other) for other in others]
            if settings.auth_certificate:
                self._siblings.append(AuthCertificate(settings, context))
        self._node, self._directory = of

    @property
    def target(self) -> str:
        """The directory and the node's name."""
        return f"{self._directory}@{self._node.name}"

    @property
    def place(self) -> tuple[str, int]:
        """The node's address and port."""
        return self._node.address, self.settings.port

    @property
    def labels(self) -> Mapping[str, str]:
        """The node and the directory, so that rules can compare a node with the others."""
        return {NODE_LABEL: self._node.name, DIRECTORY_LABEL: self._directory}

    @property
    def siblings(self) -> Sequence[Probe]:
        """The probes of the other directories and nodes, and that of the Auth certificate."""
        return self._siblings

    @property
    def connections(self) -> int:
        """How many HTTP connections to its node were tried so far."""
        return self._node.connection.connections

    async def run(self, run: Run) -> Verdict:
        """Request the health page; if it is not healthy, ask whether the node is in maintenance."""
        until = asyncio.get_running_loop().time() + SHARE_OF_DEADLINE * self.settings.deadline
        node, port = self._node, self.settings.smtp_port
        server, build, maintenance = None, "", ""
        async with node.connection.turn(run.phases, until) as (client, seconds):
            response = await self._get(client, f"/{self._directory}/healthcheck.htm", seconds, run)
            if response.status == 200:
                server = healthy_server(response.body)
            if server is None:
                maintenance = await node.maintenance(port, seconds, run, self.context.clock)
            else:
                build = await self._build(client, response, seconds, run)
        if server is None:
            raise _unhealthy(response, maintenance)
        node.require_own(server)
        return self._verdict(response, server, build)

    async def _get(self, client: HttpClient, path: str, seconds: float, run: Run) -> Response:
        settings = self.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        response = await client.request(
            "GET", f"https://{host}:{settings.port}{path}", limit=HEALTH_PAGE_LIMIT, seconds=seconds
        )
        response.record(run.phases.transcript)
        return response

    async def _build(self, client: HttpClient, page: Response, seconds: float, run: Run) -> str:
        """Return the text of the header field that has the build, if this directory is the one with it."""
        if self._directory != "owa":
            return ""
        return page.header(_BUILD_HEADER) or (await self._get(client, "/owa/", seconds, run)).header(
            _BUILD_HEADER
        )

    def _verdict(self, response: Response, server: str, build_header: str) -> Verdict:
        settings, now = self.settings, self.context.clock.time()
        values: dict[str, object] = {"status": response.status, "server": server}
        findings, reason, detail = None, Reason.NONE, ""
        if (build := build_of(build_header)) is not None:
            release, minimum = known_builds().release_of(build), build_of(settings.minimum_build or "")
            findings = tuple(judge_build(server, build, minimum, datetime.fromtimestamp(now, UTC).date()))
            values |= {"build": build_text(build), "release": release.name if release else "not known"}
            if minimum is not None and build < minimum:
                reason = Reason.EXCHANGE_OLD_BUILD
                detail = f"{build_text(build)}, expected {settings.minimum_build} or newer"
        elif settings.minimum_build is not None and self._directory == "owa":
            seen = f"X-OWA-Version: {legible(build_header, 40) or 'no such field'}"
            wanted = f"{settings.minimum_build} or newer"
            findings = (Finding(Check.EXCHANGE_BUILD_UNKNOWN, Severity.INFO, server, seen, wanted),)
        expiry = None
        if self._directory == settings.directories[0]:  # the certificate is the node's; one target tells it
            expiry = response.certificate_expiry
            ending, told = expiry_warning(expiry, now, settings.certificate_warning)
            if ending is not Reason.NONE:
                reason, detail = ending, told
        return Verdict(
            reason,
            detail,
            values=values,
            certificate_not_after=expiry and expiry.not_after,
            findings=findings,
        )


def _unhealthy(response: Response, maintenance: str) -> ProbeFault:
    """Return the fault for a page that is not the healthy one."""
    from probes.protocols.https import status_text

    seen = status_text(response.status)
    if response.is_redirect:
        seen += f", which redirects to {shown_url(response.location)}"
    elif response.status == 200:
        shown = legible(response.body, 100)
        seen += f" with another page than the healthy one: {shown}" if shown else " without a page"
    if maintenance:
        return ProbeFault(Reason.MAINTENANCE, f"{seen}; SMTP: {maintenance}")
    remedy = ""
    if response.status in {401, 403}:
        remedy = "Allow anonymous access to the health page, or take the directory out of `directories`."
    return ProbeFault(Reason.EXCHANGE_UNHEALTHY, seen, remedy=remedy)


async def _greeting(host: str, port: int, seconds: float, clock: Clock) -> ProbeFault:
    """Return what a transport service says; its phases are not those of the run."""
    server = ServerSettings.model_validate(
        {
            "protocol": "smtp",
            "host": host,
            "port": port,
            "tls": "none",
            "timeout": f"{max(0.1, seconds):.3f}s",
        }
    )
    try:
        async with asyncio.timeout(seconds), smtp_session(server, PhaseTimer(clock), clock) as session:
            await session.quit()
    except ProbeFault as fault:
        return fault
    except TimeoutError:  # perhaps after a wait for one of our own connections
        return ProbeFault(Reason.TIMEOUT, f"no answer within {seconds:.3g} s")
    return ProbeFault(Reason.NONE, session.greeting.text)


class AuthCertificate(Probe):
    """Checks when the organization's Auth certificate expires. Without it, OWA and hybrid stop working."""

    settings: ExchangeSettings
    settings_model = ExchangeSettings
    areas: ClassVar[frozenset[Area]] = Exchange.areas

    @property
    def target(self) -> str:
        """The same for each probe."""
        return AUTH_CERTIFICATE

    @property
    def place(self) -> tuple[str, int]:
        """The public name and port."""
        return self.settings.host, self.settings.port

    async def run(self, run: Run) -> Verdict:
        """Read the metadata document, and judge the expiry of the certificate in it."""
        from probes.protocols.https import HttpClient, status_text

        settings, now = self.settings, self.context.clock.time()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        async with HttpClient(
            run.phases, seconds=SHARE_OF_DEADLINE * settings.deadline, ca=settings.tls_ca
        ) as client:
            response = await client.request("GET", f"https://{host}:{settings.port}{_METADATA}")
        response.record(run.phases.transcript)
        if response.status != 200:
            if response.status >= 500:
                raise ProbeFault(Reason.HTTP_UNAVAILABLE, status_text(response.status))
            remedy = "Allow anonymous access to the metadata document, or set `auth_certificate: false`."
            raise ProbeFault(Reason.HTTP_STATUS, status_text(response.status), remedy=remedy)
        expiry = auth_certificate(response.json_object())
        if expiry.not_after <= now:
            return Verdict(
                Reason.CERTIFICATE_EXPIRED, f"it has ended: {expiry}", certificate_not_after=expiry.not_after
            )
        reason, detail = expiry_warning(expiry, now, settings.certificate_warning)
        return Verdict(
            reason, detail, values={"certificate": str(expiry)}, certificate_not_after=expiry.not_after
        )
