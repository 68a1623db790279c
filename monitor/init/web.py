"""Pages that a mail domain publishes for clients: https only, verified, bounded, timed."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from monitor.init.endpoint import host_name
from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols.dns import Resolver
from probes.protocols.https import HttpClient, Response

PAGE_LIMIT = 256 * 1024
"""Maximum size of a page, in octets."""

PAGE_SECONDS = 5.0
"""Time limit for one page, including its redirects."""

REDIRECTS = 3
"""Maximum number of redirects."""

ADDRESSES_TRIED = 3

_XML = MappingProxyType({"content-type": "text/xml"})


class PageError(Exception):
    """A page that cannot be fetched or trusted; the text says why and is safe to show."""


class Web:
    """Fetches pages by https from the addresses that ``resolver`` returns.

    ``authority`` is a PEM file to trust in addition to the system's CAs; ``port`` is the default port
    of URLs.
    """

    def __init__(self, resolver: Resolver, authority: Path | None = None, port: int = 443) -> None:
        self._resolver = resolver
        self._authority = authority
        self._port = port

    async def fetch(self, url: str, content: bytes | None = None) -> Response:
        """Return the page at ``url`` by GET, or by POST with ``content``; raises `PageError`."""
        try:
            async with HttpClient(
                PhaseTimer(SystemClock()),
                seconds=PAGE_SECONDS,
                ca=self._authority,
                with_system=True,
                resolve=self._places,
            ) as client:
                page = await client.request(
                    "GET" if content is None else "POST",
                    url,
                    headers=_XML if content is not None else {},
                    content=content,
                    limit=PAGE_LIMIT,
                    redirects=REDIRECTS,
                )
        except (ProbeFault, ValueError) as error:
            raise PageError(str(error)) from error
        if page.is_encoded:
            raise PageError("is compressed, which was not requested")
        if page.is_cut:
            raise PageError(f"is longer than {PAGE_LIMIT // 1024} KB")
        return page

    async def _places(self, host: str, port: int, _: float) -> list[tuple[str, int]]:
        """Return the address to connect to. The host must be a domain name: an IP address proves nothing."""
        try:
            name = host_name(host)
        except ValueError as error:
            raise PageError(str(error)) from error
        found: list[str] = []
        for rdtype in ("A", "AAAA"):
            answer = await self._resolver.ask(name, rdtype)
            found += [record.to_text() for record in answer.records]
        if not found:
            raise ProbeFault(Reason.DNS_NO_ADDRESS, f"{name} has no address")
        return [(address, self._port if port == 443 else port) for address in found[:ADDRESSES_TRIED]]
