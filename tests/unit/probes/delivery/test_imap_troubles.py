"""What an IMAP server says about one folder or message costs that alone, and nothing foreign is touched."""

from __future__ import annotations

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from tests.fakes.imap_server import ImapServer
from tests.unit.probes.delivery.test_imap_mailbox import FOREIGN, OURS, mailbox_of, poll


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
    """A new UIDVALIDITY ends the session before anything else is changed (RFC 9051 section 2.3.1.1)."""
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
        # Somebody's mail has our uid now.
        inbox.messages = {1: FOREIGN, 2: OURS}
        inbox.deleted = set()
        assert len(await poll(mailbox, deleting=b"Token")) == 2
    assert inbox.messages == {1: FOREIGN}


@pytest.mark.parametrize("validity", [0, None])
async def test_uids_without_uidvalidity_hold_for_one_session(validity: int | None) -> None:
    """Without UIDVALIDITY each session takes all copies for new (RFC 3501 section 6.3.1), and polls go on."""
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
