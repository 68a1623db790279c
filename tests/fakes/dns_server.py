"""A DNS server on 127.0.0.1 with scripted answers over UDP and TCP on one port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from probes.protocols.dns import ResolverSettings

Script = Callable[[dns.message.Message], Sequence[bytes | dns.message.Message] | None]
"""Gets a question, returns what goes back for it: whole messages, or raw bytes.

Over TCP, the connection is closed behind them; with ``None`` it stays open and silent.
"""


def response(
    query: dns.message.Message, *records: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, cut: bool = False
) -> dns.message.Message:
    """Return a response to ``query`` with ``records``, each written as ``name ttl IN type data``."""
    made = dns.message.make_response(query, recursion_available=True)
    made.set_rcode(rcode)
    for record in records:
        name, ttl, rdclass, rdtype, data = record.split(maxsplit=4)
        made.answer.append(dns.rrset.from_text(name, int(ttl), rdclass, rdtype, data))
    if cut:
        made.flags |= dns.flags.TC
    return made


def _wire(reply: bytes | dns.message.Message) -> bytes:
    return reply if isinstance(reply, bytes) else reply.to_wire(max_size=65535)


def zone(*records: str) -> Script:
    """Return a script that serves ``records``, written as above, and NXDOMAIN for other names."""
    by_name: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        name, _, _, rdtype, _ = record.split(maxsplit=4)
        by_name.setdefault(name, []).append((rdtype, record))

    def script(query: dns.message.Message) -> list[dns.message.Message]:
        question = query.question[0]
        name, kind = question.name.to_text().lower(), question.rdtype.name
        if name not in by_name:
            return [response(query, rcode=dns.rcode.NXDOMAIN)]
        found: list[str] = []
        while name in by_name:
            here = by_name[name]
            found += [record for rdtype, record in here if rdtype == kind]
            alias = [record for rdtype, record in here if rdtype == "CNAME" and kind != "CNAME"]
            if not alias:
                break
            found += alias
            name = alias[0].split()[4]
        return [response(query, *found)]

    return script


@dataclass
class DnsServer:
    """A running server: its port, and the queries that it received, in order."""

    port: int
    asked_over_udp: list[dns.message.Message] = field(default_factory=list)
    asked_over_tcp: list[dns.message.Message] = field(default_factory=list)

    def settings(self, timeout: str = "60s") -> ResolverSettings:
        return ResolverSettings.model_validate(
            {"address": "127.0.0.1", "port": self.port, "timeout": timeout}
        )


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer, script: Script) -> None:
        self._server, self._script = server, script

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override] # as asyncio passes it
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        self._server.asked_over_udp.append(query)
        for reply in self._script(query) or ():
            self._transport.sendto(_wire(reply), addr)


def _ports() -> tuple[socket.socket, socket.socket]:
    """Return sockets for TCP and UDP on one port, which must be free for both."""
    while True:
        listener = socket.create_server(("127.0.0.1", 0))
        datagrams = socket.socket(type=socket.SOCK_DGRAM)
        try:
            datagrams.bind(listener.getsockname())
        except OSError:  # somebody's datagrams come from there
            listener.close()
            datagrams.close()
        else:
            datagrams.setblocking(False)
            return listener, datagrams


@asynccontextmanager
async def dns_server(over_udp: Script, over_tcp: Script | None = None) -> AsyncIterator[DnsServer]:
    """Serve two scripts. Without ``over_tcp`` TCP is refused; without a reply the server hangs up."""
    loop = asyncio.get_running_loop()
    listener, socket_for_udp = _ports()
    server = DnsServer(listener.getsockname()[1])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            size = int.from_bytes(await reader.readexactly(2), "big")
            query = dns.message.from_wire(await reader.readexactly(size))
            server.asked_over_tcp.append(query)
            replies = over_tcp(query) if over_tcp else ()
            for reply in replies or ():
                wire = _wire(reply)
                writer.write(len(wire).to_bytes(2, "big") + wire)
            await writer.drain()
            if replies is None:
                await reader.read()
        finally:
            writer.close()

    udp, _ = await loop.create_datagram_endpoint(lambda: _Udp(server, over_udp), sock=socket_for_udp)
    tcp = None
    if over_tcp is None:
        listener.close()
    else:
        tcp = await asyncio.start_server(serve, sock=listener)
    try:
        yield server
    finally:
        udp.close()
        if tcp is not None:
            tcp.close()
            await tcp.wait_closed()
        await asyncio.sleep(0)  # transports close on the loop's next turn
