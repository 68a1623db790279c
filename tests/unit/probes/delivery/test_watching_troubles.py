"""Trouble during a poll must not look like a loss, stop the watching, or overload a server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import TURN, MessageState, PhaseTimer
from probes.delivery.mailboxes.login_budget import BURST, LoginBudget, Standing
from probes.delivery.message_life import Message
from probes.protocols.imap import Response
from tests.fakes.imap_server import ImapServer
from tests.fakes.mailbox import FakeSession, Stored
from tests.fakes.message import intent
from tests.fakes.pop3_dialogue import capa, entered
from tests.fakes.scripted_server import dialogue
from tests.unit.probes.delivery.conftest import Bench
from tests.unit.probes.delivery.test_imap_mailbox import FOREIGN, mailbox_of, poll

REPORT = b"Content-Type: multipart/report; report-type=delivery-status; boundary=x\r\nSubject: hi\r\n\r\n"


async def test_ledger_that_stalls_across_the_end_of_a_poll(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message recorded as delivered is reported as delivered, even if its poll failed then."""
    monkeypatch.setattr("probes.delivery.watcher.POLL_TIMEOUT", 0.1)
    message = await bench.sent(deadline=30.0)
    bench.arrives(message, 0.0)
    advance = bench.ledger.advance

    async def stalled(message_id: str, state: MessageState, **changes: object) -> Message | None:
        moved = await advance(message_id, state, **changes)
        if state is MessageState.DELIVERED:
            await asyncio.get_running_loop().create_future()
        return moved

    monkeypatch.setattr(bench.ledger, "advance", stalled)
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED


async def test_poll_that_waits_for_ourselves(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll that ends while it waits for our own limit is no fault of the mailbox."""
    monkeypatch.setattr("probes.delivery.watcher.POLL_TIMEOUT", 0.1)

    @asynccontextmanager
    async def waiting(phases: PhaseTimer, **_: object) -> AsyncIterator[None]:
        with phases.phase(TURN):
            await asyncio.Event().wait()
        yield

    monkeypatch.setattr(bench.watcher._mailbox, "poll", waiting)
    await bench.watcher.poll_now()
    assert bench.watcher.fault is not None
    assert bench.watcher.fault.reason is Reason.LOCAL_RESOURCES


async def test_polls_that_fail_again_and_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A dead mailbox is logged when it fails first and when it can be read again, not at every poll."""
    caplog.set_level("INFO", "probes.delivery.watcher")
    bench.mailbox.login_fault = ProbeFault(Reason.CONNECT_REFUSED, "nothing listens")
    for _ in range(5):
        await bench.watcher.poll_now()
    bench.mailbox.login_fault = ProbeFault(Reason.AUTH_FAILED, "wrong password")
    await bench.watcher.poll_now()
    bench.mailbox.login_fault = None
    await bench.watcher.poll_now()
    await bench.watcher.poll_now()
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [
        ("WARNING", "mailbox canary: poll failed: connect_refused: nothing listens; next poll in 2 s"),
        ("WARNING", "mailbox canary: poll failed: auth_failed: wrong password; next poll in 300 s"),
        ("INFO", "mailbox canary: works again after 6 failures in 0 s"),
    ]


async def test_copy_seen_before_its_reply_was_recorded_is_not_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message is not lost if its 250 comes after its deadline and a poll has already seen its copy."""
    now = bench.clock.now
    message = intent(bench.clock, deadline_seconds=5.0)
    await bench.ledger.intend(message)
    bench.mailbox.stored.append(Stored("older", b"Subject: x\r\n\r\n"))
    bench.arrives(message, 0.5)
    bench.clock.now += 6.0
    top = FakeSession.top
    arrivals = []

    async def top_and_reply(session: FakeSession, number: int, *, limit: int) -> bytes:
        if session.snapshot[number - 1].uid == "older" and not arrivals:
            times = {"connected_mono": now, "dot_mono": now, "accepted_mono": bench.clock.now}
            sent = await bench.ledger.advance(message.id, MessageState.SENT, **times)
            assert sent is not None
            arrivals.append(bench.watcher.await_arrival(sent))
        return await top(session, number, limit=limit)

    monkeypatch.setattr(FakeSession, "top", top_and_reply)
    await bench.watcher.poll_now()
    settled = (await arrivals[0]).message
    assert settled.state is not MessageState.LOST


async def test_report_of_long_lines_blinds_nobody(bench: Bench) -> None:
    """A foreign report with overlong lines is read once, and messages below it are found."""
    message = await bench.sent(deadline=30.0)
    bench.arrives(message, 0.5)
    bench.mailbox.stored.append(Stored("long", REPORT + (b"a" * 900 + b"\r\n") * 2000, bench.clock.now + 0.5))
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED
    assert Counter(bench.mailbox.headers_read)["long"] == 1


async def test_header_section_without_top_is_read_from_the_whole_message() -> None:
    """Without TOP, a large message is identified by its beginning, and the rest is skipped."""
    lines = [b"+OK", b"X-Mailsonde-Token: t", b"", *[b"x" * 70] * 1500, b"."]
    script = dialogue(
        b"+OK ready",
        capa("SASL PLAIN", "UIDL"),
        (b"AUTH PLAIN .*", b"+OK"),
        (b"RETR 1", b"\r\n".join(lines)),
        (b"RETR 1", b"\r\n".join(lines)),
        (b"UIDL", b"+OK\r\n1 a\r\n."),
    )
    async with entered(script) as session:
        assert await session.top(1, limit=64 * 1024) == b"X-Mailsonde-Token: t\r\n\r\n"
        assert len(await session.beginning(1, octets=1000)) == 1000
        assert await session.uidl() == {1: "a"}
        session.abort()


async def test_set_aside_stays_so_over_a_new_connection() -> None:
    """Copies set aside are not read again after a new connection, as long as uids are valid."""
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    inbox.add(FOREIGN)
    async with mailbox_of(imap) as mailbox:
        assert len(await poll(mailbox)) == 1
        mailbox._drop()
        inbox.add(FOREIGN)
        assert len(await poll(mailbox)) == 1
        mailbox._drop()
        inbox.uid_validity += 1
        assert len(await poll(mailbox)) == 2


async def test_server_that_repeats_itself_brings_no_news() -> None:
    """An EXISTS without a change is not news and causes no poll."""
    imap = ImapServer()
    imap.folders["INBOX"].add(FOREIGN)
    async with mailbox_of(imap) as mailbox:
        await poll(mailbox)
        session = mailbox._session
        assert session is not None
        session.changed = False
        session._take_in(Response.parse(b"* 1 EXISTS"))
        assert not session.changed
        session._take_in(Response.parse(b"* 2 EXISTS"))
        assert session.changed


async def test_login_that_was_given_up_is_not_spent() -> None:
    """A cancelled wait for a login does not use up the budget."""
    budget = LoginBudget(60.0, SystemClock())
    for _ in range(BURST):
        await budget.take(Standing(is_slow=False))
    for _ in range(100):
        waiting = asyncio.create_task(budget.take(Standing(is_slow=False)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    async with asyncio.timeout(5.0):
        await budget.take(Standing(is_slow=False))
