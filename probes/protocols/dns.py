"""DNS as probes ask it: one resolver, no cache, and every kind of absence told apart."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import dns.asyncbackend
import dns.asyncquery
import dns.exception
import dns.flags
import dns.inet
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.resolver
from pydantic import AfterValidator, Field

from probes.core.faults import ProbeFault, fault_of, legible
from probes.core.reasons import Outcome, Reason
from probes.core.setting_types import Duration, is_host_name
from probes.core.settings import Settings

EDNS_PAYLOAD = 1232
"""Largest UDP answer, in octets, that is asked for (RFC 6891 section 6.2.5); it crosses every link whole."""

UDP_ATTEMPTS = 2
"""How often a question goes out over UDP within its timeout."""


def a_labels(value: str) -> str:
    """Return a domain name in A-labels (RFC 5890), lower case, without a final dot; else ValueError."""
    try:
        name = dns.name.from_text(value, idna_codec=dns.name.IDNA_2008).to_text(omit_final_dot=True).lower()
    except (dns.exception.DNSException, UnicodeError):
        name = ""
    if not is_host_name(name):
        raise ValueError(f"{legible(value, 80)!r} is not a domain name such as example.com")
    return name


def system_nameserver() -> str:
    """Return the address of this machine's first name server, which is 127.0.0.1 where none is set."""
    try:
        nameservers = dns.resolver.Resolver(configure=True).nameservers
    except dns.resolver.NoResolverConfiguration:
        nameservers = []
    return str(nameservers[0]) if nameservers else "127.0.0.1"  # as resolv.conf(5) has it


def _ip_address(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"{legible(value, 80)!r} is not an IP address such as 192.0.2.53") from None
    return value


DomainName = Annotated[str, AfterValidator(a_labels)]
"""A domain name; one with letters beyond ASCII is turned into A-labels."""

IpAddress = Annotated[str, AfterValidator(_ip_address)]


