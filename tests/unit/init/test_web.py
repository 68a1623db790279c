"""Pages from untrusted web servers: verified, limited in size and time, with harmless XML."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from monitor.init import web
from monitor.init.web import PAGE_LIMIT, PageError, parse_xml
from tests.fakes.https_server import page, redirect
from tests.unit.init.conftest import Served

LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE lolz [
 <!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
]><clientConfig>&c;</clientConfig>"""


async def test_page_of_a_verified_host(serve_domain: Served) -> None:
    """A page comes from the address that the resolver returns, under the host's own name."""
    async with serve_domain({"example.com GET /x": page("hello")}) as domain:
        found = await domain.web.fetch("https://example.com/x?emailaddress=a%40example.com")
    assert (found.host, found.status, found.body) == ("example.com", 200, b"hello")
    assert domain.https.requests == ["example.com GET /x?emailaddress=a%40example.com"]


async def test_certificate_of_another_host(serve_domain: Served) -> None:
    """A server with another host's certificate is not trusted, and gets no request."""
    async with serve_domain(
        {"example.com GET /x": page("lies")}, names=("autoconfig.example.com",)
    ) as domain:
        with pytest.raises(PageError, match="certificate_name: Hostname mismatch"):
            await domain.web.fetch("https://example.com/x")
    assert domain.https.requests == []


async def test_redirect_to_another_host(serve_domain: Served) -> None:
    """A redirect to another host is followed by https, with that host's own certificate."""
    pages = {
        "example.com GET /x": redirect("https://provider.test/y"),
        "provider.test GET /y": page("there"),
    }
    async with serve_domain(pages) as domain:
        found = await domain.web.fetch("https://example.com/x")
    assert (found.host, found.body) == ("provider.test", b"there")


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("http://provider.test/y", "leads to http://provider.test/y, which is not https"),
        ("file:///etc/passwd", "which is not https"),
        ("https://127.0.0.1/y", "is not a domain name"),
        ("https://provider.test:99999999/y", "its port from 1 to 65535"),
        ("https://provider.test:0/y", "its port from 1 to 65535"),
        ("https://absent.test/y", "absent.test does not exist"),
        ("https://example.com/x", "leads back to https://example.com/x"),
    ],
)
async def test_redirect_that_is_not_followed(serve_domain: Served, where: str, why: str) -> None:
    """Redirects to plain http, an IP address, nowhere or in a circle are refused."""
    async with serve_domain({"example.com GET /x": redirect(where)}) as domain:
        with pytest.raises(PageError, match=why):
            await domain.web.fetch("https://example.com/x")
    assert len(domain.https.requests) <= 4


async def test_page_without_end(serve_domain: Served) -> None:
    """Of an endless page, or one of 10 MB, little more than the limit is read."""
    flood = itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], itertools.repeat(b"x" * 65536))
    async with serve_domain(
        {"example.com GET /x": flood, "example.com GET /y": page(b"x" * 10**7)}
    ) as domain:
        for path in ("x", "y"):
            with pytest.raises(PageError, match="is longer than 256 KB"):
                await domain.web.fetch(f"https://example.com/{path}")
    assert domain.https.sent < 20 * 10**6


async def test_compressed_page(serve_domain: Served) -> None:
    """A compressed page, which could be a bomb, is refused unread."""
    async with serve_domain({"example.com GET /x": page(b"x", "200 OK", "Content-Encoding: gzip")}) as domain:
        with pytest.raises(PageError, match="is compressed, which was not requested"):
            await domain.web.fetch("https://example.com/x")


async def test_silent_server(serve_domain: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer takes only the time limit of a page."""
    monkeypatch.setattr(web, "PAGE_SECONDS", 1.5)  # TLS is done by then, on a busy machine as well
    async with serve_domain({"example.com GET /x": None}) as domain, asyncio.timeout(30):
        with pytest.raises(PageError, match=r"command_timeout: no answer within 1\.5 s"):
            await domain.web.fetch("https://example.com/x")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "document",
    [
        LAUGHS,
        '<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
        '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><x>&f;</x>',
        "<!DOCTYPE x><x/>",
    ],
)
def test_document_type_is_refused(document: str, encoding: str) -> None:
    """A DTD in any encoding is refused before any entity can be expanded."""
    with pytest.raises(PageError, match="document type declaration"):
        parse_xml(document.replace('<?xml version="1.0"?>\n', "").encode(encoding))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<a",
        b"<a>",
        b"<a/><b/>",
        b"\xff\xfe\x00",
        b"<a>&lol;</a>",
        b'<?xml version="1.0" encoding="x"?><a/>',
    ],
)
def test_broken_document(document: bytes) -> None:
    """Malformed XML is an error of the page only."""
    with pytest.raises(PageError, match="not well-formed"):
        parse_xml(document)


def test_deep_document() -> None:
    """A document as deep as the limit allows is parsed and searched."""
    depth = PAGE_LIMIT // 7
    root = parse_xml(b"<a>" * depth + b"</a>" * depth)
    assert sum(1 for _ in root.iter("a")) == depth


def test_names_lose_their_namespace() -> None:
    """Elements are found by their plain names, with any namespace."""
    root = parse_xml(b'<x xmlns="urn:a" xmlns:b="urn:b"><b:y>z</b:y></x>')
    assert (root.tag, root.findtext("y")) == ("x", "z")
