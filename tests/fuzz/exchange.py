"""Targets for what Exchange says over HTTP, and for patterns over the pages of any web server."""

from __future__ import annotations

import base64
from datetime import date

from probes.core.faults import ProbeFault
from probes.core.setting_types import is_host_name
from probes.core.text_pattern import matches, occurs
from probes.posture.autodiscover import Expected, judge
from probes.posture.exchange import auth_certificate, build_of, build_text, healthy_server, judge_build
from probes.protocols.autodiscover import Gathered, Host, Offer, Service, Step, Way
from probes.protocols.autodiscover_client import read_v1, read_v2
from probes.protocols.challenges import MOST_CHALLENGES, challenges
from probes.protocols.https import Response, origin_of
from tests.fuzz.protocols import CERTIFICATE_IN_DER
from tests.fuzz.target import Target, or_fault, require_shown


def health_page(octets: bytes) -> None:
    """Read a health page."""
    server = healthy_server(octets)
    assert server is None or (is_host_name(server) and server.encode() in octets.lower())


def build(octets: bytes) -> None:
    """Read a build and judge it."""
    found = build_of(octets.decode("latin-1"))
    if found is None:
        return
    assert build_of(build_text(found)) == found
    for finding in judge_build("ex1", found, (15, 2, 1748, 39), date(2026, 11, 28)):
        require_shown(finding.seen)


def metadata(octets: bytes) -> None:
    """Read an organization's metadata document."""
    response = Response("https://192.0.2.1/", 200, (), octets, False, None)
    document = or_fault(response.json_object)
    expiry = None if document is None else or_fault(auth_certificate, document)
    if expiry is not None:
        require_shown(str(expiry))


def autodiscover(octets: bytes) -> None:
    """Read an answer in both versions; what it leads to is an https URL, and findings are fit to show."""
    url = "https://192.0.2.1/"
    response = Response(url, 200, (), octets, False, None)
    ways = []
    for version, read in enumerate((read_v1, read_v2), 1):
        try:
            leads_to = read(response) or url
        except ProbeFault as fault:
            require_shown(fault.detail)
            ways.append(Way(Step.HOST, version, url, fault=fault))
            continue
        origin = origin_of(leads_to)
        assert origin.scheme == "https"
        service = Service(leads_to, origin.host, Host(frozenset({origin.host})))
        ways.append(Way(Step.HOST, version, url, service))
    for finding in judge("example.com", Gathered(tuple(ways)), Expected(("mail.example.com",))):
        require_shown(finding.seen)


def authentication(octets: bytes) -> None:
    """Read WWW-Authenticate fields, one a line, and judge what they offer."""
    fields = octets.decode("latin-1").split("\n")
    offered = or_fault(challenges, fields)
    if offered is None:
        return
    assert len(offered) <= MOST_CHALLENGES
    schemes = tuple(sorted({each.scheme for each in offered}))
    assert all(scheme.isascii() and scheme == scheme.lower() for scheme in schemes)
    parameters = offered[0].parameters if offered else None
    offer = Offer("autodiscover", "https://192.0.2.1/", schemes, parameters)
    expected = Expected(schemes={"autodiscover": ("ntlm",)}, authorization_uri="https://192.0.2.2/*")
    for finding in judge("example.com", Gathered((), (offer,)), expected):
        require_shown(finding.seen)


def pattern(octets: bytes) -> None:
    """Match a page against a pattern, which the first line is."""
    first, _, text = octets.decode("utf-8", "replace").partition("\n")
    wanted = first[:255]
    assert not matches(wanted, text) or occurs(wanted, text)
    assert matches(f"*{wanted}*", text) is occurs(wanted, text)


_KEY = b'{"keyvalue":{"type":"x509Certificate","value":"%s"}}' % base64.b64encode(CERTIFICATE_IN_DER)

TARGETS = (
    Target(
        "exchange_health_page",
        health_page,
        (b"200 OK<br/>EX1.corp.example.com", b"200 OK<br />\r\nEX1\n"),
        (b"200 OK", b"<br/>", b"EX1", b".", b"-", b" "),
        16 * 1024,
    ),
    Target("exchange_build", build, (b"15.2.1748.36", b"15.02.2562.046"), (b"15.", b"2", b"0", b".")),
    Target(
        "exchange_metadata",
        metadata,
        (b'{"keys":[%s]}' % _KEY, b'{"keys":[%s,%s]}' % (_KEY, _KEY), b'{"keys":[{"keyvalue":{}}]}'),
        (b'"keys":', b"[", b"]", b"{", b"}", b'"keyvalue":', b'"type":"x509Certificate"', b'"value":"MIIB"'),
        256 * 1024,
    ),
    Target(
        "autodiscover",
        autodiscover,
        (
            b"<Autodiscover><Response><Account><RedirectUrl>https://a.example/</RedirectUrl></Account></Response>"
            b"</Autodiscover>",
            b'{"Protocol":"AutodiscoverV1","Url":"https://a.example:444/x"}',
        ),
        (
            b"<Response>",
            b"<!DOCTYPE x [",
            b"<html>",
            b'"Url":',
            b"https://",
            b"@",
            b"[::1]",
            b"\x00",
            b"&#0;",
        ),
        256 * 1024,
    ),
    Target(
        "http_challenges",
        authentication,
        (
            b'Negotiate, NTLM TlRM=\nBasic realm="a, \\"b"',
            b'Bearer client_id="1", authorization_uri="https://192.0.2.2/x", Digest qop=auth',
        ),
        (b", ", b" ", b'"', b"\\", b"=", b"NTLM", b'realm="', b"\n", b"x" * 20),
        64 * 1024,
    ),
    Target(
        "text_pattern",
        pattern,
        (b"200 OK<br/>*.example.com\n200 OK<br/>EX1.example.com", b"a*a*b\naaaaaaaaaaaaaaaa"),
        (b"*", b"a*", b"aaaa", b"ab"),
        256 * 1024,
    ),
)
