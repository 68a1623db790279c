"""When a message that an IMAP server does not show counts as lost, and with what doubt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from monitor.ledger.store import SqlLedger, open_ledger
from probes.core.clock import SystemClock
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Arrivals
from probes.delivery.message_life import Message
from probes.delivery.watcher import MailboxWatcher
from probes.messages.token import Token
from probes.roundtrip import _verdict
from tests.fakes.imap_server import ImapServer
from tests.fakes.message import intent
from tests.unit.probes.delivery.conftest import SIGNER, Found, synthetic_message
from tests.unit.probes.delivery.test_imap_mailbox import mailbox_of
from tests.unit.probes.delivery.test_imap_troubles import refusing

DEADLINE = 0.4
"""Seconds after which a message of these tests counts as missed."""


@dataclass
class Watch:
    """A watched mailbox on a real ledger."""

    watcher: MailboxWatcher
    ledger: SqlLedger
    imap: ImapServer
    deadline: float

    async def sent(self, **fields: str) -> Message:
        """Return a message that was just handed over."""
        clock = SystemClock()
        now = clock.monotonic()
        message = intent(clock, deadline_seconds=self.deadline, **fields)
        await self.ledger.intend(message)
        times = {"connected_mono": now, "dot_mono": now, "accepted_mono": now}
        sent = await self.ledger.advance(message.id, MessageState.SENT, **times)
        assert sent is not None
        return sent

    async def poll_ended(self) -> None:
        """Wait until a poll that is going on has ended and deleted what it counted."""
        async with self.watcher._polling:
            pass

    def arrives(self, message: Message, folder: str = "INBOX") -> None:
        token = SIGNER.sign(Token(message.probe, message.id, round(message.created_at * 1e6)))
        self.imap.folders[folder].add(synthetic_message(token, message))


@asynccontextmanager
async def watched(imap: ImapServer, directory: Path, deadline: float = DEADLINE) -> AsyncIterator[Watch]:
    clock = SystemClock()
    async with (
        asyncio.timeout(120),
        open_ledger(f"sqlite://{directory}/ledger.db", clock, "me", "here") as ledger,
        mailbox_of(imap) as mailbox,
    ):
        arrivals = Arrivals("canary", clock=clock, ledger=ledger, signer=SIGNER, retention=86400.0)
        watcher = MailboxWatcher(
            "canary", mailbox, arrivals, clock=clock, observer=Found(), retention=86400.0
        )
        yield Watch(watcher, ledger, imap, deadline)
        await watcher.close()


async def test_lost_without_the_junk_folder(tmp_path: Path) -> None:
    """An unreadable junk folder does not prevent a loss; the detail says what was not read."""
    imap = ImapServer(before=refusing("STATUS", answer="NO no permission"))
    async with watched(imap, tmp_path) as watch:
        settled = await watch.watcher.await_arrival(await watch.sent())
    verdict = _verdict(settled, {})
    assert verdict.reason is Reason.MESSAGE_LOST
    assert "; the junk folder could not be read: imap_no_folder: " in verdict.detail


async def test_a_junk_folder_that_is_read_leaves_no_doubt(tmp_path: Path) -> None:
    """A message in neither folder is lost without any doubt."""
    async with watched(ImapServer(), tmp_path) as watch:
        settled = await watch.watcher.await_arrival(await watch.sent())
    assert (settled.message.state, settled.doubt) == (MessageState.LOST, "")


async def test_lost_beside_a_message_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreadable message does not prevent a loss, but may be the missing one."""
    imap = ImapServer(before=refusing("UID", "FETCH", answer="NO [SERVERBUG] cannot read it"))
    imap.folders["INBOX"].add(b"Subject: x\r\n\r\n")
    monkeypatch.setattr("probes.delivery.mailboxes.imap_folder.REFUSALS", 1)
    async with watched(imap, tmp_path) as watch:
        settled = await watch.watcher.await_arrival(await watch.sent())
    assert settled.message.state is MessageState.LOST
    assert settled.doubt == "a message could not be read"


@pytest.mark.parametrize("folder", ["INBOX", "Junk"])
async def test_a_server_that_tells_nothing(tmp_path: Path, folder: str) -> None:
    """A message that the server never reported is found before it counts as lost, without a latency claim."""
    imap = ImapServer()
    imap.folders[folder].claimed_uid_next = 1000
    async with watched(imap, tmp_path) as watch:
        await watch.watcher.poll_now()
        imap.quiet = True
        message = await watch.sent()
        arrival = watch.watcher.await_arrival(message)
        watch.arrives(message, folder)
        settled = (await arrival).message
    assert settled.state is MessageState.DELIVERED
    assert settled.delivery_seconds is not None
    assert settled.uncertainty_seconds is not None
    if folder == "INBOX":
        assert settled.delivery_seconds - settled.uncertainty_seconds == pytest.approx(0.0, abs=0.01)
        assert settled.delivery_seconds + settled.uncertainty_seconds >= DEADLINE
