"""An IMAP and POP3 server in a process of its own, at a set distance, which logs when each message arrived.

Octets take half of the round-trip time each way. So a client may wait for each answer or send commands
together, and both cost what they would in a network. Commands take effect when they reach the server.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

_CAPABILITIES = b"IMAP4rev1 AUTH=PLAIN SASL-IR UIDPLUS IDLE"
_SECTION = re.compile(rb"BODY\.PEEK(\[.*\])<(\d+)\.(\d+)>")


class Seen(NamedTuple):
    """What the server saw: when each message arrived (monotonic), and how often each command came."""

    arrived: dict[str, float]
    commands: Counter[str]


class _Store:
    """The mailbox. Uids ascend; ``arrived`` has the monotonic time of each message by its id."""

    def __init__(self) -> None:
        self.messages: dict[int, bytes] = {}
        self.deleted: set[int] = set()
        self.uid_next = 1
        self.seen = Seen({}, Counter())

    def put(self, message_id: str, raw: bytes) -> None:
        self.messages[self.uid_next] = raw
        self.seen.arrived[message_id] = time.monotonic()
        self.uid_next += 1

    def among(self, uids: bytes) -> list[int]:
        """Return the uids of a sequence set that exist, ascending (RFC 9051 section 9)."""
        found: set[int] = set()
        newest = next(reversed(self.messages), 0)
        for part in uids.split(b","):
            low, _, high = part.partition(b":")
            end = newest if high == b"*" else int(high or low)
            begin = min(int(low), newest) if high == b"*" else int(low)
            found.update(uid for uid in range(begin, end + 1) if uid in self.messages)
        return sorted(found)


class _Imap:
    """One IMAP connection."""

    greeting = b"* OK [CAPABILITY " + _CAPABILITIES + b"] ready\r\n"

    def __init__(self, store: _Store) -> None:
        self._store = store
        self._told = 0
        self._idle = b""

    def answer(self, line: bytes) -> bytes:
        """Return the answer to a line."""
        if line == b"DONE":
            tag, self._idle = self._idle, b""
            return self._news() + tag + b" OK done\r\n"
        tag, *words = line.split(b" ")
        name = b" ".join(words[: 2 if words[0] == b"UID" else 1]).decode()
        self._store.seen.commands[name] += 1
        if name == "IDLE":
            self._idle = tag
            return b"+ idling\r\n" + self._news()
        return self._untagged(name, words) + self._news() + tag + b" OK done\r\n"

    def _news(self) -> bytes:
        """Return the EXISTS that is due: with the answer to any command, as most servers do."""
        if self._told == len(self._store.messages):
            return b""
        self._told = len(self._store.messages)
        return b"* %d EXISTS\r\n" % self._told

    def _untagged(self, name: str, words: list[bytes]) -> bytes:
        store = self._store
        match name:
            case "CAPABILITY":
                return b"* CAPABILITY " + _CAPABILITIES + b"\r\n"
            case "LIST":
                return b'* LIST () "/" INBOX\r\n'
            case "SELECT":
                self._told = len(store.messages)
                told = b"* %d EXISTS\r\n* OK [UIDVALIDITY 1] x\r\n" % self._told
                return told + b"* OK [UIDNEXT %d] x\r\n" % store.uid_next
            case "UID SEARCH":
                return b"* SEARCH " + b" ".join(b"%d" % uid for uid in store.messages) + b"\r\n"
            case "UID FETCH":
                return self._fetched(words[2], b" ".join(words[3:]))
            case "UID STORE":
                store.deleted.update(store.among(words[2]))
            case "UID EXPUNGE":
                return self._expunged(words[2])
        return b""

    def _fetched(self, uids: bytes, items: bytes) -> bytes:
        places = {uid: place for place, uid in enumerate(self._store.messages, 1)}
        section = _SECTION.search(items)
        if section is None:
            raise ValueError(items)
        begin, length = int(section[2]), int(section[3])
        lines = []
        for uid in self._store.among(uids):
            raw = self._store.messages[uid]
            text = raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if b"HEADER" in section[1] else raw
            text = text[begin : begin + length]
            lines.append(b"* %d FETCH (UID %d BODY%s<%d> " % (places[uid], uid, section[1], begin))
            lines.append(b"{%d}\r\n" % len(text) + text + b")\r\n")
        return b"".join(lines)

    def _expunged(self, uids: bytes) -> bytes:
        lines = []
        for uid in self._store.among(uids):
            if uid in self._store.deleted:
                lines.append(b"* %d EXPUNGE\r\n" % (list(self._store.messages).index(uid) + 1))
                del self._store.messages[uid]
                self._told -= 1
        return b"".join(lines)


class _Pop3:
    """One POP3 connection."""

    greeting = b"+OK ready\r\n"

    def __init__(self, store: _Store) -> None:
        self._store = store
        self._snapshot: list[int] = []
        self._marked: list[int] = []

    def answer(self, line: bytes) -> bytes:
        """Return the answer to a line."""
        words = line.split(b" ")
        self._store.seen.commands[words[0].decode()] += 1
        match words:
            case [b"CAPA"]:
                return b"+OK\r\nSASL PLAIN\r\nTOP\r\nUIDL\r\nPIPELINING\r\n.\r\n"
            case [b"AUTH", *_]:
                self._snapshot = list(self._store.messages)
            case [b"UIDL"]:
                lines = [b"%d u%d\r\n" % pair for pair in enumerate(self._snapshot, 1)]
                return b"+OK\r\n" + b"".join(lines) + b".\r\n"
            case [b"UIDL", number]:
                return b"+OK %s u%d\r\n" % (number, self._snapshot[int(number) - 1])
            case [b"TOP", number, *_]:
                return self._multi(self._raw(number).partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
            case [b"RETR", number]:
                return self._multi(self._raw(number))
            case [b"DELE", number]:
                self._marked.append(self._snapshot[int(number) - 1])
            case [b"QUIT"]:
                for uid in self._marked:
                    del self._store.messages[uid]
        return b"+OK\r\n"

    def _raw(self, number: bytes) -> bytes:
        return self._store.messages[self._snapshot[int(number) - 1]]

    @staticmethod
    def _multi(text: bytes) -> bytes:
        return b"+OK\r\n" + text.replace(b"\r\n.", b"\r\n..") + b".\r\n"


_PROTOCOLS: dict[str, Callable[[_Store], _Imap | _Pop3]] = {"imap": _Imap, "pop3": _Pop3}


async def _serve(protocol: str, round_trip: float, pipe: Connection) -> None:
    store = _Store()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _PROTOCOLS[protocol](store)
        loop = asyncio.get_running_loop()
        answers: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        lines: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def work() -> None:
            answers.put_nowait((loop.time() + round_trip / 2, connection.greeting))
            while True:
                at, line = await lines.get()
                await asyncio.sleep(at - loop.time())
                answers.put_nowait((loop.time() + round_trip / 2, connection.answer(line)))

        async def send() -> None:
            while True:
                at, answer = await answers.get()
                await asyncio.sleep(at - loop.time())
                writer.write(answer)

        tasks = [asyncio.create_task(work()), asyncio.create_task(send())]
        try:
            while line := await reader.readline():
                lines.put_nowait((loop.time() + round_trip / 2, line.removesuffix(b"\r\n")))
        except OSError:
            pass
        for task in tasks:
            task.cancel()
        writer.close()

    async def delivered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            message_id, octets = line.split()
            store.put(message_id.decode(), await reader.readexactly(int(octets)))
        writer.close()

    mail = await asyncio.start_server(connected, "127.0.0.1", 0)
    deliveries = await asyncio.start_server(delivered, "127.0.0.1", 0)
    pipe.send([listener.sockets[0].getsockname()[1] for listener in (mail, deliveries)])
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    pipe.send(store.seen)


def _run(protocol: str, round_trip: float, pipe: Connection) -> None:
    asyncio.run(_serve(protocol, round_trip, pipe))


class MailServer:
    """A running server: the port of its protocol, and one for deliveries."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.port, self.delivery_port = pipe.recv()

    def ended(self) -> Seen:
        """End the server, and return what it saw."""
        self._pipe.send("end")
        seen: Seen = self._pipe.recv()
        return seen


@contextmanager
def mail_server(protocol: str, round_trip: float) -> Iterator[MailServer]:
    """Run a server for ``protocol``, so many seconds away."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(protocol, round_trip, theirs), daemon=True)
    process.start()
    try:
        yield MailServer(ours)
    finally:
        process.join(2.0)
        process.kill()
