"""Judges a domain's MX records from what DNS said; no DNS query is sent here."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from probes.core.faults import ProbeFault, legible
from probes.core.finding import Check, Finding, Severity
from probes.core.reasons import Reason
from probes.core.setting_types import is_host_name

NULL = "."
"""The exchange of a null MX (RFC 7505 section 3)."""

_C, _W = Severity.CRITICAL, Severity.WARNING

REASONS: Mapping[tuple[Check, Severity], Reason] = MappingProxyType(
    {
        (Check.DOMAIN_MISSING, _C): Reason.DNS_NXDOMAIN,
        (Check.MX_MISSING, _C): Reason.MX_MISSING,
        (Check.MX_NULL_MIXED, _C): Reason.MX_NULL_MIXED,
        (Check.MX_NULL, _C): Reason.MX_NULL,
        (Check.MX_TARGET_UNRESOLVED, _C): Reason.MX_TARGET_UNRESOLVED,
        (Check.MX_UNEXPECTED, _C): Reason.MX_UNEXPECTED,
        (Check.MX_TARGET_INVALID, _C): Reason.MX_TARGET_INVALID,
        (Check.MX_PRIVATE_ADDRESS, _C): Reason.MX_PRIVATE_ADDRESS,
        (Check.MX_TARGET_UNRESOLVED, _W): Reason.MX_TARGET_PARTLY_UNRESOLVED,
        (Check.MX_EXPECTED_ABSENT, _W): Reason.MX_EXPECTED_ABSENT,
        (Check.MX_IMPLICIT, _W): Reason.MX_IMPLICIT,
        (Check.MX_TARGET_CNAME, _W): Reason.MX_TARGET_CNAME,
    }
)
"""The reason of a run by the check and severity of its worst finding, the worst first."""

_WORST_FIRST = tuple(REASONS)


@dataclass(frozen=True, slots=True)
class MxRecord:
    """One MX record: ``host`` in lower case without its final dot, ``ttl`` in seconds."""

    preference: int
    host: str
    ttl: int


@dataclass(frozen=True, slots=True)
class Host:
    """What DNS says about an MX host.

    ``alias_of`` is set if the host is a CNAME. ``fault`` says why a query for addresses got no
    answer: a host that shows no addresses may then have some. ``ttl`` is the smallest TTL of
    the answers, in seconds.
    """

    addresses: tuple[str, ...] = ()
    alias_of: str | None = None
    ttl: int | None = None
    fault: ProbeFault | None = None


@dataclass(frozen=True, slots=True)
class Gathered:
    """What DNS says about a domain: its MX records, most preferred first, and the hosts looked up.

    ``count`` is the number of MX records, examined or not. If there are none, the domain itself
    is looked up, and its addresses make one ``implicit`` record (RFC 5321 section 5.1).
    ``nonexistence`` is the answer about a domain that does not exist.
    """

    records: tuple[MxRecord, ...]
    count: int
    hosts: Mapping[str, Host]
    nonexistence: str | None = None

    @property
    def implicit(self) -> bool:
        """Whether the domain has no MX records."""
        return self.count == 0

    @property
    def unanswered(self) -> dict[str, ProbeFault]:
        """The hosts whose addresses could not be looked up, each with the reason."""
        return {
            name: host.fault
            for name, host in self.hosts.items()
            if host.fault is not None and not host.addresses
        }


def judge(
    domain: str, gathered: Gathered, expect: Sequence[str] | None, allow_private: bool
) -> list[Finding]:
    """Return every finding, the worst first. A failed lookup is no finding: see `conclude`."""
    if gathered.nonexistence is not None:
        expected = "a domain that exists"
        return [Finding(Check.DOMAIN_MISSING, _C, domain, gathered.nonexistence, expected)]
    names = tuple(dict.fromkeys(record.host for record in gathered.records))
    hosts = {name: gathered.hosts[name] for name in names if name in gathered.hosts}
    findings: list[Finding] = []
    if gathered.implicit:
        findings += _of_implicit(domain, gathered.hosts[domain])
    else:
        findings += _of_aliases(hosts)  # the domain itself may be an alias
    findings += _of_null(domain, names, expect)
    findings += _of_names(domain, names)
    findings += _of_resolution(hosts)
    if not allow_private:
        findings += _of_addresses(hosts)
    if expect is not None:
        findings += _of_expectation(domain, names, expect)
    return sorted(findings, key=lambda finding: _WORST_FIRST.index((finding.check, finding.severity)))


def conclude(gathered: Gathered, findings: Sequence[Finding]) -> tuple[Reason, str]:
    """Return the reason of the run, and one sentence.

    ``findings`` are sorted, the worst first. A critical finding decides. Next comes a host that could
    not be looked up, because it may have a critical one. A warning comes last.
    """
    unanswered = gathered.unanswered
    others = len(findings) + len(unanswered) - 1
    more = f" (and {others} more)" if others > 0 else ""
    if unanswered and not (findings and findings[0].severity is _C):
        name, fault = next(iter(unanswered.items()))
        unknown = "has no MX records, and whether it has an address is not known"
        what = unknown if gathered.implicit else "could not be looked up"
        return fault.reason, legible(f"{name} {what}: {fault.detail}") + more
    if not findings:
        return Reason.NONE, ""
    worst = findings[0]
    return REASONS[worst.check, worst.severity], worst.seen + more


def _of_implicit(domain: str, host: Host) -> Iterator[Finding]:
    if host.addresses:
        seen = f"{domain} has no MX records, so mail goes to its own address, {host.addresses[0]}"
        yield Finding(Check.MX_IMPLICIT, _W, domain, seen, "MX records")
    elif host.fault is None:
        seen = f"{domain} has no MX records and no address of its own"
        yield Finding(Check.MX_MISSING, _C, domain, seen, "MX records")


def _of_null(domain: str, names: Sequence[str], expect: Sequence[str] | None) -> Iterator[Finding]:
    if NULL not in names:
        return
    others = [name for name in names if name != NULL]
    if others:
        seen = f"{domain} has a null MX, which refuses all mail, beside the MX host {_cut(others[0])}"
        yield Finding(Check.MX_NULL_MIXED, _C, domain, seen, "a null MX alone, or MX hosts alone")
    elif expect is None or NULL not in expect:
        seen = f"{domain} has a null MX: it says that it takes no mail"
        yield Finding(Check.MX_NULL, _C, domain, seen, "MX hosts that take the domain's mail")


def _of_names(domain: str, names: Sequence[str]) -> Iterator[Finding]:
    for name in names:
        if name != NULL and not is_host_name(name):
            seen = f"the MX host of {domain}, {_cut(name)}, is an IP address or not a valid host name"
            yield Finding(Check.MX_TARGET_INVALID, _C, name, seen, "the name of a host")


def _of_aliases(hosts: Mapping[str, Host]) -> Iterator[Finding]:
    for name, host in hosts.items():
        if host.alias_of is not None:
            seen = f"{name} is an alias of {_cut(host.alias_of)}"
            yield Finding(Check.MX_TARGET_CNAME, _W, name, seen, "a host with addresses of its own")


def _of_resolution(hosts: Mapping[str, Host]) -> Iterator[Finding]:
    unresolved = [name for name, host in hosts.items() if not host.addresses and host.fault is None]
    nothing_resolves = len(unresolved) == len(hosts)
    for name in unresolved:
        seen = f"{name} has neither an A nor an AAAA record"
        if nothing_resolves and len(hosts) > 1:
            seen += ", and neither has any other MX host"
        yield Finding(
            Check.MX_TARGET_UNRESOLVED, _C if nothing_resolves else _W, name, seen, "at least one address"
        )


def _of_addresses(hosts: Mapping[str, Host]) -> Iterator[Finding]:
    for name, host in hosts.items():
        special = [address for address in host.addresses if not is_public(address)]
        if special:
            seen = f"{name} has the address {special[0]}, which the internet cannot reach"
            yield Finding(Check.MX_PRIVATE_ADDRESS, _C, name, seen, "public addresses only")


def _of_expectation(domain: str, names: Sequence[str], expect: Sequence[str]) -> Iterator[Finding]:
    expected = ", ".join("no mail, a null MX" if pattern == NULL else pattern for pattern in expect)
    for name in names:
        if name != NULL and not any(_matches(name, pattern) for pattern in expect):
            seen = f"{domain} has the MX host {_cut(name)}, which is not in `expect`"
            yield Finding(Check.MX_UNEXPECTED, _C, name, seen, expected)
    for pattern in expect:
        if not any(_matches(name, pattern) for name in names):
            absent = "null MX" if pattern == NULL else f"MX host {pattern}"
            seen = f"{domain} does not have the {absent} of `expect`"
            yield Finding(Check.MX_EXPECTED_ABSENT, _W, pattern, seen, pattern)


def _cut(name: str) -> str:
    return legible(name, 80)


def _matches(name: str, pattern: str) -> bool:
    """Return whether ``pattern`` means ``name``: exactly, or by whole labels after ``*``."""
    return name.endswith(pattern[1:]) and len(name) >= len(pattern) if pattern[0] == "*" else name == pattern


def is_public(address: str) -> bool:
    """Return whether an address can be reached on the internet (RFC 6890)."""
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None) or parsed
    return mapped.is_global and not mapped.is_multicast
