"""A connection in memory to a server that sends the fuzzer's data, one turn at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

TURN = b"\n%%\n"
"""Ends what the server says before it hears from the client again."""

ECHO = b"%echo%"
"""Stands for the client's last line, which a server may repeat."""

LINE = 200
"""Most characters of a transcript's line, without the time and the speaker."""

_PATIENCE = 6  # rounds of the event loop after which a server that heard nothing says its next turn


class _Connection(asyncio.Transport):
    """Sends the server's next turn when the client has written or waits; closes after the last one."""

    def __init__(self, turns: list[bytes], piece: int) -> None:
        super().__init__()
        self._turns, self._piece = turns, piece
        self._underway = b""
        self._closing = False
        self.receiver: Any = None

    def say(self, heard: bytes = b"") -> None:
        """Deliver the next turn, in the pieces in which the network divides it."""
        if self._closing or self.receiver.ended is not None:
            return
        is_delivering = bool(self._underway)
        if self._turns:
            self._underway += self._turns.pop(0).replace(ECHO, heard.removesuffix(b"\r\n"))
            if not is_delivering:
                asyncio.get_running_loop().call_soon(self._deliver)
        elif not is_delivering:
            asyncio.get_running_loop().call_soon(self.receiver.eof_received)

    def _deliver(self) -> None:
        """Deliver the next piece; the client sees it before the one after it."""
        size = self._piece or len(self._underway)
        piece, self._underway = self._underway[:size], self._underway[size:]
        self.receiver.data_received(piece)
        loop = asyncio.get_running_loop()
        if self._underway:
            loop.call_soon(self._deliver)
        else:
            loop.call_soon(self._wait, len(self._turns), _PATIENCE)

    def _wait(self, left: int, rounds: int) -> None:
        """Continue if the client does not."""
        if len(self._turns) != left:
            return
        if rounds:
            asyncio.get_running_loop().call_soon(self._wait, left, rounds - 1)
        else:
            self.say()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.say(bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self.receiver.connection_lost, None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "sockname" else default

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@contextmanager
def connections(turns: list[bytes], piece: int = 0) -> Iterator[None]:
    """Let every connection reach the server, which continues with its turns at each new one."""

    async def connect_tcp(make_protocol: Callable[[], Any], *_: object, **__: object) -> Any:
        receiver, connection = make_protocol(), _Connection(turns, piece)
        connection.receiver = receiver
        receiver.connection_made(connection)
        asyncio.get_running_loop().call_soon(connection.say)
        return receiver

    async def start_tls(*_: object) -> None:
        """Continue without encryption; TLS itself is OpenSSL's."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probes.protocols.line_transport.LineTransport.start_tls", start_tls)
        patch.setattr("probes.protocols.line_transport.connect_tcp", connect_tcp)
        yield
