"""A mail domain with autodiscover: DNS, an Exchange server, and the web server of the domain's web site.

Both have addresses of their own on loopback, and the same ports. What they do can be set by page.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trustme

from tests.fakes.dns_server import DnsServer, Script, dns_server, zone
from tests.fakes.exchange import HANG, OFFERED
from tests.fakes.graph.http import Answer, Request, http_server
from tests.fakes.scripted_server import server_context

DOMAIN = "fabrikam.test"
HOST = f"autodiscover.{DOMAIN}"
EMAIL = f"canary@{DOMAIN}"
EXCHANGE, WEB = "127.0.0.10", "127.0.0.11"
SIGN_IN = "https://login.example.test/common/oauth2/authorize"
BEARER = f'Bearer client_id="0002", trusted_issuers="0001@*", authorization_uri="{SIGN_IN}"'

SETTINGS = Answer(
    200, b'<?xml version="1.0"?><Autodiscover xmlns="urn:a"><Response xmlns="urn:b"/></Autodiscover>'
)
"""What servers other than Exchange answer without a login."""


@dataclass
class AutodiscoverServer:
    """One server. ``pages`` has its answers by what is asked; a text asks for a login with these schemes."""

    address: str
    pages: dict[str, object]
    requests: list[Request] = field(default_factory=list)

    async def handle(self, request: Request) -> object:
        """Answer a request over TLS."""
        return await self._answer(request, _page(request))

    async def redirect(self, request: Request) -> object:
        """Answer a request without TLS."""
        return await self._answer(request, "redirect")

    async def _answer(self, request: Request, page: str) -> object:
        self.requests.append(request)
        answer = self.pages.get(page, Answer(404))
        if answer is HANG:
            await asyncio.Event().wait()
        if isinstance(answer, str):  # asks for a login
            added = f", {BEARER}" if request.headers.get("authorization") == "Bearer" else ""
            return Answer(401, b"", {"WWW-Authenticate": f"{answer}{added}"})
        return answer


def _page(request: Request) -> str:
    """Return what a request asks for: xml, json, or the URL of an endpoint; otherwise its first directory."""
    if request.path[0] != "autodiscover":
        return request.path[0]
    asked = request.query.get("Protocol")
    return "xml" if asked is None else "json" if asked == "AutodiscoverV1" else f"{asked.lower()} url"


@dataclass
class AutodiscoverSite:
    """The servers, and the ports that they share."""

    exchange: AutodiscoverServer
    web: AutodiscoverServer
    dns: DnsServer
    port: int
    http_port: int


def names(value: str) -> Answer:
    """Return an answer in version 2."""
    return Answer(200, {"Protocol": "AutodiscoverV1", "Url": value})


ADDRESSES = (f"{DOMAIN}. 60 IN A {WEB}", f"{HOST}. 60 IN A {EXCHANGE}")


@asynccontextmanager
async def autodiscover_site(
    authority: trustme.CA,
    *records: str,
    script: Script | None = None,
    certificate: tuple[str, ...] = (DOMAIN, f"*.{DOMAIN}"),
) -> AsyncIterator[AutodiscoverSite]:
    """Serve the domain with ``records`` or a ``script`` in DNS. PORT in a record is the https port."""
    context = server_context(authority, *certificate)
    exchange = AutodiscoverServer(EXCHANGE, {"xml": OFFERED["autodiscover"]})
    web = AutodiscoverServer(WEB, {})
    async with AsyncExitStack() as stack:
        port = http_port = 0
        for server in (exchange, web):
            port = await stack.enter_async_context(
                http_server(server.handle, context, host=server.address, port=port)
            )
            http_port = await stack.enter_async_context(
                http_server(server.redirect, host=server.address, port=http_port)
            )
        written = [record.replace("PORT", str(port)) for record in records or ADDRESSES]
        dns = await stack.enter_async_context(dns_server(script or zone(*written)))
        exchange.pages |= {
            "json": names(f"https://{HOST}:{port}/autodiscover/autodiscover.xml"),
            "ews url": names(f"https://mail.{DOMAIN}:{port}/EWS/Exchange.asmx"),
            "EWS": OFFERED["ews"],
        }
        yield AutodiscoverSite(exchange, web, dns, port, http_port)
