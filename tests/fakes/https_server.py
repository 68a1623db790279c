"""An https server on 127.0.0.1 with scripted answers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = bytes | Iterable[bytes] | None
"""What goes back: a whole response, one in chunks, or nothing at all."""


@dataclass
class HttpsServer:
    """A running server: its port, and the requests that it received, each as ``HOST METHOD PATH``."""

    port: int
    requests: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    sent: int = 0  # octets


def page(body: bytes | str, status: str = "200 OK", *headers: str) -> bytes:
    """Return a complete response."""
    content = body.encode() if isinstance(body, str) else body
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers, "Connection: close"]
    return "\r\n".join([*head, "", ""]).encode() + content


def redirect(where: str) -> bytes:
    return page("", "302 Found", f"Location: {where}")


@asynccontextmanager
async def https_server(
    context: ssl.SSLContext, answer: Callable[[str], Answer]
) -> AsyncIterator[HttpsServer]:
    """Serve the result of ``answer`` for ``HOST METHOD PATH``; if there is none, stay silent."""
    served: set[asyncio.Task[None]] = set()
    server = HttpsServer(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            served.add(task)
        try:
            request, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in fields if line)
            method, path, _ = request.split()
            server.requests.append(f"{headers['host']} {method} {path}")
            server.bodies.append(await reader.readexactly(int(headers.get("content-length", 0))))
            reply = answer(server.requests[-1])
            if reply is None:
                await reader.read()
            for chunk in [reply] if isinstance(reply, bytes) else reply or ():
                writer.write(chunk)
                await writer.drain()
                server.sent += len(chunk)
        except (OSError, EOFError):  # the client hung up
            pass
        finally:
            writer.transport.abort()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)
        await asyncio.sleep(0)  # transports close on the loop's next turn
