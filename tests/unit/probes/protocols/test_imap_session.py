"""The IMAP session's commands, limits and faults, with scripted servers."""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols import imap_dialogue
from probes.protocols.imap_session import ImapSession
from tests.fakes.clock import InstantClock
from tests.fakes.imap_dialogue import (
    ENTERED,
    LOGIN,
    NOOP,
    OPENED,
    THROTTLED,
    Command,
    answer,
    close,
    enter,
    entered,
    fault_of,
    opened,
)
from tests.fakes.logins import PLAIN
from tests.fakes.scripted_server import (
    PASSWORD,
    Peer,
    Script,
    dialogue,
    on_each_loop,
    scripted_server,
)


async def test_a_whole_session() -> None:
    """Each command is one line and one phase; known capabilities are not requested again."""
    phases = PhaseTimer(InstantClock())
    noop, logout = (b"M3 NOOP", b"M3 OK"), (b"M4 LOGOUT", b"* BYE see you\r\nM4 OK")
    async with scripted_server(dialogue(*OPENED, noop, logout)) as server:
        session = await enter(server, phases=phases)
        await session.select("INBOX")
        assert (session.folder, session.exists, session.uid_validity) == ("INBOX", 1, 7)
        assert (session.uid_next, session.changed) == (None, False)
        await session.noop()
        await session.log_out()
        await server.peer_closed()
    assert server.received[0] == b"M1 AUTHENTICATE PLAIN " + PLAIN
    assert list(phases.seconds) == ["connect", "greeting", "login", "select", "noop", "logout"]
    assert PASSWORD not in repr(session) + repr(vars(session))


@pytest.mark.parametrize(
    "lines",
    [
        (b"* 1 FETCH (UID 5 BODY[HEADER]<0> {4}", b"Subject: PRIVATE 4711", b")"),
        (b"* 1 FETCH (UID 5 BODY[HEADER]<0> {9}", b"Subject: ", b"PRIVATE 4711"),
        (b'* 1 FETCH (UID 5 BODY[HEADER]<0> "PRIVATE 4711"x"))',),
        (b"* 1 FETCH (UID 5 BODY[HEADER]<0> {1}", b"S)", b"* PRIVATE 4711 {x}"),
        (b"* 1 FETCH (UID 5 BODY[HEADER]<0> {1}", b"S)", b"* PRIVATE 4711", b"M9 OK PRIVATE 4711"),
    ],
)
async def test_no_fault_shows_mail(lines: tuple[bytes, ...]) -> None:
    """For a malformed FETCH, only the length is in the fault and transcript."""
    phases = PhaseTimer(InstantClock())
    fault = await fault_of(HEAD, answer(*lines), phases=phases)
    assert fault.reason is Reason.PROTOCOL_ERROR
    assert "4711" not in f"{fault} {phases.transcript.lines()}"
    assert " octets" in fault.detail


@pytest.mark.parametrize(
    ("line", "reason"),
    [(b"PRIVATE 4711", Reason.PROTOCOL_ERROR), (b"* PRIVATE 4711" + b"x" * 9000, Reason.LINE_TOO_LONG)],
)
async def test_nothing_after_a_fetch_shows_mail(line: bytes, reason: Reason) -> None:
    """Unexpected octets after a FETCH may be mail, so only their length is shown."""
    phases = PhaseTimer(InstantClock())

    async def fetching(session: ImapSession) -> None:
        assert await session.part_of(5, 0, 100) is None
        await session.noop()

    script = dialogue((b"M3 UID FETCH .*", b"M3 OK"), (b"M4 NOOP", line))
    fault = await fault_of(fetching, script, phases=phases)
    assert fault.reason is reason
    assert "4711" not in f"{fault} {phases.transcript.lines()}"
    assert re.search(r"\b(12|more than 8192) octets", fault.detail)


async def flood_of_empty_literals(peer: Peer) -> None:
    await peer.expect(b"M3 .*")
    await peer.send(b"* LIST {0}")
    await peer.flood(b"{0}\r\n" * 1000)


FIELDS: Command = lambda session: session.fetch_fields(5, ["Subject"])  # noqa: E731 # for the tables below
HEAD: Command = lambda session: session.header_section(5, limit=100)  # noqa: E731
SEARCH: Command = lambda session: session.uid_search(b"ALL")  # noqa: E731


