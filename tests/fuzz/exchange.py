"""Targets for what Exchange says over HTTP, and for patterns over the pages of any web server."""

from __future__ import annotations

import base64
from datetime import date

from probes.core.setting_types import is_host_name
from probes.core.text_pattern import matches, occurs
from probes.posture.exchange import auth_certificate, build_of, build_text, healthy_server, judge_build
from probes.protocols.https import Response
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
        "text_pattern",
        pattern,
        (b"200 OK<br/>*.example.com\n200 OK<br/>EX1.example.com", b"a*a*b\naaaaaaaaaaaaaaaa"),
        (b"*", b"a*", b"aaaa", b"ab"),
        256 * 1024,
    ),
)
