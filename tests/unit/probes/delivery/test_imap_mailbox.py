"""Polling by IMAP when the server reports changes late, in other answers, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.settings import MailboxSettings
from probes.delivery.mailboxes.imap import ImapMailbox
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.mailbox import Folder
from tests.fakes.imap_server import ImapServer, StoredFolder
from tests.fakes.scripted_server import PASSWORD, scripted_server

SETTINGS = MailboxSettings.model_construct(
    address="canary@example.com", server="in", username="canary", password=SecretStr(PASSWORD)
)
OURS = b"X-Mailsonde-Token: mailsonde1\r\nSubject: ours\r\n\r\nbody\r\n"
FOREIGN = b"Subject: foreign\r\n\r\nbody\r\n"


@asynccontextmanager
async def mailbox_of(
    imap: ImapServer, settings: MailboxSettings = SETTINGS, patience: str = "2s"
) -> AsyncIterator[ImapMailbox]:
    async with scripted_server(imap.script) as server:
        clock = SystemClock()
        budget = LoginBudget(6000.0, clock)
        configured = server.settings("imap", timeout=patience)
        mailbox = ImapMailbox(settings, configured, clock, budget, retention=86400.0)
        yield mailbox
        await mailbox.close()


async def poll(
    mailbox: ImapMailbox, *, deleting: bytes = b"\0", afresh: bool = False, sent: bool = False
) -> list[bytes]:
    """Poll all folders that are due; return the identified copies, and delete those with ``deleting``."""
    found: list[bytes] = []
    async with mailbox.poll(afresh=afresh, sent=sent) as due:
        for open_folder in due:
            try:
                await read(await open_folder(), found, deleting)
            except ProbeFault as fault:
                if not mailbox.excuses(fault):
                    raise
    return found


async def read(folder: Folder, found: list[bytes], deleting: bytes) -> None:
    ours: list[str] = []
    async for identified in folder.identify(folder.uids):
        for uid, fields in identified.items():
            found.append(fields)
            if deleting in fields:
                ours.append(uid)
            else:
                folder.set_aside(uid)
    await folder.delete(ours)


async def test_arrival_that_is_told_with_another_answer_is_seen() -> None:
    """A message reported in the answer to another command is in the next poll."""
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    inbox.add(OURS)

    def arrive_meanwhile(words: list[str]) -> None:
        if words[:2] == ["UID", "STORE"]:
            inbox.add(OURS)

    imap.before = arrive_meanwhile
    async with mailbox_of(imap) as mailbox:
        assert len(await poll(mailbox, deleting=b"Token")) == 1
        imap.before = lambda words: None
        assert len(await poll(mailbox)) == 1


async def test_what_was_set_aside_is_not_asked_for_again() -> None:
    """A foreign message costs one line of a FETCH for any number of polls."""
    imap = ImapServer()
    imap.folders["INBOX"].add(FOREIGN)
    async with mailbox_of(imap) as mailbox:
        assert len(await poll(mailbox)) == 1
        fetches = len([command for command in imap.commands if "FETCH" in command])
        for _ in range(3):
            assert await poll(mailbox) == []
        assert len([command for command in imap.commands if "FETCH" in command]) == fetches


@pytest.mark.parametrize("lost_at", ["STORE", "EXPUNGE"])
async def test_nothing_foreign_is_deleted_after_a_lost_connection(lost_at: str) -> None:
    """If the connection breaks during a deletion and uids change, only our own messages are deleted."""
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    inbox.add(OURS)

    def lose(words: list[str]) -> None:
        if words[1:2] == [lost_at]:
            imap.before = lambda words: None
            raise ConnectionError

    imap.before = lose
    async with mailbox_of(imap) as mailbox:
        with pytest.raises(ProbeFault):
            await poll(mailbox, deleting=b"Token")
        # The server was set up again: somebody's mail now has our uid.
        inbox.uid_validity, inbox.uid_next = 8, 1
        inbox.messages.clear()
        inbox.deleted.clear()
        inbox.add(FOREIGN)
        inbox.add(OURS)
        await poll(mailbox, deleting=b"Token")
    assert list(inbox.messages.values()) == [FOREIGN]
    assert inbox.deleted == {2}


async def test_marked_by_an_earlier_session_is_expunged_by_the_next() -> None:
    """A message marked as deleted before the connection broke is expunged later."""
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    inbox.deleted.add(inbox.add(OURS))
    async with mailbox_of(imap) as mailbox:
        await poll(mailbox, deleting=b"Token")
    assert inbox.messages == {}


async def test_without_uidplus_nothing_is_expunged() -> None:
    """Without UIDPLUS, our message is marked once, and others' marked messages are not expunged."""
    imap = ImapServer(capabilities="IMAP4rev1 AUTH=PLAIN SASL-IR")
    inbox = imap.folders["INBOX"]
    ours, theirs = inbox.add(OURS), inbox.add(FOREIGN)
    inbox.deleted.add(theirs)
    async with mailbox_of(imap) as mailbox:
        for _ in range(3):
            await poll(mailbox, deleting=b"Token")
    assert inbox.deleted == {ours, theirs}
    assert set(inbox.messages) == {ours, theirs}
    assert len([command for command in imap.commands if "STORE" in command]) == 1
    assert not [command for command in imap.commands if "EXPUNGE" in command]


