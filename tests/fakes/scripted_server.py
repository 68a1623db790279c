"""A scripted line server on 127.0.0.1, so that tests control every octet and every silence."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import trustme
import uvloop
from pydantic import SecretStr

from probes.core.settings import ServerSettings

PASSWORD = "s3cret-Pa55word"
"""The password of `ScriptedServer.settings`, which no fault may show."""

P = ParamSpec("P")

_LARGEST_READ = 2**20


class Peer:
    """The server's end of one connection, with the operations for scripts."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.received: list[bytes] = []

    async def send(self, *lines: bytes) -> None:
        """Send lines, all in one chunk."""
        await self.chunks(b"".join(line + b"\r\n" for line in lines))

    async def chunks(self, *chunks: bytes) -> None:
        """Send octets unchanged, with each chunk sent separately."""
        for chunk in chunks:
            self._writer.write(chunk)
            await self._writer.drain()
            await asyncio.sleep(0)

    async def expect(self, pattern: bytes) -> bytes:
        """Read a line, and compare it with a regular expression."""
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the client went away")
        self.received.append(line.removesuffix(b"\r\n"))
        assert re.fullmatch(pattern, self.received[-1]), f"got {line!r}, expected {pattern!r}"
        return self.received[-1]

    async def octets(self) -> bytes:
        """Read the next octets, such as the first message of a TLS handshake, without recording them."""
        return await self._reader.read(_LARGEST_READ)

    async def start_tls(self, context: ssl.SSLContext) -> ssl.SSLObject:
        """Do the server's part of a TLS handshake; return the connection's parameters."""
        await self._writer.start_tls(context)
        encrypted: ssl.SSLObject = self._writer.get_extra_info("ssl_object")
        return encrypted

    async def flood(self, chunk: bytes) -> None:
        """Send the same chunk until the client closes the connection."""
        while True:
            await self.chunks(chunk)

    async def close(self) -> None:
        """Close the connection in order."""
        self._writer.close()

    async def reset(self) -> None:
        """Close the connection with a reset, if the received data allows it."""
        self._writer.transport.abort()

    async def until_closed(self) -> None:
        """Stay silent until the client closes the connection."""
        while await self._reader.read(_LARGEST_READ):
            pass


Script = Callable[[Peer], Awaitable[None]]
"""What the server does on a connection. After its end the server stays silent."""


class ScriptedServer:
    """A running server: its port, what it received, and whether the client closed the connection."""

    def __init__(self, script: Script, authority: Path | None = None) -> None:
        self._script = script
        self._authority = authority
        self._closed = asyncio.Event()
        self._mismatches: list[AssertionError] = []
        self.port = 0
        self.connections = 0
        self.received: list[bytes] = []

    def settings(
        self,
        protocol: str,
        *,
        tls: str = "none",
        username: str | None = None,
        password: str = PASSWORD,
        **options: Any,
    ) -> ServerSettings:
        """Return settings for a client of this server; the certificate's authority is trusted."""
        options.setdefault("timeout", "60s")
        made = ServerSettings.model_validate(
            {"protocol": protocol, "host": "127.0.0.1", "port": self.port, "tls": tls, **options}
        )
        return made.model_copy(
            update={
                "tls_ca": self._authority if tls != "none" else None,
                "username": username,
                "password": SecretStr(password) if username else None,
            }
        )

    async def peer_closed(self, timeout: float = 30.0) -> None:  # noqa: ASYNC109 # a test's patience
        """Wait until the client has closed its connection; raises TimeoutError if it does not."""
        async with asyncio.timeout(timeout):
            await self._closed.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Follow the script on a connection."""
        self.connections += 1
        peer = Peer(reader, writer)
        peer.received = self.received
        try:
            await self._script(peer)
            await peer.until_closed()
        except AssertionError as mismatch:
            self._mismatches.append(mismatch)
        except (OSError, EOFError):  # the client closed or refused, as in many tests
            pass
        finally:
            writer.transport.abort()
            self._closed.set()

    def judge(self) -> None:
        """Raise the first deviation from the script."""
        if self._mismatches:
            raise self._mismatches[0]


@asynccontextmanager
async def scripted_server(script: Script, authority: Path | None = None) -> AsyncIterator[ScriptedServer]:
    """Serve ``script``; at the end, raise the first line that it did not expect."""
    served: set[asyncio.Task[None]] = set()
    server = ScriptedServer(script, authority)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.get_running_loop().create_task(server.serve(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, limit=_LARGEST_READ)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)
        await asyncio.sleep(0)  # transports close on the loop's next turn
        server.judge()


def server_context(authority: trustme.CA, *names: str, not_after: datetime | None = None) -> ssl.SSLContext:
    """Return the context of a server whose certificate is for ``names``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_after=not_after).configure_cert(context)
    return context


def on_each_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on asyncio's own loop, and again on uvloop's."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
            try:
                with asyncio.Runner(loop_factory=factory) as runner:
                    runner.run(test(*args, **kwargs))
            except BaseException as failure:
                failure.add_note(f"on the loop of {factory.__module__}")
                raise

    return run


Step = bytes | tuple[bytes, bytes]
"""A line to send, or an expected line and its answer."""


def dialogue(*steps: Step, then: Script | None = None) -> Script:
    """Return a script of ``steps``, and then ``then``."""

    async def script(peer: Peer) -> None:
        for step in steps:
            if isinstance(step, bytes):
                await peer.send(step)
            else:
                await peer.expect(step[0])
                await peer.send(step[1])
        if then is not None:
            await then(peer)

    return script
