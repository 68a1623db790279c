"""Many messages cost few commands and transactions, and trouble with one of them costs no other."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from pathlib import Path

import pytest

from probes.core.verdict import MessageState
from probes.delivery.message_life import LedgerError, Message
from tests.fakes.imap_server import ImapServer, is_in
from tests.fakes.mailbox import Stored
from tests.unit.probes.delivery.conftest import Bench
from tests.unit.probes.delivery.test_imap_losses import watched
from tests.unit.probes.delivery.test_imap_mailbox import mailbox_of, poll


async def test_many_messages_cost_few_commands(tmp_path: Path) -> None:
    """Contents are fetched, and messages deleted, by sets of uids."""
    imap = ImapServer()
    async with watched(imap, tmp_path, deadline=30.0) as watch:
        messages = await asyncio.gather(*(watch.sent() for _ in range(30)))
        for message in messages:
            watch.arrives(message)
        for settled in await asyncio.gather(*map(watch.watcher.await_arrival, messages)):
            assert settled.message.state is MessageState.DELIVERED
        await watch.poll_ended()
    assert imap.folders["INBOX"].messages == {}
    commands = Counter(" ".join(command.split(" ")[:2]) for command in imap.commands)
    assert commands["UID STORE"] == commands["UID EXPUNGE"] == 1
    assert commands["UID FETCH"] <= 3


async def test_a_content_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server refuses the content of one message, only that one is not compared with what was sent."""
    monkeypatch.setattr("probes.delivery.mailboxes.imap_folder.CONTENTS", 4)
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    bad = 4

    def refuse(words: list[str]) -> str | None:
        is_content = "(UID BODY.PEEK[]<0." in " ".join(words)
        return "NO [SERVERBUG] cannot read it" if is_content and is_in(bad, words[2], inbox) else None

    imap.before = refuse
    async with watched(imap, tmp_path, deadline=30.0) as watch:
        messages = await asyncio.gather(*(watch.sent(digest="of something else") for _ in range(9)))
        for message in messages:
            watch.arrives(message)
        settled = await asyncio.gather(*map(watch.watcher.await_arrival, messages))
        await watch.poll_ended()
        assert {each.message.state for each in settled} == {MessageState.DELIVERED}
        assert [each.message.findings for each in settled].index("") == bad - 1
        assert Counter(each.message.findings for each in settled) == {"altered": 8, "": 1}
        assert inbox.messages == {}


async def test_sets_grow_again_behind_a_message_that_is_refused() -> None:
    """One message that the server refuses to show costs few commands, even in a large mailbox."""
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    for _ in range(300):
        inbox.add(b"Subject: foreign\r\n\r\n")
    fetches: list[str] = []

    def refuse(words: list[str]) -> str | None:
        if words[:2] != ["UID", "FETCH"]:
            return None
        fetches.append(words[2])
        return "NO [SERVERBUG] cannot read it" if is_in(300, words[2], inbox) else None

    imap.before = refuse
    async with mailbox_of(imap) as mailbox:
        assert len(await poll(mailbox)) == 299
    assert len(fetches) < 20


async def test_a_refusal_counts_even_if_the_poll_does_not_end() -> None:
    """A refused copy counts as refused as soon as the server shows another, even if the poll ends there."""
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    for _ in range(9):
        inbox.add(b"Subject: foreign\r\n\r\n")

    def refuse(words: list[str]) -> str | None:
        is_fetch = words[:2] == ["UID", "FETCH"]
        return "NO [SERVERBUG] cannot read it" if is_fetch and is_in(9, words[2], inbox) else None

    imap.before = refuse
    async with mailbox_of(imap) as mailbox, mailbox.poll() as due:
        folder = await due[0]()
        async with contextlib.aclosing(folder.identify(folder.uids)) as identified:
            await anext(identified)
        assert not folder.is_whole


@pytest.mark.parametrize("most", [500, 1])
async def test_the_first_of_two_copies_is_the_arrival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """If one poll shows two copies that the server reported apart, the first tells when the message came."""
    monkeypatch.setattr("probes.delivery.mailboxes.imap_folder.BATCH", most)
    async with watched(ImapServer(), tmp_path, deadline=30.0) as watch:
        await watch.watcher.poll_now()
        session = watch.watcher._mailbox._session
        await session.select("INBOX")
        message = await watch.sent()
        watch.arrives(message)
        await session.noop()
        came_by = time.monotonic() - message.connected_mono
        await session.noop()
        watch.arrives(message)
        await session.noop()
        arrived = (await watch.watcher.await_arrival(message)).message
        await watch.poll_ended()
        assert watch.imap.folders["INBOX"].messages == {}
    assert arrived.delivery_seconds + arrived.uncertainty_seconds <= came_by


async def test_one_record_that_fails_costs_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the ledger cannot record one of several arrivals, that copy stays, and the next poll records it."""
    messages = [await bench.sent() for _ in range(5)]
    for message in messages:
        bench.arrives(message, 0.0, uid=message.id)
    advance, settled_before = bench.ledger.advance, list[int]()

    async def failing(message_id: str, state: MessageState, **changes: object) -> Message | None:
        if message_id == messages[2].id:
            settled_before.append(sum(arrival.done() for arrival in arrivals))
            if len(settled_before) == 1:
                assert bench.mailbox.deleted == []
                raise LedgerError("try again")
        return await advance(message_id, state, **changes)

    monkeypatch.setattr(bench.ledger, "advance", failing)
    arrivals = [bench.watcher.await_arrival(message) for message in messages]
    for arrival in arrivals:
        assert (await arrival).message.state is MessageState.DELIVERED
    await bench.poll_ended()
    assert settled_before == [0, 4]
    assert sorted(bench.mailbox.deleted) == sorted(message.id for message in messages)
    assert not bench.found.counts


async def test_a_copy_that_ends_the_session_hides_no_newer_one(bench: Bench) -> None:
    """If reading one message makes the server hang up, newer messages are found all the same."""
    bench.mailbox.stored.append(Stored("bad", b"Subject: x\r\n\r\n"))
    bench.mailbox.fatal = {"bad"}
    message = await bench.sent()
    bench.arrives(message, 0.0)
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED
