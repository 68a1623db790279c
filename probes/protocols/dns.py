"""DNS queries for probes: to one resolver, without a cache, distinguishing every kind of absence."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf
from typing import Annotated, cast

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
from pydantic import AfterValidator, Field

from probes.core.descriptors import require_descriptor
from probes.core.faults import ProbeFault, fault_of, legible
from probes.core.reasons import Outcome, Reason
from probes.core.setting_types import Duration, OrVariable, is_host_name, is_ip_address
from probes.core.settings import Settings
from probes.protocols.resolver_files import SYSTEM_FILES

EDNS_PAYLOAD = 1232
"""Maximum UDP answer to request, in octets (RFC 6891 section 6.2.5); no link fragments it."""

WITHOUT_EDNS = 600.0
"""Seconds to query without EDNS after a resolver answered only without it (RFC 6891 section 6.2.2)."""

MOST_DATAGRAMS = 100
"""Maximum number of unread datagrams; any more are a flood and dropped."""

_NO_EDNS = (dns.rcode.FORMERR, dns.rcode.NOTIMP)


def a_labels(value: str) -> str:
    """Return a domain name in A-labels (RFC 5890), lower case, without a final dot; raises ValueError."""
    try:
        name = dns.name.from_text(value, idna_codec=dns.name.IDNA_2008).to_text(omit_final_dot=True).lower()
    except (dns.exception.DNSException, UnicodeError):
        name = ""
    if not is_host_name(name):
        raise ValueError(f"{legible(value, 80)!r} is not a domain name such as example.com")
    return name


def _ip_address(value: str) -> str:
    if not is_ip_address(value):
        raise ValueError(f"{legible(value, 80)!r} is not an IP address such as 192.0.2.53")
    return value


DomainName = Annotated[str, AfterValidator(a_labels), OrVariable()]
"""A domain name; letters beyond ASCII are converted to A-labels."""

IpAddress = Annotated[str, AfterValidator(_ip_address)]


class ResolverSettings(Settings):
    """The recursive resolver to query."""

    address: IpAddress = Field(
        default_factory=lambda: SYSTEM_FILES.stub_resolver.nameservers[0],
        description="IP address of a recursive resolver. Default: the system's first.",
    )
    port: int = Field(default=53, ge=1, le=65535, description="Its port, for UDP and TCP.")
    timeout: Duration = Field(
        default=5.0, gt=0, le=60, description="Time limit for one query, including its retry."
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """A resolver's answer to one query. Without ``records``, the name exists but has none of that type.

    ``ttl`` is the smallest on the way, in seconds. ``aliases`` are the names that CNAME records led to, in
    order.
    """

    records: tuple[dns.rdata.Rdata, ...]
    ttl: int
    aliases: tuple[dns.name.Name, ...] = ()


class _EdnsRefusedError(Exception):
    """The resolver says that it does not support EDNS."""


class _Datagrams(asyncio.DatagramProtocol):
    """A connected socket: it receives only from its peer, and reports ICMP errors."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[bytes | Exception] = asyncio.Queue(MOST_DATAGRAMS)
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)  # uvloop's are no subclass of it

    def datagram_received(self, data: bytes, _: object) -> None:
        self._take(data)

    def error_received(self, exc: Exception) -> None:
        self._take(exc)

    def _take(self, arrived: bytes | Exception) -> None:
        with suppress(asyncio.QueueFull):
            self._arrived.put_nowait(arrived)

    def send(self, octets: bytes) -> None:
        """Send a datagram."""
        self.transport.sendto(octets)

    async def receive(self) -> bytes:
        """Wait for the next datagram; raises OSError."""
        arrived = await self._arrived.get()
        if isinstance(arrived, Exception):
            raise arrived
        return arrived


