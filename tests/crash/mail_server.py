"""A mail server that keeps its own log of what it accepted, and says at which point of a dialogue it is.

SMTP, Microsoft Graph's sendMail, POP3 and IMAP without TLS, for two mailboxes. Some messages it refuses,
loses, bounces, or delivers late or twice: a seed decides which.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random

from tests.corpus import files
from tests.fakes.graph.http import Answer, Request, http_server
from tests.fakes.imap_server import ImapServer
from tests.fakes.scripted_server import Peer, scripted_server

DEADLINE = 4.0
"""Deadline of the messages that come here, in seconds."""

LATEST = DEADLINE + 1.5
"""Seconds within which everything that was accepted is in a mailbox, unless it is lost."""

FOREIGN = b"From: a@example.test\r\nSubject: a real mail %d\r\n\r\nhello\r\n"

_TOKEN = re.compile(rb"X-Mailsonde-Token: (mailsonde1:[^:]+:([0-9a-f]{32}):[0-9]+:[0-9a-f]+)")

_FATES = {
    "delivered": 73,
    "late": 4,
    "lost": 4,
    "bounced": 4,
    "delivered twice": 3,
    "delivered without a reply": 5,
    "451 to MAIL": 2,
    "550 to MAIL": 2,
    "451 to the final dot": 1,
    "554 to the final dot": 1,
    "421 in place of a greeting": 1,
}
"""What becomes of messages, with their weights."""


@dataclass
class Entry:
    """What the log has of one message; readings of the monotonic clock."""

    begun: int = 0
    """How often its content came."""
    accepted: list[float] = field(default_factory=list)
    fate: str = ""
    arrived_at: float | None = None
    """When its first copy came into the mailbox."""
    reported_at: float | None = None
    """When a delivery report about it came into the mailbox."""


@dataclass
class _Pop3Mailbox:
    copies: dict[int, bytes] = field(default_factory=dict)
    next_uid: int = 1

    def add(self, raw: bytes) -> None:
        self.copies[self.next_uid] = raw
        self.next_uid += 1


class RecordingServer:
    """The server; ``at`` is called with each point that a dialogue reaches. Its ConnectionError ends that."""

    def __init__(self, chance: Random, at: Callable[[str], None]) -> None:
        self.log: dict[str, Entry] = {}
        self.is_closing = False
        """Whether every submission is refused from now on."""
        self.transit: float | None = None
        """Seconds that every message takes to its mailbox; ``None``: chance decides what becomes of it."""
        self.ports: dict[str, int] = {}
        self._chance = chance
        self._at = at
        self._pop3 = _Pop3Mailbox()
        self._imap = ImapServer(before=self._before_imap)
        self._inbox = self._imap.folders["INBOX"]
        self._expunging = False
        for number in range(self.foreign // 2):
            for mailbox in (self._pop3, self._inbox):
                mailbox.add(FOREIGN % number)

    foreign = 6
    """How many real mails are in the mailboxes."""

    @property
    def foreign_left(self) -> int:
        """How many of them are still there."""
        return sum(b"a real mail" in raw for raw in self._stored())

    @property
    def ours_left(self) -> list[str]:
        """Ids of messages that have a copy in a mailbox."""
        return [found[2].decode() for raw in self._stored() if (found := _TOKEN.search(raw))]

    def _stored(self) -> list[bytes]:
        return [*self._pop3.copies.values(), *self._inbox.messages.values()]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve on loopback ports while the block runs."""
        async with AsyncExitStack() as stack:
            scripts = {"smtp": self._serve_smtp, "pop3": self._serve_pop3, "imap": self._serve_imap}
            for name, script in scripts.items():
                self.ports[name] = (await stack.enter_async_context(scripted_server(script))).port
            self.ports["graph"] = await stack.enter_async_context(http_server(self._answer_http))
            yield

    async def _answer_http(self, request: Request) -> Answer:
        """Answer a request for a token, or one to send a message."""
        if request.path[-1] == "token":
            return Answer(200, {"access_token": "a-token-of-the-recording-server", "expires_in": 3600})
        raw, fate = base64.b64decode(request.body), self._next_fate()
        found = _TOKEN.search(raw)
        entry = self.log.setdefault(found[2].decode(), Entry())
        entry.begun += 1
        self._at("sendMail")
        entry.fate = "451" if self.is_closing else fate
        if entry.fate[0] == "4":
            return Answer(503, headers={"Retry-After": "1"})
        if entry.fate[0] == "5":
            return Answer(400, {"error": {"code": "ErrorInvalidRecipients", "message": "no"}})
        entry.accepted.append(time.monotonic())
        mailbox = self._inbox if b"<imap@" in raw else self._pop3
        self._dispatch(entry, raw, found[1], mailbox)
        self._at("accepted by Graph")
        if fate == "delivered without a reply":
            raise ConnectionError(fate)
        self._at("202")
        return Answer(202)

    async def _serve_smtp(self, peer: Peer) -> None:
        peer.received.clear()  # thousands of sessions would fill the memory
        fate = self._next_fate()
        if self.is_closing or fate == "421 in place of a greeting":
            await peer.send(b"421 4.3.2 not now")
            return await peer.close()
        self._at("connected")
        await peer.send(b"220 mail.example.test")
        mailbox: _Pop3Mailbox | object = None
        while True:
            line = await peer.expect(b".*")
            match line[:4].upper():
                case b"EHLO":
                    await peer.send(b"250-mail.example.test", b"250 SIZE 100000")
                case b"MAIL":
                    self._at("MAIL")
                    refused = {"451 to MAIL": b"451 4.3.0 later", "550 to MAIL": b"550 5.7.1 no"}
                    await peer.send(refused.get(fate, b"250 ok"))
                    fate = self._next_fate() if fate == "451 to MAIL" else fate
                case b"RCPT":
                    mailbox = self._inbox if b"<imap@" in line else self._pop3
                    await peer.send(b"250 ok")
                case b"DATA":
                    await peer.send(b"354 go on")
                    await self._content(peer, fate, mailbox)
                case _:
                    await peer.send(b"221 bye")
                    return await peer.close()

    def _next_fate(self) -> str:
        if self.transit is not None:
            return "delivered"
        return self._chance.choices(list(_FATES), list(_FATES.values()))[0]

    async def _content(self, peer: Peer, fate: str, mailbox: object) -> None:
        lines, entry, token = [], Entry(), b""
        while (line := await peer.expect(b".*")) != b".":
            lines.append(line)
            if found := _TOKEN.match(line):
                token = found[1]
                entry = self.log.setdefault(found[2].decode(), entry)
                entry.begun += 1
                self._at("content")
        peer.received.clear()
        if fate.endswith("to the final dot"):
            entry.fate = fate
            await peer.send(fate[:3].encode() + b" no")
            return
        entry.fate = fate
        entry.accepted.append(time.monotonic())
        raw = b"".join(line.removeprefix(b".") + b"\r\n" for line in lines)
        self._dispatch(entry, raw, token, mailbox)
        self._at("final dot")
        if fate == "delivered without a reply":
            raise ConnectionError(fate)
        await peer.send(b"250 accepted")
        self._at("reply")

    def _dispatch(self, entry: Entry, raw: bytes, token: bytes, mailbox: object) -> None:
        """Send a message on its way."""
        later = asyncio.get_running_loop().call_later
        delay = self._chance.choice([0.0, 0.02, 0.3]) if self.transit is None else self.transit
        if entry.fate == "late":
            delay = self._chance.uniform(DEADLINE + 0.2, LATEST)
        if entry.fate == "bounced":
            report = files.octets("bounces", "postfix-unknown-user").replace(files.TOKEN.encode(), token)
            later(delay, self._store, mailbox, report, entry, "reported_at")
        elif entry.fate != "lost":
            later(delay, self._store, mailbox, raw, entry, "arrived_at")
        if entry.fate == "delivered twice":
            later(delay + 0.05, self._store, mailbox, raw, entry, "arrived_at")

    @staticmethod
    def _store(mailbox: object, raw: bytes, entry: Entry, when: str) -> None:
        mailbox.add(raw)
        if getattr(entry, when) is None:
            setattr(entry, when, time.monotonic())

    async def _serve_imap(self, peer: Peer) -> None:
        peer.received.clear()
        self._imap.commands.clear()
        await self._imap.script(peer)

    def _before_imap(self, words: list[str]) -> str | None:
        if self._expunging:
            self._expunging = False
            self._at("deleted")
        match words:
            case ["UID", "SEARCH", *_]:
                self._at("listing")
            case ["UID", "FETCH", *_]:
                self._at("reading")
            case ["UID", "STORE", *_]:
                self._at("deleting")
            case ["UID", "EXPUNGE", *_]:
                self._at("expunging")
                self._expunging = True
        return None

    async def _serve_pop3(self, peer: Peer) -> None:
        peer.received.clear()
        copies: dict[int, bytes] = {}
        marked: list[int] = []
        await peer.send(b"+OK ready")
        while True:
            line = await peer.expect(b".*")
            verb, _, rest = line.partition(b" ")
            uids = list(copies)
            match verb:
                case b"CAPA":
                    await peer.send(b"+OK", b"USER", b"TOP", b"UIDL", b".")
                case b"PASS":
                    copies = dict(self._pop3.copies)
                    await peer.send(b"+OK")
                case b"UIDL":
                    self._at("listing")
                    await peer.send(b"+OK", *(b"%d u%d" % pair for pair in enumerate(uids, 1)), b".")
                case b"TOP" | b"RETR":
                    self._at("reading")
                    raw = copies[uids[int(rest.split()[0]) - 1]]
                    shown = raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if rest.endswith(b" 0") else raw
                    await peer.chunks(b"+OK\r\n" + _stuffed(shown) + b".\r\n")
                case b"DELE":
                    self._at("deleting")
                    marked.append(uids[int(rest) - 1])
                    await peer.send(b"+OK")
                case b"QUIT":
                    if marked:
                        self._at("expunging")
                    for uid in marked:
                        self._pop3.copies.pop(uid, None)
                    if marked:
                        self._at("deleted")
                    await peer.send(b"+OK")
                    return await peer.close()
                case _:
                    await peer.send(b"+OK")


def _stuffed(raw: bytes) -> bytes:
    return re.sub(rb"^\.", b"..", raw, flags=re.MULTILINE)
