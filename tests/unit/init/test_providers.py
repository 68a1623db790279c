"""Which providers take access tokens in place of passwords, and what DNS shows about them."""

from __future__ import annotations

from typing import cast, get_args

import pytest

from monitor.init.discovery import Discovery
from monitor.init.endpoint import Endpoint, given_endpoints
from monitor.init.providers import (
    EXCHANGE_ONLINE,
    EXCHANGE_ONLINE_OF,
    GOOGLE,
    Hosting,
    hosting_at,
    provider_of_mx,
    provider_of_server,
)
from monitor.init.web import Web
from probes.oauth2.settings import RESOURCES, Cloud
from probes.protocols.dns import Answer, Resolver
from tests.unit.init.conftest import Domain, Served

MX = "example.com. 60 IN MX"
EXCHANGE_MX = "example-com.mail.protection.outlook.com"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (EXCHANGE_MX, "Exchange Online"),
        ("Contoso.B-V1.MX.Microsoft", "Exchange Online"),
        ("agency.mail.protection.office365.us", "Exchange Online in GCC High"),
        ("agency.a-v1.usgovcloud-mx.microsoft", "Exchange Online in GCC High"),
        ("contoso-cn.mail.protection.partner.outlook.cn", "Exchange Online by 21Vianet"),
        ("aspmx.l.google.com", "Google"),
        ("smtp.google.com", "Google"),
        ("aspmx2.googlemail.com", "Google"),
        ("mail.protection.outlook.com", None),
        ("notmail.protection.outlook.com", None),
        ("outlook-com.olc.protection.outlook.com", None),
        ("mail.protection.outlook.com.example.net", None),
        ("mx.notgoogle.com", None),
        ("mx.example.com", None),
    ],
)
def test_provider_by_its_mx_host(host: str, name: str | None) -> None:
    """Only a host below a provider's own domain counts, in any case of letters."""
    found = provider_of_mx(host)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("outlook.office365.com", "Exchange Online"),
        ("SMTP.office365.com", "Exchange Online"),
        ("autodiscover.office365.us", "Exchange Online in GCC High"),
        ("autodiscover-dod.office365.us", "Exchange Online of DoD"),
        ("smtp.partner.outlook.cn", "Exchange Online by 21Vianet"),
        ("imap.gmail.com", "Google"),
        ("smtp.hve.mx.microsoft", None),
        ("smtp-relay.gmail.com", None),
        ("imap.gmail.com.example.net", None),
    ],
)
def test_provider_by_its_server(host: str, name: str | None) -> None:
    """Only servers that want tokens count; relays and bulk mail services still take passwords."""
    found = provider_of_server(host)
    assert (found.name if found else None) == name


def test_servers_of_one_provider() -> None:
    """Named servers show a provider only if it has all of them."""
    own = given_endpoints("mail.example.com", "imap", allow_insecure=False)
    theirs = given_endpoints("smtp.office365.com", "smtp", allow_insecure=False)
    assert hosting_at(theirs) == Hosting(EXCHANGE_ONLINE, "smtp.office365.com, from you")
    assert hosting_at([*theirs, *own]) is None
    assert hosting_at(own) is None
    assert hosting_at([]) is None


@pytest.mark.parametrize("cloud", get_args(Cloud))
def test_servers_of_a_cloud(cloud: Cloud) -> None:
    """In each of Microsoft's clouds, the servers are those that its tokens are for, and are known again."""
    provider = EXCHANGE_ONLINE_OF[cloud]
    assert f"https://{provider.endpoint('graph').host}" == RESOURCES["graph"][cloud]
    for protocol in ("imap", "pop3"):
        assert f"https://{provider.endpoint(protocol).host}" == RESOURCES["mail"][cloud]
    for protocol in ("smtp", "imap"):
        assert provider_of_server(provider.endpoint(protocol).host) is provider


def test_named_server_replaces_the_usual_one() -> None:
    """The server that the user named is taken, with the TLS of the provider if both are possible."""
    named = given_endpoints("smtp.office365.com", "smtp", allow_insecure=False)
    assert (named[0].port, EXCHANGE_ONLINE.endpoint("smtp", named).port) == (465, 587)
    other = given_endpoints("smtp.office365.com:25", "smtp", allow_insecure=False)
    assert EXCHANGE_ONLINE.endpoint("smtp", other).port == 25
    assert GOOGLE.endpoint("imap", other).host == "imap.gmail.com"


async def hosting(domain: Domain) -> Hosting | None:
    return await Discovery("canary@example.com", domain.resolver, domain.web).hosting()


