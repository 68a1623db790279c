"""Exchange servers behind one public name: health pages, metadata, and greetings of the transport service.

Each server has an address of its own on loopback, and all have the same ports. Faults are set by directory.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.fakes.graph.http import HANG_UP, Answer, Request, http_server

HOST = "mail.fabrikam.test"
BUILD = "15.2.2562.46"
HANG = object()
"""In place of an answer: the server stays silent."""

OFFERED = {
    "ews": "Negotiate, NTLM",
    "autodiscover": "Negotiate, NTLM, Basic",
    "Microsoft-Server-ActiveSync": "Basic",
    "mapi": "Negotiate, NTLM",
}
"""What each directory asks for without a login."""

HUGE_PAGE = Answer(200, b"200 OK<br/>" + b"x" * 300_000, length=100_000_000)
"""The beginning of a page of 100 MB."""

HTML = Answer(200, b"<!DOCTYPE html><title>Sign in</title>", {"Content-Type": "text/html"})
DRAINING = b"421 4.3.2 Service not active\r\n"


@dataclass
class ExchangeServer:
    """One server. ``faults`` has what a directory does in place of a sound answer."""

    fqdn: str
    address: str
    build: str = BUILD
    is_in_maintenance: bool = False
    faults: dict[str, object] = field(default_factory=dict)
    metadata: object = None
    connections: int = 0
    requests: list[str] = field(default_factory=list)
    smtp_connections: int = 0

    def connected(self) -> None:
        self.connections += 1

    async def handle(self, request: Request) -> object:
        """Answer a request."""
        directory, page = request.path[0], "/".join(request.path[1:])
        self.requests.append("/".join(request.path))
        fault = self.faults.get(directory)
        if page == "healthcheck.htm":
            if fault is None and self.is_in_maintenance:
                fault = Answer(503)
        elif directory == "owa" and not page:
            return Answer(302, b"", {"Location": f"https://{HOST}/owa/auth/logon.aspx", **self._fields()})
        elif request.path == ["autodiscover", "metadata", "json", "1"]:
            return self.metadata if isinstance(self.metadata, Answer) else Answer(200, self.metadata)
        else:
            return Answer(401, b"", {"WWW-Authenticate": OFFERED.get(directory, "Negotiate")})
        if fault is HANG:
            await asyncio.Event().wait()
        if fault is not None:
            return fault
        return Answer(
            200, f"200 OK<br/>{self.fqdn}".encode(), {"X-FEServer": self.fqdn.split(".")[0].upper()}
        )

    def _fields(self) -> dict[str, str]:
        return {"X-OWA-Version": self.build} if self.build else {}

    async def smtp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talk as the transport service does, without mail."""
        self.smtp_connections += 1
        name = self.fqdn.encode()
        if self.is_in_maintenance:
            writer.write(DRAINING)
            writer.close()
            return
        writer.write(
            b"220 %s Microsoft ESMTP MAIL Service ready at Fri, 5 Aug 2016 16:24:41 -0700\r\n" % name
        )
        while line := await reader.readline():
            if line.startswith(b"QUIT"):
                writer.write(b"221 2.0.0 Service closing transmission channel\r\n")
                break
            writer.write(b"250-%s Hello [127.0.0.1]\r\n250 8BITMIME\r\n" % name)
        writer.close()


@dataclass
class ExchangeSite:
    """The servers by name, and the ports that they share."""

    servers: dict[str, ExchangeServer]
    port: int = 0
    smtp_port: int = 0

    @property
    def connections(self) -> int:
        """How many HTTPS connections the servers took."""
        return sum(server.connections for server in self.servers.values())

    @property
    def requests(self) -> int:
        """How many HTTP requests the servers got."""
        return sum(len(server.requests) for server in self.servers.values())


def metadata_of(*certificates: bytes) -> dict[str, object]:
    """Return the organization's metadata document with these certificates, in DER."""
    keys = [
        {
            "usage": "signing",
            "keyinfo": {"x5t": "abc"},
            "keyvalue": {"type": "x509Certificate", "value": base64.b64encode(octets).decode()},
        }
        for octets in certificates
    ]
    return {"id": "00000002-0000-0ff1-ce00-000000000000", "keys": keys, "version": "1.0"}


def certificate_in_der(authority: trustme.CA, not_after: datetime | None = None) -> bytes:
    """Return a certificate as the metadata document has it."""
    issued = authority.issue_cert("auth.fabrikam.test", not_after=not_after)
    return x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)


@asynccontextmanager
async def exchange_site(
    authority: trustme.CA, count: int = 2, *, metadata: object = None
) -> AsyncIterator[ExchangeSite]:
    """Serve ``count`` servers, ``ex1`` and so on, with certificates for the public name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, "127.0.0.10").configure_cert(context)
    written = metadata if metadata is not None else metadata_of(certificate_in_der(authority))
    servers = {
        f"ex{n}": ExchangeServer(f"EX{n}.corp.fabrikam.test", f"127.0.0.{9 + n}", metadata=written)
        for n in range(1, count + 1)
    }
    site = ExchangeSite(servers)
    async with AsyncExitStack() as stack:
        for server in servers.values():
            site.port = await stack.enter_async_context(
                http_server(
                    server.handle, context, host=server.address, port=site.port, connected=server.connected
                )
            )
            smtp = await asyncio.start_server(server.smtp, server.address, site.smtp_port)
            stack.callback(smtp.close)
            site.smtp_port = smtp.sockets[0].getsockname()[1]
        yield site


__all__ = ["HANG", "HANG_UP", "HTML", "HUGE_PAGE", "ExchangeServer", "ExchangeSite", "exchange_site"]
