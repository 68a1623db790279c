"""Copies of our messages in the Sent Items of the account that sends through Graph."""

from __future__ import annotations

import asyncio

import pytest

from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.sent_copies import LOOK_GAP, LOOKED_FOR
from probes.messages.synthetic_message import compose
from probes.messages.token import Token, TokenSigner
from tests.fakes.graph.http import Answer, Request
from tests.fakes.graph.server import Item
from tests.unit.probes.graph.conftest import ADDRESS, Bench, OpenBench

FOREIGN = b"From: canary@contoso.com\r\nTo: boss@contoso.com\r\nSubject: lunch\r\n\r\nAt one.\r\n"


def signed(key: bytes, run: str = "ab" * 16) -> bytes:
    """Return a message of a run that the ledger does not know."""
    return compose(
        probe="trip",
        location="here",
        sender=ADDRESS,
        recipient=ADDRESS,
        run=run,
        token=TokenSigner(key).sign(Token("trip", run, 1_700_000_000_000_000)),
        created_at=1_700_000_000.0,
    ).content


async def ended(made: Bench) -> None:
    """Wait until the watcher has nothing more to do."""
    assert made.watcher._task is not None
    async with asyncio.timeout(120):
        await made.watcher._task


def sent_items(made: Bench) -> list[Item]:
    return [item for item in made.graph.mailboxes[ADDRESS] if item.folder == "sentitems"]


def looks(made: Bench) -> int:
    return len([line for line in made.graph.requests if line.endswith("sentitems/messages")])


async def test_our_copies_are_removed_and_no_others(bench: OpenBench) -> None:
    """A sent copy goes after its message; people's mail, forged and unknown tokens stay uncounted."""
    async with bench(saves_sent=True) as made:
        others = [
            made.graph.put(raw, "sentitems")
            for raw in (FOREIGN, signed(b"another key"), signed(b"key"), FOREIGN)
        ]
        for _ in range(3):
            assert (await made.run()).verdict.reason is Reason.NONE
            await ended(made)
            assert made.graph.mailboxes[ADDRESS] == others
        assert made.found.counts == []
        assert len(made.graph.removed) == 6


async def test_a_copy_stays_until_its_message_is_settled(bench: OpenBench) -> None:
    """Nothing is removed from Sent Items while the message may be the same one that is to arrive."""
    async with bench(saves_sent=True) as made:
        made.graph.delay = 5.0
        copies, looked = [], made.graph.instead

        def look(request: Request) -> Answer | object | None:
            copies.append([item.id for item in sent_items(made)])
            return looked(request)

        made.graph.instead = look
        await made.run()
        await ended(made)
        (copy,) = copies[-1]
        assert made.graph.removed[1:] == [copy]
        assert looks(made) >= 2
        assert sent_items(made) == []


async def test_a_lost_message_leaves_no_copy(bench: OpenBench) -> None:
    """The copy of a message that never arrives is removed after the deadline."""
    async with bench("5s", saves_sent=True) as made:
        made.graph.delay = 1000.0
        assert (await made.run()).verdict.reason is Reason.MESSAGE_LOST
        await made.watcher.close()
        assert (len(made.graph.removed), sent_items(made)) == (1, [])
        assert await made.state() is MessageState.LOST


async def test_copies_that_an_earlier_process_left_are_removed(bench: OpenBench) -> None:
    """After a crash, the first polls remove what that process no longer could."""
    async with bench() as before:
        await before.run()
        (left,) = before.graph.sent
    async with bench(saves_sent=True) as made:
        made.graph.put(left, "sentitems")
        await made.run()
        await ended(made)
        assert made.graph.mailboxes[ADDRESS] == []


async def test_closing_removes_the_last_copy(bench: OpenBench) -> None:
    """A single run, as with `mailsonde check`, leaves nothing behind."""
    async with bench(saves_sent=True) as made:
        await made.run()
        await made.watcher.close()
        assert made.graph.mailboxes[ADDRESS] == []


@pytest.mark.parametrize(("failures", "left"), [(1, 0), (100, 1)])
async def test_a_copy_that_could_not_be_deleted_is_deleted_later(
    bench: OpenBench, failures: int, left: int
) -> None:
    """A deletion that fails is repeated for a while. One that never succeeds puts nothing in doubt."""
    refused = []

    def refuse(request: Request) -> Answer | None:
        item = next((one for one in sent_items(made) if one.id in request.path), None)
        if item is None or len(refused) == failures:
            return None
        refused.append(item.id)
        return Answer(502)

    async with bench(saves_sent=True) as made:
        made.graph.instead = refuse
        await made.run()
        await ended(made)
        assert refused
        assert (len(sent_items(made)), made.mailbox.doubt) == (left, "")


@pytest.mark.parametrize("status", [403, 404, 500])
async def test_sent_items_that_cannot_be_read_change_no_result(bench: OpenBench, status: int) -> None:
    """A message is delivered, or lost without a doubt, though Sent Items cannot be read."""

    def refuse(request: Request) -> Answer | None:
        return Answer(status) if "sentitems" in request.path else None

    async with bench("5s", saves_sent=True) as made:
        made.graph.instead = refuse
        assert (await made.run()).verdict.reason is Reason.NONE
        await ended(made)  # its polls would move the clock while the next message is sent
        made.graph.delay = 1000.0
        verdict = (await made.run()).verdict
        assert verdict.reason is Reason.MESSAGE_LOST
        assert verdict.detail == "not in the mailbox 5 s after it was sent"


async def test_looking_for_a_copy_ends(bench: OpenBench) -> None:
    """If the server makes no copy after all, the search for it ends after some polls."""
    async with bench(saves_sent=True) as made:
        made.graph.saves_sent = False
        await made.run()
        begun, before = made.clock.now, looks(made)
        await ended(made)
        assert made.clock.now - begun <= LOOKED_FOR + LOOK_GAP
        assert 1 <= looks(made) - before <= LOOKED_FOR / LOOK_GAP + 2


async def test_without_the_setting_sent_items_are_not_read(bench: OpenBench) -> None:
    """Nobody's Sent Items are read unless the configuration says that copies are made there."""
    async with bench() as made:
        await made.run()
        await ended(made)
        assert looks(made) == 0


async def test_the_folder_may_have_another_name(bench: OpenBench) -> None:
    """`sent_folder` names the folder, such as one that a rule files sent mail into."""
    async with bench(saves_sent=True, mailbox={"sent_folder": "Probes sent"}) as made:
        made.graph.named["Probes sent"] = "AAMksent="
        await made.run()
        (copy,) = sent_items(made)
        copy.folder = "AAMksent="
        await ended(made)
        assert made.graph.mailboxes[ADDRESS] == []
