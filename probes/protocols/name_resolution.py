"""Resolves host names with this machine's own settings, without threads.

The C library's getaddrinfo blocks a thread until DNS answers, and cannot be cancelled. A few names whose DNS
does not answer would delay all others. So this module reads the hosts file, the search list and the name
servers itself. The C library is used, on separate threads, only for names that DNS does not know, and only
if the machine has other sources of names (nsswitch.conf), such as multicast DNS or LDAP.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from math import inf
from types import MappingProxyType

from probes.core.daemon_threads import DaemonThreads, TooManyThreads
from probes.core.faults import ProbeFault, fault_of
from probes.core.reasons import Outcome, Reason
from probes.core.setting_types import AddressFamily, is_ip_address
from probes.protocols.dns import Resolver, ResolverSettings
from probes.protocols.resolver_files import SYSTEM_FILES, ResolverFiles, StubResolver

TIMEOUT = 2.0
"""Seconds to wait for a name server's answer at the first attempt; each further attempt doubles them.

The C library waits 5 s. Here a name server that is down must not use up a probe's time.
"""

ATTEMPTS = 3
"""Number of queries to each name server before it counts as not answering."""

OTHER_FAMILY = 1.0
"""Seconds to wait for the other family's addresses: some servers drop AAAA queries."""

MOST_THREADS = 4
"""Maximum number of concurrent lookups in sources other than DNS."""

_ABSENT = frozenset({Reason.DNS_NXDOMAIN, Reason.DNS_NO_ADDRESS})
_POLICIES = tuple(  # RFC 6724 section 2.1: prefix, precedence, label; the longest prefix first
    (ip_network(prefix), precedence, label)
    for prefix, precedence, label in (
        ("::1/128", 50, 0),
        ("::ffff:0:0/96", 35, 4),
        ("2001::/32", 5, 5),
        ("2002::/16", 30, 2),
        ("fc00::/7", 3, 13),
        ("::/0", 40, 1),
    )
)


@dataclass(frozen=True, slots=True)
class Family:
    """An address family: its name, and how to query its addresses in DNS and in the C library."""

    address: str
    rdtypes: tuple[str, ...]
    for_c_library: socket.AddressFamily

    def of(self, addresses: Iterable[str]) -> list[str]:
        """Return the ``addresses`` of this family."""
        return [address for address in addresses if ("AAAA" if ":" in address else "A") in self.rdtypes]

    def absent(self, name: str) -> ProbeFault:
        """Return the fault for a name that exists but has no address of this family."""
        return ProbeFault(Reason.DNS_NO_ADDRESS, f"{name.removesuffix('.')} has no {self.address}")


FAMILIES: Mapping[AddressFamily, Family] = MappingProxyType(
    {
        "any": Family("address", ("AAAA", "A"), socket.AF_UNSPEC),
        "ipv4": Family("IPv4 address", ("A",), socket.AF_INET),
        "ipv6": Family("IPv6 address", ("AAAA",), socket.AF_INET6),
    }
)


@dataclass
class _LookUp:
    """A lookup in progress, shared by all callers that need the same name."""

    task: asyncio.Task[list[str] | ProbeFault]
    waiting: int = 0


