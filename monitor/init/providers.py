"""Providers that take access tokens in place of passwords, and the host names by which they are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from monitor.init.endpoint import Endpoint, MailProtocol, preset_endpoint
from probes.oauth2.settings import Cloud


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider of mailboxes: its name, preset and OAuth2 entry, and what it does with passwords.

    ``hosts`` are its servers; ``mx_domains`` are the domains that have the MX hosts of its customers. Each of
    Microsoft's clouds is a provider of its own.
    """

    name: str
    preset: str
    issuer: str
    refusal: str
    hosts: frozenset[str]
    mx_domains: tuple[str, ...]
    cloud: Cloud | None = None

    def endpoint(self, protocol: MailProtocol, named: Iterable[Endpoint] = ()) -> Endpoint:
        """Return its server for a protocol: of those that the user named, the one that fits it best."""
        usual = preset_endpoint(self.preset, protocol)
        fitting = [endpoint for endpoint in named if endpoint.protocol == protocol]
        best = min(fitting, key=lambda endpoint: endpoint.tls != usual.tls, default=usual)
        return replace(best, preset=self.preset)


def _exchange_online(
    cloud: Cloud, called: str, preset: str, hosts: Iterable[str], mx_domains: tuple[str, ...]
) -> Provider:
    return Provider(
        name=f"Exchange Online{called}",
        preset=preset,
        issuer="microsoft",
        refusal="It accepts no passwords by IMAP and POP3, and usually none by SMTP",
        hosts=frozenset(hosts),
        mx_domains=mx_domains,
        cloud=cloud,
    )


EXCHANGE_ONLINE = _exchange_online(
    "global",
    "",
    "exchange-online",
    (
        *("outlook.office365.com", "smtp.office365.com"),
        *("autodiscover.outlook.com", "autodiscover-s.outlook.com"),
    ),
    ("mail.protection.outlook.com", "mx.microsoft"),
)
GCC_HIGH = _exchange_online(
    "usgov",
    " in GCC High",
    "exchange-online-gcc-high",
    (
        *("outlook.office365.us", "smtp.office365.us"),
        *("autodiscover.office365.us", "autodiscover-s.office365.us"),
    ),
    ("mail.protection.office365.us", "usgovcloud-mx.microsoft"),  # DoD shares them
)
DOD = _exchange_online(
    "dod",
    " of DoD",
    "exchange-online-dod",
    ("outlook-dod.office365.us", "autodiscover-dod.office365.us", "autodiscover-s-dod.office365.us"),
    (),
)
CHINA = _exchange_online(
    "china",
    " by 21Vianet",
    "exchange-online-21vianet",
    ("partner.outlook.cn", "smtp.partner.outlook.cn", "autodiscover.partner.outlook.cn"),
    ("mail.protection.partner.outlook.cn",),
)
EXCHANGE_ONLINE_OF: Mapping[Cloud, Provider] = MappingProxyType(
    {"global": EXCHANGE_ONLINE, "usgov": GCC_HIGH, "dod": DOD, "china": CHINA}
)
GOOGLE = Provider(
    name="Google",
    preset="gmail",
    issuer="google",
    refusal="It accepts no account passwords by IMAP, POP3 and SMTP",
    hosts=frozenset({"imap.gmail.com", "pop.gmail.com", "smtp.gmail.com"}),
    mx_domains=("google.com", "googlemail.com"),
)
MAIL_PROVIDERS = (*EXCHANGE_ONLINE_OF.values(), GOOGLE)


@dataclass(frozen=True, slots=True)
class Hosting:
    """The provider of a mailbox, and what shows it: a text that is safe to show."""

    provider: Provider
    shown_by: str


def provider_of_server(host: str) -> Provider | None:
    """Return the provider that has a server, or ``None``."""
    return next((provider for provider in MAIL_PROVIDERS if host.lower() in provider.hosts), None)


def provider_of_mx(host: str) -> Provider | None:
    """Return the provider that receives mail at an MX host, or ``None``."""
    labels = host.lower().split(".")
    domains = {".".join(labels[first:]) for first in range(1, len(labels))}
    return next((provider for provider in MAIL_PROVIDERS if domains.intersection(provider.mx_domains)), None)


def hosting_at(endpoints: Iterable[Endpoint]) -> Hosting | None:
    """Return the provider that has all of these servers; ``None`` if there are none, or others too."""
    found = [(endpoint, provider_of_server(endpoint.host)) for endpoint in endpoints]
    if len({provider for _, provider in found}) != 1:
        return None
    endpoint, provider = found[0]
    return None if provider is None else Hosting(provider, f"{endpoint.host}, from {endpoint.source}")
