"""What is wrong with a domain's MX records, judged from what DNS said; nobody is asked here."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Outcome, Reason
from probes.core.settings import is_host_name

NULL = "."
"""The exchange of a null MX (RFC 7505 section 3)."""

_WORST_FIRST = (
    Reason.MX_MISSING,
    Reason.MX_NULL_MIXED,
    Reason.MX_NULL,
    Reason.MX_TARGET_UNRESOLVED,
    Reason.MX_UNEXPECTED,
    Reason.MX_TARGET_INVALID,
    Reason.MX_PRIVATE_ADDRESS,
    Reason.MX_TARGET_PARTLY_UNRESOLVED,
    Reason.MX_EXPECTED_ABSENT,
    Reason.MX_IMPLICIT,
    Reason.MX_TARGET_CNAME,
)
_OUTCOMES_WORST_FIRST = (Outcome.FAILED, Outcome.UNKNOWN, Outcome.OK)


@dataclass(frozen=True, slots=True)
class MxRecord:
    """One MX record: ``host`` in lower case without its final dot, ``ttl`` in seconds."""

    preference: int
    host: str
    ttl: int


@dataclass(frozen=True, slots=True)
class Host:
    """What DNS says of an MX host.

    ``alias_of`` is set where the host is a CNAME. ``fault`` says why a question for addresses
    went unanswered: a host without addresses may then have some. ``ttl`` is the smallest of
    its answers, in seconds.
    """

    addresses: tuple[str, ...] = ()
    alias_of: str | None = None
    ttl: int | None = None
    fault: ProbeFault | None = None


@dataclass(frozen=True, slots=True)
class Gathered:
    """What DNS says of a domain: its MX records, best first, and each host that was looked up.

    ``count`` is how many MX records there are, examined or not. With none, the domain itself
    is looked up, and its addresses make one ``implicit`` record (RFC 5321 section 5.1).
    """

    records: tuple[MxRecord, ...]
    count: int
    hosts: Mapping[str, Host]

    @property
    def implicit(self) -> bool:
        """Whether the domain has no MX records."""
        return self.count == 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be, or that could not be found out, about one host."""

    reason: Reason
    host: str
    detail: str


def judge(
    domain: str, gathered: Gathered, expect: Sequence[str] | None, allow_private: bool
) -> list[Finding]:
    """Return every finding, the worst first: failed, then unknown, then warnings."""
    names = tuple(dict.fromkeys(record.host for record in gathered.records))
    hosts = {name: gathered.hosts[name] for name in names if name in gathered.hosts}
    findings: list[Finding] = []
    if gathered.implicit:
        findings += _of_implicit(domain, gathered.hosts[domain])
    else:
        findings += _of_aliases(hosts)  # which the domain itself may well be
    findings += _of_null(domain, names, expect)
    findings += _of_names(domain, names)
    findings += _of_resolution(hosts)
    if not allow_private:
        findings += _of_addresses(hosts)
    if expect is not None:
        findings += _of_expectation(domain, names, expect)
    return sorted(findings, key=_rank)


def _rank(finding: Finding) -> tuple[int, int]:
    outcome = _OUTCOMES_WORST_FIRST.index(finding.reason.outcome)
    return outcome, _WORST_FIRST.index(finding.reason) if finding.reason in _WORST_FIRST else 0


def _of_implicit(domain: str, host: Host) -> Iterator[Finding]:
    if host.addresses:
        yield Finding(
            Reason.MX_IMPLICIT,
            domain,
            f"{domain} has no MX records, so mail goes to its own address, {host.addresses[0]}",
        )
    elif host.fault is None:
        yield Finding(Reason.MX_MISSING, domain, f"{domain} has no MX records and no address of its own")
    else:
        yield Finding(
            host.fault.reason,
            domain,
            f"{domain} has no MX records, and whether it has an address is not known: {host.fault.detail}",
        )


def _of_null(domain: str, names: Sequence[str], expect: Sequence[str] | None) -> Iterator[Finding]:
    if NULL not in names:
        return
    others = [name for name in names if name != NULL]
    if others:
        yield Finding(
            Reason.MX_NULL_MIXED,
            NULL,
            f"{domain} has a null MX: it says that it takes no mail, and yet names {legible(others[0], 80)}",
        )
    elif expect is None or NULL not in expect:
        yield Finding(Reason.MX_NULL, NULL, f"{domain} has a null MX: it says that it takes no mail")


def _of_names(domain: str, names: Sequence[str]) -> Iterator[Finding]:
    for name in names:
        if name != NULL and not is_host_name(name):
            shown = legible(name, 80)
            yield Finding(
                Reason.MX_TARGET_INVALID,
                shown,
                f"the MX host of {domain}, {shown}, is an IP address or no valid host name",
            )


def _of_aliases(hosts: Mapping[str, Host]) -> Iterator[Finding]:
    for name, host in hosts.items():
        if host.alias_of is not None:
            yield Finding(
                Reason.MX_TARGET_CNAME,
                name,
                f"{name} is an alias of {legible(host.alias_of, 80)}; an MX record must name the host itself",
            )


def _of_resolution(hosts: Mapping[str, Host]) -> Iterator[Finding]:
    unresolved = [name for name, host in hosts.items() if not host.addresses and host.fault is None]
    nothing_resolves = len(unresolved) == len(hosts)
    for name, host in hosts.items():
        if not host.addresses and host.fault is not None:
            yield Finding(host.fault.reason, name, f"{name} could not be looked up: {host.fault.detail}")
    for name in unresolved:
        yield Finding(
            Reason.MX_TARGET_UNRESOLVED if nothing_resolves else Reason.MX_TARGET_PARTLY_UNRESOLVED,
            name,
            f"{name} has neither an A nor an AAAA record"
            + (", and no other MX host has one" if nothing_resolves and len(hosts) > 1 else ""),
        )


def _of_addresses(hosts: Mapping[str, Host]) -> Iterator[Finding]:
    for name, host in hosts.items():
        special = [address for address in host.addresses if not is_public(address)]
        if special:
            yield Finding(
                Reason.MX_PRIVATE_ADDRESS,
                name,
                f"{name} has the address {special[0]}, which nobody on the internet can reach",
            )


def _of_expectation(domain: str, names: Sequence[str], expect: Sequence[str]) -> Iterator[Finding]:
    for name in names:
        if name != NULL and not any(_matches(name, pattern) for pattern in expect):
            shown = legible(name, 80)
            yield Finding(Reason.MX_UNEXPECTED, shown, f"{domain} has the MX host {shown}, not in `expect`")
    for pattern in expect:
        if not any(_matches(name, pattern) for name in names):
            absent = "null MX" if pattern == NULL else f"MX host {pattern}"
            yield Finding(Reason.MX_EXPECTED_ABSENT, pattern, f"{domain} lacks the {absent} of `expect`")


def _matches(name: str, pattern: str) -> bool:
    """Return whether ``pattern`` means ``name``: exactly, or by whole labels after ``*``."""
    return name.endswith(pattern[1:]) and len(name) >= len(pattern) if pattern[0] == "*" else name == pattern


def is_public(address: str) -> bool:
    """Return whether an address can be reached on the internet (RFC 6890)."""
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None) or parsed
    return mapped.is_global and not mapped.is_multicast
