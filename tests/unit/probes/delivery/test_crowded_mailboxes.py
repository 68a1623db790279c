"""Mailboxes with very many messages, and servers that are very slow, cost no precision and no message."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.mailboxes.imap_folder import MANY
from probes.delivery.mailboxes.pop3_listing import LISTED_FOR
from probes.delivery.reading_pace import MOST_READ, READ_SECONDS, ReadingPace
from probes.delivery.watcher import POLL_TIMEOUT
from tests.fakes.imap_server import ImapServer
from tests.fakes.mailbox import FakeSession, Stored
from tests.unit.probes.delivery.conftest import Bench
from tests.unit.probes.delivery.test_imap_losses import watched

CROWD = 40
FOREIGN = b"Subject: hello\r\n\r\nbody"


@pytest.fixture
def crowded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A mailbox with so much of other people's mail that it is not listed at every poll."""
    monkeypatch.setattr("probes.delivery.mailboxes.pop3_listing.LARGE", CROWD // 2)
    bench.mailbox.stored += [Stored(f"foreign-{number}", FOREIGN) for number in range(CROWD)]
    return bench


def foreign(bench: Bench) -> list[str]:
    return [each.uid for each in bench.mailbox.stored if each.raw == FOREIGN]


async def delivered(bench: Bench, after: float = 0.3) -> float:
    """Let a message arrive; return its uncertainty."""
    message = await bench.sent()
    bench.arrives(message, after)
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED
    delivery, uncertainty = settled.delivery_seconds, settled.uncertainty_seconds
    assert delivery is not None
    assert uncertainty is not None
    assert delivery - uncertainty - 0.001 <= after <= delivery + uncertainty
    await bench.poll_ended()
    return uncertainty


async def test_a_large_mailbox_is_not_listed_again_at_every_poll(crowded: Bench) -> None:
    """One listing is enough for many messages, of which each is found in time, read once and deleted."""
    before = foreign(crowded)
    await delivered(crowded)
    listings = crowded.mailbox.listings
    for _ in range(10):
        assert await delivered(crowded) < 0.3
    assert crowded.mailbox.listings == listings
    assert foreign(crowded) == before
    assert len(crowded.mailbox.stored) == CROWD
    assert set(Counter(crowded.mailbox.headers_read).values()) == {1}


@pytest.mark.parametrize("place", [0, CROWD // 2, CROWD - 1])
async def test_other_clients_may_delete_meanwhile(crowded: Bench, place: int) -> None:
    """If one message goes when another comes, the mailbox is listed again, and none is taken for another."""
    await delivered(crowded)
    listings = crowded.mailbox.listings
    message = await crowded.sent()
    del crowded.mailbox.stored[place]
    left = foreign(crowded)
    crowded.arrives(message, 0.0)
    settled = (await crowded.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED
    assert settled.delivery_seconds == pytest.approx(0.0, abs=0.2)
    await crowded.poll_ended()
    assert crowded.mailbox.listings > listings
    for _ in range(2):
        await delivered(crowded)
    assert foreign(crowded) == left
    assert len(crowded.mailbox.deleted) == 4


async def test_a_message_among_those_that_are_known(crowded: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a server puts a message in between in place of another, it is found before it counts as lost.

    When it came is not known then, so its interval reaches back to its sending.
    """
    await delivered(crowded)
    message = await crowded.sent(deadline=20.0)
    stored = crowded.arrives(message, 1.0)
    crowded.mailbox.stored.remove(stored)
    del crowded.mailbox.stored[3]
    crowded.mailbox.stored.insert(5, stored)
    settled = (await crowded.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED
    assert settled.delivery_seconds is not None
    assert settled.uncertainty_seconds == pytest.approx(settled.delivery_seconds)


@pytest.mark.parametrize("broken", ["refused", "unreadable", "no number"])
async def test_servers_that_cannot_list_one_message(
    crowded: Bench, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A server without these commands is asked for the whole list."""

    async def unique_id(session: FakeSession, number: int) -> str | None:
        if broken == "refused":
            raise ProbeFault(Reason.POP3_ERROR, "unknown command")
        return None

    async def stat(session: FakeSession) -> tuple[int, int | None]:
        raise ProbeFault(Reason.PROTOCOL_ERROR, "no number where one belongs")

    if broken == "no number":
        monkeypatch.setattr(FakeSession, "stat", stat)
    else:
        monkeypatch.setattr(FakeSession, "unique_id", unique_id)
    for _ in range(3):
        await delivered(crowded)
    assert crowded.mailbox.listings == len(crowded.mailbox.logins)


async def test_even_a_large_mailbox_is_listed_now_and_then(crowded: Bench) -> None:
    """After some minutes the whole mailbox is listed, whatever the server's order is."""
    await delivered(crowded)
    listings = crowded.mailbox.listings
    crowded.clock.now += LISTED_FOR
    await delivered(crowded)
    assert crowded.mailbox.listings > listings


async def test_deletions_in_doubt(crowded: Bench) -> None:
    """If QUIT fails, a message may be gone or not; either way the next polls find theirs."""
    await delivered(crowded)
    crowded.mailbox.quit_fault = ProbeFault(Reason.CONNECTION_LOST)
    await delivered(crowded)
    crowded.mailbox.quit_fault = None
    for _ in range(2):
        message = await crowded.sent()
        crowded.arrives(message, 0.3)
        assert (await crowded.watcher.await_arrival(message)).message.state is MessageState.DELIVERED
        await crowded.poll_ended()
    assert len(crowded.mailbox.stored) == CROWD


async def test_a_slow_server_with_many_messages(bench: Bench) -> None:
    """With a second for each command and many messages to read, no poll takes long."""
    bench.mailbox.command_seconds = bench.mailbox.top_seconds = 1.0
    bench.mailbox.stored += [Stored(f"foreign-{number}", FOREIGN) for number in range(200)]
    for _ in range(5):
        assert await delivered(bench, after=3.0) < POLL_TIMEOUT / 4
    gaps = [
        after - before for before, after in zip(bench.mailbox.logins, bench.mailbox.logins[1:], strict=False)
    ]
    assert max(gaps) < POLL_TIMEOUT / 2


def test_reading_keeps_a_pace() -> None:
    """A poll reads as much as fits into its time: more where that is quick, less after it was too slow."""
    pace = ReadingPace(8)
    for _ in range(10):
        pace.learn(pace.most, READ_SECONDS / 2, 0.1)
    assert pace.most == MOST_READ
    pace.learn(3, READ_SECONDS / 2, 0.1)
    assert pace.most == MOST_READ
    pace.learn(MOST_READ, 10 * READ_SECONDS, 0.1)
    assert pace.most == MOST_READ // 10
    pace.learn(1, 100.0, 0.1)
    pace.cut()
    assert pace.most == 1


async def test_a_mailbox_that_cannot_be_listed_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the list is larger than we can take, that is why the mailbox cannot be read."""

    async def uidl(session: FakeSession) -> dict[int, str]:
        raise ProbeFault(Reason.RESPONSE_TOO_LARGE, "more than 3 lines")

    monkeypatch.setattr(FakeSession, "uidl", uidl)
    bench.watcher.await_arrival(await bench.sent())
    await bench.watcher.poll_now()
    assert bench.watcher.fault is not None
    assert bench.watcher.fault.reason is Reason.RESPONSE_TOO_LARGE


async def test_reading_many_copies_by_imap_hides_no_arrival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is much to read, a look for new messages goes with each command; later there is no need."""
    monkeypatch.setattr("probes.protocols.imap_arrivals.BUSY_GAP", 0.0)
    imap = ImapServer()
    for _ in range(10 * MANY):
        imap.folders["INBOX"].add(FOREIGN)
    async with watched(imap, tmp_path, deadline=30.0) as watch:
        for _ in range(2):
            message = await watch.sent()
            watch.arrives(message)
            settled = await watch.watcher.await_arrival(message)
            assert settled.message.state is MessageState.DELIVERED
            await watch.poll_ended()
    verbs = [" ".join(command.split(" ")[:2]) for command in imap.commands]
    behind = [then for verb, then in itertools.pairwise(verbs) if verb == "UID STORE"]
    assert behind == ["NOOP", "UID EXPUNGE"]
