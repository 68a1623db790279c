"""A POP3 server's trouble with one message or with QUIT affects no other message or poll."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Unexpected
from tests.fakes.mailbox import Stored
from tests.unit.probes.delivery.conftest import Bench


async def until_holding(bench: Bench, uids: Sequence[str] = ()) -> None:
    """Let time pass until the mailbox has exactly these messages."""
    while [stored.uid for stored in bench.mailbox.stored] != [*uids]:
        await bench.clock.sleep(0.1)


@pytest.mark.parametrize(
    ("reason", "pauses"),
    [
        (Reason.POP3_IN_USE, [1, 2, 4, 8, 16, 32, 60, 60]),
        (Reason.IMAP_IN_USE, [1, 2, 4, 8, 16, 32, 60, 60]),
        (Reason.LOGIN_REFUSED, [10, 60, 300, 300]),
    ],
)
async def test_pauses_grow(bench: Bench, reason: Reason, pauses: list[int]) -> None:
    """After a busy mailbox, or twice after an unexplained login refusal, the next try is soon."""
    bench.mailbox.login_fault = ProbeFault(reason)

    def mend() -> None:
        if len(bench.mailbox.logins) > len(pauses):
            bench.mailbox.login_fault = None

    bench.mailbox.on_login = mend
    message = await bench.sent(deadline=3000.0)
    bench.arrives(message, 0.0)
    await bench.watcher.await_arrival(message)
    waited = [later - earlier for earlier, later in pairwise(bench.mailbox.logins)]
    assert waited[: len(pauses)] == pytest.approx(pauses, abs=0.5)


async def test_a_copy_that_the_server_refuses_costs_no_other(bench: Bench) -> None:
    """If one message cannot be read, the others are counted and deleted; it is requested three times."""
    bench.mailbox.stored.append(Stored("bad", b"Subject: x\r\n\r\n"))
    bench.mailbox.refused = {"bad"}
    for _ in range(5):
        message = await bench.sent()
        bench.arrives(message, 0.2)
        settled = await bench.watcher.await_arrival(message)
        assert settled.message.state is MessageState.DELIVERED
        assert bench.watcher.fault is None
        await until_holding(bench, ["bad"])
    assert Counter(bench.mailbox.headers_read)["bad"] == 3


async def test_a_copy_that_cannot_be_deleted_costs_no_other(bench: Bench) -> None:
    """If one message cannot be deleted, the others are, and it counts once."""
    first = await bench.sent()
    bench.arrives(first, 0.2, uid="bad")
    bench.mailbox.undeletable = {"bad"}
    assert (await bench.watcher.await_arrival(first)).message.state is MessageState.DELIVERED
    message = await bench.sent()
    bench.arrives(message, 0.2)
    await bench.watcher.await_arrival(message)
    await until_holding(bench, ["bad"])
    assert bench.watcher.fault is None
    assert not bench.found.counts


async def test_a_server_that_shows_nothing_is_not_believed(bench: Bench) -> None:
    """If every message is refused, the server is at fault, and nothing counts as lost."""
    message = await bench.sent(deadline=60.0)
    bench.mailbox.stored.append(Stored("other", b"Subject: x\r\n\r\n"))
    bench.arrives(message, 0.0, uid="ours")
    bench.mailbox.refused = {"other", "ours"}
    arrival = bench.watcher.await_arrival(message)
    while bench.clock.now < 1000.0 + 200.0:
        await bench.clock.sleep(1.0)
    assert not arrival.done()
    bench.mailbox.refused = set()
    assert (await arrival).message.state is MessageState.DELIVERED


async def test_identical_copies_with_one_unique_id(bench: Bench) -> None:
    """Two copies may share a unique id (RFC 1939 section 7): one counts, one is a duplicate, both go."""
    message = await bench.sent()
    bench.arrives(message, 0.2, uid="same")
    bench.arrives(message, 0.2, uid="same")
    await bench.watcher.await_arrival(message)
    await until_holding(bench)
    assert bench.watcher.fault is None
    assert bench.found.counts == {Unexpected.DUPLICATE: 1}


async def test_a_farewell_that_goes_wrong_leaves_only_deletions_in_doubt(bench: Bench) -> None:
    """If a server hangs up at QUIT, it is polled soon, without a fault, until the copy is deleted."""
    bench.mailbox.quit_fault = ProbeFault(Reason.CONNECTION_LOST)
    message = await bench.sent()
    bench.arrives(message, 0.2)
    assert (await bench.watcher.await_arrival(message)).message.state is MessageState.DELIVERED
    while len(bench.mailbox.logins) < 6:
        await bench.clock.sleep(0.1)
    assert bench.watcher.fault is None
    bench.mailbox.quit_fault = None
    await until_holding(bench)
    assert not bench.found.counts
