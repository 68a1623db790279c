"""Pages from untrusted web servers: verified, limited in size and time, with harmless XML."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from monitor.init import web
from monitor.init.web import PageError
from tests.fakes.https_server import page, redirect
from tests.unit.init.conftest import Served


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
    async with serve_domain({"example.com GET /x": None}) as domain, asyncio.timeout(120):
        with pytest.raises(PageError, match=r"command_timeout: no answer within 1\.5 s"):
            await domain.web.fetch("https://example.com/x")
