"""Finds a mail domain's servers: SRV records, autoconfig, autodiscover, then well-known names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from monitor.init.autoconfig import ask_autoconfig, ask_autodiscover
from monitor.init.endpoint import Endpoint, MailProtocol, TlsMode, host_name, usual_ports
from monitor.init.providers import Hosting, provider_of_mx, provider_of_server
from monitor.init.web import PageError, Web
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.protocols.dns import Resolver, a_labels

ENDPOINTS_TRIED = 10
"""Maximum number of servers to try for one protocol."""

RECORDS_LIMIT = 4
"""Maximum number of records to use from one SRV or MX answer, and of aliases."""

_SERVICES: tuple[tuple[str, MailProtocol, TlsMode], ...] = (
    ("_submissions", "smtp", "implicit"),
    ("_submission", "smtp", "starttls"),
    ("_imaps", "imap", "implicit"),
    ("_imap", "imap", "starttls"),
    ("_pop3s", "pop3", "implicit"),
    ("_pop3", "pop3", "starttls"),
)
"""The services of RFC 6186 section 3 and RFC 8314 section 5.1."""

_WELL_KNOWN: tuple[tuple[MailProtocol, str], ...] = (("smtp", "smtp"), ("imap", "imap"), ("pop3", "pop"))


@dataclass(frozen=True, slots=True)
class Source:
    """A source: its name, the endpoints that it gave, and a description of its answer."""

    name: str
    endpoints: tuple[Endpoint, ...]
    said: str


class Discovery:
    """Asks all sources about one mail address concurrently; sends no secrets."""

    def __init__(self, address: str, resolver: Resolver, web: Web) -> None:
        self._address = address
        self._domain = a_labels(address.rpartition("@")[2])
        self._resolver = resolver
        self._web = web

    async def sources(self, told: Callable[[Source], None]) -> list[Source]:
        """Return the sources, the most trustworthy first; calls ``told`` with each when it is done."""
        domain = self._domain
        asked: list[tuple[str, Awaitable[list[Endpoint]]]] = [
            ("SRV records", self._srv()),
            *(
                (f"autoconfig at {url.split('/')[2]}", ask_autoconfig(url, self._address, self._web))
                for url in (
                    f"https://autoconfig.{domain}/mail/config-v1.1.xml",
                    f"https://{domain}/.well-known/autoconfig/mail/config-v1.1.xml",
                )
            ),
            *(
                (f"autodiscover at {host}", ask_autodiscover(host, self._address, self._web))
                for host in (f"autodiscover.{domain}", domain)
            ),
            ("autodiscover by SRV record", self._autodiscover_by_srv()),
            ("well-known names", self._well_known()),
        ]

        async def ask(name: str, answer: Awaitable[list[Endpoint]]) -> Source:
            source = await _source(name, answer)
            told(source)
            return source

        return await asyncio.gather(*(ask(name, answer) for name, answer in asked))

    async def hosting(self) -> Hosting | None:
        """Return the provider of the domain's mailboxes, if DNS shows one that takes no passwords.

        The alias of autodiscover says where the mailboxes are; behind a filter, MX records do not.
        """
        alias = f"autodiscover.{self._domain}"
        aliases, mx_hosts = await asyncio.gather(_or_none(self._aliases(alias)), _or_none(self._mx_hosts()))
        for host in aliases:
            if provider := provider_of_server(host):
                return Hosting(provider, f"{alias} is an alias of {host}")
        for host in mx_hosts:
            if provider := provider_of_mx(host):
                return Hosting(provider, f"MX record {host}")
        return None

    async def _aliases(self, name: str) -> list[str]:
        """Return the host names to which CNAME records lead from ``name``, in order; raises `ProbeFault`."""
        found: list[str] = []
        while len(found) < RECORDS_LIMIT:
            following = _host_names(await self._records(found[-1] if found else name, "CNAME"))
            if not following:
                break
            found.append(following[0])
        return found

    async def _srv(self) -> list[Endpoint]:
        """Return the endpoints in SRV records, by protocol."""
        found = await asyncio.gather(*(self._service(*service) for service in _SERVICES))
        return [endpoint for endpoints in found for endpoint in endpoints]

    async def _service(self, service: str, protocol: MailProtocol, tls: TlsMode) -> list[Endpoint]:
        return [
            Endpoint(protocol, host, port, tls, f"SRV {service}", self._is_ours(host))
            for host, port in await self._targets(service)
        ]

    async def _autodiscover_by_srv(self) -> list[Endpoint]:
        """Return what autodiscover says at the host in the SRV record ([MS-OXDISCO] section 3.1.5.3).

        A host outside the domain does not speak for it: in that case, only servers within the domain
        are vouched for. Raises `PageError`.
        """
        for host, port in (await self._targets("_autodiscover"))[:1]:
            where = host if port == 443 else f"{host}:{port}"
            found = await ask_autodiscover(where, self._address, self._web)
            if self._is_ours(host):
                return found
            return [replace(endpoint, vouched=self._is_ours(endpoint.host)) for endpoint in found]
        return []

    async def _targets(self, service: str) -> list[tuple[str, int]]:
        """Return hosts and ports of a service: by priority, then weight (RFC 2782)."""
        records = []
        for text in await self._records(f"{service}._tcp.{self._domain}", "SRV"):
            *numbers, target = text.split(maxsplit=3)
            priority, weight, port = map(int, numbers)
            if port > 0:
                records.append((priority, -weight, port, target))
        found = []
        for _, _, port, target in sorted(records)[:RECORDS_LIMIT]:
            with suppress(ValueError):  # such as ".", which means that the service is not offered
                found.append((host_name(target), port))
        return found

    async def _well_known(self) -> list[Endpoint]:
        """Return the standard ports of MX hosts and of hosts with common names, if they exist."""
        mx_hosts = (await self._mx_hosts())[:1]  # the others are backups and rarely have mailboxes
        hosts = {protocol: f"{label}.{self._domain}" for protocol, label in _WELL_KNOWN}
        common = [f"mail.{self._domain}", *mx_hosts]
        names = [*hosts.values(), *common]
        there = dict(zip(names, await asyncio.gather(*map(self._exists, names)), strict=True))
        return [
            endpoint
            for protocol, own in hosts.items()
            for host in dict.fromkeys((own, *common))
            if there[host]
            for endpoint in usual_ports(
                protocol,
                host,
                "MX record" if host in mx_hosts else "a common name",
                self._is_ours(host),
            )
        ]

    async def _mx_hosts(self) -> list[str]:
        """Return the MX hosts by preference; raises `ProbeFault`."""
        records = [text.split(maxsplit=1) for text in await self._records(self._domain, "MX")]
        records.sort(key=lambda record: int(record[0]))
        return _host_names(target for _, target in records)

    async def _exists(self, host: str) -> bool:
        """Whether a guessed name has an address; a failed lookup counts as no."""
        try:
            return any([await self._records(host, rdtype) for rdtype in ("A", "AAAA")])
        except ProbeFault:
            return False

    async def _records(self, name: str, rdtype: str) -> list[str]:
        """Return records as text, empty if the name does not exist; raises `ProbeFault`."""
        try:
            answer = await self._resolver.ask(name, rdtype)
        except ProbeFault as fault:
            if fault.reason is Reason.DNS_NXDOMAIN:
                return []
            raise
        return [record.to_text() for record in answer.records]

    def _is_ours(self, host: str) -> bool:
        return host == self._domain or host.endswith(f".{self._domain}")


def _host_names(names: Iterable[str]) -> list[str]:
    """Return the first few names in A-labels, without those that are not host names, such as "."."""
    found = []
    for name in islice(names, RECORDS_LIMIT):
        with suppress(ValueError):
            found.append(host_name(name))
    return found


async def _or_none(answer: Awaitable[list[str]]) -> list[str]:
    """Return the names, or none if DNS does not tell."""
    try:
        return await answer
    except ProbeFault:
        return []


async def _source(name: str, answer: Awaitable[list[Endpoint]]) -> Source:
    try:
        endpoints = await answer
    except (PageError, ProbeFault) as error:
        return Source(name, (), str(error))
    hosts = dict.fromkeys(endpoint.host for endpoint in endpoints)
    return Source(name, tuple(endpoints), ", ".join(hosts) or "none")


def candidates(sources: Iterable[Source]) -> list[Endpoint]:
    """Return each endpoint once, the most trustworthy source first, with a maximum number per protocol."""
    found: dict[object, Endpoint] = {}
    counts = dict.fromkeys(("smtp", "imap", "pop3"), 0)
    for source in sources:
        for endpoint in source.endpoints:
            if endpoint.key not in found and counts[endpoint.protocol] < ENDPOINTS_TRIED:
                found[endpoint.key] = endpoint
                counts[endpoint.protocol] += 1
    return list(found.values())
