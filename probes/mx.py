"""The ``mx`` kind: whether a domain's MX records name hosts that can accept its mail.

This module queries DNS; `probes.posture.mx` judges the answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import dns.name
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.MX
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from probes.core.context import Context
from probes.core.faults import ProbeFault, legible
from probes.core.finding import Check
from probes.core.probe import Probe
from probes.core.reasons import Area, Reason
from probes.core.setting_types import is_host_name
from probes.core.settings import ProbeSettings
from probes.core.verdict import MX_LOOKUP, Run, Verdict
from probes.posture.mx import NULL, REASONS, Gathered, Host, MxRecord, conclude, judge
from probes.protocols.dns import Answer, DomainName, Resolver, ResolverSettings, a_labels

MOST_DOMAINS = 50
"""Maximum number of domains in a list, because they are looked up at the same time."""

RECORDS_EXAMINED = 50
"""Maximum number of MX records that a run examines, the most preferred first."""

ADDRESSES_SHOWN = 20
"""Maximum number of addresses of a host that a verdict shows. All of them are judged."""

HOSTS_AT_ONCE = 10
"""Maximum number of concurrent lookups of hosts."""

_SHARE_FOR_DNS = 0.9  # of the deadline: a slow resolver must end the run as unknown, not as a timeout


def _host_pattern(value: str) -> str:
    if value == NULL:
        return value
    wildcard = "*." if value.startswith("*.") else ""
    return wildcard + a_labels(value.removeprefix("*."))


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


def _each_once(domains: tuple[str, ...]) -> tuple[str, ...]:
    if not 1 <= len(domains) <= MOST_DOMAINS:
        raise ValueError(f"lists {len(domains)} domains; write 1 to {MOST_DOMAINS}")
    for position, domain in enumerate(domains):
        if domain in domains[:position]:
            raise ValueError(f"{domain} is listed twice; keep one")
    return domains


HostPattern = Annotated[str, AfterValidator(_host_pattern)]
"""A host name, ``*.`` and a suffix, or ``.`` for the null MX."""


class MxSettings(ProbeSettings):
    """Settings of an ``mx`` probe."""

    kind: Literal["mx"]
    domains: Annotated[
        tuple[DomainName, ...],
        BeforeValidator(_listed, json_schema_input_type=DomainName | tuple[DomainName, ...]),
        AfterValidator(_each_once),
    ] = Field(
        alias="domain",
        description=f"The domain to check, or a list of up to {MOST_DOMAINS}, each a target of its own.",
    )
    resolver: ResolverSettings = Field(
        default_factory=ResolverSettings,
        description=("The resolver to ask. Default: the system's first name server."),
    )
    expect: tuple[HostPattern, ...] | None = Field(
        default=None,
        min_length=1,
        description=(
            "All allowed MX hosts of each domain: names, or `*.` and a suffix. `.` alone means that the "
            "domain accepts no mail."
        ),
    )
    allow_private: bool = Field(
        default=False, description="Accept private and special addresses, for example with split-horizon DNS."
    )

    @field_validator("expect")
    @classmethod
    def _null_stands_alone(cls, expect: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if expect is not None and NULL in expect and len(expect) > 1:
            raise ValueError(
                "'.' means that the domain accepts no mail; remove it or the host names next to it"
            )
        return expect


class Mx(Probe):
    """Checks a domain's MX records and the hosts that they name."""

    settings: MxSettings
    settings_model = MxSettings
    areas: ClassVar[frozenset[Area]] = frozenset({Area.AGENT, Area.DNS, Area.NETWORK, Area.MX})
    checks: ClassVar[frozenset[Check]] = frozenset(check for check, _ in REASONS)

    def __init__(self, settings: MxSettings, context: Context, domain: str | None = None) -> None:
        """Make the probe of ``domain``; without one, that of the first domain, with the others beside it."""
        super().__init__(settings, context)
        first, *others = settings.domains
        self._domain = domain or first
        self._siblings = [Mx(settings, context, other) for other in others if domain is None]
        self._resolver = Resolver(settings.resolver)

    @property
    def target(self) -> str:
        """The domain, in A-labels."""
        return self._domain

    @property
    def siblings(self) -> Sequence[Probe]:
        """The probes of the other domains in the list."""
        return self._siblings

    async def run(self, run: Run) -> Verdict:
        """Query the MX records and the addresses of their hosts, and judge them."""
        settings = self.settings
        gathered = await self._gather(
            run, asyncio.get_running_loop().time() + _SHARE_FOR_DNS * settings.deadline
        )
        for record in gathered.records:
            addresses = gathered.hosts.get(record.host, Host()).addresses
            run.phases.transcript.note(f"MX {record.preference} {record.host}: {', '.join(addresses) or '-'}")
        findings = judge(self._domain, gathered, settings.expect, settings.allow_private)
        reason, detail = conclude(gathered, findings)
        return Verdict(reason, detail, values=_values(gathered), findings=tuple(findings))

    async def _gather(self, run: Run, until: float) -> Gathered:
        """Query the MX records, then their hosts."""
        try:
            with run.phases.phase(MX_LOOKUP):
                answer = await self._resolver.ask(self._domain, "MX", until=until)
        except ProbeFault as fault:
            if fault.reason is not Reason.DNS_NXDOMAIN:
                raise
            return Gathered((), 0, {}, nonexistence=fault.detail)
        with run.phases.phase("targets"):
            return await self._look_up_targets(answer, until)

    async def _look_up_targets(self, answer: Answer, until: float) -> Gathered:
        """Look up the hosts of an MX answer, or the domain itself if the answer is empty."""
        if not answer.records:
            domain = self._domain
            itself = await self._look_up(dns.name.from_text(domain), until)
            implicit = MxRecord(0, domain, itself.ttl or 0)
            return Gathered((implicit,) if itself.addresses else (), 0, {domain: itself})
        exchanges: dict[str, dns.name.Name] = {}
        records = []
        for rdata in answer.records:
            assert isinstance(rdata, dns.rdtypes.ANY.MX.MX)  # noqa: S101 # the resolver asked for this type
            host = _text(rdata.exchange)
            exchanges[host] = rdata.exchange
            records.append(MxRecord(rdata.preference, host, answer.ttl))
        records.sort(key=lambda record: (record.preference, record.host))
        examined = tuple(records[:RECORDS_EXAMINED])
        names = dict.fromkeys(record.host for record in examined if is_host_name(record.host))
        slots = asyncio.Semaphore(HOSTS_AT_ONCE)

        async def in_turn(name: dns.name.Name) -> Host:
            async with slots:
                return await self._look_up(name, until)

        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(in_turn(exchanges[name])) for name in names}
        return Gathered(examined, len(records), {name: task.result() for name, task in tasks.items()})

    async def _look_up(self, name: dns.name.Name, until: float) -> Host:
        """Query a host's alias and addresses, one after the other."""
        addresses: list[str] = []
        ttls: list[int] = []
        alias_of = fault = None
        # Some resolvers follow an alias silently; a query for the CNAME itself reveals it.
        for rdtype in ("CNAME", "A", "AAAA"):
            try:
                answer = await self._resolver.ask(name, rdtype, until=until)
            except ProbeFault as caught:
                if caught.reason is Reason.DNS_NXDOMAIN:
                    fault = None
                    break  # the same for all types
                if rdtype != "CNAME":  # the answers for addresses show most aliases too
                    fault = caught
                continue
            if answer.records or answer.aliases:
                ttls.append(answer.ttl)
            for rdata in answer.records:
                if isinstance(rdata, dns.rdtypes.IN.A.A | dns.rdtypes.IN.AAAA.AAAA):
                    addresses.append(rdata.address)
                elif isinstance(rdata, dns.rdtypes.ANY.CNAME.CNAME):
                    alias_of = _text(rdata.target)
            if answer.aliases:
                alias_of = alias_of or _text(answer.aliases[0])
        return Host(tuple(addresses), alias_of, min(ttls, default=None), fault)


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _values(gathered: Gathered) -> dict[str, object]:
    """Return the verdict's values, for people and programs."""
    ttls = [host.ttl for host in gathered.hosts.values() if host.ttl is not None]
    if not gathered.implicit:
        ttls += [record.ttl for record in gathered.records]
    records = []
    for record in gathered.records:
        host = gathered.hosts.get(record.host, Host())
        records.append(
            {
                "host": legible(record.host, 255),
                "preference": record.preference,
                "ttl": record.ttl,
                "addresses": list(host.addresses[:ADDRESSES_SHOWN]),
                "cname": legible(host.alias_of, 255) if host.alias_of is not None else None,
                "fault": str(host.fault.reason) if host.fault is not None else None,
            }
        )
    return {"mx_count": gathered.count, "ttl_min": min(ttls, default=None), "records": records}
