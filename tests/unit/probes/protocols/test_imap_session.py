"""The IMAP session's commands, limits and faults, with scripted servers."""

from __future__ import annotations

import asyncio
import base64
import hmac
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.redaction import WITHHELD
from probes.core.verdict import PhaseTimer
from probes.protocols import imap_dialogue
from probes.protocols.imap_session import ImapSession
from tests.fakes.clock import InstantClock
from tests.fakes.scripted_server import (
    PASSWORD,
    Peer,
    Script,
    ScriptedServer,
    dialogue,
    on_each_loop,
    scripted_server,
)
from tests.real_servers.dovecot import TlsFiles

USER = "canary@example.test"
PLAIN = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode())


def greeting(*capabilities: str) -> bytes:
    return f"* OK [CAPABILITY {' '.join(['IMAP4rev1', *capabilities])}] ready".encode()


LOGIN = (rb"M1 AUTHENTICATE PLAIN \S+", b"M1 OK [CAPABILITY IMAP4rev1 IDLE UIDPLUS] in")
ENTERED = (greeting("SASL-IR", "AUTH=PLAIN"), LOGIN)
OPENED = (*ENTERED, (b'M2 SELECT "INBOX"', b"* 1 EXISTS\r\n* OK [UIDVALIDITY 7] valid\r\nM2 OK selected"))
"""Dialogues up to the login, and up to the open folder."""

Command = Callable[[ImapSession], Awaitable[Any]]


async def enter(
    server: ScriptedServer,
    *,
    clock: InstantClock | None = None,
    phases: PhaseTimer | None = None,
    password: str = PASSWORD,
    **options: Any,
) -> ImapSession:
    """Log in to ``server``, configured with ``options``."""
    clock = clock or InstantClock()
    configured, secret = server.settings("imap", **options), SecretStr(password)
    phases = phases or PhaseTimer(clock)
    return await ImapSession.open(configured, username=USER, password=secret, phases=phases, clock=clock)


@asynccontextmanager
async def entered(script: Script, **options: Any) -> AsyncIterator[ImapSession]:
    """Yield a session that is logged in; the block must close it."""
    async with scripted_server(script) as server:
        yield await enter(server, **options)
        await server.peer_closed()


@asynccontextmanager
async def opened(script: Script, **options: Any) -> AsyncIterator[ImapSession]:
    """Yield a session with an open folder; the block must close it."""
    async with entered(dialogue(*OPENED, then=script), **options) as session:
        await session.select("INBOX")
        yield session


async def fault_of_entering(script: Script, **options: Any) -> ProbeFault:
    """Return the fault of a login; the connection is closed after it."""
    async with scripted_server(script) as server:
        with pytest.raises(ProbeFault) as caught:
            await enter(server, **options)
        await server.peer_closed()
    return caught.value


async def fault_of(command: Command, script: Script, **options: Any) -> ProbeFault:
    """Return the fault of a command in an open folder; the connection is closed after it."""
    async with opened(script, **options) as session:
        with pytest.raises(ProbeFault) as caught:
            await command(session)
    return caught.value


async def close(peer: Peer) -> None:
    await peer.close()


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


IN = b"OK [CAPABILITY IMAP4rev1] in"
NAME = base64.b64encode(USER.encode())
WORD = base64.b64encode(PASSWORD.encode())
CRAM = base64.b64encode(f"{USER} {hmac.new(PASSWORD.encode(), b'<x>', 'md5').hexdigest()}".encode())


