"""The limits on connections and unread answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from monitor.web import serving
from monitor.web.serving import bind, served

MOST = 10
LARGE = 20_000_000
"""Octets of an answer that no buffer of the kernel holds."""


class Slow:
    """An application with an answer that waits for permission, and a large one."""

    def __init__(self) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        self.text = b"x" * LARGE
        self.app = Starlette(
            routes=[
                Route("/slow", self.slow),
                Route("/large", self.large),
                Route("/shared", self.shared),
                Route("/", self.quick),
            ]
        )

    async def slow(self, _: Request) -> Response:
        self.asked.set()
        await self.go.wait()
        return PlainTextResponse("at last")

    async def large(self, _: Request) -> Response:
        return PlainTextResponse("x" * LARGE)

    async def shared(self, _: Request) -> Response:
        return Response(self.text)

    async def quick(self, _: Request) -> Response:
        return PlainTextResponse("here")


@pytest.fixture
async def slow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Slow, int]]:
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", MOST)
    made, bound = Slow(), bind("127.0.0.1", 0)
    async with served(made.app, bound):
        yield made, bound.getsockname()[1]
    bound.close()


@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HTTP/1.1\r\nHost:", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /large HTTP/1.0\r\n\r\n"],
    ids=["silent", "half a request", "kept alive", "not reading"],
)
async def test_idle_connections_keep_nobody_out(slow: tuple[Slow, int], said: bytes) -> None:
    """With three times the maximum of connections, all idle, a scrape is still answered."""
    _, port = slow
    writers = []
    for _ in range(3 * MOST):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(said)
        writers.append(writer)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert (await client.get("/")).text == "here"
    for writer in writers:
        writer.transport.abort()


@pytest.mark.parametrize(("path", "count"), [(b"/shared", 6), (b"/large", 3)])
async def test_a_client_that_reads_slowly_gets_all(
    slow: tuple[Slow, int], monkeypatch: pytest.MonkeyPatch, path: bytes, count: int
) -> None:
    """Scrapers that come at once each get the whole answer, even if each reads only after the last one."""
    monkeypatch.setattr(serving, "MOST_UNREAD", 1.5 * LARGE)
    _, port = slow
    octets = [0] * count
    scrapers = [await asyncio.open_connection("127.0.0.1", port, limit=1) for _ in octets]
    for reader, writer in scrapers:
        writer.write(b"GET " + path + b" HTTP/1.0\r\n\r\n")
        assert await reader.readexactly(8) == b"HTTP/1.1"
    for number, (reader, writer) in enumerate(scrapers):
        while got := await reader.read(2**16):
            octets[number] += len(got)
        writer.transport.abort()
    assert min(octets) > LARGE


async def test_a_client_that_stops_reading_is_dropped(
    slow: tuple[Slow, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that reads no further loses its connection after a bounded time; one that reads gets all."""
    monkeypatch.setattr(serving, "PATIENCE", 0.5)
    _, port = slow
    octets = [0, 0]
    clients = [await asyncio.open_connection("127.0.0.1", port, limit=1) for _ in octets]
    for reader, writer in clients:
        writer.write(b"GET /shared HTTP/1.0\r\n\r\n")
        assert await reader.readexactly(8) == b"HTTP/1.1"
    for number in (1, 0):
        reader, _ = clients[number]
        while got := await reader.read(2**20):
            octets[number] += len(got)
        await asyncio.sleep(0.5)  # for as long, on the loop that the server has, too
    assert octets[0] < LARGE < octets[1]
    for _, writer in clients:
        writer.transport.abort()


async def test_unread_answers_take_bounded_memory(
    slow: tuple[Slow, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If many clients do not read their answers, the first are dropped; the last get all of theirs."""
    monkeypatch.setattr(serving, "MOST_UNREAD", 3.5 * LARGE)
    _, port = slow
    crowd = []
    for _ in range(8):
        crowd.append(await asyncio.open_connection("127.0.0.1", port, limit=1))
        reader, writer = crowd[-1]
        writer.write(b"GET /large HTTP/1.0\r\n\r\n")
        assert await reader.readexactly(8) == b"HTTP/1.1"
    octets = [0] * len(crowd)
    for number, (reader, writer) in enumerate(crowd):
        with suppress(ConnectionResetError):
            while got := await reader.read(2**20):
                octets[number] += len(got)
        writer.transport.abort()
    assert max(octets[:4]) < LARGE < min(octets[5:])


async def test_an_answer_in_the_making_is_not_given_up_for_idle_connections(slow: tuple[Slow, int]) -> None:
    """A request in progress gets its answer, however many clients connect meanwhile."""
    made, port = slow
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        answer = asyncio.create_task(client.get("/slow"))
        await made.asked.wait()
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2 * MOST)]
        made.go.set()
        assert (await answer).text == "at last"
    for _, writer in idle:
        writer.transport.abort()


async def test_who_connects_early_waits() -> None:
    """Once the port is bound, early connections wait and are not refused."""
    bound = bind("127.0.0.1", 0)
    with socket.create_connection(bound.getsockname(), timeout=10) as early:
        early.sendall(b"GET / HTTP/1.0\r\n\r\n")
        async with served(Slow().app, bound):
            answered = await asyncio.to_thread(early.recv, 12)
    bound.close()
    assert answered == b"HTTP/1.1 200"