async def test_mx_record_shows_the_provider(serve_domain: Served) -> None:
    """An MX host of a provider, even a backup, shows where the mail is."""
    async with serve_domain(None, f"{MX} 20 {EXCHANGE_MX}.", f"{MX} 10 mx.example.com.") as domain:
        assert await hosting(domain) == Hosting(EXCHANGE_ONLINE, f"MX record {EXCHANGE_MX}")


async def test_mailbox_behind_a_filter(serve_domain: Served) -> None:
    """If the MX host is a filter, or another provider's, the alias of autodiscover decides.

    The name autodiscover.outlook.com is an alias itself, so it is not the last in the chain.
    """
    records = (
        f"{MX} 10 aspmx.l.google.com.",
        "autodiscover.mixed.test. 60 IN CNAME cloud.mixed.test.",
        "cloud.mixed.test. 60 IN CNAME autodiscover.outlook.com.",
        "autodiscover.outlook.com. 60 IN CNAME atod.office.test.",
        "atod.office.test. 60 IN A 127.0.0.1",
        "mixed.test. 60 IN MX 10 aspmx.l.google.com.",
    )
    async with serve_domain(None, *records) as domain:
        found = await Discovery("canary@mixed.test", domain.resolver, domain.web).hosting()
    alias = "autodiscover.mixed.test is an alias of autodiscover.outlook.com"
    assert found == Hosting(EXCHANGE_ONLINE, alias)


async def test_other_domains_show_no_provider(serve_domain: Served) -> None:
    """A domain with its own servers, or that accepts no mail (RFC 7505), is at no provider."""
    async with serve_domain(None, f"{MX} 0 .") as domain:
        assert await hosting(domain) is None
    async with serve_domain(None, f"{MX} 10 mx.example.com.") as domain:
        assert await hosting(domain) is None


async def test_resolver_that_fails_shows_no_provider(serve_domain: Served) -> None:
    """If DNS does not answer, the search goes on without a provider."""
    async with serve_domain() as domain:
        address = "canary@" + ".".join(["x" * 60] * 4)  # names below it are too long for DNS
        assert await Discovery(address, domain.resolver, domain.web).hosting() is None


@pytest.mark.parametrize("label", [r"\027[31m", r"a\032b", r"\000", r"\226\128\174", r"x\046y", r"\255" * 63])
async def test_hostile_mx_host_is_nobody(serve_domain: Served, label: str) -> None:
    """An MX host that is no host name is left out, however it ends, and a later one still counts."""
    lie = f"{MX} 5 {label}.mail.protection.outlook.com."
    async with serve_domain(None, lie) as domain:
        assert await hosting(domain) is None
    async with serve_domain(None, lie, f"{MX} 10 {EXCHANGE_MX}.") as domain:
        assert await hosting(domain) == Hosting(EXCHANGE_ONLINE, f"MX record {EXCHANGE_MX}")


class _Record:
    def __init__(self, text: str) -> None:
        self._text = text

    def to_text(self) -> str:
        return self._text


class _LyingResolver:
    """Says more than DNS could: names of any length, and as many records as there are."""

    def __init__(self, *records: str) -> None:
        self._records = records

    async def ask(self, *_: object, **__: object) -> Answer:
        return Answer(tuple(map(_Record, self._records)), 60)  # type: ignore[arg-type] # only their text counts


@pytest.mark.parametrize(
    "records",
    [
        [f"10 {'x' * 10_000}.mail.protection.outlook.com."],
        [f"10 {'x.' * 5_000}mail.protection.outlook.com."],
        [*(f"{n} mx{n}.example.com." for n in range(9_999)), f"9999 {EXCHANGE_MX}."],
    ],
    ids=["a long label", "many labels", "many records"],
)
async def test_mx_answer_is_bounded(records: list[str]) -> None:
    """Neither a name of 10,000 characters nor record number 10,000 shows a provider."""
    resolver = cast("Resolver", _LyingResolver(*records))
    assert await Discovery("canary@example.com", resolver, cast("Web", None)).hosting() is None


def test_preset_without_a_protocol() -> None:
    """Google has no Graph."""
    with pytest.raises(KeyError):
        GOOGLE.endpoint("graph")


def test_endpoint_of_the_preset() -> None:
    """The usual servers of a provider have its preset's host, port and TLS."""
    graph, smtp = EXCHANGE_ONLINE.endpoint("graph"), GOOGLE.endpoint("smtp")
    assert graph == Endpoint(
        "graph",
        "graph.microsoft.com",
        443,
        "implicit",
        "preset exchange-online",
        vouched=True,
        preset="exchange-online",
    )
    assert (smtp.host, smtp.port, smtp.tls) == ("smtp.gmail.com", 587, "starttls")
