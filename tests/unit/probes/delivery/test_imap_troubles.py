"""An IMAP server's trouble with a folder or message affects only that, and foreign mail is not touched."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.delivery.mailboxes import imap_folder
from probes.delivery.mailboxes.imap import ImapMailbox
from probes.delivery.mailboxes.mailbox import REFUSALS
from probes.delivery.mailboxes.side_folder import SIDE_PAUSE
from tests.fakes.imap_server import ImapServer, is_in
from tests.unit.probes.delivery.test_imap_mailbox import FOREIGN, OURS, SETTINGS, mailbox_of, poll


@pytest.mark.parametrize(
    ("told_with", "is_late", "sent"),
    [
        (["UID", "FETCH"], False, []),
        (["UID", "FETCH"], True, []),
        (["UID", "STORE"], False, ["STORE"]),
        (["UID", "STORE"], True, ["STORE"]),
    ],
)
async def test_uids_that_change_hands_within_a_session(
    told_with: list[str], is_late: bool, sent: list[str]
) -> None:
    """A new UIDVALIDITY ends the session before any other change (RFC 9051 section 2.3.1.1)."""
    imap = ImapServer(is_late=is_late)
    inbox = imap.folders["INBOX"]
    inbox.add(OURS)

    def change_hands(words: list[str]) -> None:
        if words[:2] == told_with and inbox.uid_validity == 7:
            inbox.uid_validity = 99
            imap.unasked = [b"* OK [UIDVALIDITY 99] uids are new"]

    imap.before = change_hands
    async with mailbox_of(imap) as mailbox:
        with pytest.raises(ProbeFault) as caught:
            await poll(mailbox, deleting=b"Token")
        assert caught.value.reason is Reason.IMAP_UIDS_CHANGED
        assert caught.value.detail == "UIDVALIDITY changed from 7 to 99"
        assert [c.split()[1] for c in imap.commands if "STORE" in c or "EXPUNGE" in c] == sent
        # Somebody's mail now has our uid.
        inbox.messages = {1: FOREIGN, 2: OURS}
        inbox.deleted = set()
        assert len(await poll(mailbox, deleting=b"Token")) == 2
    assert inbox.messages == {1: FOREIGN}


@pytest.mark.parametrize("validity", [0, None])
async def test_uids_without_uidvalidity_hold_for_one_session(validity: int | None) -> None:
    """Without UIDVALIDITY, all copies are new in each session (RFC 3501 section 6.3.1); polls continue."""
    imap = ImapServer()
    for folder in imap.folders.values():
        folder.uid_validity = validity
    imap.folders["INBOX"].add(FOREIGN)
    named = set()
    async with mailbox_of(imap) as mailbox:
        for _ in range(2):
            async with mailbox.poll() as due:
                for open_folder in due:
                    folder = await open_folder()
                    named.update(folder.uids)
                    for uid in folder.uids:
                        folder.set_aside(uid)
            assert await poll(mailbox) == []
            mailbox._drop()
    assert len(named) == 2


def refusing(*begins: str, answer: str, ends: bool = False) -> Callable[[list[str]], str | None]:
    """Return a function that refuses commands with such a beginning, by a tagged ``answer`` or a hang-up."""

    def before(words: list[str]) -> str | None:
        if tuple(words[: len(begins)]) != begins:
            return None
        if ends:
            raise ConnectionError(answer)
        return answer

    return before


@pytest.mark.parametrize(
    "listing",
    [
        [b'* LIST () "/" a\tb', b'* LIST (\\Junk) "/" Junk'],
        [b'* LIST (\\Junk) "/" NIL', b"* LIST", b'* LIST (\\Junk) "/" Junk'],
        [b'* LIST () "/" f%d' % n for n in range(20_001)] + [b'* LIST (\\Junk) "/" Junk'],
    ],
    ids=["tab", "unreadable", "many"],
)
async def test_an_odd_folder_costs_itself(listing: list[bytes]) -> None:
    """A malformed line of LIST loses only that folder, and many folders are no trouble."""
    async with mailbox_of(ImapServer(listing=listing), patience="30s") as mailbox:
        await poll(mailbox)
        assert mailbox.folders == ("INBOX", "Junk")
        assert mailbox.doubt == ""


@pytest.mark.parametrize("ends", [False, True])
async def test_without_a_list_inbox_is_read(ends: bool) -> None:
    """If LIST fails or even ends the session, there is no junk folder, and INBOX is read."""
    imap = ImapServer()
    imap.folders["INBOX"].add(FOREIGN)
    imap.before = refusing("LIST", answer="* BYE" if ends else "NO not for you", ends=ends)
    async with mailbox_of(imap) as mailbox:
        assert await poll(mailbox) != []
        assert mailbox.folders == ("INBOX",)
        assert mailbox.doubt.startswith("the junk folder is not known: imap_")
        mailbox._drop()
        await poll(mailbox)
    assert len([command for command in imap.commands if command.startswith("LIST")]) == 1


@pytest.mark.parametrize("attributes", [b"\\Noselect \\Junk", b"\\Junk \\NonExistent"])
async def test_a_junk_folder_that_is_none(attributes: bytes) -> None:
    """A folder that LIST says cannot be opened is never opened (RFC 9051 section 7.3.1)."""
    imap = ImapServer(listing=[b'* LIST (%s) "/" Old' % attributes, b'* LIST (\\Junk) "/" Junk'])
    async with mailbox_of(imap) as mailbox:
        await poll(mailbox)
        assert mailbox.folders == ("INBOX", "Junk")
        assert mailbox.doubt == ""


@pytest.mark.parametrize(
    "before",
    [
        refusing("STATUS", answer="NO no permission"),
        refusing("SELECT", '"Junk"', answer="NO [NOPERM] no permission"),
        refusing("SELECT", '"Junk"', answer="* BYE Internal error", ends=True),
        refusing("STATUS", answer="* BYE [UNAVAILABLE] index is broken", ends=True),
        refusing("STATUS", answer="OK"),  # without a STATUS before it
    ],
)
async def test_a_junk_folder_that_cannot_be_read(
    before: Callable[[list[str]], str | None], caplog: pytest.LogCaptureFixture
) -> None:
    """INBOX is read first in any case; the trouble is logged once and leaves a doubt."""
    caplog.set_level(logging.WARNING)
    imap = ImapServer(before=before)
    inbox = imap.folders["INBOX"]
    async with mailbox_of(imap) as mailbox:
        for _ in range(3):
            inbox.add(OURS)
            assert len(await poll(mailbox, deleting=b"Token")) == 1
            assert mailbox.folders == ("INBOX",)
            assert mailbox.doubt.startswith("the junk folder could not be read: ")
            mailbox._junk.due_at = float("-inf")  # it is tried again
    assert inbox.messages == {}
    assert len([record for record in caplog.records if "without its junk folder" in record.message]) == 1


async def test_pauses_between_looks_at_a_junk_folder_grow() -> None:
    """An unreadable junk folder is tried again, less and less often, until it can be read."""
    imap = ImapServer(before=refusing("STATUS", answer="NO no permission"))
    pauses = []
    async with mailbox_of(imap) as mailbox:
        for _ in range(8):
            mailbox._junk.due_at = began = mailbox._clock.monotonic()
            await poll(mailbox)
            pauses.append(round((mailbox._junk.due_at - began) / SIDE_PAUSE))
        imap.before = lambda words: None
        mailbox._junk.due_at = float("-inf")
        await poll(mailbox)
        assert mailbox._junk.pause == SIDE_PAUSE
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_junk_folder_that_can_be_read_again() -> None:
    """A junk folder that becomes readable again is read and leaves no doubt."""
    imap = ImapServer(before=refusing("STATUS", answer="NO not now"))
    imap.folders["Junk"].add(OURS)
    async with mailbox_of(imap) as mailbox:
        assert await poll(mailbox) == []
        imap.before = lambda words: None
        assert await poll(mailbox) == []  # it is left alone for a while
        mailbox._junk.due_at = float("-inf")
        assert len(await poll(mailbox)) == 1
        assert (mailbox.folders, mailbox.doubt) == (("INBOX", "Junk"), "")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"folder": "Nowhere"}, 'the mailbox\'s folder "Nowhere": no such folder'),
        ({"junk_folder": "Nowhere"}, 'the mailbox\'s junk_folder "Nowhere": no such folder'),
        ({"sent_folder": "Nowhere"}, 'the mailbox\'s sent_folder "Nowhere": no such folder'),
    ],
)
async def test_a_folder_that_is_not_there(
    settings: dict[str, str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The fault names the folder, and the setting for it; the remedy is about that setting."""
    ((setting, _),) = settings.items()
    remedy = f"Correct `{setting}`, or create the folder."
    imap = ImapServer()
    imap.before = lambda words: "NO no such folder" if '"Nowhere"' in words else None
    async with mailbox_of(imap, SETTINGS.model_copy(update=settings)) as mailbox:
        if "folder" in settings:
            with pytest.raises(ProbeFault) as caught:
                await poll(mailbox)
            assert (caught.value.reason, caught.value.detail) == (Reason.IMAP_NO_FOLDER, named)
            assert caught.value.remedy == remedy
            return
        await poll(mailbox, sent=setting == "sent_folder")
        trouble = f"the {setting.replace('_', ' ')} could not be read: imap_no_folder: {named}"
        assert mailbox.doubt == (trouble if setting == "junk_folder" else "")
        assert caplog.messages[-1].endswith(f"{trouble}; remedy: {remedy}")


