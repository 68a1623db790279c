"""A round trip with one fault of its servers: a submission server, a mailbox in memory, a real ledger."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from monitor.ledger.store import SqlLedger, open_ledger
from monitor.state import AgentState
from probes.core.settings import MailboxSettings, ServerSettings, Site
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Arrivals
from probes.delivery.mailboxes.imap import ImapMailbox
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.delivery.message_life import Message
from probes.delivery.message_probe import MessageContext
from probes.delivery.watcher import MailboxWatcher
from probes.messages.token import TokenSigner
from probes.roundtrip import Roundtrip, RoundtripSettings
from tests.fakes.clock import InstantClock
from tests.fakes.imap_server import ImapServer
from tests.fakes.pop3_server import Pop3Server
from tests.fakes.scripted_server import PASSWORD, Peer, Script, ScriptedServer, scripted_server
from tests.fakes.smtp_server import SmtpServer
from tests.faults.misdeeds import Misdeed
from tests.faults.running import (
    PATIENCE,
    USERNAME,
    Ran,
    beside_a_healthy_one,
    closed,
    open_files,
    server_settings,
)

GREETING = "greeting"
"""The state before any command; every other one is named by its command."""

FINAL_DOT = "final dot"
"""The state in which a message's content has come in whole."""

RETENTION = 86400.0  # seconds
SIGNER = TokenSigner(b"key")


@dataclass
class Once:
    """A misdeed that a server does once, in one state, on the first connection that gets there."""

    state: str
    commit: Misdeed
    is_done: bool = False

    def is_due(self, line: bytes | None) -> bool:
        """Return whether to do it now: after ``line``, or instead of the greeting."""
        if self.is_done or line is None:
            return not self.is_done and self.state == GREETING
        command = "." if self.state == FINAL_DOT else self.state
        return re.fullmatch(rb"(M\d+ )?" + re.escape(command.encode()) + rb"( .*)?", line) is not None

    async def do(self, peer: Peer) -> None:
        self.is_done = True
        await self.commit(peer)


class _Misbehaving(Peer):
    """A server's end of a connection that does a misdeed instead of its script's answer."""

    def __init__(self, peer: Peer, once: Once) -> None:
        super().__init__(peer._reader, peer._writer)
        self.received = peer.received
        self._once = once

    async def send(self, *lines: bytes) -> None:
        if self._once.is_due(None):
            await self._once.do(self)
        else:
            await super().send(*lines)

    async def expect(self, pattern: bytes) -> bytes:
        line = await super().expect(pattern)
        while self._once.is_due(line):
            await self._once.do(self)
            line = await super().expect(pattern)
        return line


@dataclass
class Trip:
    """A round trip on a clock that stands still until somebody sleeps: hours pass in milliseconds."""

    probe: Roundtrip
    watcher: MailboxWatcher
    ledger: SqlLedger
    mailbox: Pop3Server | ImapServer
    smtp: ScriptedServer
    mail: ScriptedServer

    async def run(self) -> Ran:
        """Send a message and watch for it, together with a healthy probe."""
        async with asyncio.timeout(120):
            return await beside_a_healthy_one(self.probe)

    async def message(self, run: str) -> Message:
        """Return a run's message, after checking that the ledger's totals agree with its state."""
        assert await self.ledger.discrepancies() == []
        found = await self.ledger.find(run)
        assert found is not None
        return found

    def entered(self, state: MessageState) -> int:
        """Return how many messages ever entered ``state``."""
        return self.ledger.counters.entered("trip", "out", state)

    @property
    def left_in_mailbox(self) -> int:
        """The number of messages in the mailbox."""
        return len(_messages_of(self.mailbox))


def _messages_of(mailbox: Pop3Server | ImapServer) -> dict[str, bytes] | dict[int, bytes]:
    return mailbox.messages if isinstance(mailbox, Pop3Server) else mailbox.folders["INBOX"].messages


@asynccontextmanager
async def round_trip(
    mailbox: Pop3Server | ImapServer,
    submission: SmtpServer,
    directory: Path,
    *,
    of_submission: Once | None = None,
    of_mailbox: Once | None = None,
    submission_host: str = "127.0.0.1",
    submission_port: int | None = None,
    timeout: float = PATIENCE,  # noqa: ASYNC109 # the servers' setting
) -> AsyncIterator[Trip]:
    """Make a round trip with servers that each do a misdeed; at the end, all its sockets are closed."""
    clock, before = InstantClock(), open_files()
    protocol = "pop3" if isinstance(mailbox, Pop3Server) else "imap"
    async with AsyncExitStack() as stack:
        smtp = await stack.enter_async_context(scripted_server(_with(of_submission, submission.script)))
        mail = await stack.enter_async_context(scripted_server(_with(of_mailbox, mailbox.script)))
        ledger = await stack.enter_async_context(
            open_ledger(f"sqlite://{directory}/ledger.db", clock, "me", "here")
        )
        servers = {
            "out": server_settings(
                "smtp", submission_port or smtp.port, host=submission_host, timeout=timeout
            ),
            "in": server_settings(protocol, mail.port, timeout=timeout),
        }
        canary = MailboxSettings.model_construct(
            address=USERNAME, server="in", username=USERNAME, password=SecretStr(PASSWORD)
        )
        watcher = _watcher(canary, servers["in"], clock, ledger)
        stack.push_async_callback(watcher.close)
        settings = RoundtripSettings.model_validate(
            {
                "name": "trip",
                "kind": "roundtrip",
                "interval": "60s",
                "deadline": "1h",
                "from": USERNAME,
                "send_via": "out",
                "to": "canary",
            }
        )
        site = Site("here", servers, {"canary": canary})
        context = MessageContext(clock, site, ledger, SIGNER, {"canary": watcher}, "me")
        yield Trip(Roundtrip(settings, context), watcher, ledger, mailbox, smtp, mail)
    await closed(before)


def _with(once: Once | None, script: Script) -> Script:
    return script if once is None else lambda peer: script(_Misbehaving(peer, once))


def _watcher(
    canary: MailboxSettings, server: ServerSettings, clock: InstantClock, ledger: SqlLedger
) -> MailboxWatcher:
    budget = LoginBudget(6000.0, clock)
    mailbox = (
        Pop3Mailbox(canary, server, clock, budget)
        if server.protocol == "pop3"
        else ImapMailbox(canary, server, clock, budget, RETENTION)
    )
    arrivals = Arrivals("canary", clock=clock, ledger=ledger, signer=SIGNER, retention=RETENTION)
    return MailboxWatcher(
        "canary", mailbox, arrivals, clock=clock, observer=AgentState(["canary"]), retention=RETENTION
    )