@pytest.mark.parametrize(
    ("auth", "offered", "password", "login"),
    [
        ("auto", ["AUTH=PLAIN", "SASL-IR"], PASSWORD, [(b"M1 AUTHENTICATE PLAIN " + PLAIN, b"M1 " + IN)]),
        ("plain", ["AUTH=PLAIN"], PASSWORD, [(b"M1 AUTHENTICATE PLAIN", b"+ "), (PLAIN, b"M1 " + IN)]),
        ("auto", ["AUTH=PLAIN", "SASL-IR"], PASSWORD, [(b"M1 .*", b"+"), (PLAIN, b"M1 " + IN)]),
        ("auto", ["AUTH=X"], 'p"w', [(rb'M1 LOGIN "canary@example.test" "p\\"w"', b"M1 " + IN)]),
        ("login", ["AUTH=PLAIN"], "pä", [(rb'M1 LOGIN ".*" \{3\}', b"+ go"), ("pä".encode(), b"M1 " + IN)]),
        ("auto", ["LOGINDISABLED", "AUTH=PLAIN"], PASSWORD, [(b"M1 AUTH.*", b"+"), (PLAIN, b"M1 " + IN)]),
        ("cram-md5", ["AUTH=CRAM-MD5"], PASSWORD, [(b"M1 .* CRAM-MD5", b"+ PHg+"), (CRAM, b"M1 " + IN)]),
        (
            "login",
            ["LOGINDISABLED", "AUTH=LOGIN"],
            PASSWORD,
            [(b"M1 AUTHENTICATE LOGIN", b"+ "), (NAME, b"+ "), (WORD, b"M1 " + IN)],
        ),
        ("login", [], PASSWORD, [(b"M1 .*", b"M1 OK"), (b"M2 CAPABILITY", b"* CAPABILITY A\r\nM2 OK")]),
    ],
)
async def test_how_to_log_in(
    auth: str, offered: list[str], password: str, login: list[tuple[bytes, bytes]]
) -> None:
    """PLAIN precedes LOGIN; literals and responses wait for the server; capabilities follow."""
    async with entered(dialogue(greeting(*offered), *login), auth=auth, password=password) as session:
        assert session.capabilities == (
            {"A"} if len(login) == 2 and b"CAPA" in login[1][0] else {"IMAP4REV1"}
        )
        session.abort()


@pytest.mark.parametrize(
    ("auth", "offered"), [("auto", ["LOGINDISABLED"]), ("login", ["LOGINDISABLED"]), ("plain", ["AUTH=X"])]
)
async def test_a_way_that_is_not_offered(auth: str, offered: list[str]) -> None:
    """A method that is not offered is not tried, and no credentials are sent."""
    script = dialogue(b"* OK", (b"M1 CAPABILITY", f"* CAPABILITY {' '.join(offered)}\r\nM1 OK".encode()))
    assert (await fault_of_entering(script, auth=auth)).reason is Reason.AUTH_NOT_OFFERED


CRAM_REFUSED = [(b"M1 AUTHENTICATE CRAM-MD5", b"+ PHg+"), (CRAM, b"M1 NO no CRAM secret")]


async def test_capabilities_after_a_second_attempt() -> None:
    """Capabilities in a refusal do not count after the login."""
    refused = (CRAM_REFUSED[1][0], b"M1 NO [CAPABILITY IMAP4rev1 X-BEFORE] no")
    login = (b"M2 LOGIN .*", b"M2 OK")
    asked = (b"M3 CAPABILITY", b"* CAPABILITY IMAP4rev1 X-AFTER\r\nM3 OK")
    async with entered(
        dialogue(greeting("AUTH=CRAM-MD5"), CRAM_REFUSED[0], refused, login, asked)
    ) as session:
        assert session.capabilities == {"IMAP4REV1", "X-AFTER"}
        session.abort()


async def test_a_refused_mechanism_gives_way() -> None:
    """Without TLS, CRAM-MD5 comes first; if it is refused, PLAIN logs in."""
    login = (b"M2 AUTHENTICATE PLAIN " + PLAIN, b"M2 " + IN)
    script = dialogue(greeting("SASL-IR", "AUTH=PLAIN", "AUTH=CRAM-MD5"), *CRAM_REFUSED, login)
    async with entered(script) as session:
        session.abort()


@pytest.mark.parametrize(
    ("offered", "login", "detail"),
    [
        (
            ["AUTH=CRAM-MD5"],
            [*CRAM_REFUSED, (b"M2 LOGIN .*", b"M2 NO [AUTHENTICATIONFAILED] wrong")],
            "CRAM-MD5: no CRAM secret; LOGIN: [AUTHENTICATIONFAILED] wrong",
        ),
        (["SASL-IR", "AUTH=PLAIN"], [(b"M1 AUTHENTICATE PLAIN .*", b"M1 NO wrong")], "PLAIN: wrong"),
    ],
)
async def test_a_refusal_names_the_method(
    offered: list[str], login: list[tuple[bytes, bytes]], detail: str
) -> None:
    """The detail has each failed method; a password sent by PLAIN is not sent again by LOGIN."""
    fault = await fault_of_entering(dialogue(greeting(*offered), *login))
    assert (fault.reason, fault.detail) == (Reason.AUTH_FAILED, detail)


async def test_a_server_that_never_stops_asking() -> None:
    """A server that keeps sending challenges ends the login."""
    asking = [(b"M1 AUTHENTICATE PLAIN .*", b"+ "), (rb"[\w=+/]+", b"+ more")]
    fault = await fault_of_entering(dialogue(greeting("SASL-IR", "AUTH=PLAIN"), *asking))
    assert fault.reason is Reason.PROTOCOL_ERROR