class NameResolution:
    """Resolves host names according to ``files``; ``port`` is the name servers' port."""

    def __init__(self, files: ResolverFiles = SYSTEM_FILES, port: int = 53) -> None:
        self._files = files
        self._port = port
        self._stub_resolver: StubResolver | None = None
        self._nameservers: list[Resolver] = []
        self._under_way: dict[tuple[asyncio.AbstractEventLoop, str, Family], _LookUp] = {}
        self._threads = DaemonThreads(MOST_THREADS)

    async def resolve(
        self, host: str, port: int, seconds: float, family: AddressFamily = "any"
    ) -> list[tuple[str, int]]:
        """Return the addresses of ``host`` in a family, each with ``port``, in the order of RFC 6724.

        Concurrent calls for the same name share one lookup, which is cancelled when nobody waits for it.
        Raises `ProbeFault` with `DNS_NXDOMAIN` or `DNS_NO_ADDRESS` if the name definitely has no such
        address. Every other reason has the outcome unknown.
        """
        wanted = FAMILIES[family]
        listed = self._without_dns(host)
        addresses = in_order(wanted.of(listed))
        if not addresses:
            found = await self._shared(host.lower(), wanted, seconds)
            if isinstance(found, ProbeFault):
                if listed and found.reason is Reason.DNS_NXDOMAIN:  # it is in the hosts file, so it exists
                    raise wanted.absent(host)
                raise ProbeFault(found.reason, found.detail)  # a copy, because each run redacts its own
            addresses = found
        return [(address, port) for address in addresses]

    def _without_dns(self, host: str) -> Sequence[str]:
        if is_ip_address(host):
            return [host]
        name = host.lower().removesuffix(".")
        listed = self._files.hosts.get(name, ())
        if not listed and (name == "localhost" or name.endswith(".localhost")):
            listed = ("::1", "127.0.0.1")  # RFC 6761 section 6.3: never resolved by DNS
        return listed

    async def _shared(self, host: str, family: Family, seconds: float) -> list[str] | ProbeFault:
        key = asyncio.get_running_loop(), host, family
        if key not in self._under_way:
            task = asyncio.create_task(self._look_up(host, family), name=f"resolve {host}")
            self._under_way[key] = _LookUp(task)
        look_up = self._under_way[key]
        look_up.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(look_up.task)
        except TimeoutError:
            return ProbeFault(Reason.DNS_TIMEOUT, f"{host}: no {family.address} after {seconds:g} s")
        finally:
            look_up.waiting -= 1
            if (not look_up.waiting or look_up.task.done()) and self._under_way.get(key) is look_up:
                del self._under_way[key]
                look_up.task.cancel()

    async def _look_up(self, host: str, family: Family) -> list[str] | ProbeFault:
        """Return the addresses of the first name of the search list that has any."""
        sources = self._files.host_sources
        names = self._files.stub_resolver.names_for(host) if "dns" in sources else []
        faults: list[ProbeFault] = []
        for name in names:
            found = await self._ask_for_addresses(name, family)
            if not isinstance(found, ProbeFault):
                return in_order(found)
            faults.append(found)
            if found.reason is Reason.DNS_TIMEOUT:  # the next name would also time out
                break
        if names and names[0].removesuffix(".") == host.removesuffix("."):
            del faults[1:]  # names from the search list are only guesses
        fault = _most_telling(faults or [ProbeFault(Reason.DNS_NXDOMAIN, f"{host} is not a known name")])
        if fault.reason is Reason.DNS_NXDOMAIN and not {"files", "dns"}.issuperset(sources):
            return await self._ask_other_sources(host, family, fault)
        return fault

    async def _ask_for_addresses(self, name: str, family: Family) -> list[str] | ProbeFault:
        """Query all types of address concurrently."""
        tasks = [
            asyncio.create_task(self._ask_nameservers(name, rdtype, family)) for rdtype in family.rdtypes
        ]
        try:
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                has_address = any(isinstance(task.result(), list) for task in done)
                await asyncio.wait(pending, timeout=OTHER_FAMILY if has_address else None)
            results = [task.result() for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
        addresses = [address for result in results if isinstance(result, list) for address in result]
        return addresses or _most_telling(result for result in results if isinstance(result, ProbeFault))

    async def _ask_nameservers(self, name: str, rdtype: str, family: Family) -> list[str] | ProbeFault:
        """Query the name servers in turn, as many times as resolv.conf says, until one answers."""
        options, nameservers = self._name_servers()
        loop = asyncio.get_running_loop()
        for attempt in range(options.get("attempts", ATTEMPTS)):
            faults = []
            for nameserver in nameservers:
                until = loop.time() + options.get("timeout", TIMEOUT) * 2**attempt
                try:
                    answer = await nameserver.ask(name, rdtype, until=until)
                except ProbeFault as fault:
                    if fault.reason is Reason.DNS_NXDOMAIN:
                        return fault
                    faults.append(fault)
                else:
                    return [record.to_text() for record in answer.records] or family.absent(name)
            if all(fault.reason is not Reason.DNS_TIMEOUT for fault in faults):
                break  # a refusal is final; only silence is worth another attempt
        return faults[0]

    def _name_servers(self) -> tuple[Mapping[str, int], list[Resolver]]:
        """Return the options, and the name servers in the order in which to query them."""
        stub_resolver = self._files.stub_resolver
        if stub_resolver is not self._stub_resolver:
            self._stub_resolver = stub_resolver
            self._nameservers = [
                Resolver(ResolverSettings.model_construct(address=address, port=self._port, timeout=inf))
                for address in stub_resolver.nameservers
            ]
        options, nameservers = stub_resolver.options, self._nameservers
        if "rotate" in options:
            nameservers = random.sample(nameservers, len(nameservers))
        return options, nameservers

    async def _ask_other_sources(
        self, host: str, family: Family, absent: ProbeFault
    ) -> list[str] | ProbeFault:
        """Return what the C library finds, or ``absent`` if it finds nothing either."""
        ask = partial(_from_c_library, host, family, absent)
        try:
            return await self._threads.call(ask, name=f"resolve {host}")
        except TooManyThreads:
            return ProbeFault(Reason.DNS_TIMEOUT, f"{host}: the other sources of names are busy")


def _from_c_library(host: str, family: Family, absent: ProbeFault) -> list[str] | ProbeFault:
    try:
        entries = socket.getaddrinfo(host, None, family.for_c_library, socket.SOCK_STREAM)
    except OSError as error:
        fault = fault_of(error) or ProbeFault(Reason.DNS_SERVFAIL, str(error))
        return absent if fault.reason in _ABSENT else fault
    return [str(entry[4][0]) for entry in entries]


def _most_telling(faults: Iterable[ProbeFault]) -> ProbeFault:
    """Return the first fault that proves nothing, or else one that says that the name exists."""
    return min(
        faults,
        key=lambda fault: (fault.reason.outcome is not Outcome.UNKNOWN, fault.reason is Reason.DNS_NXDOMAIN),
    )


def in_order(addresses: Iterable[str]) -> list[str]:
    """Return addresses in the order in which to try them, without duplicates.

    The order follows RFC 6724 section 6: addresses that this machine can reach first (rule 1), then those
    with the label of its own address (rule 5), then by precedence (rule 6), then as found (rule 10).
    """
    found = list(dict.fromkeys(addresses))
    if any(":" in address for address in found) and len(found) > 1:
        found.sort(key=_rank)
    return found


def _rank(address: str) -> tuple[bool, bool, int]:
    precedence, label = _policy(address)
    source = _source_for(address)
    return source is None, source is not None and _policy(source)[1] != label, -precedence


def _policy(address: str) -> tuple[int, int]:
    """Return precedence and label (RFC 6724 section 2.1)."""
    parsed = ip_address(address if ":" in address else f"::ffff:{address}")
    return next((precedence, label) for prefix, precedence, label in _POLICIES if parsed in prefix)


def _source_for(address: str) -> str | None:
    """Return the address from which this machine would send, or ``None`` if it has no route."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as unsent:
            unsent.connect((address, 53))  # for a datagram socket, this sends nothing
            return str(unsent.getsockname()[0])
    except OSError:
        return None


system = NameResolution()
"""This process's resolver for host names."""
