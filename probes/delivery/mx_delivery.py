"""Sends to each MX host of a domain, as mail servers do (RFC 5321 section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import dns.name
import dns.rdtypes.ANY.MX
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
from pydantic import Field

from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.setting_types import AddressFamily, CertificateFile, HostName, is_host_name
from probes.core.settings import ServerSettings, Settings
from probes.protocols.dns import Resolver, ResolverSettings
from probes.protocols.name_resolution import FAMILIES

MOST_HOSTS = 20
"""Maximum number of MX hosts of a domain to send to, the most preferred first."""


class MxDeliverySettings(Settings):
    """How to send messages to MX hosts."""

    port: int = Field(default=25, ge=1, le=65535, description="The TCP port of the MX hosts.")
    family: AddressFamily = Field(
        default="any", description="Which addresses of the MX hosts are connected to; IPv4 first with `any`."
    )
    tls: Literal["opportunistic", "required"] = Field(
        default="opportunistic",
        description="`required` requires STARTTLS and a valid certificate for the host's name.",
    )
    tls_ca: CertificateFile | None = Field(
        default=None, description="PEM file to trust instead of the system's CAs, with `tls: required`."
    )
    ehlo_name: HostName | None = Field(
        default=None,
        description=("Name in EHLO. Many hosts require a name that resolves. Default: an address."),
    )
    resolver: ResolverSettings = Field(
        default_factory=ResolverSettings,
        description=("The resolver to ask. Default: the system's first name server."),
    )


@dataclass(frozen=True, slots=True)
class MxHost:
    """An MX host that can be sent to: its name, and how to reach its first address."""

    name: str
    server: ServerSettings


class MxDelivery:
    """Finds the MX hosts of one domain."""

    def __init__(self, domain: str, settings: MxDeliverySettings) -> None:
        self.domain = domain.lower()
        self._settings = settings
        self._family = FAMILIES[settings.family]
        self._resolver = Resolver(settings.resolver)

    async def hosts(self) -> tuple[list[MxHost], list[str]]:
        """Return the hosts with an address, most preferred first, and the names of those without.

        Raises `ProbeFault`: `MX_NULL` or `MX_MISSING` if the domain accepts no mail, `MX_TARGET_UNRESOLVED`
        if no host has an address, and the resolver's fault if DNS does not answer.
        """
        reached, unreached = [], []
        for name in await self._names():
            address = await self._address(name)
            if address is None:
                unreached.append(name)
            else:
                reached.append(MxHost(name, self._server(name, address)))
        if not reached:
            lacking = f"the MX hosts of {self.domain} have no {self._family.address}"
            raise ProbeFault(Reason.MX_TARGET_UNRESOLVED, lacking)
        return reached, unreached

    async def _names(self) -> Sequence[str]:
        answer = await self._resolver.ask(self.domain, "MX")
        records = [rdata for rdata in answer.records if isinstance(rdata, dns.rdtypes.ANY.MX.MX)]
        if not records:
            return [self.domain]  # the implicit MX
        if all(record.exchange == dns.name.root for record in records):  # RFC 7505 section 3
            raise ProbeFault(Reason.MX_NULL, f"{self.domain} has a null MX: it says that it takes no mail")
        found = sorted(
            (record.preference, record.exchange.to_text(omit_final_dot=True).lower()) for record in records
        )
        names = [name for _, name in found if is_host_name(name)]
        if not names:
            raise ProbeFault(Reason.MX_TARGET_INVALID, legible(found[0][1], 80))
        return list(dict.fromkeys(names))[:MOST_HOSTS]

    async def _address(self, name: str) -> str | None:
        """Return the first address of a host; ``None`` if it definitely has none."""
        for rdtype in sorted(self._family.rdtypes):  # A before AAAA
            try:
                answer = await self._resolver.ask(dns.name.from_text(name), rdtype)
            except ProbeFault as fault:
                if fault.reason is Reason.DNS_NXDOMAIN:
                    return None
                raise
            for rdata in answer.records:
                if isinstance(rdata, dns.rdtypes.IN.A.A | dns.rdtypes.IN.AAAA.AAAA):
                    return str(rdata.address)
        return None

    def _server(self, name: str, address: str) -> ServerSettings:
        verified = self._settings.tls == "required"
        return ServerSettings.model_construct(
            protocol="smtp",
            host=address,
            port=self._settings.port,
            tls="starttls" if verified else "opportunistic",
            tls_ca=self._settings.tls_ca,
            tls_server_name=name,
            ehlo_name=self._settings.ehlo_name,
        )