THROTTLED = b"Request is throttled. Suggested Backoff Time: 299910 milliseconds"


@pytest.mark.parametrize("auth", ["plain", "login"])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"M1 NO [AUTHENTICATIONFAILED] no", Reason.AUTH_FAILED),
        (b"M1 NO LOGIN failed.", Reason.AUTH_FAILED),
        (b"M1 NO [UNAVAILABLE] later", Reason.IMAP_UNAVAILABLE),
        (b"M1 NO [INUSE] locked", Reason.IMAP_IN_USE),
        (b"M1 BAD what?", Reason.IMAP_BAD),
        (b"M1 BAD " + THROTTLED, Reason.IMAP_THROTTLED),
        (b"* BYE " + THROTTLED, Reason.IMAP_THROTTLED),
        (b"* BYE [UNAVAILABLE] too many", Reason.IMAP_UNAVAILABLE),
        (b"* BYE good bye", Reason.IMAP_BYE),
        (b"M2 OK welcome", Reason.PROTOCOL_ERROR),
        (b"HTTP/1.1 400 Bad Request", Reason.PROTOCOL_ERROR),
    ],
)
async def test_a_refused_login(auth: str, answer: bytes, reason: Reason) -> None:
    """Every refusal has its reason with any method; throttling says for how long."""
    fault = await fault_of_entering(dialogue(greeting("AUTH=PLAIN", "SASL-IR"), (b".*", answer)), auth=auth)
    assert fault.reason is reason
    assert fault.retry_after == (pytest.approx(299.91) if reason is Reason.IMAP_THROTTLED else None)


@pytest.mark.parametrize("password", [PASSWORD, 's3"cret\\-Pa55', "pässword-longer"])
@pytest.mark.parametrize("auth", ["plain", "login"])
@pytest.mark.parametrize("prefix", [b"", b"M1 NO unknown: ", b"* BYE ", b"+ "])
async def test_no_fault_shows_a_password(auth: str, prefix: bytes, password: str) -> None:
    """If a server echoes the login, no fault shows the password in any form."""
    secrets = [password]

    async def echoing(peer: Peer) -> None:
        await dialogue(greeting("AUTH=PLAIN", "SASL-IR"))(peer)
        line = await peer.expect(b".*")
        if line.endswith(b"}"):
            await peer.send(b"+")
            line = await peer.expect(b".*")
        secrets.append(line.split()[-1].decode().strip('"'))
        await peer.send(prefix + line, prefix + line)

    fault: BaseException | None = await fault_of_entering(echoing, auth=auth, password=password)
    while fault is not None:
        assert not [secret for secret in secrets if secret in f"{fault} {vars(fault)}"]
        fault = fault.__cause__ or (None if fault.__suppress_context__ else fault.__context__)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"* PREAUTH welcome", Reason.PROTOCOL_ERROR),
        (b"+OK POP3 ready", Reason.PROTOCOL_ERROR),
        (b"M1 OK ready", Reason.PROTOCOL_ERROR),
        (b"* BYE overloaded", Reason.IMAP_BYE),
        (b"* BYE [CONTACTADMIN] broken", Reason.IMAP_UNAVAILABLE),
        (b"* OK " + b"x" * 9000, Reason.LINE_TOO_LONG),
    ],
)
async def test_a_greeting_that_lets_nobody_in(first: bytes, reason: Reason) -> None:
    """PREAUTH, another protocol, and a refusal end the dialogue."""
    assert (await fault_of_entering(dialogue(first))).reason is reason


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


@pytest.fixture
def server_context(server_tls: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_tls.certificate, server_tls.key)
    return context


