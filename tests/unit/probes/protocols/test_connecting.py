"""Connecting: names, several addresses, refusals and silence, each phase timed."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path
from typing import Any

import pytest

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols import name_resolution
from probes.protocols.line_transport import MOST_ADDRESSES, LineTransport, connect_tcp
from tests.fakes.black_hole import black_hole
from tests.fakes.dns_server import dns_server
from tests.fakes.resolver_files import resolution
from tests.fakes.scripted_server import Peer, on_each_loop, scripted_server


def unused_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])


@on_each_loop
async def test_connecting_times_its_phases() -> None:
    """Resolving a name has its own phase; an address needs none."""
    for host, names in (("127.0.0.1", {"connect"}), ("localhost", {"resolve", "connect"})):
        phases = PhaseTimer(SystemClock())
        async with scripted_server(Peer.until_closed) as server:
            (await LineTransport.connect(host, server.port, phases, 5.0)).abort()
            await server.peer_closed()
        assert set(phases.seconds) == names


@on_each_loop
async def test_nothing_listens() -> None:
    """A refused connection says which address refused it."""
    port = unused_port()
    with pytest.raises(ProbeFault) as caught:
        await connect_tcp(asyncio.Protocol, "127.0.0.1", port, PhaseTimer(SystemClock()), 5.0)
    assert caught.value.reason is Reason.CONNECT_REFUSED
    assert f"127.0.0.1 port {port}" in caught.value.detail


@on_each_loop
async def test_a_name_that_cannot_be() -> None:
    """A name with a label too long for DNS does not exist, and is not a defect."""
    with pytest.raises(ProbeFault) as caught:
        await connect_tcp(asyncio.Protocol, "x" * 64 + ".test", 25, PhaseTimer(SystemClock()), 5.0)
    assert caught.value.reason is Reason.DNS_NXDOMAIN


def resolve_to(monkeypatch: pytest.MonkeyPatch, folder: Path, *addresses: str) -> None:
    """Let the hosts file list ``addresses`` of mail.test, in this order."""
    hosts = "".join(f"{address} mail.test\n" for address in addresses)
    monkeypatch.setattr(name_resolution, "system", resolution(folder, hosts=hosts))


@on_each_loop
async def test_a_resolver_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unanswered DNS query is not a fault of the server, and has its own phase."""
    phases = PhaseTimer(SystemClock())
    async with dns_server(lambda query: []) as server:
        monkeypatch.setattr(name_resolution, "system", resolution(tmp_path, port=server.port))
        with pytest.raises(ProbeFault) as caught:
            await connect_tcp(asyncio.Protocol, "mail.test", 25, phases, 0.05)
    assert caught.value.reason is Reason.DNS_TIMEOUT
    assert phases.current == "resolve"


@on_each_loop
async def test_slow_dns_does_not_shorten_connecting() -> None:
    """Slow name resolution does not reduce the time for connecting."""

    async def resolve(host: str, port: int, seconds: float) -> list[tuple[str, int]]:
        assert seconds == 0.2
        await asyncio.sleep(seconds)
        return [("127.0.0.1", port)]

    async with scripted_server(Peer.until_closed) as server:
        phases = PhaseTimer(SystemClock())
        (await LineTransport.connect("mail.test", server.port, phases, 0.2, resolve)).abort()
        await server.peer_closed()


@on_each_loop
async def test_a_silent_server() -> None:
    """A server that never accepts the connection is a connect timeout."""
    phases = PhaseTimer(SystemClock())
    with black_hole() as port, pytest.raises(ProbeFault) as caught:
        await connect_tcp(asyncio.Protocol, "127.0.0.1", port, phases, 0.1)
    assert caught.value.reason is Reason.CONNECT_TIMEOUT
    assert phases.current == "connect"
    assert phases.seconds["connect"] > 0.05


@on_each_loop
async def test_a_silent_address_leaves_time_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that does not answer leaves enough time for the next one."""
    async with scripted_server(Peer.until_closed) as server:
        resolve_to(monkeypatch, tmp_path, "127.0.0.2", "127.0.0.1")
        with black_hole("127.0.0.2", server.port):
            wire = await LineTransport.connect("mail.test", server.port, PhaseTimer(SystemClock()), 0.4)
        wire.abort()
        await server.peer_closed()
        assert server.connections == 1


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENETUNREACH, Reason.NETWORK_UNREACHABLE),
        (errno.EAFNOSUPPORT, Reason.NETWORK_UNREACHABLE),
        (errno.EMFILE, Reason.LOCAL_RESOURCES),
    ],
)
@on_each_loop
async def test_a_refusal_outweighs_what_this_machine_lacks(
    number: int, reason: Reason, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without IPv6, a refusal by the server's IPv4 address is still an outage."""
    port = unused_port()
    loop = asyncio.get_running_loop()
    real = loop.create_connection

    async def without_ipv6(protocol: Any, host: str, port: int) -> Any:
        if ":" in host:
            raise OSError(number, "not here")
        return await real(protocol, host, port)

    resolve_to(monkeypatch, tmp_path, "127.0.0.1", "2001:db8::1")
    monkeypatch.setattr(loop, "create_connection", without_ipv6)
    with pytest.raises(ProbeFault) as caught:
        await connect_tcp(asyncio.Protocol, "mail.test", port, PhaseTimer(SystemClock()), 5.0)
    assert caught.value.reason is Reason.CONNECT_REFUSED
    resolve_to(monkeypatch, tmp_path, "2001:db8::1")
    with pytest.raises(ProbeFault) as caught:
        await connect_tcp(asyncio.Protocol, "mail.test", port, PhaseTimer(SystemClock()), 5.0)
    assert caught.value.reason is reason


async def test_a_name_with_thousands_of_addresses() -> None:
    """Only the first addresses of a name are tried, so that each has a fair share of the time."""

    async def resolve(host: str, port: int, seconds: float) -> list[tuple[str, int]]:
        return [("127.0.0.1", port)] * 3000

    phases = PhaseTimer(SystemClock())
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and never listens
        with pytest.raises(ProbeFault) as caught:
            await connect_tcp(asyncio.Protocol, "mail.test", unused.getsockname()[1], phases, 5.0, resolve)
    assert caught.value.reason is Reason.CONNECT_REFUSED
    assert len(phases.transcript.lines()) == MOST_ADDRESSES
