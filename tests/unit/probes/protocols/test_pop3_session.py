"""The POP3 session's commands, limits and faults, with scripted servers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols.pop3 import MOST_MESSAGES
from tests.fakes.clock import InstantClock
from tests.fakes.logins import PLAIN
from tests.fakes.pop3_dialogue import ENTERED, capa, enter, entered, fault_of_entering
from tests.fakes.scripted_server import Peer, Script, dialogue, on_each_loop, scripted_server


async def close(peer: Peer) -> None:
    await peer.close()


async def test_round_trips_and_phases() -> None:
    """A poll takes one CAPA, one login line, UIDL and QUIT, each in its own phase."""
    phases = PhaseTimer(InstantClock())
    script = dialogue(*ENTERED, (b"UIDL", b"+OK\r\n1 a\r\n."), (b"QUIT", b"+OK"))
    async with scripted_server(script) as server:
        session = await enter(server, phases=phases)
        assert await session.uidl() == {1: "a"}
        await session.quit()
        await server.peer_closed()
    assert server.received == [b"CAPA", b"AUTH PLAIN " + PLAIN, b"UIDL", b"QUIT"]
    assert list(phases.seconds) == ["connect", "greeting", "capa", "login", "uidl", "quit"]


async def test_when_the_login_went_out() -> None:
    """The time of the login is right before the line that completes it."""
    clock = InstantClock()

    async def slowly(peer: Peer) -> None:
        await dialogue(b"+OK", capa("USER"))(peer)
        await peer.expect(b"USER .*")
        clock.now = 2000.0
        await peer.send(b"+OK")
        await peer.expect(b"PASS .*")
        clock.now = 3000.0
        await peer.send(b"+OK")

    async with entered(slowly, clock=clock) as session:
        assert session.login_sent_at == 2000.0
        session.abort()


STEPS: tuple[bytes | tuple[bytes, bytes], ...] = (
    b"+OK ready",
    capa("USER"),
    (b"USER .*", b"+OK"),
    (b"PASS .*", b"+OK"),
)


@pytest.mark.parametrize("done", range(len(STEPS)))
@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("close", Reason.CONNECTION_LOST),
        ("silence", Reason.COMMAND_TIMEOUT),
        ("garbage", Reason.PROTOCOL_ERROR),
        ("flood", Reason.LINE_TOO_LONG),
    ],
)
@on_each_loop
async def test_a_server_that_fails_on_the_way(done: int, rest: str, reason: Reason) -> None:
    """Each kind of failure at each step has its reason and phase, and closes the connection."""

    async def failing(peer: Peer) -> None:
        await dialogue(*STEPS[:done])(peer)
        if isinstance(STEPS[done], tuple):
            await peer.expect(STEPS[done][0])  # type: ignore[arg-type] # a tuple by the line before
        if rest == "close":
            await peer.close()
        elif rest == "garbage":
            await peer.send(b"220 mail.test ESMTP")
        elif rest == "flood":
            await peer.flood(b"+OK" * 1000)

    phases = PhaseTimer(InstantClock())
    patience = "100ms" if rest == "silence" else "2s"
    fault = await fault_of_entering(failing, phases=phases, timeout=patience)
    assert fault.reason is reason
    assert phases.current == ["greeting", "capa", "login", "login"][done]


@on_each_loop
async def test_a_cancelled_login_closes_the_connection() -> None:
    """A cancelled run leaves no session open, which would lock the mailbox."""
    asked = asyncio.Event()

    async def stuck(peer: Peer) -> None:
        await dialogue(b"+OK", capa("USER"))(peer)
        await peer.expect(b"USER .*")
        asked.set()

    async with scripted_server(stuck) as server:
        entering = asyncio.create_task(enter(server))
        await asked.wait()
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        await server.peer_closed()


async def test_a_huge_mailbox_is_listed() -> None:
    """The maximum number of messages is listed."""
    listing = b"".join(b"%d %032x\r\n" % (number, number) for number in range(1, MOST_MESSAGES + 1))
    async with entered(dialogue(*ENTERED, (b"UIDL", b"+OK\r\n" + listing + b".")), timeout="30s") as session:
        listed = await session.uidl()
        session.abort()
    assert len(listed) == MOST_MESSAGES
    assert listed[MOST_MESSAGES] == f"{MOST_MESSAGES:032x}"


async def endless_listing(peer: Peer) -> None:
    await peer.expect(b"UIDL")
    await peer.send(b"+OK")
    await peer.flood(b"1 a\r\n" * 1000)


async def endless_header_section(peer: Peer) -> None:
    await peer.expect(b"TOP 1 0")
    await peer.send(b"+OK")
    await peer.flood(b"X-Field: value\r\n" * 1000)


async def endless_field(peer: Peer) -> None:
    await peer.expect(b"TOP 1 0")
    await peer.send(b"+OK")
    await peer.flood(b"x" * 1000)


@pytest.mark.parametrize("then", [endless_listing, endless_header_section, endless_field])
async def test_an_endless_answer_closes_the_session(then: Script) -> None:
    """An endless listing or message is cut off with its reason."""
    async with entered(dialogue(*ENTERED, then=then)) as session:
        command = session.uidl() if then is endless_listing else session.top(1, limit=64 * 1024)
        with pytest.raises(ProbeFault) as caught:
            await command
    assert caught.value.reason is Reason.RESPONSE_TOO_LARGE


@pytest.mark.parametrize("octets", [-1, 0, 1])
async def test_the_limit_of_a_message(octets: int) -> None:
    """A header section within the limit is read; one more octet is too large, with any lines."""
    head = b"Subject: " + b"s" * 80 + b"\r\n\r\n"
    script = dialogue(*ENTERED, (b"TOP 7 0", b"+OK\r\n" + head + b"."))
    async with entered(script) as session:
        if octets < 0:
            with pytest.raises(ProbeFault) as caught:
                await session.top(7, limit=len(head) + octets)
            assert caught.value.reason is Reason.RESPONSE_TOO_LARGE
        else:
            assert await session.top(7, limit=len(head) + octets) == head
            session.abort()


async def test_a_server_without_top() -> None:
    """If CAPA has no TOP, the header section is read from the whole message."""
    message = b"Subject: a\r\n\r\n..dot\r\nbody\r\n."
    script = dialogue(b"+OK", capa("SASL PLAIN"), (b"AUTH .*", b"+OK"), (b"RETR 1", b"+OK\r\n" + message))
    async with entered(script) as session:
        assert await session.top(1, limit=1000) == b"Subject: a\r\n\r\n"
        session.abort()


async def test_a_line_of_a_listing_costs_its_message_only() -> None:
    """Ids longer than RFC 1939 allows are accepted, and an unreadable line does not affect others."""
    long = b"1795842542.M487173P29048.ip-10-20-30-40.eu-central-1.compute.internal,S=39,W=43"
    lines = b"1 " + long + b"\r\n2 a b\r\n3 c\r\n."
    async with entered(dialogue(*ENTERED, (b"UIDL", b"+OK\r\n" + lines), (b"QUIT", b"+OK"))) as session:
        assert await session.uidl() == {1: long.decode(), 3: "c"}
        assert session.unreadable_ids == 1
        await session.quit()


@pytest.mark.parametrize(
    "farewell",
    [dialogue((b"QUIT", b"-ERR no")), dialogue((b"QUIT", b"what?")), close],
    ids=["refused", "garbled", "closed"],
)
async def test_the_farewell_changes_nothing(farewell: Script) -> None:
    """If nothing was deleted, the end of a session does not affect its results."""
    async with entered(dialogue(*ENTERED, (b"STAT", b"+OK 2 320"), then=farewell)) as session:
        assert await session.stat() == (2, 320)
        await session.quit()


@pytest.mark.parametrize("listing", [b"1 a b", b"one a", b"1", b"+OK"])
async def test_a_listing_that_is_none(listing: bytes) -> None:
    """An unreadable listing is never taken for an empty mailbox."""
    async with entered(dialogue(*ENTERED, (b"UIDL", b"+OK\r\n" + listing + b"\r\n."))) as session:
        with pytest.raises(ProbeFault) as caught:
            await session.uidl()
        assert caught.value.reason is Reason.PROTOCOL_ERROR
        session.abort()


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (dialogue((b"QUIT", b"-ERR some deleted messages not removed")), Reason.POP3_ERROR),
        (dialogue((b"QUIT", b"+OK"), then=close), None),
        (close, Reason.CONNECTION_LOST),
    ],
)
async def test_deletions_hold_only_after_quit(last: Script, reason: Reason | None) -> None:
    """QUIT returns once the server has confirmed the deletions; otherwise it raises."""
    async with entered(dialogue(*ENTERED, (b"DELE 3", b"+OK"), then=last)) as session:
        await session.dele(3)
        if reason is None:
            await session.quit()
        else:
            with pytest.raises(ProbeFault) as caught:
                await session.quit()
            assert caught.value.reason is reason
            session.abort()


async def test_a_reply_before_its_command() -> None:
    """An unsolicited reply is never taken for the answer to the next command."""
    async with entered(dialogue(*ENTERED, (b"DELE 3", b"+OK\r\n+OK gone already"))) as session:
        await session.dele(3)
        with pytest.raises(ProbeFault) as caught:
            await session.quit()
        session.abort()
    assert caught.value.reason is Reason.PROTOCOL_ERROR


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("capabilities", [("SASL PLAIN", "TOP"), ("SASL PLAIN",)], ids=["TOP", "RETR"])
async def test_no_fault_shows_mail(capabilities: tuple[str, ...], late: bool) -> None:
    """If a message goes beyond its end, only the length is in the fault and transcript."""
    message = b"+OK\r\nSubject: x\r\n\r\n.\r\n"
    mail = (b"PRIVATE: 4711", b".")

    async def running_over(peer: Peer) -> None:
        await dialogue(b"+OK", capa(*capabilities), (b"AUTH .*", b"+OK"))(peer)
        await peer.expect(b"TOP 1 0|RETR 1")
        if late:
            await peer.chunks(message)
            await peer.expect(b"DELE 1")
            await peer.send(*mail)
        else:
            await peer.chunks(message + b"\r\n".join(mail))

    phases = PhaseTimer(InstantClock())
    async with entered(running_over, phases=phases) as session:
        assert await session.top(1, limit=1000) == b"Subject: x\r\n\r\n"
        with pytest.raises(ProbeFault, match=r"[0-9]+ octets or more") as caught:
            await session.dele(1)
        session.abort()
    assert caught.value.reason is Reason.PROTOCOL_ERROR
    assert "4711" not in f"{caught.value} {phases.transcript.lines()}"


async def test_no_overlong_line_shows_mail() -> None:
    """After a message was read, an overlong line is not shown, because it may be mail."""
    phases = PhaseTimer(InstantClock())
    overlong = (b"DELE 1", b"PRIVATE: 4711" + b"x" * 5000)
    async with entered(dialogue(*ENTERED, (b"TOP 1 0", b"+OK\r\n."), overlong), phases=phases) as session:
        await session.top(1, limit=1000)
        with pytest.raises(ProbeFault) as caught:
            await session.dele(1)
    assert caught.value.reason is Reason.LINE_TOO_LONG
    assert "4711" not in f"{caught.value} {phases.transcript.lines()}"


async def test_a_message_that_is_not_there() -> None:
    """An -ERR to a command in the open mailbox is a plain refusal, and the session continues."""
    script = dialogue(*ENTERED, (b"DELE 3", b"-ERR no such message"), (b"STAT", b"+OK 2 320"))
    async with entered(script) as session:
        with pytest.raises(ProbeFault) as caught:
            await session.dele(3)
        assert caught.value.reason is Reason.POP3_ERROR
        assert await session.stat() == (2, 320)
        session.abort()


LINES = [b"Subject: a", b"", b".dot", b"..", b"a\rb", b"\x00\xff", b"x" * 500]
ANSWERS = b"+OK\r\n" + b"".join((b"." if s[:1] == b"." else b"") + s + b"\r\n" for s in LINES) + b".\r\n"


@given(st.lists(st.integers(1, len(ANSWERS) - 1), max_size=12, unique=True))
@settings(max_examples=40, deadline=None)
def test_an_answer_does_not_depend_on_how_it_is_cut(cuts: list[int]) -> None:
    """A dot-stuffed message is the same for any division into chunks."""
    ends = [*sorted(cuts), len(ANSWERS)]
    chunks = [ANSWERS[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    async def cut(peer: Peer) -> None:
        await peer.expect(b"RETR 1")
        await peer.chunks(*chunks)

    async def read() -> None:
        async with entered(dialogue(*ENTERED, then=cut)) as session:
            assert await session.retr(1, limit=4096) == b"".join(line + b"\r\n" for line in LINES)
            session.abort()

    asyncio.run(read())