async def test_starttls(server_context: ssl.SSLContext, server_tls: TlsFiles) -> None:
    """After STARTTLS, the capabilities are requested again, and earlier ones are discarded."""

    async def upgrading(peer: Peer) -> None:
        await dialogue(greeting("STARTTLS", "AUTH=PLAIN", "IDLE"), (b"M1 STARTTLS", b"M1 OK"))(peer)
        await peer.start_tls(server_context)
        await dialogue((b"M2 CAPABILITY", b"* CAPABILITY A\r\nM2 OK"), (b"M3 LOGIN .*", b"M3 " + IN))(peer)

    phases = PhaseTimer(InstantClock())
    async with scripted_server(upgrading, server_tls.authority) as server:
        session = await enter(server, phases=phases, tls="starttls")
        assert session.certificate_expiry is not None
        assert session.capabilities == {"IMAP4REV1"}
        session.abort()
        await server.peer_closed()
    assert list(phases.seconds) == ["connect", "greeting", "starttls", "tls", "capability", "login"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (dialogue(greeting("AUTH=PLAIN")), Reason.TLS_NOT_OFFERED),
        (dialogue(greeting("STARTTLS"), (b"M1 STARTTLS", b"M1 NO not now")), Reason.IMAP_NO),
        (
            dialogue(greeting("STARTTLS"), (b"M1 STARTTLS", b"M1 OK\r\n* CAPABILITY AUTH=PLAIN")),
            Reason.TLS_INJECTION,
        ),
        (dialogue(greeting("STARTTLS") + b"\r\nM1 OK begin", then=close), Reason.PROTOCOL_ERROR),
    ],
)
async def test_no_tls_no_login(script: Script, reason: Reason, server_tls: TlsFiles) -> None:
    """If TLS fails, or unencrypted octets follow its start, nothing more is sent."""
    async with scripted_server(script, server_tls.authority) as server:
        with pytest.raises(ProbeFault) as caught:
            await enter(server, tls="starttls")
        await server.peer_closed()
        assert len(server.received) <= 1
    assert caught.value.reason is reason


def answer(*lines: bytes) -> Script:
    """Return a script that reads one command, and answers with lines and an OK."""
    return dialogue((b"M3 .*", b"\r\n".join([*lines, b"M3 OK"])))


async def flood_of_empty_literals(peer: Peer) -> None:
    await peer.expect(b"M3 .*")
    await peer.send(b"* LIST {0}")
    await peer.flood(b"{0}\r\n" * 1000)


NOOP: Command = ImapSession.noop
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
        (SEARCH, answer(b"* SEARCH" + b" 1" * 100_001), Reason.RESPONSE_TOO_LARGE),
        (SEARCH, answer(b"* SEARCH" + b" 1" * 600_000), Reason.LINE_TOO_LONG),
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
        (NOOP, b"NO " + THROTTLED, Reason.IMAP_THROTTLED),
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
    in_without = (ENTERED[1][0], b"M1 " + IN)
    store = (rb"M2 UID STORE 5 \+FLAGS\.SILENT \(\\Deleted\)", b"M2 OK")
    async with scripted_server(dialogue(ENTERED[0], in_without, store, (b"M3 LOGOUT", b"M3 OK"))) as server:
        session = await enter(server)
        assert not await session.delete(5)
        await session.log_out()
        await server.peer_closed()


async def test_deleting_with_uidplus() -> None:
    """With UIDPLUS exactly the one message is expunged (RFC 4315 section 2.1)."""
    steps = [(b"M3 UID STORE 5 .*", b"M3 OK"), (b"M4 UID EXPUNGE 5", b"* 1 EXPUNGE\r\nM4 OK")]
    async with opened(dialogue(*steps)) as session:
        assert await session.delete(5)
        assert session.exists == 0
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


IDLE = (b"M3 IDLE", b"+ idling")


@on_each_loop
async def test_idle() -> None:
    """A change ends the wait; the next command ends IDLE first, and handles responses meanwhile."""

    async def idling(peer: Peer) -> None:
        await peer.expect(b"M3 IDLE")
        await peer.chunks(b"* OK still he", b"re\r\n+ idling\r\n* 2 EX", b"ISTS\r\n")
        await dialogue(
            (b"DONE", b"* 3 EXISTS\r\nM3 OK"), (b"M4 NOOP", b"M4 OK"), (b"M5 IDLE", b"* 1 EXPUNGE")
        )(peer)

    async with opened(idling) as session:
        await session.news()
        await session.news()  # nobody has handled the change yet
        assert session.exists == 2
        session.changed = False
        await session.noop()
        assert (session.exists, session.changed) == (3, True)
        session.changed = False
        await session.news()
        assert session.exists == 2
        session.abort()


@on_each_loop
async def test_a_password_in_unasked_news_is_withheld() -> None:
    """A response between two commands cannot put the password into a fault either."""
    script = dialogue(b"* BYE [UNAVAILABLE] not you, " + PASSWORD.encode())
    fault = await fault_of(ImapSession.news, script)
    assert (fault.reason, fault.detail) == (Reason.IMAP_UNAVAILABLE, f"[UNAVAILABLE] {WITHHELD}")


