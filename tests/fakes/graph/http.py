"""A small HTTP/1.1 server on loopback, with connections that stay open."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

HANG_UP = object()
"""In place of an answer: the connection is reset."""


@dataclass
class Request:
    """A request; ``path`` has its segments without percent-encoding."""

    method: str
    path: list[str]
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """An answer: JSON from an object, else octets as they are."""

    status: int = 200
    body: object = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None  # a false Content-Length

    def octets(self) -> bytes:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        fields = {"Content-Length": str(len(body) if self.length is None else self.length), **self.headers}
        head = [f"HTTP/1.1 {self.status} Whatever", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*head, "", ""]).encode() + body


Handler = Callable[[Request], Awaitable[Answer | object]]


async def _request(reader: asyncio.StreamReader) -> Request:
    line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = line.split(" ")
    headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in fields if one)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    path = [unquote(segment) for segment in parts.path.strip("/").split("/")]
    return Request(method, path, dict(parse_qsl(parts.query)), headers, body)


@asynccontextmanager
async def http_server(
    handle: Handler,
    context: ssl.SSLContext | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    connected: Callable[[], None] = lambda: None,
) -> AsyncIterator[int]:
    """Serve the answers of ``handle``, and yield the port; ``connected`` is called for each connection."""
    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        connected()
        try:
            while True:
                answer = await handle(await _request(reader))
                if not isinstance(answer, Answer):
                    break
                writer.write(answer.octets())
                await writer.drain()
                if answer.length is not None:
                    break
        except (OSError, EOFError):  # the client hung up
            pass
        finally:
            served.discard(task)
            writer.transport.close()

    listener = await asyncio.start_server(serve, host, port, ssl=context, limit=2**20)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in list(served):
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)
        await asyncio.sleep(0)  # transports close on the loop's next turn
