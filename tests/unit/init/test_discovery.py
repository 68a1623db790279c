"""Which servers are found for an address, in which order, and who vouches for them."""

from __future__ import annotations

import json

import pytest

from monitor.init.autoconfig import ask_autoconfig, ask_autodiscover
from monitor.init.discovery import ENDPOINTS_TRIED, Discovery, Source, candidates
from monitor.init.endpoint import Endpoint, given_endpoints
from monitor.init.web import PageError
from tests.fakes.https_server import page
from tests.unit.init.conftest import HOSTS, Domain, Served

ADDRESS = "canary@example.com"
AUTOCONFIG = "autoconfig.example.com GET /mail/config-v1.1.xml"
AUTOCONFIG_URL = "https://autoconfig.example.com/mail/config-v1.1.xml"
DISCOVER_V1 = "autodiscover.example.com POST /autodiscover/autodiscover.xml"
DISCOVER_V2 = "autodiscover.example.com GET /autodiscover/autodiscover.json/v1.0/canary%40example.com"


def config(*servers: str) -> bytes:
    return page(
        f'<clientConfig version="1.1"><emailProvider id="x">{"".join(servers)}</emailProvider></clientConfig>'
    )


def server(protocol: str, host: str, port: object, socket: str = "SSL", username: str = "") -> str:
    element = "outgoingServer" if protocol == "smtp" else "incomingServer"
    return (
        f'<{element} type="{protocol}"><hostname>{host}</hostname><port>{port}</port>'
        f"<socketType>{socket}</socketType><username>{username}</username></{element}>"
    )


def short(endpoints: list[Endpoint] | tuple[Endpoint, ...]) -> list[str]:
    return [f"{e.protocol} {e.host}:{e.port} {e.tls}{'' if e.vouched else ' ?'}" for e in endpoints]


async def found(domain: Domain) -> list[str]:
    told: list[Source] = []
    sources = await Discovery(ADDRESS, domain.resolver, domain.web).sources(told.append)
    assert sorted(told, key=str) == sorted(sources, key=str), "each source is told once"
    return short(candidates(sources))


async def test_srv_records_in_the_order_of_rfc_6186(serve_domain: Served) -> None:
    """By priority, then weight; implicit TLS first; `.` offers nothing; foreign hosts are not vouched for."""
    records = (
        "_submission._tcp.example.com. 60 IN SRV 0 1 587 mail.example.com.",
        "_submissions._tcp.example.com. 60 IN SRV 0 1 465 mail.example.com.",
        "_imaps._tcp.example.com. 60 IN SRV 20 1 993 backup.example.com.",
        "_imaps._tcp.example.com. 60 IN SRV 10 1 993 light.provider.test.",
        "_imaps._tcp.example.com. 60 IN SRV 10 9 993 heavy.example.com.",
        "_pop3s._tcp.example.com. 60 IN SRV 0 0 0 mail.example.com.",
        "_pop3._tcp.example.com. 60 IN SRV 0 0 110 .",
        r"_imap._tcp.example.com. 60 IN SRV 0 0 143 bad\032name.example.com.",
    )
    async with serve_domain(None, *records) as domain:
        assert await found(domain) == [
            "smtp mail.example.com:465 implicit",
            "smtp mail.example.com:587 starttls",
            "imap heavy.example.com:993 implicit",
            "imap light.provider.test:993 implicit ?",
            "imap backup.example.com:993 implicit",
        ]


async def test_usual_names_that_exist(serve_domain: Served) -> None:
    """Without other sources, common names and the MX host are tried if DNS knows them."""
    records = (
        "example.com. 60 IN MX 20 backup.provider.test.",
        "example.com. 60 IN MX 10 mx.provider.test.",
        "mx.provider.test. 60 IN AAAA ::1",
        "imap.example.com. 60 IN A 127.0.0.1",
    )
    async with serve_domain(None, *records) as domain:
        assert await found(domain) == [
            "smtp mx.provider.test:465 implicit ?",
            "smtp mx.provider.test:587 starttls ?",
            "imap imap.example.com:993 implicit",
            "imap imap.example.com:143 starttls",
            "imap mx.provider.test:993 implicit ?",
            "imap mx.provider.test:143 starttls ?",
            "pop3 mx.provider.test:995 implicit ?",
            "pop3 mx.provider.test:110 starttls ?",
        ]