async def test_message_that_goes_meanwhile_is_left_out() -> None:
    """A message that someone deletes between listing and reading is not an error."""
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    inbox.add(FOREIGN)

    def somebody_deletes(words: list[str]) -> None:
        if words[:2] == ["UID", "FETCH"]:
            inbox.messages.clear()

    imap.before = somebody_deletes
    async with mailbox_of(imap) as mailbox:
        assert await poll(mailbox) == []


async def test_junk_folder_is_opened_only_for_news() -> None:
    """The junk folder is selected first and after changes only; INBOX comes first and stays selected."""
    imap = ImapServer()
    visit = ['SELECT "Junk"', 'SELECT "INBOX"']
    async with mailbox_of(imap) as mailbox:
        await poll(mailbox)
        assert mailbox.folders == ("INBOX", "Junk")
        mailbox._junk.due_at = float("-inf")  # a second has passed
        await poll(mailbox)
        assert [c for c in imap.commands if c.startswith("SELECT")] == ['SELECT "INBOX"', *visit]
        imap.folders["Junk"].add(OURS)
        mailbox._junk.due_at = float("-inf")
        assert len(await poll(mailbox)) == 1
        assert [c for c in imap.commands if c.startswith("SELECT")] == ['SELECT "INBOX"', *visit, *visit]


async def test_new_uidvalidity_of_the_junk_folder() -> None:
    """If the junk folder is recreated on the same connection, all its messages are new."""
    imap = ImapServer()
    imap.folders["Junk"].add(FOREIGN)
    async with mailbox_of(imap) as mailbox:
        assert len(await poll(mailbox)) == 1
        imap.folders["Junk"] = StoredFolder(uid_validity=9)
        imap.folders["Junk"].add(OURS)
        mailbox._junk.due_at = float("-inf")
        assert len(await poll(mailbox)) == 1


async def test_absence_is_proven_from_before_the_server_looked() -> None:
    """A message that a poll does not show may have arrived after the server's check, but not earlier."""
    imap = ImapServer()
    asked: list[float] = []

    def ask(words: list[str]) -> None:
        if words[0] in {"SELECT", "NOOP", "STATUS"}:
            asked.append(SystemClock().monotonic())

    imap.before = ask
    async with mailbox_of(imap) as mailbox:
        for _ in range(3):
            asked.clear()
            begun = SystemClock().monotonic()
            async with mailbox.poll() as due:
                for open_folder in due:
                    asked.clear()
                    folder = await open_folder()
                    assert begun <= folder.absent_at <= asked[-1]
                    assert asked[-1] <= folder.listed_at or not folder.uids


async def test_one_login_for_many_looks() -> None:
    """Polls share one connection."""
    imap = ImapServer()
    async with mailbox_of(imap) as mailbox:
        for _ in range(5):
            await poll(mailbox)
    assert len([command for command in imap.commands if command.startswith("AUTHENTICATE")]) == 1
