"""A test's own mail domain: DNS, and an https server with a certificate for each host name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from monitor.init.web import Web
from probes.protocols.dns import Resolver
from tests.fakes.dns_server import DnsServer, dns_server, zone
from tests.fakes.https_server import Answer, HttpsServer, https_server, page
from tests.fakes.scripted_server import server_context

HOSTS = ("autoconfig.example.com", "example.com", "autodiscover.example.com", "provider.test")


@dataclass
class Domain:
    """The DNS and https servers for example.com."""

    resolver: Resolver
    web: Web
    https: HttpsServer
    dns: DnsServer


Served = Callable[..., AbstractAsyncContextManager[Domain]]


@pytest.fixture
def serve_domain(certificate_authority: trustme.CA, tmp_path: Path) -> Served:
    """Serve DNS records, and pages by ``HOST METHOD PATH`` without the query; other pages are 404."""
    authority = tmp_path / "ca.pem"
    certificate_authority.cert_pem.write_to_path(authority)

    @asynccontextmanager
    async def serve(
        pages: dict[str, Answer] | None = None, *records: str, names: tuple[str, ...] = HOSTS
    ) -> AsyncIterator[Domain]:
        def answer(request: str) -> Answer:
            return (pages or {}).get(request.partition("?")[0], page("", "404 Not Found"))

        addresses = [f"{host}. 60 IN A 127.0.0.1" for host in HOSTS]
        context = server_context(certificate_authority, *names)
        async with dns_server(zone(*addresses, *records)) as dns, https_server(context, answer) as https:
            resolver = Resolver(dns.settings())
            yield Domain(resolver, Web(resolver, authority, https.port), https, dns)

    return serve
