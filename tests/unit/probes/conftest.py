"""A round trip from end to end: scripted SMTP server, mailbox in memory, and a real ledger."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from monitor.ledger.store import SqlLedger, open_ledger
from monitor.runner import Runner
from monitor.state import AgentState
from probes.core.settings import MailboxSettings, ServerSettings, Site
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Arrivals
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.delivery.message_life import LedgerError, Message
from probes.delivery.message_probe import MessageContext
from probes.delivery.watcher import MailboxWatcher
from probes.messages.token import TokenSigner
from probes.roundtrip import Roundtrip, RoundtripSettings
from tests.fakes import extended_protection
from tests.fakes.clock import InstantClock
from tests.fakes.mailbox import FakeMailbox, Stored
from tests.fakes.scripted_server import Peer, Script, ScriptedServer, dialogue, scripted_server

MAILBOX = MailboxSettings.model_construct(
    address="canary@example.test", server="pop", username="canary", password=SecretStr("x")
)
OPENING = (b"220 ready", (b"EHLO .*", b"250 mail.example.test"))
UP_TO_DATA = (*OPENING, (b"MAIL .*", b"250 2.1.0 ok"), (b"RCPT .*", b"250 2.1.5 ok"), (b"DATA", b"354 go"))


@dataclass
class Bench:
    """A round trip between a scripted SMTP server and a mailbox in memory, on a real ledger."""

    probe: Roundtrip
    runner: Runner
    ledger: SqlLedger
    mailbox: FakeMailbox
    smtp: ScriptedServer

    async def only_message(self) -> Message:
        """Return the only message in the ledger's totals."""
        assert await self.ledger.discrepancies() == []
        (message,) = self.probe.context.ledger.seen.values()
        found = await self.ledger.find(message.id)
        assert found is not None
        return found


class WatchedLedger:
    """The real ledger, which fails on demand and remembers the messages."""

    def __init__(self, ledger: SqlLedger) -> None:
        self._ledger = ledger
        self.seen: dict[str, Message] = {}
        self.full_for: set[str] = set()

    async def intend(self, message: Message) -> None:
        if "intend" in self.full_for:
            raise LedgerError("disk is full")
        await self._ledger.intend(message)
        self.seen[message.id] = message

    async def advance(self, message_id: str, state: MessageState, **changes: object) -> Message | None:
        if "advance" in self.full_for:
            raise LedgerError("disk is full")
        return await self._ledger.advance(message_id, state, **changes)

    async def note_trace(self, message_id: str, looks: int, trace: str) -> None:
        if "note_trace" in self.full_for:
            raise LedgerError("disk is full")
        await self._ledger.note_trace(message_id, looks, trace)

    async def find(self, message_id: str) -> Message | None:
        return await self._ledger.find(message_id)

    async def is_others(self, message: Message) -> bool:
        return await self._ledger.is_others(message)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Return a function that makes a bench from the SMTP server's script."""
    clock = InstantClock()
    mailbox = FakeMailbox(clock)
    monkeypatch.setattr("probes.delivery.mailboxes.pop3.Pop3Session.open", mailbox.open_session)
    # A clock that jumps looks like a machine that stood still.
    monkeypatch.setattr("monitor.runner.HELD_UP_SHARE", math.inf)

    @asynccontextmanager
    async def make(script: Script, deadline: str = "30s", **changes: str) -> AsyncIterator[Bench]:
        async with AsyncExitStack() as stack:
            smtp = await stack.enter_async_context(scripted_server(script))
            ledger = await stack.enter_async_context(
                open_ledger(f"sqlite://{tmp_path}/l.db", clock, "me", "fra1")
            )
            pop = ServerSettings(protocol="pop3", host="mail.example.test", tls="implicit")
            site = Site("here", {"out": smtp.settings("smtp"), "pop": pop}, {"canary": MAILBOX})
            watched, signer = WatchedLedger(ledger), TokenSigner(b"key")
            arrivals = Arrivals(
                "canary",
                clock=clock,
                ledger=watched,
                signer=signer,
                retention=86400.0,
            )
            pop3 = Pop3Mailbox(MAILBOX, pop, clock, LoginBudget(6000.0, clock))
            watcher = MailboxWatcher(
                "canary", pop3, arrivals, clock=clock, observer=AgentState(["canary"]), retention=86400.0
            )
            stack.push_async_callback(watcher.close)
            settings = RoundtripSettings.model_validate(
                {
                    "name": "trip",
                    "kind": "roundtrip",
                    "interval": "60s",
                    "deadline": deadline,
                    "from": "canary@example.test",
                    "send_via": "out",
                    "to": "canary",
                    **changes,
                }
            )
            probe = Roundtrip(
                settings, MessageContext(clock, site, watched, signer, {"canary": watcher}, "me")
            )
            yield Bench(probe, Runner(clock, "here"), ledger, mailbox, smtp)

    return make


def taking(mailbox: Callable[[], FakeMailbox], reply: bytes | None) -> Script:
    """Return a script that reads a message up to its final dot, stores it, and answers or hangs up."""

    async def script(peer: Peer) -> None:
        await dialogue(*UP_TO_DATA)(peer)
        lines = []
        while (line := await peer.expect(b".*")) != b".":
            lines.append(line.removeprefix(b"."))
        target = mailbox()
        target.stored.append(Stored(secrets.token_hex(4), b"\r\n".join(lines), target.clock.now))
        if reply is None:
            await peer.close()
        else:
            await peer.send(reply)
            await dialogue((b"QUIT", b"221 bye"))(peer)

    return script


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pyspnego's server side know the account of `tests.fakes.extended_protection`."""
    file = tmp_path / "accounts"
    file.write_text(f"FABRIKAM:canary:{extended_protection.PASSWORD}\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(file))