@pytest.mark.parametrize(
    ("command", "script", "reason"),
    [
        (NOOP, answer(*[b"* X"] * 20_001), Reason.RESPONSE_TOO_LARGE),
        (NOOP, answer(*[b"* X " + b"x" * 8000] * 600), Reason.RESPONSE_TOO_LARGE),
        (
            FIELDS,
            answer(*[b"* 1 FETCH (BODY[] {16384}", b"x" * 16384 + b")"] * 2100),
            Reason.RESPONSE_TOO_LARGE,
        ),
        (ImapSession.folders, flood_of_empty_literals, Reason.LINE_TOO_LONG),
        (NOOP, answer(b"* LIST () NIL {1}"), Reason.RESPONSE_TOO_LARGE),
        (HEAD, answer(b"* 1 FETCH (UID 5 BODY[HEADER]<0> {102}"), Reason.RESPONSE_TOO_LARGE),
        (HEAD, answer(b"* 1 FETCH (UID 5 BODY[HEADER]<0> {4294967295}"), Reason.RESPONSE_TOO_LARGE),
        (HEAD, answer(b"* 1 FETCH (UID 5 BODY[HEADER] {99999999999999999999}"), Reason.RESPONSE_TOO_LARGE),
        (HEAD, answer(b"* 1 FETCH (UID 5 BODY[HEADER] {5+}"), Reason.PROTOCOL_ERROR),
        (HEAD, answer(b"* 1 FETCH (UID 5 BODY[HEADER] ~{5}"), Reason.PROTOCOL_ERROR),
        (HEAD, answer(b"* 1 FETCH (UID 5 BODY[HEADER] {50}", b"abc)"), Reason.COMMAND_TIMEOUT),
        (HEAD, answer(b'* 1 FETCH (UID 5 BODY[HEADER] "a'), Reason.PROTOCOL_ERROR),
        (SEARCH, answer(b"* SEARCH" + b" 1" * 150_001), Reason.RESPONSE_TOO_LARGE),
        (SEARCH, answer(b"* SEARCH" + b" 1" * 800_000), Reason.LINE_TOO_LONG),
        (NOOP, answer(b"* SEARCH" + b" 1" * 10_000), Reason.LINE_TOO_LONG),
        (NOOP, answer(b"* BYE [SERVERBUG] oops"), Reason.IMAP_UNAVAILABLE),
        (NOOP, answer(b"* BYE Autologout"), Reason.IMAP_BYE),
        (NOOP, answer(b"M9 OK who?"), Reason.PROTOCOL_ERROR),
        (NOOP, answer(b"+ go on"), Reason.PROTOCOL_ERROR),
        (NOOP, answer(b"220 mail.test ESMTP"), Reason.PROTOCOL_ERROR),
        (NOOP, dialogue((b"M3 .*", b"* 2 EXISTS"), then=close), Reason.CONNECTION_LOST),
        (NOOP, dialogue((b"M3 .*", b"* 2 EXISTS")), Reason.COMMAND_TIMEOUT),
        (
            lambda session: session.fetch_fields(1, [], 1),
            answer(*[b'* 1 FETCH (UID %d BODY[] "")' % n for n in (1, 2)]),
            Reason.RESPONSE_TOO_LARGE,
        ),
    ],
)
async def test_an_answer_that_ends_the_session(command: Command, script: Script, reason: Reason) -> None:
    """An oversized, missing or invalid answer closes the connection, with its reason."""
    patience = "300ms" if reason is Reason.COMMAND_TIMEOUT else "20s"
    assert (await fault_of(command, script, timeout=patience)).reason is reason


async def test_a_drip_is_timed_as_a_whole() -> None:
    """The timeout covers all responses together, so a slow series of them does not extend it."""

    async def drip(peer: Peer) -> None:
        await peer.expect(b"M3 .*")
        while True:
            await peer.send(b"* OK still working")
            await asyncio.sleep(0.01)

    assert (await fault_of(NOOP, drip, timeout="200ms")).reason is Reason.COMMAND_TIMEOUT


@pytest.mark.parametrize(
    ("command", "said", "reason"),
    [
        (NOOP, b"NO not now", Reason.IMAP_NO),
        (NOOP, b"BAD what?", Reason.IMAP_BAD),
        (NOOP, b"NO " + THROTTLED, Reason.THROTTLED),
        (lambda session: session.select("x"), b"NO [NONEXISTENT] no such folder", Reason.IMAP_NO_FOLDER),
        (lambda session: session.status_of("x"), b"NO no such folder", Reason.IMAP_NO_FOLDER),
        (lambda session: session.status_of("x"), b"NO [UNAVAILABLE] later", Reason.IMAP_UNAVAILABLE),
    ],
)
async def test_a_refusal_leaves_the_session_open(command: Command, said: bytes, reason: Reason) -> None:
    """A NO or BAD has its reason and phase, and the next command works."""
    phases = PhaseTimer(InstantClock())
    async with opened(dialogue((b"M3 .*", b"M3 " + said), (b"M4 NOOP", b"M4 OK")), phases=phases) as session:
        with pytest.raises(ProbeFault) as caught:
            await command(session)
        assert caught.value.reason is reason
        assert phases.current in ("noop", "select", "status")
        await session.noop()
        session.abort()


