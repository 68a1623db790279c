"""Judges where autodiscover leads a mail domain's clients; nothing is asked here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from probes.core.faults import ProbeFault, legible
from probes.core.finding import Check, Finding, Severity
from probes.core.reasons import Area, Outcome, Reason
from probes.core.text_pattern import matches
from probes.protocols.autodiscover import MEANT_FOR_IT, Endpoint, Gathered, Offer, Step, Way
from probes.protocols.http_shown import shown_url

_C, _W, _I = Severity

AUTODISCOVER_REASONS: Mapping[tuple[Check, Severity], Reason] = MappingProxyType(
    {
        (Check.AUTODISCOVER_MISSING, _C): Reason.AUTODISCOVER_MISSING,
        (Check.AUTODISCOVER_UNEXPECTED, _C): Reason.AUTODISCOVER_UNEXPECTED,
        (Check.AUTODISCOVER_DISAGREES, _W): Reason.AUTODISCOVER_DISAGREES,
        (Check.AUTODISCOVER_AUTH_CHANGED, _W): Reason.AUTODISCOVER_AUTH_CHANGED,
        (Check.AUTODISCOVER_CERTIFICATE, _W): Reason.AUTODISCOVER_STEP_FAILED,
        (Check.AUTODISCOVER_OTHER_PAGE, _W): Reason.AUTODISCOVER_STEP_FAILED,
        (Check.AUTODISCOVER_STEP_FAILED, _W): Reason.AUTODISCOVER_STEP_FAILED,
        (Check.AUTODISCOVER_OTHER_PAGE, _I): Reason.NONE,
        (Check.AUTODISCOVER_STEP_FAILED, _I): Reason.NONE,
    }
)
"""The reason of a run by the check and severity of its worst finding, the worst first."""

_WORST_FIRST = tuple(AUTODISCOVER_REASONS)
_NOT_PUBLISHED = frozenset({Reason.DNS_NXDOMAIN, Reason.DNS_NO_ADDRESS, Reason.HTTP_STATUS})
_NOBODY_LISTENS = frozenset({Reason.CONNECT_REFUSED, Reason.CONNECT_TIMEOUT, Reason.HOST_UNREACHABLE})


@dataclass(frozen=True, slots=True)
class Expected:
    """What a site expects: patterns of host names, schemes by endpoint, and where Bearer leads."""

    hosts: tuple[str, ...] = ()
    schemes: Mapping[Endpoint, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    authorization_uri: str | None = None


def judge(domain: str, gathered: Gathered, expected: Expected) -> list[Finding]:
    """Return every finding, the worst first."""
    findings = [*_of_ways(gathered), *_of_services(gathered, expected.hosts)]
    offers = gathered.offers
    if gathered.services and all(offer.endpoint != "autodiscover" for offer in offers):
        unanswered = ProbeFault(Reason.HTTP_STATUS, "no step answers in version 1")
        offers = (*offers, Offer("autodiscover", domain, fault=unanswered))
    for offer in offers:
        findings += _of_offer(offer, expected)
    if not gathered.services and gathered.unknown is None:
        told = "; ".join(
            f"{_shown(way)}: {way.fault.detail}" for way in gathered.ways if way.fault is not None
        )
        wanted = "an answer of autodiscover"
        findings.append(Finding(Check.AUTODISCOVER_MISSING, _C, domain, told, wanted))
    return sorted(findings, key=lambda finding: _WORST_FIRST.index((finding.check, finding.severity)))


def conclude(gathered: Gathered, findings: Sequence[Finding]) -> tuple[Reason, str]:
    """Return the reason of the run, and one sentence; ``findings`` are sorted, the worst first.

    A critical finding decides, then a fault that leaves something unknown, then a warning. If no way leads to
    autodiscover, the reason is the fault of the step that is most likely meant for it.
    """
    unknown = gathered.unknown
    if unknown is not None and not (findings and findings[0].severity is _C):
        return unknown.reason, unknown.detail
    if not findings:
        return Reason.NONE, ""
    worst = findings[0]
    reason = AUTODISCOVER_REASONS[worst.check, worst.severity]
    if reason is Reason.NONE:
        return reason, ""
    if reason is Reason.AUTODISCOVER_MISSING:
        ways = sorted(gathered.ways, key=lambda way: MEANT_FOR_IT.index(way.step))
        broken = (way.fault for way in ways if way.fault is not None and not _is_not_there(way, gathered))
        if (fault := next(broken, None)) is not None:
            reason = fault.reason
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return reason, f"{worst.subject}: {worst.seen}{more}"


def _is_not_there(way: Way, gathered: Gathered) -> bool:
    """Return whether nothing was ever published on a way, so that clients go on to the next one."""
    if way.fault is None:
        return False
    is_gone = way.fault.reason in {Reason.DNS_NXDOMAIN, Reason.DNS_NO_ADDRESS}
    if way.step is Step.HOST and gathered.alias_of is not None and is_gone:
        return False  # an alias of a host that is gone
    if way.step is Step.SRV and way.version == 1:
        return not way.url  # there is no record
    if way.fault.reason in _NOT_PUBLISHED:
        return True
    return way.step in {Step.DOMAIN, Step.REDIRECT} and way.fault.reason in _NOBODY_LISTENS


def _of_ways(gathered: Gathered) -> Iterator[Finding]:
    """Yield what is wrong with single ways, at most one finding for each step."""
    redirected = any(way.step is Step.REDIRECT for way, _ in gathered.services)
    told: set[Step] = set()
    for way in gathered.ways:
        fault = way.fault
        if fault is None or fault.reason.outcome is Outcome.UNKNOWN or _is_not_there(way, gathered):
            continue
        if way.step is Step.HOST and redirected and fault.reason in _BEFORE_HTTP:
            continue  # as in Exchange Online: the host has only the redirect
        if way.step in told:
            continue
        told.add(way.step)
        yield _of_fault(way, fault)


def _of_fault(way: Way, fault: ProbeFault) -> Finding:
    severity = _I if way.step is Step.DOMAIN else _W
    if fault.reason.area is Area.TLS and fault.reason is not Reason.TLS_HANDSHAKE:
        wanted = "a certificate that is valid for the name"
        return Finding(
            Check.AUTODISCOVER_CERTIFICATE, _W, _shown(way), f"{fault.reason}: {fault.detail}", wanted
        )
    if fault.reason is Reason.HTTP_BODY:
        wanted = f"autodiscover ({'XML' if way.version == 1 else 'JSON'}), or 404"
        return Finding(Check.AUTODISCOVER_OTHER_PAGE, severity, _shown(way), fault.detail, wanted)
    wanted = "an answer of autodiscover, or no such host"
    return Finding(Check.AUTODISCOVER_STEP_FAILED, severity, _shown(way), str(fault), wanted)


_BEFORE_HTTP = frozenset(
    {*_NOBODY_LISTENS, *(reason for reason in Reason if reason.area is Area.TLS), Reason.CONNECTION_LOST}
)
"""What a host without https of its own does to a connection."""


def _of_services(gathered: Gathered, hosts: Sequence[str]) -> Iterator[Finding]:
    """Yield the services that are not expected or, without an expectation, differ from the first."""
    services = gathered.services
    for way, service in services:
        seen = f"leads to {shown_url(service.url, 120)}"
        if hosts and not any(matches(pattern.lower(), service.name) for pattern in hosts):
            yield Finding(Check.AUTODISCOVER_UNEXPECTED, _C, _shown(way), seen, ", ".join(hosts))
        elif not hosts and not service.is_the_same_as(services[0][1]):
            first, its = services[0]
            wanted = f"{shown_url(its.url, 120)}, as {_shown(first)}"
            yield Finding(Check.AUTODISCOVER_DISAGREES, _W, _shown(way), seen, wanted)


def _of_offer(offer: Offer, expected: Expected) -> Iterator[Finding]:
    if offer.fault is not None and offer.fault.reason.outcome is Outcome.UNKNOWN:
        return
    subject = f"{offer.endpoint}, {shown_url(offer.url, 120)}"
    not_known = f"not known: {offer.fault}"
    wanted = expected.schemes.get(offer.endpoint)
    if wanted is not None and (offer.schemes is None or set(wanted) != set(offer.schemes)):
        seen = not_known if offer.schemes is None else ", ".join(offer.schemes) or "no login asked for"
        yield Finding(Check.AUTODISCOVER_AUTH_CHANGED, _W, subject, seen, ", ".join(sorted(wanted)))
    if expected.authorization_uri is None:
        return
    uri = offer.bearer.get("authorization_uri") if offer.bearer is not None else None
    if uri is None or not matches(expected.authorization_uri, uri):
        seen = uri or "a Bearer challenge without authorization_uri"
        if offer.bearer is None:
            seen = "no Bearer challenge" if offer.fault is None else not_known
        wanted_uri = expected.authorization_uri
        yield Finding(Check.AUTODISCOVER_AUTH_CHANGED, _W, f"{subject}, Bearer", seen, wanted_uri)


def _shown(way: Way) -> str:
    """Return a way as people name it: its step, and the URL without its path."""
    place = "/".join(way.url.split("/")[:3])
    version = "" if way.version == 1 else ", version 2"
    return f"{way.step}{version} ({legible(place, 150)})" if place else f"{way.step}{version}"
