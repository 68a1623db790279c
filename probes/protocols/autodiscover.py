"""What clients find when they follow autodiscover ([MS-OXDISCO]): the steps, and what each leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome

Endpoint = Literal["autodiscover", "ews", "activesync"]
"""What a client can be led to."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask about: a mail address and its domain, in A-labels.

    ``port`` and ``http_port`` are those of autodiscover at the domain and at its host; with ``http_port`` 0
    the redirect is not asked. ``addresses`` has what to connect to in place of a host. ``endpoints`` are
    also asked for the authentication that they offer. ``ca`` is a PEM file to trust.
    """

    email: str
    domain: str
    port: int
    http_port: int
    addresses: Mapping[str, str]
    endpoints: tuple[Endpoint, ...]
    ca: Path | None


class Step(StrEnum):
    """The places where clients look for autodiscover ([MS-OXDISCO] section 3.1.5), in their order."""

    DOMAIN = "domain"  # https at the domain itself
    HOST = "autodiscover"  # https at autodiscover.DOMAIN
    REDIRECT = "redirect"  # http at autodiscover.DOMAIN, which only redirects
    SRV = "srv"  # https at the host in the SRV record


MEANT_FOR_IT = (Step.HOST, Step.SRV, Step.REDIRECT, Step.DOMAIN)
"""The steps, those first that an administrator makes for autodiscover alone."""


@dataclass(frozen=True, slots=True)
class Host:
    """What DNS says about a host: its own name and those that it is an alias of, and its addresses."""

    names: frozenset[str]
    addresses: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Service:
    """An answer of autodiscover: the URL that gave it, or that it names, and the host of the URL."""

    url: str
    name: str
    host: Host

    def is_the_same_as(self, other: Service) -> bool:
        """Return whether two services have a host name or an address in common."""
        return not (
            self.host.names.isdisjoint(other.host.names)
            and self.host.addresses.isdisjoint(other.host.addresses)
        )


@dataclass(frozen=True, slots=True)
class Way:
    """One way to autodiscover: a step, the version, the URL asked, and the service or the fault there."""

    step: Step
    version: int
    url: str
    service: Service | None = None
    fault: ProbeFault | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """The authentication that an endpoint offers without a login: schemes, and its Bearer challenge.

    ``schemes`` are in lower case and sorted; none if it asks for no login, and ``None`` if that is not known.
    ``bearer`` has the parameters of the answer to an empty ``Authorization: Bearer``, and is ``None`` without
    such a challenge. A ``fault`` says why the last of them is not known.
    """

    endpoint: Endpoint
    url: str
    schemes: tuple[str, ...] | None = None
    bearer: Mapping[str, str] | None = None
    fault: ProbeFault | None = None


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a run saw; ``alias_of`` is what a CNAME record of autodiscover.DOMAIN names, if there is one."""

    ways: tuple[Way, ...]
    offers: tuple[Offer, ...] = ()
    alias_of: str | None = None

    @property
    def services(self) -> list[tuple[Way, Service]]:
        """The ways that lead to a service, those first that are meant for autodiscover alone."""
        found = [(way, way.service) for way in self.ways if way.service is not None]
        return sorted(found, key=lambda each: (MEANT_FOR_IT.index(each[0].step), each[0].version))

    @property
    def unknown(self) -> ProbeFault | None:
        """A fault that says nothing about autodiscover, such as a resolver without an answer."""
        faults = (*(way.fault for way in self.ways), *(offer.fault for offer in self.offers))
        unknown = (fault for fault in faults if fault and fault.reason.outcome is Outcome.UNKNOWN)
        return next(unknown, None)
