"""Commands about several POP3 messages at the same time (RFC 2449 section 6.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import MailboxSettings
from probes.core.verdict import PhaseTimer
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from tests.fakes.clock import InstantClock
from tests.fakes.logins import USER
from tests.fakes.pop3_dialogue import capa, enter, entered
from tests.fakes.scripted_server import PASSWORD, Peer, ScriptedServer, dialogue, scripted_server

PIPELINED = (b"+OK ready", capa("SASL PLAIN", "TOP", "PIPELINING"), (b"AUTH PLAIN .*", b"+OK"))
ONE_BY_ONE = (b"+OK ready", capa("SASL PLAIN", "TOP"), (b"AUTH PLAIN .*", b"+OK"))


def header_of(number: int) -> bytes:
    return b"Subject: %d\r\n\r\n" % number


async def test_commands_go_out_before_the_first_answer() -> None:
    """With PIPELINING, all commands are sent at once, and each task gets its own answer."""

    async def answer_at_the_end(peer: Peer) -> None:
        for number in (1, 2, 3):
            await peer.expect(b"TOP %d 0" % number)
        await peer.chunks(*(b"+OK\r\n" + header_of(number) + b".\r\n" for number in (1, 2, 3)))
        for number in (3, 1):
            await peer.expect(b"DELE %d" % number)
        await peer.send(b"+OK", b"+OK")
        await peer.expect(b"QUIT")
        await peer.send(b"+OK")

    async with entered(dialogue(*PIPELINED, then=answer_at_the_end)) as session:
        headers = await asyncio.gather(*(session.top(number, limit=1000) for number in (1, 2, 3)))
        assert headers == [header_of(1), header_of(2), header_of(3)]
        await asyncio.gather(session.dele(3), session.dele(1))
        await session.quit()


async def test_without_the_capability_each_command_waits() -> None:
    """A server that does not offer PIPELINING gets each command after the answer to the one before it."""
    steps = [(b"TOP %d 0" % number, b"+OK\r\n" + header_of(number) + b".") for number in (1, 2)]
    clock = InstantClock()
    phases = PhaseTimer(clock)
    async with scripted_server(dialogue(*ONE_BY_ONE, *steps)) as server:
        session = await enter(server, clock=clock, phases=phases)
        headers = await asyncio.gather(*(session.top(number, limit=1000) for number in (1, 2)))
        session.abort()
    assert headers == [header_of(1), header_of(2)]
    lines = [line for line in phases.transcript.lines() if "TOP" in line or "+OK" in line]
    assert ["TOP" in line for line in lines[-4:]] == [True, False, True, False]


async def test_a_refusal_belongs_to_its_own_command() -> None:
    """If the server refuses one of several messages, the others are read, and the session continues."""

    async def refuse_one(peer: Peer) -> None:
        for number in (1, 2, 3):
            await peer.expect(b"DELE %d" % number)
        await peer.send(b"+OK", b"-ERR no such message", b"+OK")
        await peer.expect(b"QUIT")
        await peer.send(b"+OK")

    async with entered(dialogue(*PIPELINED, then=refuse_one)) as session:
        answers = await asyncio.gather(*map(session.dele, (1, 2, 3)), return_exceptions=True)
        assert [isinstance(answer, ProbeFault) for answer in answers] == [False, True, False]
        await session.quit()


@pytest.mark.parametrize("breaks", ["too large", "cancelled"])
async def test_the_rest_of_an_answer_is_not_the_next_one(breaks: str) -> None:
    """If reading an answer breaks off, what follows it is not taken for the answer to another command."""

    async def quote_an_answer(peer: Peer) -> None:
        await peer.expect(b"TOP 1 0")
        await peer.expect(b"TOP 2 0")
        if breaks == "cancelled":
            await peer.send(b"+OK", b"X: y")
            await peer.until_closed()
        await peer.send(
            b"+OK", b"X: %s" % (b"y" * 100), b".", b"+OK", b"X-Mailsonde-Token: quoted", b"", b"."
        )

    async with entered(dialogue(*PIPELINED, then=quote_an_answer)) as session:
        tasks = [asyncio.create_task(session.top(number, limit=50)) for number in (1, 2)]
        if breaks == "cancelled":
            await asyncio.sleep(0)
            tasks[0].cancel()
        first, second = await asyncio.gather(*tasks, return_exceptions=True)
        if breaks == "too large":
            assert isinstance(first, ProbeFault)
            assert first.reason is Reason.RESPONSE_TOO_LARGE
        assert isinstance(second, ProbeFault)
        assert second.reason is Reason.CONNECTION_LOST


LISTED = (b"UIDL", b"+OK\r\n1 u1\r\n2 u2\r\n3 u3\r\n.")


@pytest.fixture
def mailbox_of() -> Callable[[ScriptedServer], Pop3Mailbox]:
    """Return a factory of the mailbox on a scripted server."""

    def mailbox(server: ScriptedServer) -> Pop3Mailbox:
        clock = InstantClock()
        settings = MailboxSettings.model_construct(
            address=USER, server="s", username=USER, password=SecretStr(PASSWORD), polls_per_message=None
        )
        return Pop3Mailbox(settings, server.settings("pop3"), clock, LoginBudget(6000.0, clock))

    return mailbox


async def identified_and_deleted(mailbox: Pop3Mailbox) -> dict[str, bytes]:
    """Return the header sections that one poll reads, and delete these messages."""
    headers: dict[str, bytes] = {}
    async with mailbox.poll() as folders:
        folder = await folders[0]()
        async for read in folder.identify(folder.uids):
            headers |= read
        await folder.delete(folder.uids)
    return headers


async def one_by_one(peer: Peer) -> None:
    """Read and delete the three messages, each command after the answer to the one before it."""
    for command, answer in (("TOP %d 0", (b"Subject: %d", b"", b".")), ("DELE %d", ())):
        for number in (3, 2, 1):
            assert await peer.octets() == (command % number).encode() + b"\r\n"
            await peer.send(b"+OK", *(line.replace(b"%d", b"%d" % number) for line in answer))
    await peer.expect(b"QUIT")
    await peer.send(b"+OK")


async def test_a_superfluous_answer_deletes_nothing(
    mailbox_of: Callable[[ScriptedServer], Pop3Mailbox],
) -> None:
    """If a line shifts the pipelined answers, none of them counts, and later polls do without pipelining."""
    logins = 0

    async def poll(peer: Peer) -> None:
        nonlocal logins
        logins += 1
        if logins > 1:
            await one_by_one(peer)
            return
        for number in (3, 2, 1):
            await peer.expect(b"TOP %d 0" % number)
        await peer.send(b"+OK", b"Subject: superfluous", b"", b".")
        for number in (3, 2):
            await peer.send(b"+OK", b"Subject: %d" % number, b"", b".")
        await peer.expect(b"UIDL 1")
        await peer.send(b"+OK", b"Subject: 1", b"", b".")
        await peer.until_closed()

    async with scripted_server(dialogue(*PIPELINED, LISTED, then=poll)) as server:
        mailbox = mailbox_of(server)
        with pytest.raises(ProbeFault) as caught:
            await identified_and_deleted(mailbox)
        assert caught.value.reason is Reason.PROTOCOL_ERROR
        for _ in range(2):
            assert await identified_and_deleted(mailbox) == {f"u{n}": header_of(n) for n in (3, 2, 1)}


async def test_deletion_falls_back_to_single_commands(
    mailbox_of: Callable[[ScriptedServer], Pop3Mailbox],
) -> None:
    """After a session broke under pipelined commands, the next one also deletes one message at a time."""
    logins = 0

    async def poll(peer: Peer) -> None:
        nonlocal logins
        logins += 1
        if logins == 1:
            await peer.expect(b"TOP 3 0")
            await peer.close()
            return
        await one_by_one(peer)

    async with scripted_server(dialogue(*PIPELINED, LISTED, then=poll)) as server:
        mailbox = mailbox_of(server)
        with pytest.raises(ProbeFault):
            await identified_and_deleted(mailbox)
        assert len(await identified_and_deleted(mailbox)) == 3


async def test_deleted_messages_have_no_unique_id(
    mailbox_of: Callable[[ScriptedServer], Pop3Mailbox],
) -> None:
    """Pipelined deletions take effect: no question follows that a server refuses for a deleted message."""

    async def poll(peer: Peer) -> None:
        for number in (3, 2, 1):
            await peer.expect(b"TOP %d 0" % number)
        for number in (3, 2, 1):
            await peer.send(b"+OK", b"Subject: %d" % number, b"", b".")
        await peer.expect(b"UIDL 1")
        await peer.send(b"+OK 1 u1")
        for number in (3, 2, 1):
            await peer.expect(b"DELE %d" % number)
        await peer.send(b"+OK", b"+OK", b"+OK")
        while await peer.expect(b"UIDL .*|QUIT") != b"QUIT":
            await peer.send(b"-ERR Message is deleted.")
        await peer.send(b"+OK")

    async with scripted_server(dialogue(*PIPELINED, LISTED, then=poll)) as server:
        assert len(await identified_and_deleted(mailbox_of(server))) == 3