async def test_autoconfig(serve_domain: Served) -> None:
    """The provider's file names servers and login; unencrypted or invalid servers are left out."""
    pages = {
        AUTOCONFIG: config(
            server("imap", "imap.%EMAILDOMAIN%", 993, "SSL", "%EMAILLOCALPART%"),
            server("pop3", "pop.example.com", 110, "plain"),
            server("pop3", "pop.example.com; rm", 995),
            server("pop3", "pop.example.com", 99999),
            server("pop3", "127.0.0.1", 995),
            server("smtp", "smtp.provider.test", 587, "STARTTLS", "%SOMETHING%"),
            server("exchange", "x.example.com", 443),
        )
    }
    async with serve_domain(pages) as domain:
        endpoints = await ask_autoconfig(AUTOCONFIG_URL, ADDRESS, domain.web)
    assert short(endpoints) == ["imap imap.example.com:993 implicit", "smtp smtp.provider.test:587 starttls"]
    assert [endpoint.username for endpoint in endpoints] == ["canary", None]
    assert domain.https.requests == [f"{AUTOCONFIG}?emailaddress=canary%40example.com"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (page("no", "404 Not Found"), "HTTP status 404"),
        (page("<html>"), "not well-formed"),
        (page("<!DOCTYPE html><html/>"), "document type declaration"),
        (page("<html/>"), "names no encrypted server"),
        (config(*[server("imap", "imap.example.com", 143, "plain")] * 9), "names no encrypted server"),
    ],
)
async def test_autoconfig_that_is_none(serve_domain: Served, answer: bytes, why: str) -> None:
    """A page that is not autoconfig is reported, and the other sources continue."""
    async with serve_domain({AUTOCONFIG: answer}) as domain:
        with pytest.raises(PageError, match=why):
            await ask_autoconfig(AUTOCONFIG_URL, ADDRESS, domain.web)
        assert await found(domain) == []


async def test_many_servers(serve_domain: Served) -> None:
    """If a file names many servers, a limited number of each protocol is tried, each once."""
    many = [server("imap", f"h{n % 40}.example.com", 993) for n in range(80)]
    async with serve_domain({AUTOCONFIG: config(*many)}) as domain:
        names = await found(domain)
    assert len(names) == len(set(names)) == ENDPOINTS_TRIED


async def test_autodiscover_version_2(serve_domain: Served) -> None:
    """The host of the JSON answer is tried for every protocol; no credentials are sent."""
    answer = page(json.dumps({"Protocol": "AutodiscoverV1", "Url": "https://mail.example.com/autodiscover"}))
    async with serve_domain({DISCOVER_V2: answer}) as domain:
        endpoints = await ask_autodiscover("autodiscover.example.com", ADDRESS, domain.web)
    assert short(endpoints) == [
        "smtp mail.example.com:465 implicit",
        "smtp mail.example.com:587 starttls",
        "imap mail.example.com:993 implicit",
        "imap mail.example.com:143 starttls",
        "pop3 mail.example.com:995 implicit",
        "pop3 mail.example.com:110 starttls",
    ]
    assert domain.https.requests == [f"{DISCOVER_V2}?Protocol=AutodiscoverV1"]


@pytest.mark.parametrize(
    "body", ["", "[]", "7", '{"Url": 7}', '{"Url": "https://[::1]/"}', '{"Url": null}', "[" * 100_000]
)
async def test_autodiscover_with_hostile_json(serve_domain: Served, body: str) -> None:
    """JSON without a host name is ignored, and version 1 is tried, which is missing too."""
    async with serve_domain({DISCOVER_V2: page(body)}) as domain:
        with pytest.raises(PageError, match="HTTP status 404"):
            await ask_autodiscover("autodiscover.example.com", ADDRESS, domain.web)


async def test_autodiscover_version_1(serve_domain: Served) -> None:
    """The XML answer names servers; an entry without encryption is left out."""
    body = """<Autodiscover xmlns="urn:a"><Response xmlns="urn:b"><Account>
      <Protocol><Type>IMAP</Type><Server>mail.example.com</Server><Port>993</Port><SSL>on</SSL>
        <LoginName>canary</LoginName></Protocol>
      <Protocol><Type>POP3</Type><Server>mail.example.com</Server><Port>110</Port><SSL>off</SSL></Protocol>
      <Protocol><Type>SMTP</Type><Server>mail.example.com</Server><Port>587</Port><Encryption>TLS</Encryption>
      </Protocol></Account></Response></Autodiscover>"""
    async with serve_domain({DISCOVER_V1: page(body)}) as domain:
        endpoints = await ask_autodiscover("autodiscover.example.com", ADDRESS, domain.web)
    assert short(endpoints) == ["imap mail.example.com:993 implicit", "smtp mail.example.com:587 starttls"]
    assert endpoints[0].username == "canary"
    assert b"<EMailAddress>canary@example.com</EMailAddress>" in domain.https.bodies[-1]


