"""A mailbox in memory, with sessions like those of a POP3 server: a snapshot at login."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from tests.fakes.clock import InstantClock


@dataclass
class Stored:
    uid: str
    raw: bytes
    arrives_at: float = 0.0  # monotonic


@dataclass
class FakeMailbox:
    """The content of the mailbox, and what sessions did to it. Each login and command takes time."""

    clock: InstantClock
    command_seconds: float = 0.01
    stored: list[Stored] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    headers_read: list[str] = field(default_factory=list)
    logins: list[float] = field(default_factory=list)
    open_sessions: int = 0
    most_sessions: int = 0
    refused: set[str] = field(default_factory=set)  # uids of messages that cannot be read
    fatal: set[str] = field(default_factory=set)  # uids of messages whose reading ends the session
    undeletable: set[str] = field(default_factory=set)
    login_fault: ProbeFault | None = None
    quit_fault: ProbeFault | None = None
    listings: int = 0
    top_seconds: float = 0.0
    on_login: Callable[[], None] = lambda: None

    async def open_session(self, server: object, **credentials: object) -> FakeSession:
        sent_at = self.clock.now
        self.logins.append(sent_at)
        self.on_login()
        await self.clock.sleep(self.command_seconds)
        if self.login_fault is not None:
            raise self.login_fault
        self.open_sessions += 1
        self.most_sessions = max(self.most_sessions, self.open_sessions)
        return FakeSession(self, sent_at, [m for m in self.stored if m.arrives_at <= self.clock.now])


@dataclass
class FakeSession:
    mailbox: FakeMailbox
    login_sent_at: float
    snapshot: list[Stored]
    marked: list[Stored] = field(default_factory=list)
    ended: bool = False
    gave_up: bool = False
    is_pipelining: bool = False
    unreadable_ids: int = 0
    ended_early: bool = False

    async def stat(self) -> tuple[int, int | None]:
        return len(self.snapshot), None

    async def unique_id(self, number: int) -> str | None:
        return self.snapshot[number - 1].uid

    async def uidl(self) -> dict[int, str]:
        self.mailbox.listings += 1
        await self.mailbox.clock.sleep(self.mailbox.command_seconds)
        return {number: message.uid for number, message in enumerate(self.snapshot, 1)}

    async def top(self, number: int, *, limit: int) -> bytes:
        message = self.snapshot[number - 1]
        self.mailbox.headers_read.append(message.uid)
        await self.mailbox.clock.sleep(self.mailbox.top_seconds)
        if message.uid in self.mailbox.fatal:
            self.ended_early = True
        if self.ended_early:
            raise ProbeFault(Reason.CONNECTION_LOST)
        if message.uid in self.mailbox.refused:
            raise ProbeFault(Reason.POP3_ERROR, "no such message file")
        return self._bounded(message.raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", limit)

    async def beginning(self, number: int, *, octets: int) -> bytes:
        return self.snapshot[number - 1].raw[:octets]

    async def retr(self, number: int, *, limit: int) -> bytes:
        await self.mailbox.clock.sleep(self.mailbox.command_seconds)
        return self._bounded(self.snapshot[number - 1].raw, limit)

    def _bounded(self, text: bytes, limit: int) -> bytes:
        if len(text) > limit:
            self.gave_up = True
            raise ProbeFault(Reason.RESPONSE_TOO_LARGE)
        return text

    async def dele(self, number: int) -> None:
        if self.snapshot[number - 1].uid in self.mailbox.undeletable:
            raise ProbeFault(Reason.POP3_ERROR, "message expunged")
        self.marked.append(self.snapshot[number - 1])

    async def quit(self) -> None:
        if self.mailbox.quit_fault is not None:
            raise self.mailbox.quit_fault
        for message in self.marked:
            self.mailbox.stored.remove(message)
            self.mailbox.deleted.append(message.uid)

    def abort(self) -> None:
        if not self.ended:
            self.ended = True
            self.mailbox.open_sessions -= 1
