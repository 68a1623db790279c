"""What EXISTS responses prove about the arrival of messages, and the NOOPs that ask for them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.protocols.imap_arrivals import MOST_TOLD, ToldArrivals
from tests.fakes.imap_server import ImapServer
from tests.unit.probes.delivery.test_imap_mailbox import OURS, mailbox_of, poll


def told(*reports: tuple[int, float]) -> ToldArrivals:
    """Return what NOOPs sent at 0, 10, 20 … reported: so many arrivals, heard at that time."""
    arrivals = ToldArrivals()
    arrivals.begin(0.0)
    for number, (count, heard_at) in enumerate(reports, 1):
        if count:
            arrivals.told(count, heard_at)
        arrivals.looked(number * 10.0)
    return arrivals


def test_each_arrival_has_its_own_times() -> None:
    """A message arrived between the last NOOP whose answer did not report it and the EXISTS that did."""
    arrivals = told((2, 15.0), (0, 0.0), (1, 35.0))
    assert arrivals.take([7, 8, 11], 40.0) == {7: (0.0, 15.0), 8: (0.0, 15.0), 11: (20.0, 35.0)}
    assert arrivals.take([], 50.0) == {}


def test_reports_that_do_not_add_up_prove_nothing() -> None:
    """If a FETCH shows more messages than EXISTS reported, nobody knows which report was about which."""
    arrivals = told((1, 15.0))
    assert arrivals.take([7, 8], 20.0) == {}
    arrivals.told(1, 25.0)
    arrivals.told(-1, 26.0)
    assert arrivals.take([9], 30.0) == {}


FIRST, SECOND = (0.0, 15.0), (10.0, 25.0)


@pytest.mark.parametrize(("place", "left"), [(9, [SECOND]), (10, [FIRST]), (8, [FIRST, SECOND])])
def test_a_message_that_goes_before_it_is_shown(place: int, left: list[tuple[float, float]]) -> None:
    """If somebody deletes a message that no FETCH has shown yet, its report is not taken for another's."""
    arrivals = told((1, 15.0), (1, 25.0))
    arrivals.expunged(place, exists=10)
    uids = [7, 8][: len(left)]
    assert arrivals.take(uids, 30.0) == dict(zip(uids, left, strict=True))


def test_reports_do_not_outlive_the_next_fetch() -> None:
    """A report older than a FETCH that does not show its message is forgotten; a later one is kept."""
    arrivals = told((1, 15.0), (1, 25.0))
    assert arrivals.take([], 20.0) == {}
    assert arrivals.take([7], 30.0) == {7: (10.0, 25.0)}


def test_a_message_that_goes_without_a_word() -> None:
    """If a FETCH shows fewer messages than EXISTS reported before it, nobody knows which of them are left."""
    arrivals = told((1, 5.0), (1, 15.0))
    arrivals.told(1, 35.0)
    assert arrivals.take([8], 30.0) == {}
    assert arrivals.take([9], 40.0) == {9: (20.0, 35.0)}


def test_a_flood_of_reports_is_bounded() -> None:
    """A server that claims any number of messages costs no memory."""
    arrivals = told((MOST_TOLD, 15.0), (4 * 10**9, 25.0))
    assert arrivals.take([7], 30.0) == {}


def busy_server(change: Callable[[list[str]], str | None] = lambda words: None) -> ImapServer:
    """Return a server into which two messages arrive as soon as it was polled once."""
    imap = ImapServer(folders={"INBOX": ImapServer().folders["INBOX"]})

    def before(words: list[str]) -> str | None:
        if words == ["NOOP"] and "FETCH" not in " ".join(imap.commands):
            imap.folders["INBOX"].add(OURS)
            imap.folders["INBOX"].add(OURS)
        return change(words)

    imap.before = before
    return imap


async def test_looks_go_on_while_messages_are_deleted() -> None:
    """In a busy folder, each command about messages is followed by a NOOP, without waiting for its answer."""
    imap = busy_server()
    async with mailbox_of(imap) as mailbox:
        assert await poll(mailbox) == []
        assert len(await poll(mailbox, deleting=b"Token")) == 2
    commands = [command.split(" ")[0:2] for command in imap.commands]
    assert commands[-5:-1] == [["UID", "STORE"], ["NOOP"], ["UID", "EXPUNGE"], ["NOOP"]]
    assert imap.folders["INBOX"].messages == {}


async def test_a_message_that_comes_meanwhile_has_its_own_times() -> None:
    """What arrives while others are deleted is known to have come between two of the NOOPs meanwhile."""

    def arrive(words: list[str]) -> None:
        if words[:2] == ["UID", "EXPUNGE"]:
            imap.folders["INBOX"].add(OURS)

    imap = busy_server(arrive)
    async with mailbox_of(imap) as mailbox:
        await poll(mailbox)
        async with mailbox.poll() as due:
            folder = await due[0]()
            listed_at, ours = folder.listed_at, folder.uids
            await folder.delete(ours)
        async with mailbox.poll() as due:
            folder = await due[0]()
            (uid,) = folder.uids
            earliest, latest = folder.told(uid)
            assert listed_at < earliest < latest < folder.absent_at


async def test_a_look_that_is_refused_proves_nothing() -> None:
    """If the server refuses the NOOP behind a command, a message may have come before it."""

    def refuse(words: list[str]) -> str | None:
        if words[:2] == ["UID", "STORE"]:
            imap.folders["INBOX"].add(OURS)
            arrived.append(time.monotonic())
            imap.quiet = True
        return "BAD not now" if imap.quiet and words == ["NOOP"] else None

    arrived: list[float] = []
    imap = busy_server(refuse)
    async with mailbox_of(imap) as mailbox:
        await poll(mailbox)
        async with mailbox.poll() as due:
            folder = await due[0]()
            await folder.delete(folder.uids)
        imap.quiet, imap.before = False, lambda words: None
        async with mailbox.poll() as due:
            folder = await due[0]()
            (uid,) = folder.uids
            earliest, latest = folder.told(uid)
            assert earliest < arrived[0] < latest


async def test_uids_that_change_with_the_look_behind_a_deletion() -> None:
    """A new UIDVALIDITY reported with the NOOP behind STORE ends the session before anything is expunged."""

    def change_hands(words: list[str]) -> None:
        if words == ["NOOP"] and any("STORE" in command for command in imap.commands):
            imap.unasked = [b"* OK [UIDVALIDITY 99] uids are new"]

    imap = busy_server(change_hands)
    async with mailbox_of(imap) as mailbox:
        await poll(mailbox)
        with pytest.raises(ProbeFault) as caught:
            await poll(mailbox, deleting=b"Token")
        assert caught.value.reason is Reason.IMAP_UIDS_CHANGED
    assert not [command for command in imap.commands if "EXPUNGE" in command]
