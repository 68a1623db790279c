"""Mailboxes that hang or fail leave connections and logins to those that are well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
from pydantic import SecretStr

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import TURN, PhaseTimer
from probes.delivery.mailboxes.imap import ImapMailbox
from probes.delivery.mailboxes.login_budget import BURST, LoginBudget, SlowPolls, Standing
from probes.delivery.mailboxes.mailbox import Mailbox
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.protocols import connection_limits
from probes.protocols.connection_limits import ConnectionLimits
from tests.fakes.clock import InstantClock
from tests.fakes.mail_site.connection import Connection, Pace
from tests.fakes.mail_site.imap import Imap
from tests.fakes.mail_site.pop3 import Pop3
from tests.fakes.mail_site.store import Site

CONNECTIONS = 8
DEAD = 20
PATIENCE = 0.2
"""Time limit of mailboxes that hang, in seconds."""

CLOCK = SystemClock()


class Server:
    """A server whose mailboxes ``dead…`` never answer a login."""

    def __init__(self, protocol: str, port: int) -> None:
        self._settings = ServerSettings.model_validate(
            {"protocol": protocol, "host": "127.0.0.1", "port": port, "tls": "none"}
        )
        self._budget = LoginBudget(60_000.0, CLOCK, SlowPolls(CONNECTIONS))

    def mailbox(self, username: str) -> Mailbox:
        settings = MailboxSettings.model_construct(
            address="canary@example.com", server="in", username=username, password=SecretStr("x")
        )
        patience = PATIENCE if username.startswith("dead") else 30.0
        server = self._settings.model_copy(update={"timeout": patience})
        if server.protocol == "imap":
            return ImapMailbox(settings, server, CLOCK, self._budget, retention=86400.0)
        return Pop3Mailbox(settings, server, CLOCK, self._budget)


@pytest.fixture(params=["pop3", "imap"])
async def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    dialogue = {"pop3": Pop3, "imap": Imap}[request.param]
    make = partial(Connection, Site(), Pace(), dialogue, None, starts_tls=False)
    listening = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    place = "127.0.0.1", listening.sockets[0].getsockname()[1]
    monkeypatch.setattr(connection_limits, "system", ConnectionLimits(None, {place: CONNECTIONS}))
    monkeypatch.setattr("probes.delivery.mailboxes.login_budget.LONG", PATIENCE / 2)
    yield Server(request.param, place[1])
    listening.close()


async def poll(mailbox: Mailbox) -> PhaseTimer:
    phases = PhaseTimer(CLOCK)
    await mailbox.turn()
    await mailbox.admit()
    async with mailbox.poll(phases) as folders:
        for open_folder in folders:
            await open_folder()
    await mailbox.close()
    return phases


@asynccontextmanager
async def polled_for_ever(mailboxes: list[Mailbox]) -> AsyncIterator[set[Reason]]:
    """Poll mailboxes during the block, which begins when each has failed once; yield their faults."""
    reasons = set[Reason]()
    failed = {mailbox: asyncio.Event() for mailbox in mailboxes}

    async def keep_polling(mailbox: Mailbox) -> None:
        while True:
            try:
                await poll(mailbox)
            except ProbeFault as fault:
                reasons.add(fault.reason)
                failed[mailbox].set()

    tasks = [asyncio.create_task(keep_polling(mailbox)) for mailbox in mailboxes]
    await asyncio.gather(*(event.wait() for event in failed.values()))
    try:
        yield reasons
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_mailboxes_that_hang_leave_connections_to_others(server: Server) -> None:
    """With more mailboxes that hang than connections, the others never wait for one.

    Those that hang are told by what the server does, not as a shortage of ours.
    """
    well = [server.mailbox(f"canary-{number}") for number in range(4)]
    for mailbox in well:
        await poll(mailbox)
    async with polled_for_ever([server.mailbox(f"dead-{number}") for number in range(DEAD)]) as reasons:
        for _ in range(5):
            for phases in await asyncio.gather(*map(poll, well)):
                assert TURN not in phases.seconds
            await asyncio.sleep(PATIENCE / 5)
    assert reasons == {Reason.COMMAND_TIMEOUT}


async def test_a_mailbox_that_was_not_polled_yet_need_not_wait_for_all_that_hang(server: Server) -> None:
    """Its first poll follows soon, and then it counts as well."""
    async with polled_for_ever([server.mailbox(f"dead-{number}") for number in range(DEAD)]):
        mailbox = server.mailbox("canary")
        async with asyncio.timeout(120):
            await poll(mailbox)
            assert TURN not in (await poll(mailbox)).seconds


async def test_who_failed_least_often_comes_first() -> None:
    """A mailbox that hung once does not wait for those that have hung for long."""
    polls = SlowPolls(4)
    holder = Standing(failures=5)
    await polls.enter(holder)
    order: list[int] = []

    async def enter(failures: int) -> None:
        standing = Standing(failures)
        await polls.enter(standing)
        order.append(failures)
        polls.leave(standing)

    waiting = [asyncio.create_task(enter(failures)) for failures in (7, 3, 1, 5)]
    await asyncio.sleep(0)
    assert order == []
    given_up = asyncio.create_task(enter(0))
    given_up.cancel()
    polls.leave(holder)
    await asyncio.wait([*waiting, given_up])
    assert order == [1, 3, 5, 7]


async def test_mailboxes_in_trouble_leave_logins_to_others() -> None:
    """However many mailboxes fail, another one logs in at once; they use only what is left."""
    clock = InstantClock()
    budget = LoginBudget(60.0, clock)
    failing, well = Standing(failures=3, is_slow=False), Standing(is_slow=False)
    begun = clock.now
    for _ in range(100):
        await budget.take(failing)
    assert clock.now - begun == pytest.approx(100 - BURST / 4, abs=2.0)  # nothing is wasted either
    at = clock.now
    for _ in range(BURST // 2):
        await budget.take(well)
    assert clock.now == at


async def test_mailboxes_in_trouble_have_some_logins() -> None:
    """Where the others need every login, every fourth is for mailboxes in trouble, within the same rate."""
    clock = InstantClock()
    budget = LoginBudget(60.0, clock)
    failing, well = Standing(failures=3, is_slow=False), Standing(is_slow=False)
    for _ in range(3 * BURST):
        await budget.take(well)
    begun = clock.now
    for _ in range(10):
        for _ in range(3):
            await budget.take(well)
        await budget.take(failing)
    assert clock.now - begun == pytest.approx(40.0, abs=4.0)


@pytest.mark.parametrize(
    ("fault", "failures"),
    [
        (None, 0),
        (ProbeFault(Reason.CONNECT_REFUSED), 3),
        (ProbeFault(Reason.LOGIN_REFUSED), 3),
        (ProbeFault(Reason.LOCAL_RESOURCES), 2),
    ],
)
async def test_only_faults_of_the_mail_system_are_trouble(fault: ProbeFault | None, failures: int) -> None:
    """A poll without a fault ends the trouble, and a shortage of ours says nothing about the mailbox."""
    budget, standing = LoginBudget(60.0, InstantClock()), Standing(failures=2)
    await budget.take(standing)
    with suppress(ProbeFault), budget.poll(standing):
        if fault is not None:
            raise fault
    assert standing.failures == failures
    assert not standing.holds_place
