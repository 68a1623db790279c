"""The fake site's connections: TLS, distance and pace around the dialogues of its protocols.

TLS is done here and not by asyncio, whose streams would cost more than all the rest.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tests.fakes.mail_site.store import Site


class Dialogue(Protocol):
    """One connection's state in its protocol."""

    greeting: bytes
    is_over: bool

    def take(self, buffer: bytearray) -> bytes | None:
        """Remove the next complete command from ``buffer``."""
        ...

    def answer(self, line: bytes) -> bytes | None:
        """Return the answer to a command; ``None`` if there is none, ever."""
        ...

    def close(self) -> None:
        """Forget the connection."""
        ...


@dataclass
class Pace:
    """How far away the servers are, and how slow.

    Octets take half of ``round_trip`` each way. So a client may wait for each answer or send commands
    together, and both cost what they would in a network. Commands take effect when they reach the server, one
    after the other, and each takes the server ``command`` seconds.
    """

    round_trip: float = 0.0
    command: float = 0.0


class _Later:
    """Passes items on in their order, each after its delay."""

    def __init__(self, act: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._act = act
        self._items: deque[tuple[float, bytes]] = deque()
        self._last = 0.0

    def put(self, item: bytes, distance: float, command: float = 0.0) -> None:
        if not (distance or command or self._items):
            self._act(item)
            return
        self._last = max(self._loop.time() + distance, self._last) + command
        self._items.append((self._last, item))
        if len(self._items) == 1:
            self._loop.call_at(self._last, self._next)

    def _next(self) -> None:
        _, item = self._items[0]
        self._act(item)
        self._items.popleft()
        if self._items:
            self._loop.call_at(self._items[0][0], self._next)


class Connection(asyncio.Protocol):
    """A connection of a client, from accepting it to its end."""

    def __init__(
        self,
        site: Site,
        pace: Pace,
        dialogue: Callable[[Site, Callable[[bytes], None]], Dialogue],
        context: ssl.SSLContext | None,
        *,
        starts_tls: bool,
    ) -> None:
        self._pace = pace
        self._context = context
        self._starts_tls = starts_tls
        self._dialogue = dialogue(site, self._send)
        self._buffer = bytearray()
        self._commands = _Later(self._answer)
        self._answers = _Later(self._write)
        self._tls: ssl.SSLObject | None = None
        self._is_shaken = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._transport: Any = None  # asyncio.Transport; uvloop's is another class

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or wait for the handshake."""
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None and not self._starts_tls:
            self._begin_tls()
            return
        if self._context is not None:
            self._dialogue.offers_tls = True  # type: ignore[attr-defined] # only SMTP's
        self._send(self._dialogue.greeting)

    def connection_lost(self, exc: Exception | None) -> None:  # either way it is over
        """Forget the connection."""
        self._dialogue.close()

    def data_received(self, data: bytes) -> None:
        """Take in octets of the client."""
        if self._tls is not None:
            self._incoming.write(data)
            try:
                self._decrypt()
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError:  # the client has closed the session
                self._transport.abort()
            return
        self._buffer += data
        self._take()

    def _begin_tls(self) -> None:
        assert self._context is not None
        self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def _decrypt(self) -> None:
        assert self._tls is not None
        if not self._is_shaken:
            self._tls.do_handshake()
            self._is_shaken = True
            self._flush()
            if not self._starts_tls:
                self._send(self._dialogue.greeting)
        while data := self._tls.read(65536):
            self._buffer += data
            self._take()
        self._transport.close()  # close_notify

    def _take(self) -> None:
        while (command := self._dialogue.take(self._buffer)) is not None:
            self._commands.put(command, self._pace.round_trip / 2, self._pace.command)

    def _answer(self, command: bytes) -> None:
        answer = self._dialogue.answer(command)
        if answer is not None:
            self._send(answer)

    def _send(self, octets: bytes) -> None:
        self._answers.put(octets, self._pace.round_trip / 2)

    def _write(self, octets: bytes) -> None:
        if self._transport.is_closing():
            return
        if self._tls is None:
            self._transport.write(octets)
        else:
            self._tls.write(octets)
            self._flush()
        if getattr(self._dialogue, "starts_tls", False) and self._tls is None:
            self._begin_tls()
        if self._dialogue.is_over:
            self._transport.close()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())