@on_each_loop
async def test_a_cancelled_command_closes_the_connection() -> None:
    """A cancelled command closes the session, so that answers cannot be mixed up."""
    asked = asyncio.Event()

    async def stuck(peer: Peer) -> None:
        await peer.expect(b"M3 NOOP")
        asked.set()

    async with opened(stuck) as session:
        command = asyncio.create_task(session.noop())
        await asked.wait()
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command


FETCHED = (
    b"* 3 EXPUNGE\r\n"
    b"* 1 FETCH (UID 4 BODY[] {1}\r\nx)\r\n"
    b"* 2 FETCH (FLAGS (\\Seen) UID 5)\r\n"
    b"* OK [ALERT] disk {5}\r\n"
    b"* 2 FETCH (UID 5 BODY[] {4}\r\na\0)\n FLAGS (\\Seen))\r\n"
    b"* 9 EXISTS\r\n"
    b"* 8 FETCH (FLAGS ())\r\n"
    b"* CAPABILITY IMAP4rev1\r\n"
    b"M3 OK fetched {7}\r\n"
)


@given(st.lists(st.integers(1, len(FETCHED) - 1), max_size=12, unique=True))
@settings(max_examples=40, deadline=None)
def test_an_answer_among_unsolicited_data(cuts: list[int]) -> None:
    """An answer is found among unsolicited data, which is used too, with any chunks."""
    ends = [*sorted(cuts), len(FETCHED)]
    chunks = [FETCHED[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    async def cut(peer: Peer) -> None:
        await peer.expect(rb"M3 UID FETCH 5:\* .*")
        await peer.chunks(*chunks)

    async def read() -> None:
        async with opened(cut) as session:
            assert await session.fetch_fields(5, ["Subject"]) == {5: b"a\0)\n"}
            assert (session.exists, session.changed, session.capabilities) == (9, True, {"IMAP4REV1"})
            session.abort()

    asyncio.run(read())


async def test_what_is_asked_of_a_message() -> None:
    """Only the needed data is requested, by uid, without marking the message as seen."""
    fields = rb"\(UID BODY\.PEEK\[HEADER\.FIELDS \(To Subject\)\]<0\.16384>\)"
    steps = [
        (rb"M3 UID FETCH 7:\* " + fields, b'* 1 FETCH (UID 6 BODY[HEADER.FIELDS (To)] "x")\r\nM3 OK'),
        (
            rb"M4 UID FETCH 1:3,9 " + fields,
            b'* 1 FETCH (UID 9 BODY[X] "x")\r\n* 2 FETCH (UID 5 BODY[X] "")\r\nM4 OK',
        ),
        (rb"M5 UID FETCH 4 \(UID BODY\.PEEK\[HEADER\]<0\.101>\)", b"M5 OK"),
        (rb"M6 UID FETCH 4 \(UID BODY\.PEEK\[\]<0\.99>\)", b'* 4 FETCH (UID 4 BODY[]<0> "abc")\r\nM6 OK'),
    ]
    async with opened(dialogue(*steps)) as session:
        assert await session.fetch_fields(7, ["To", "Subject"]) == {}
        assert await session.fetch_fields_of([3, 1, 9, 2], ["To", "Subject"]) == {9: b"x"}
        assert await session.header_section(4, limit=100) is None
        assert await session.part_of(4, 0, 99) == b"abc"
        session.abort()


async def test_many_messages_are_asked_for_in_batches() -> None:
    """Command lines stay within servers' limits; without uids, there is no command."""
    uids = range(1, 2002, 2)
    sets = [b",".join(b"%d" % uid for uid in uids[at : at + 500]) for at in (0, 500, 1000)]
    steps = [(b"M%d UID FETCH %s .*" % (n, part), b"M%d OK" % n) for n, part in enumerate(sets, 3)]
    async with opened(dialogue(*steps)) as session:
        assert await session.fetch_fields_of(uids, ["Subject"]) == {}
        assert await session.fetch_fields_of([], ["Subject"]) == {}
        session.abort()


@pytest.mark.parametrize(("octets", "fits"), [(100, True), (101, False)])
async def test_the_limit_of_a_header_section(octets: int, fits: bool) -> None:
    """A header section within the limit is read; a longer one is reported, and the session continues."""
    head = b"* 1 FETCH (UID 5 BODY[HEADER]<0> {%d}\r\n%s)\r\nM3 OK" % (octets, b"h" * octets)
    async with opened(dialogue((b"M3 .*", head), (b"M4 NOOP", b"M4 OK"))) as session:
        if fits:
            assert await session.header_section(5, limit=100) == b"h" * 100
        else:
            with pytest.raises(ProbeFault) as caught:
                await session.header_section(5, limit=100)
            assert caught.value.reason is Reason.RESPONSE_TOO_LARGE
        await session.noop()
        session.abort()


async def test_deleting_without_uidplus() -> None:
    """Without UIDPLUS nothing is expunged, because that would include other people's messages."""
    in_without = (ENTERED[1][0], b"M1 OK [CAPABILITY IMAP4rev1] in")
    store = (rb"M2 UID STORE 5 \+FLAGS\.SILENT \(\\Deleted\)", b"M2 OK")
    async with scripted_server(dialogue(ENTERED[0], in_without, store, (b"M3 LOGOUT", b"M3 OK"))) as server:
        session = await enter(server)
        assert not await session.delete([5])
        await session.log_out()
        await server.peer_closed()


async def test_deleting_with_uidplus() -> None:
    """With UIDPLUS exactly these messages are expunged, by one set (RFC 4315 section 2.1)."""
    gone = b"* 1 EXPUNGE\r\n* 1 EXPUNGE\r\n* 1 EXPUNGE\r\nM4 OK"
    steps = [(b"M3 UID STORE 5:6,9 .*", b"M3 OK"), (b"M4 UID EXPUNGE 5:6,9", gone)]
    async with opened(dialogue(*steps)) as session:
        assert await session.delete([9, 5, 6])
        assert session.exists == 0
        session.abort()


async def test_our_own_deletion_is_no_change() -> None:
    """Deleting a message asks for no poll, but an arrival that the same answer reports does."""
    steps = [
        (b"M3 UID STORE 5 .*", b"M3 OK"),
        (b"M4 UID EXPUNGE 5", b"* 1 EXPUNGE\r\nM4 OK"),
        (b"M5 UID STORE 6 .*", b"M5 OK"),
        (b"M6 UID EXPUNGE 6", b"* 1 EXPUNGE\r\n* 2 EXISTS\r\nM6 OK"),
    ]
    async with opened(dialogue(*steps)) as session:
        await session.delete([5])
        assert (session.exists, session.changed) == (0, False)
        await session.delete([6])
        assert (session.exists, session.changed) == (2, True)
        session.abort()


@pytest.mark.parametrize(
    ("offered", "command"),
    [
        (b"SPECIAL-USE LIST-EXTENDED", rb'M2 LIST "" "\*" RETURN \(SPECIAL-USE\)'),
        (b"SPECIAL-USE", rb'M2 LIST "" "\*"'),
    ],
)
async def test_folders(offered: bytes, command: bytes) -> None:
    """Special uses are requested only if the server supports it (RFC 6154 section 3)."""
    script = dialogue(
        ENTERED[0],
        (LOGIN[0], b"M1 OK [CAPABILITY " + offered + b"] in"),
        (command, b'* LIST (\\Junk) "/" {3}\r\na"b\r\n* 1 EXISTS\r\n* LIST () NIL INBOX\r\nM2 OK'),
    )
    async with entered(script) as session:
        assert [folder.name for folder in await session.folders()] == ['a"b', "INBOX"]
        assert await session.namespace() == []
        session.abort()


async def test_when_the_server_was_asked_and_heard() -> None:
    """The time of NOOP is right before it was sent, that of an arrival when its EXISTS was read."""
    clock = InstantClock()

    async def slowly(peer: Peer) -> None:
        await peer.expect(b"M3 NOOP")
        clock.now = 3000.0
        await peer.send(b"* 2 EXISTS", b"M3 OK")

    async with opened(slowly, clock=clock) as session:
        clock.now = 2000.0
        assert await session.noop() == 2000.0
        assert session.heard_at == 3000.0
        session.abort()


async def test_an_answer_before_its_command() -> None:
    """An unsolicited answer is never taken for the answer to the next command."""
    async with opened(dialogue((b"M3 NOOP", b"M3 OK\r\nM4 OK done already"))) as session:
        await session.noop()
        with pytest.raises(ProbeFault) as caught:
            await session.noop()
    assert caught.value.reason is Reason.PROTOCOL_ERROR


async def test_a_long_list_is_read() -> None:
    """The maximum number of folders is listed, even in one chunk."""
    lines = [b"* LIST () NIL f%d" % n for n in range(imap_dialogue.MOST_RESPONSES - 1)]
    async with opened(answer(*lines), timeout="30s") as session:
        assert len(await session.folders()) == len(lines)
        session.abort()