async def test_no_folder_for_copies_of_sent_messages(caplog: pytest.LogCaptureFixture) -> None:
    """Where no folder is marked for sent mail, the log says which setting names one."""
    async with mailbox_of(ImapServer()) as mailbox:
        await poll(mailbox, sent=True)
    assert caplog.messages[-1].endswith("none is marked as \\Sent; remedy: Set `sent_folder` to its name.")


async def polled(mailbox: ImapMailbox, times: int, *, deleting: bytes = b"\0") -> list[bytes]:
    """Poll several times, some of which may fail; return all identified copies."""
    found = []
    for _ in range(times):
        try:
            found += await poll(mailbox, deleting=deleting)
        except ProbeFault:
            assert mailbox._session is None or not mailbox._session.is_open
    return found


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize(
    ("answer", "ends"), [("NO [SERVERBUG] cannot read it", False), ("* BYE FETCH failed", True), ("", True)]
)
async def test_a_message_that_cannot_be_fetched(answer: str, ends: bool, count: int) -> None:
    """Among any number of messages, it is found in a few polls and ignored; the others are read."""
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    for _ in range(count):
        inbox.add(OURS)
    bad = inbox.add(FOREIGN)
    inbox.add(OURS)

    def fail(words: list[str]) -> str | None:
        if words[:2] != ["UID", "FETCH"]:
            return None
        if is_in(bad, words[2], inbox):
            if ends:
                raise ConnectionError(*([answer] if answer else []))
            return answer
        return None

    imap.before = fail
    async with mailbox_of(imap) as mailbox:
        await polled(mailbox, REFUSALS + 4, deleting=b"Token")
        assert set(inbox.messages) == {bad}
        assert mailbox.doubt == "a message could not be read"
        inbox.add(OURS)
        asked = len(imap.commands)
        await poll(mailbox, deleting=b"Token")  # raises nothing
        assert set(inbox.messages) == {bad}
        assert not [c for c in imap.commands[asked:] if c.startswith(f"UID FETCH {bad} ")]