@asynccontextmanager
async def _connected(address: str, port: int) -> AsyncIterator[_Datagrams]:
    """Yield a datagram socket, made here because event loops resolve even IP addresses on shared threads."""
    require_descriptor()
    made = socket.socket(dns.inet.af_for_address(address), socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.connect((address, port))
        transport, datagrams = await asyncio.get_running_loop().create_datagram_endpoint(
            _Datagrams, sock=made
        )
    except BaseException:
        made.close()
        raise
    try:
        yield datagrams
    finally:
        transport.abort()


def _question(name: dns.name.Name | str, rdtype: str, has_edns: bool) -> dns.message.QueryMessage:
    """Return a query, with or without EDNS; raises DNSException for a name that is not valid in DNS."""
    return dns.message.make_query(name, rdtype, use_edns=has_edns, payload=EDNS_PAYLOAD)


def _refuses(datagram: bytes) -> bool:
    """Return whether a response says FORMERR or NOTIMP, even if the rest of it is malformed."""
    return len(datagram) > 3 and datagram[2] & 0x80 != 0 and datagram[3] & 0x0F in _NO_EDNS


class Resolver:
    """Queries one recursive resolver over UDP, or TCP if an answer does not fit (RFC 7766 section 5)."""

    def __init__(self, settings: ResolverSettings) -> None:
        self._settings = settings
        self._where = f"resolver {settings.address} port {settings.port}"
        self._without_edns_until = -inf  # in the event loop's seconds

    async def ask(self, name: dns.name.Name | str, rdtype: str, *, until: float | None = None) -> Answer:
        """Query the records of type ``rdtype`` at ``name``, following aliases.

        ``until``, in the event loop's seconds, shortens the timeout. Raises `ProbeFault` with `DNS_NXDOMAIN`
        if the name or its alias does not exist. Every other reason has the outcome unknown, because it says
        nothing about the name.
        """
        begun = asyncio.get_running_loop().time()
        ends = begun + self._settings.timeout
        if until is not None:
            ends = min(ends, until)
        has_edns = begun >= self._without_edns_until
        try:
            questions = [_question(name, rdtype, edns) for edns in (has_edns, False)]
        except dns.exception.DNSException as error:  # a guessed name may be longer than the one it is made of
            raise ProbeFault(Reason.DNS_NXDOMAIN, f"{name}: no name that DNS can hold") from error
        try:
            question, response = await self._over_udp(questions, begun, ends)
        except OSError as error:
            raise self._unreachable(questions[0], error) from error
        if has_edns and question is not questions[0]:
            self._without_edns_until = begun + WITHOUT_EDNS
        return self._answer(question, response or await self._over_tcp(question, ends))

    async def _over_udp(
        self, questions: Sequence[dns.message.QueryMessage], begun: float, ends: float
    ) -> tuple[dns.message.QueryMessage, dns.message.Message | None]:
        """Return the query that was answered, and the response, or ``None`` if it was truncated.

        Each query has an equal share of the time; a late answer to an earlier one still counts.
        Raises OSError, ProbeFault.
        """
        async with _connected(self._settings.address, self._settings.port) as datagrams:
            for count, question in enumerate(questions, 1):
                datagrams.send(question.to_wire())
                with suppress(TimeoutError, _EdnsRefusedError):
                    async with asyncio.timeout_at(begun + (ends - begun) * count / len(questions)):
                        while True:
                            datagram = await datagrams.receive()
                            if (found := self._response(questions[:count], datagram)) is not None:
                                return found
        raise self._fault(Reason.DNS_TIMEOUT, questions[0], f"no answer within {max(0, ends - begun):.3g} s")

    def _response(
        self, asked: Sequence[dns.message.QueryMessage], datagram: bytes
    ) -> tuple[dns.message.QueryMessage, dns.message.Message | None] | None:
        """Return the query that a datagram answers, and the response; ``None`` if it answers none.

        Raises `_EdnsRefusedError` if the datagram only refuses EDNS in the latest query.
        """
        question = next((each for each in asked if datagram[:2] == each.id.to_bytes(2, "big")), None)
        if question is None:
            return None
        if question.edns >= 0 and _refuses(datagram):
            if question is asked[-1]:
                raise _EdnsRefusedError
            return None
        try:
            response = dns.message.from_wire(datagram, raise_on_truncation=True)
        except dns.message.Truncated as cut:
            is_ours = question.is_response(cut.message())  # type: ignore[no-untyped-call] # dnspython's own gap
            return (question, None) if is_ours else None
        except dns.exception.DNSException as error:
            raise self._fault(Reason.DNS_MALFORMED, question, str(error)) from error
        return (question, response) if question.is_response(response) else None

    async def _over_tcp(self, query: dns.message.QueryMessage, ends: float) -> dns.message.Message:
        address, port = self._settings.address, self._settings.port
        require_descriptor()
        try:
            async with asyncio.timeout_at(ends):
                response = await dns.asyncquery.tcp(query, address, port=port)
        except (OSError, EOFError) as error:  # a timeout is an OSError too
            said = str(error) or "no answer in time"
            raise self._fault(Reason.DNS_TRUNCATED, query, f"cut over UDP, and over TCP: {said}") from error
        except (dns.exception.DNSException, dns.query.BadResponse) as error:
            raise self._fault(Reason.DNS_MALFORMED, query, f"over TCP: {error}") from error
        if response.flags & dns.flags.TC:  # what is left out must not read as absent
            raise self._fault(Reason.DNS_TRUNCATED, query, "cut over UDP and over TCP")
        return response

    def _answer(self, query: dns.message.QueryMessage, response: dns.message.Message) -> Answer:
        """Return what a response says about the name; raises `ProbeFault`."""
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
        if chain.answer is None:
            if _leaves_it_to_others(response, bool(aliases)):
                raise self._fault(Reason.DNS_REFUSED, query, "it is no recursive resolver for this name")
            if _has_other_records(response, len(aliases)):
                raise self._fault(
                    Reason.DNS_MALFORMED, query, "the records in its answer are of another name or type"
                )
        return Answer(tuple(chain.answer or ()), chain.minimum_ttl, aliases)

    def _unreachable(self, query: dns.message.QueryMessage, error: OSError) -> ProbeFault:
        """Return the fault of an unreachable resolver, which is never a fault of the mail system."""
        fault = fault_of(error)
        known = fault is not None and fault.reason.outcome is Outcome.UNKNOWN
        reason = fault.reason if fault is not None and known else Reason.DNS_TIMEOUT
        return self._fault(reason, query, error.strerror or str(error))

    def _fault(self, reason: Reason, query: dns.message.QueryMessage, said: str) -> ProbeFault:
        question = query.question[0]
        asked = f"{dns.rdatatype.to_text(question.rdtype)} of {_text(question.name)}"
        return ProbeFault(reason, f"{self._where}, asked for {asked}: {said}")


def _leaves_it_to_others(response: dns.message.Message, through_alias: bool) -> bool:
    """Return whether an answer without data is a referral or an alias not followed, which proves no absence.

    RFC 2308 section 2.2: NS records without an SOA record mean a referral.
    """
    kinds = {rrset.rdtype for rrset in response.authority}
    if dns.rdatatype.SOA in kinds:
        return False
    return dns.rdatatype.NS in kinds or (through_alias and not response.flags & dns.flags.RA)


def _has_other_records(response: dns.message.Message, aliases: int) -> bool:
    """Return whether there is more in an answer without data than so many aliases, and so no absence.

    A DNAME (RFC 6672) and signatures may come with the aliases.
    """
    besides = (dns.rdatatype.DNAME, dns.rdatatype.RRSIG)
    return sum(rrset.rdtype not in besides for rrset in response.answer) > aliases


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True)