async def test_news_are_cancelled_at_any_moment() -> None:
    """A wait cancelled at any step loses no octet, and IDLE ends correctly."""
    said = b"+ idling\r\n* 2 EXISTS\r\n"
    for cut in range(len(said) + 1):
        cancelled = asyncio.Event()

        async def idling(peer: Peer, cut: int = cut, cancelled: asyncio.Event = cancelled) -> None:
            await peer.expect(b"M3 IDLE")
            await peer.chunks(*([said[:cut]] if cut else []))
            await cancelled.wait()
            await peer.chunks(*([said[cut:]] if cut < len(said) else []))
            await dialogue((b"DONE", b"M3 OK"), (b"M4 NOOP", b"M4 OK"))(peer)

        async with opened(idling) as session:
            news = asyncio.create_task(session.news())
            if cut:
                await session._transport.readable()
            await asyncio.sleep(0)  # the waiting task notices it too
            news.cancel()
            await asyncio.wait([news])
            cancelled.set()
            await session.noop()
            assert session.exists == 2
            session.abort()


@pytest.mark.parametrize("said", [b"M3 NO not here", b"M3 BAD what?", b"M3 OK at once"])
async def test_idle_refused(said: bytes) -> None:
    """If IDLE is offered but refused, it is not tried again; unsolicited responses still count."""

    async def refusing(peer: Peer) -> None:
        await dialogue((b"M3 IDLE", said), (b"M4 NOOP", b"M4 OK\r\n* 2 EXISTS"), (b"M5 NOOP", b"M5 OK"))(peer)

    async with opened(refusing) as session:
        news = asyncio.create_task(session.news())
        while session._idle_usable:  # noqa: ASYNC110 # the loop's own turns are meant
            await asyncio.sleep(0)
        news.cancel()
        await asyncio.wait([news])
        assert not session.start_idle()
        await session.noop()
        await session.news()
        assert session.exists == 2
        await session.noop()
        session.abort()


async def test_a_refusal_of_idle_that_comes_late() -> None:
    """DONE is sent only after the server's go-ahead: after a refusal it would be another command."""
    script = dialogue((b"M3 IDLE", b"* OK soon\r\nM3 NO not here"), (b"M4 NOOP", b"M4 OK"))
    async with opened(script) as session:
        assert session.start_idle()
        await session.noop()
        session.abort()


async def test_without_idle() -> None:
    """Without the capability nothing is sent, and an unsolicited response ends the wait."""
    cancelled = asyncio.Event()

    async def telling(peer: Peer) -> None:
        await dialogue((b"M3 NOOP", b"* CAPABILITY IMAP4rev1\r\nM3 OK"))(peer)
        await cancelled.wait()
        await dialogue(b"* 2 EXISTS", (b"M4 NOOP", b"M4 OK"))(peer)

    async with opened(telling) as session:
        await session.noop()
        assert not session.start_idle()
        news = asyncio.create_task(session.news())
        await asyncio.sleep(0)
        news.cancel()
        await asyncio.wait([news])
        cancelled.set()
        await session.news()
        await session.noop()
        session.abort()


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (dialogue(b"* BYE Autologout; idle for too long", then=close), Reason.IMAP_BYE),
        (close, Reason.CONNECTION_LOST),
        (dialogue(b"M2 OK again"), Reason.PROTOCOL_ERROR),
        (dialogue(b"* LIST () NIL {1}"), Reason.RESPONSE_TOO_LARGE),
        (lambda peer: peer.flood(b"* OK still here\r\n" * 1000), Reason.RESPONSE_TOO_LARGE),
        (lambda peer: peer.chunks(b"* half a li"), Reason.COMMAND_TIMEOUT),
    ],
)
@pytest.mark.parametrize("idle", [True, False])
async def test_the_session_ends_while_waiting(last: Script, reason: Reason, idle: bool) -> None:
    """The end of a session ends the wait with its reason, with or without IDLE."""

    async def ending(peer: Peer) -> None:
        if idle:
            await dialogue(IDLE)(peer)
        await last(peer)

    async with opened(ending, timeout="500ms") as session:
        session._idle_usable = idle
        with pytest.raises(ProbeFault) as caught:
            await session.news()
        with pytest.raises(ProbeFault):
            await session.noop()
    assert caught.value.reason is reason


@pytest.mark.parametrize("command", [NOOP, ImapSession.news])
async def test_last_words_are_heard(command: Command) -> None:
    """A BYE between two commands explains why nothing more can be sent."""
    async with opened(dialogue(b"* BYE [UNAVAILABLE] going down", then=close)) as session:
        while session._transport._receiver.ended is None:  # noqa: ASYNC110 # the loop's own turns are meant
            await asyncio.sleep(0)
        with pytest.raises(ProbeFault) as caught:
            await command(session)
    assert caught.value.reason is Reason.IMAP_UNAVAILABLE


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