async def test_a_message_that_can_be_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a message counts as lost, copies that could not be read earlier are tried once more."""
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    inbox.add(OURS)
    inbox.add(FOREIGN)
    imap.before = refusing("UID", "FETCH", "1", answer="NO not now")
    async with mailbox_of(imap) as mailbox:
        imap.before = lambda words: (
            "NO not now" if words[:2] == ["UID", "FETCH"] and "1" in words[2] else None
        )
        await polled(mailbox, REFUSALS + 1)
        assert mailbox.doubt != ""
        imap.before = lambda words: None
        assert await poll(mailbox, afresh=True) == []  # it is too early
        monkeypatch.setattr(imap_folder, "SECOND_CHANCE", 0.0)
        assert len(await poll(mailbox, afresh=True)) == 1
        assert mailbox.doubt == ""


async def test_a_server_that_shows_nothing_is_not_believed() -> None:
    """If every message is refused, the server is at fault, and no message is ignored for it."""
    imap = ImapServer(before=refusing("UID", "FETCH", answer="NO try again"))
    inbox = imap.folders["INBOX"]
    for _ in range(3):
        inbox.add(OURS)
    async with mailbox_of(imap) as mailbox:
        for _ in range(REFUSALS + 1):
            with pytest.raises(ProbeFault):
                await poll(mailbox)
        imap.before = lambda words: None
        assert len(await poll(mailbox)) == 3


@pytest.mark.parametrize("verb", ["STORE", "EXPUNGE"])
@pytest.mark.parametrize("ends", [False, True])
async def test_a_message_that_cannot_be_deleted(verb: str, ends: bool) -> None:
    """It stays and leaves no doubt, and the others are deleted."""
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    bad, *_ = [inbox.add(OURS) for _ in range(3)]
    refuse = refusing("UID", verb, answer="* BYE" if ends else "NO [NOPERM] no", ends=ends)
    imap.before = lambda words: refuse(words) if verb in words and is_in(bad, words[2], inbox) else None
    async with mailbox_of(imap) as mailbox:
        await polled(mailbox, REFUSALS + 1, deleting=b"Token")
        assert set(inbox.messages) == {bad}
        asked = len(imap.commands)
        await poll(mailbox, deleting=b"Token")
        assert not [command for command in imap.commands[asked:] if verb in command]
        assert mailbox.doubt == ""


async def test_throttling_blames_no_message() -> None:
    """A server that asks for a pause fails the poll; no message counts as refused, and all are read later."""
    imap = ImapServer(before=refusing("UID", "FETCH", answer="NO [LIMIT] slow down"))
    imap.folders["INBOX"].add(FOREIGN)
    async with mailbox_of(imap) as mailbox:
        for _ in range(REFUSALS + 1):
            with pytest.raises(ProbeFault) as caught:
                await poll(mailbox)
            assert caught.value.asks_to_wait
        imap.before = lambda words: None
        assert len(await poll(mailbox)) == 1


@pytest.mark.parametrize("name", ["INBOX", "Junk"])
async def test_a_uidnext_that_is_too_high(name: str) -> None:
    """A message is seen when the server reports it, even if UIDNEXT was too high."""
    imap = ImapServer()
    imap.folders[name].claimed_uid_next = 1000
    async with mailbox_of(imap) as mailbox:
        for _ in range(3):
            assert await poll(mailbox) == []
            imap.folders[name].add(OURS)
            mailbox._junk.due_at = float("-inf")
            assert len(await poll(mailbox, deleting=b"Token")) == 1
            mailbox._junk.due_at = float("-inf")


async def test_what_no_server_tells_of_is_found_afresh() -> None:
    """A fresh poll finds messages that the server did not report, and marks them as overlooked."""
    imap = ImapServer()
    inbox = imap.folders["INBOX"]
    async with mailbox_of(imap) as mailbox:
        await poll(mailbox)
        inbox.messages[1] = OURS
        imap.quiet = True
        assert await poll(mailbox) == []
        async with mailbox.poll(afresh=True) as due:
            folder = await due[0]()
            assert folder.overlooked == frozenset(folder.uids)
            assert len(folder.uids) == 1