async def test_autodiscover_that_wants_a_login(serve_domain: Served) -> None:
    """A 401 gets no credentials; it shows that this host is an Exchange server."""
    async with serve_domain({DISCOVER_V1: page("", "401 Unauthorized")}) as domain:
        endpoints = await ask_autodiscover("autodiscover.example.com", ADDRESS, domain.web)
    assert {endpoint.host for endpoint in endpoints} == {"autodiscover.example.com"}
    assert len(domain.https.requests) == 2


SRV = "_autodiscover._tcp.example.com. 60 IN SRV"
FOREIGN_V1 = "provider.test POST /autodiscover/autodiscover.xml"
SERVERS = "".join(
    f"<Protocol><Type>{kind}</Type><Server>{host}</Server><Port>{port}</Port><SSL>on</SSL></Protocol>"
    for kind, host, port in (("IMAP", "imap.provider.test", 993), ("SMTP", "out.example.com", 465))
)
LISTED = page(f"<Autodiscover><Response><Account>{SERVERS}</Account></Response></Autodiscover>")


async def test_autodiscover_at_the_host_of_an_srv_record(serve_domain: Served) -> None:
    """The preferred host is asked. If it is outside the domain, it vouches for nothing outside."""
    records = (f"{SRV} 20 0 443 autoconfig.example.com.", f"{SRV} 10 0 443 provider.test.")
    async with serve_domain({FOREIGN_V1: LISTED}, *records) as domain:
        assert await found(domain) == [
            "imap imap.provider.test:993 implicit ?",
            "smtp out.example.com:465 implicit",
        ]
    asked = [request for request in domain.https.requests if "/autodiscover/" in request]
    assert not [request for request in asked if request.startswith("autoconfig.")]


async def test_autodiscover_at_an_srv_host_of_the_domain(serve_domain: Served) -> None:
    """A verified host in the domain vouches for its answer, which precedes guesses."""
    records = (
        f"{SRV} 0 0 443 owa.example.com.",
        "owa.example.com. 60 IN A 127.0.0.1",
        "imap.example.com. 60 IN A 127.0.0.1",
    )
    pages = {"owa.example.com POST /autodiscover/autodiscover.xml": LISTED}
    async with serve_domain(pages, *records, names=(*HOSTS, "owa.example.com")) as domain:
        assert await found(domain) == [
            "imap imap.provider.test:993 implicit",
            "smtp out.example.com:465 implicit",
            "imap imap.example.com:993 implicit",
            "imap imap.example.com:143 starttls",
        ]


@pytest.mark.parametrize(
    ("record", "names"),
    [
        (f"{SRV} 0 0 443 provider.test.", HOSTS[:3]),
        (f"{SRV} 0 0 1 provider.test.", HOSTS),
        (f"{SRV} 0 0 443 .", HOSTS),
        (f"{SRV} 0 0 0 provider.test.", HOSTS),
    ],
    ids=["no certificate for its name", "nobody at its port", "not offered", "no port"],
)
async def test_srv_record_that_leads_to_no_autodiscover(
    serve_domain: Served, record: str, names: tuple[str, ...]
) -> None:
    """A host that is unverified, or not at the record's target, is not asked."""
    async with serve_domain({FOREIGN_V1: LISTED}, record, names=names) as domain:
        assert await found(domain) == []
        assert not [request for request in domain.https.requests if request.startswith("provider.")]


@pytest.mark.parametrize(
    ("text", "insecure", "meant"),
    [
        ("mail.example.com:587", False, ["587 starttls", "587 implicit"]),
        ("mail.example.com:465", False, ["465 implicit", "465 starttls"]),
        ("smtps://mail.example.com:2465", False, ["2465 implicit"]),
        ("mail.example.com", False, ["465 implicit", "587 starttls"]),
        ("smtps://mail.example.com", True, ["465 implicit"]),
        ("mail.example.com:25", True, ["25 starttls", "25 implicit", "25 none"]),
        ("[::1]:25", False, ["25 starttls", "25 implicit"]),
    ],
)
def test_what_a_named_server_may_mean(text: str, insecure: bool, meant: list[str]) -> None:
    """The most secure interpretation comes first; unencrypted only if the user allows it."""
    endpoints = given_endpoints(text, "smtp", insecure)
    assert [f"{endpoint.port} {endpoint.tls}" for endpoint in endpoints] == meant


@pytest.mark.parametrize(
    "text",
    ["", "a b:25", "host:0", "host:x", "host:70000", "http://host", "smtp://me:secret@host", "host/inbox"],
)
def test_what_names_no_server(text: str) -> None:
    """An invalid server is refused with the right form, and without a password in it."""
    with pytest.raises(ValueError, match="write HOST:PORT or smtp://HOST:PORT") as refused:
        given_endpoints(text, "smtp", allow_insecure=False)
    assert "secret" not in str(refused.value)
