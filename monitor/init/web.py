"""Pages that a mail domain offers to clients: https only, verified, bounded, timed; XML without a DTD."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import httpx

from monitor.init.endpoint import host_name
from probes.core.faults import ProbeFault, legible
from probes.protocols.dns import Resolver

PAGE_LIMIT = 256 * 1024
"""Most octets of a page that are read."""

PAGE_SECONDS = 5.0
"""Longest time for one page, its redirects included."""

REDIRECTS = 3
"""Most redirects that are followed."""

ADDRESSES_TRIED = 3


class PageError(Exception):
    """A page that cannot be had or is not to be trusted; the text says why, fit to show."""


@dataclass(frozen=True, slots=True)
class Page:
    """An answer: the host that gave it, its HTTP status, its content, and where it sends us instead."""

    host: str
    status: int
    body: bytes
    location: str | None = None


class Web:
    """Fetches pages by https from the addresses that ``resolver`` tells.

    ``authority`` is a PEM file to trust besides the system's authorities; ``port`` is what URLs
    without one mean.
    """

    def __init__(self, resolver: Resolver, authority: Path | None = None, port: int = 443) -> None:
        self._resolver = resolver
        self._port = port
        # One of its own: httpx names HTTP in a context (ALPN), and mail servers share the others.
        self._context = ssl.create_default_context()
        if authority is not None:
            self._context.load_verify_locations(authority)

    async def fetch(self, url: str, content: bytes | None = None) -> Page:
        """Return the page at ``url``, asked for by GET, or by POST with ``content``; raises `PageError`."""
        try:
            async with asyncio.timeout(PAGE_SECONDS):
                for _ in range(REDIRECTS + 1):
                    page = await self._fetch_once(httpx.URL(url), content)
                    if page.location is None:
                        return page
                    url = page.location
        except TimeoutError:
            raise PageError(f"no answer within {PAGE_SECONDS:g} s") from None
        except ProbeFault as fault:
            raise PageError(str(fault)) from fault
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise PageError(legible(str(error) or type(error).__name__, 120)) from error
        raise PageError(f"more than {REDIRECTS} redirects")

    async def _fetch_once(self, url: httpx.URL, content: bytes | None) -> Page:
        if url.scheme != "https":
            raise PageError(f"leads to {legible(str(url), 80)}, which is not https")
        host = host_name(url.host)
        if url.port is not None and not 0 < url.port <= 65535:  # httpx takes any number for a port
            raise PageError(f"leads to {legible(str(url), 80)}, whose port is none")
        client = httpx.AsyncClient(
            verify=self._context,
            trust_env=False,
            timeout=None,  # noqa: S113 # `fetch` holds one limit over all redirects and addresses
        )
        async with client:
            failure: httpx.TransportError | None = None
            for address in await self._addresses(host):
                request = client.build_request(
                    "GET" if content is None else "POST",
                    url.copy_with(host=address, port=url.port or self._port),
                    content=content,
                    headers={
                        "Host": host if url.port is None else f"{host}:{url.port}",
                        "Accept-Encoding": "identity",
                        **({"Content-Type": "text/xml"} if content is not None else {}),
                    },
                    extensions={"sni_hostname": host},
                )
                try:
                    response = await client.send(request, stream=True)
                except httpx.TransportError as error:
                    failure = failure or error
                    continue
                return await _read(response, url, host)
            raise failure or PageError(f"{host} has no address")

    async def _addresses(self, host: str) -> list[str]:
        found: list[str] = []
        for rdtype in ("A", "AAAA"):
            answer = await self._resolver.ask(host, rdtype)
            found += [record.to_text() for record in answer.records]
        return found[:ADDRESSES_TRIED]


async def _read(response: httpx.Response, url: httpx.URL, host: str) -> Page:
    body = bytearray()
    try:
        if response.has_redirect_location:
            return Page(host, response.status_code, b"", str(url.join(response.headers["location"])))
        if response.headers.get("content-encoding", "identity") != "identity":
            raise PageError("is compressed, which was not asked for")
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > PAGE_LIMIT:
                raise PageError(f"is longer than {PAGE_LIMIT // 1024} KB")
    finally:
        await response.aclose()
    return Page(host, response.status_code, bytes(body))


def parse_xml(body: bytes) -> Element:
    """Return the root of a document, names without their namespaces; raises `PageError`.

    A document type declaration is refused where it begins, so that no entity is ever defined,
    expanded or fetched.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate(namespace_separator=" ")

    def refuse(*_: object) -> None:
        raise PageError("has a document type declaration (DTD), which is refused")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: builder.start(name.rpartition(" ")[2], attributes)
    parser.EndElementHandler = lambda name: builder.end(name.rpartition(" ")[2])
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise PageError(f"is not well-formed XML: {legible(str(error), 80)}") from error
    root: Element = builder.close()
    return root