class ResolverSettings(Settings):
    """The recursive resolver that questions go to."""

    address: IpAddress = Field(
        default_factory=system_nameserver,
        description="IP address of a recursive resolver. Default: the system's first.",
    )
    port: int = Field(default=53, ge=1, le=65535)
    timeout: Duration = Field(
        default=5.0, gt=0, le=60, description="Time limit for one query, including its retry."
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a resolver answered to one question; without ``records`` the name exists and lacks that type.

    ``ttl`` is in seconds, the smallest on the way. ``aliases`` are the names that CNAME
    records led to, in order.
    """

    records: tuple[dns.rdata.Rdata, ...]
    ttl: int
    aliases: tuple[dns.name.Name, ...] = ()


class Resolver:
    """Asks one recursive resolver, over UDP and, where an answer does not fit, TCP (RFC 7766 section 5)."""

    def __init__(self, settings: ResolverSettings) -> None:
        self._settings = settings
        self._where = f"resolver {settings.address} port {settings.port}"

    async def ask(self, name: dns.name.Name | str, rdtype: str, *, until: float | None = None) -> Answer:
        """Ask for the records of type ``rdtype`` at ``name``, following aliases.

        ``until``, in the event loop's seconds, cuts the timeout short. Raises `ProbeFault`
        with `DNS_NXDOMAIN` where the name, or what it is an alias of, does not exist;
        every other reason says that nothing was learnt about the name: its outcome is unknown.
        """
        try:
            query = dns.message.make_query(name, rdtype, use_edns=0, payload=EDNS_PAYLOAD)
        except dns.exception.DNSException as error:  # a guessed name may be longer than the one it is made of
            raise ProbeFault(Reason.DNS_NXDOMAIN, f"{name}: no name that DNS can hold") from error
        begun = asyncio.get_running_loop().time()
        ends = begun + self._settings.timeout
        if until is not None:
            ends = min(ends, until)
        try:
            response = await self._over_udp(query, begun, ends)
        except dns.message.Truncated:
            response = await self._over_tcp(query, ends)
        except OSError as error:
            raise self._unreachable(query, error) from error
        return self._answer(query, response)

    async def _over_udp(
        self, query: dns.message.QueryMessage, begun: float, ends: float
    ) -> dns.message.Message:
        """Return the response; raises `dns.message.Truncated` where it was cut, OSError, ProbeFault."""
        address, port = self._settings.address, self._settings.port
        backend = dns.asyncbackend.get_default_backend()
        # A connected socket hears of ICMP errors, and of nobody but the resolver.
        family = dns.inet.af_for_address(address)
        sock = await backend.make_socket(  # type: ignore[no-untyped-call] # dnspython leaves it unannotated
            family, socket.SOCK_DGRAM, 0, None, (address, port)
        )
        wire = query.to_wire()
        async with sock:
            for attempt in range(1, UDP_ATTEMPTS + 1):
                # The same question again, so that a late answer to the first still counts.
                await sock.sendto(wire, None, None)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(begun + (ends - begun) * attempt / UDP_ATTEMPTS):
                        while True:
                            datagram, _ = await sock.recvfrom(65535, None)
                            if (response := self._response(query, datagram)) is not None:
                                return response
        raise self._fault(Reason.DNS_TIMEOUT, query, f"no answer within {max(0, ends - begun):.3g} s")

    def _response(self, query: dns.message.QueryMessage, datagram: bytes) -> dns.message.Message | None:
        """Return the response that a datagram holds, or ``None`` if it answers something else."""
        try:
            response = dns.message.from_wire(datagram, raise_on_truncation=True)
        except dns.message.Truncated as cut:
            if query.is_response(cut.message()):  # type: ignore[no-untyped-call] # dnspython's own gap
                raise
            return None
        except dns.exception.DNSException as error:
            if datagram[:2] == query.id.to_bytes(2, "big"):
                raise self._fault(Reason.DNS_MALFORMED, query, str(error)) from error
            return None
        return response if query.is_response(response) else None

    async def _over_tcp(self, query: dns.message.QueryMessage, ends: float) -> dns.message.Message:
        address, port = self._settings.address, self._settings.port
        try:
            async with asyncio.timeout_at(ends):
                return await dns.asyncquery.tcp(query, address, port=port)
        except (OSError, EOFError) as error:  # a timeout is an OSError too
            said = str(error) or "no answer in time"
            raise self._fault(Reason.DNS_TRUNCATED, query, f"cut over UDP, and over TCP: {said}") from error
        except (dns.exception.DNSException, dns.query.BadResponse) as error:
            raise self._fault(Reason.DNS_MALFORMED, query, f"over TCP: {error}") from error

    def _answer(self, query: dns.message.QueryMessage, response: dns.message.Message) -> Answer:
        """Return what a response says of the name, or raise what it says of the resolver."""
        rcode = response.rcode()
        if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            reason = Reason.DNS_SERVFAIL if rcode == dns.rcode.SERVFAIL else Reason.DNS_REFUSED
            explained = "".join(f", {error.to_text()}" for error in response.extended_errors())  # RFC 8914
            raise self._fault(reason, query, f"{dns.rcode.to_text(rcode)}{explained}")
        if not isinstance(response, dns.message.QueryMessage):
            raise self._fault(Reason.DNS_MALFORMED, query, "not a response to a query")
        try:
            chain = response.resolve_chaining()
        except dns.exception.DNSException as error:
            raise self._fault(Reason.DNS_MALFORMED, query, str(error)) from error
        aliases = tuple(rrset[0].target for rrset in chain.cnames)
        if rcode == dns.rcode.NXDOMAIN:
            raise ProbeFault(Reason.DNS_NXDOMAIN, f"{_text(chain.canonical_name)} does not exist")
        if chain.answer is None and _leaves_it_to_others(response, bool(aliases)):
            raise self._fault(Reason.DNS_REFUSED, query, "it is no recursive resolver for this name")
        return Answer(tuple(chain.answer or ()), chain.minimum_ttl, aliases)

    def _unreachable(self, query: dns.message.QueryMessage, error: OSError) -> ProbeFault:
        """Return the fault of a resolver that cannot be reached: never one of the mail system."""
        fault = fault_of(error)
        known = fault is not None and fault.reason.outcome is Outcome.UNKNOWN
        reason = fault.reason if fault is not None and known else Reason.DNS_TIMEOUT
        return self._fault(reason, query, error.strerror or str(error))

    def _fault(self, reason: Reason, query: dns.message.QueryMessage, said: str) -> ProbeFault:
        question = query.question[0]
        asked = f"{dns.rdatatype.to_text(question.rdtype)} of {_text(question.name)}"
        return ProbeFault(reason, f"{self._where}, asked for {asked}: {said}")


def _leaves_it_to_others(response: dns.message.Message, through_alias: bool) -> bool:
    """Return whether an answer without data is a referral, or an alias not followed, and so no absence.

    RFC 2308 section 2.2: without an SOA record, NS records mark a referral.
    """
    kinds = {rrset.rdtype for rrset in response.authority}
    if dns.rdatatype.SOA in kinds:
        return False
    return dns.rdatatype.NS in kinds or (through_alias and not response.flags & dns.flags.RA)


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True)
