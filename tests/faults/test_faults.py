"""Every fault that a server can commit, in every state, for every kind: what a run makes of it.

Each run keeps its deadline, shows no secret, closes its connection, and leaves a healthy probe beside it
alone.
"""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from monitor.runner import Runner
from probes.core.clock import SystemClock
from probes.core.reasons import Reason
from tests.fakes.scripted_server import Peer, scripted_server, server_context
from tests.faults.dialogues import DIALOGUES, Misdeed
from tests.faults.running import hold_to_promises, probe_of, run, server_settings

FAREWELL = {"smtp": "quit", "pop3": "quit", "imap": "logout"}


def says(*lines: bytes) -> Misdeed:
    """Return a misdeed that sends these lines."""

    async def misdeed(peer: Peer) -> None:
        await peer.send(*lines)

    return misdeed


async def close(peer: Peer) -> None:
    await peer.close()


async def reset(peer: Peer) -> None:
    await peer.reset()


async def silence(peer: Peer) -> None:
    await peer.until_closed()


async def drip(peer: Peer) -> None:
    """Send an octet now and then, too few for a line within any patience."""
    while True:
        await peer.chunks(b"2")
        await asyncio.sleep(0.1)


async def endless_line(peer: Peer) -> None:
    await peer.flood(b"2" * 65536)


ANYWHERE: dict[str, tuple[Misdeed, Reason]] = {
    "close": (close, Reason.CONNECTION_LOST),
    "reset": (reset, Reason.CONNECTION_LOST),
    "silence": (silence, Reason.COMMAND_TIMEOUT),
    "one octet at a time": (drip, Reason.COMMAND_TIMEOUT),
    "a line without end": (endless_line, Reason.LINE_TOO_LONG),
    "what is no answer": (says(b"\x00\x01 what?"), Reason.PROTOCOL_ERROR),
    "an empty line": (says(b""), Reason.PROTOCOL_ERROR),
}


LISTINGS = {"imap": ("namespace", "list")}
"""States in which an answer that cannot be read costs what it would have told, and not the run."""

_UNREADABLE = frozenset({Reason.LINE_TOO_LONG, Reason.PROTOCOL_ERROR, Reason.RESPONSE_TOO_LARGE})


def expected(kind: str, state: str, reason: Reason) -> Reason:
    """Return what a run ends with whose server does in ``state`` what elsewhere means ``reason``."""
    if state == FAREWELL[kind] or (state in LISTINGS.get(kind, ()) and reason in _UNREADABLE):
        return Reason.NONE
    return reason


def cases() -> Iterator[tuple[str, str, str, Misdeed, Reason]]:
    for kind, dialogue in DIALOGUES.items():
        for state in dialogue.names:
            for name, (misdeed, reason) in ANYWHERE.items():
                yield kind, state, name, misdeed, reason


CASES = list(cases())


@pytest.mark.parametrize(
    ("kind", "state", "misdeed", "reason"),
    [(kind, state, misdeed, reason) for kind, state, _, misdeed, reason in CASES],
    ids=[f"{kind}-{state}-{name}" for kind, state, name, *_ in CASES],
)
async def test_a_fault_in_any_state(kind: str, state: str, misdeed: Misdeed, reason: Reason) -> None:
    """A fault costs its run, with its reason; in the farewell it costs nothing, in a listing the listing."""
    async with scripted_server(DIALOGUES[kind].committing(misdeed, state)) as server:
        ran = await run(probe_of(kind, server_settings(kind, server.port)))
        await server.peer_closed()
    hold_to_promises(ran)
    verdict = ran.result.verdict
    assert verdict.reason is expected(kind, state, reason), f"{verdict.reason}: {verdict.detail}"


def flood(chunk: bytes, first: bytes = b"") -> Misdeed:
    """Return a misdeed that sends ``first``, and then the same chunk without end."""

    async def misdeed(peer: Peer) -> None:
        await peer.chunks(first)
        await peer.flood(chunk)

    return misdeed


def each(kind: str, misdeed: Misdeed, reason: Reason, *, without: str = "") -> list[tuple[object, ...]]:
    """Return a case for every state of a kind but those in ``without``."""
    return [
        (kind, state, misdeed, expected(kind, state, reason))
        for state in DIALOGUES[kind].names
        if state not in without.split()
    ]


OF_A_KIND = [
    *each("smtp", says(b"421 4.3.2 shutting down"), Reason.SMTP_UNAVAILABLE),
    *each("smtp", says(b"450 4.3.2 not now"), Reason.SMTP_DEFERRED, without="auth"),
    *each("smtp", says(b"554 5.3.0 no"), Reason.SMTP_REJECTED),
    *each("smtp", says(b"354 go on"), Reason.PROTOCOL_ERROR),
    *each("smtp", flood(b"250-x\r\n" * 8192), Reason.LINE_TOO_LONG),
    ("smtp", "auth", says(b"535 5.7.8 wrong"), Reason.AUTH_FAILED),
    *each("pop3", says(b"-ERR no"), Reason.POP3_ERROR, without="capa login uidl"),
    ("pop3", "login", says(b"-ERR no"), Reason.LOGIN_REFUSED),
    ("pop3", "login", says(b"-ERR [AUTH] no"), Reason.AUTH_FAILED),
    ("pop3", "login", says(b"-ERR [IN-USE] no"), Reason.POP3_IN_USE),
    ("pop3", "login", says(b"-ERR [LOGIN-DELAY] no"), Reason.POP3_LOGIN_DELAY),
    ("pop3", "login", says(b"-ERR [SYS/TEMP] no"), Reason.POP3_SYS_TEMP),
    ("pop3", "login", says(b"-ERR [SYS/PERM] no"), Reason.POP3_SYS_PERM),
    ("pop3", "capa", flood(b"X" * 60 + b"\r\n", b"+OK\r\n"), Reason.RESPONSE_TOO_LARGE),
    ("pop3", "uidl", flood(b"1 a\r\n" * 8192, b"+OK\r\n"), Reason.RESPONSE_TOO_LARGE),
    ("pop3", "uidl", flood(b"x" * 65536, b"+OK\r\n"), Reason.LINE_TOO_LONG),
    ("pop3", "uidl", says(b"-ERR no"), Reason.NONE),
    *each("imap", says(b"* BYE shutting down"), Reason.IMAP_BYE, without="logout"),
    *each(
        "imap", flood((b"* OK " + b"x" * 4000 + b"\r\n") * 16), Reason.RESPONSE_TOO_LARGE, without="greeting"
    ),
    ("imap", "login", says(b"M1 NO [AUTHENTICATIONFAILED] no"), Reason.AUTH_FAILED),
    ("imap", "login", says(b"M1 NO [INUSE] no"), Reason.IMAP_IN_USE),
    ("imap", "login", says(b"M1 BAD no"), Reason.IMAP_BAD),
    ("imap", "select", says(b"M2 NO no such mailbox"), Reason.IMAP_NO_FOLDER),
    ("imap", "select", says(b"M9 OK"), Reason.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("kind", "state", "misdeed", "reason"), OF_A_KIND)
async def test_a_fault_of_a_protocol(kind: str, state: str, misdeed: Misdeed, reason: Reason) -> None:
    """What only servers of one protocol can do wrong costs the run, with a reason that is true."""
    async with scripted_server(DIALOGUES[kind].committing(misdeed, state)) as server:
        ran = await run(probe_of(kind, server_settings(kind, server.port)))
        await server.peer_closed()
    hold_to_promises(ran)
    verdict = ran.result.verdict
    assert verdict.reason is reason, f"{verdict.reason}: {verdict.detail}"


@pytest.mark.parametrize("kind", [*DIALOGUES])
async def test_a_flood_takes_bounded_memory(kind: str) -> None:
    """However much a server sends, a run keeps little of it."""
    async with scripted_server(DIALOGUES[kind].committing(endless_line, "greeting")) as server:
        probe = probe_of(kind, server_settings(kind, server.port))
        tracemalloc.start()
        try:
            result = await Runner(SystemClock(), "here").run(probe)
            taken = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert result.verdict.reason is Reason.LINE_TOO_LONG
    assert taken < 2 * 2**20


KINDS = pytest.mark.parametrize("kind", [*DIALOGUES])


@KINDS
async def test_a_refused_connection(kind: str) -> None:
    """Where nobody listens, the run says so."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ran = await run(probe_of(kind, server_settings(kind, closed.getsockname()[1])))
    hold_to_promises(ran)
    assert ran.result.verdict.reason is Reason.CONNECT_REFUSED


@KINDS
async def test_a_black_hole(kind: str) -> None:
    """A server that answers no connection attempt costs its own time only."""
    with black_hole() as port:
        ran = await run(probe_of(kind, server_settings(kind, port)))
    hold_to_promises(ran)
    assert ran.result.verdict.reason is Reason.CONNECT_TIMEOUT


@contextmanager
def black_hole() -> Iterator[int]:
    """Give a port whose queue of connections is full, so that Linux drops every further attempt."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


STARTTLS = {
    "smtp": (b"220 hi", (rb"EHLO .*", b"250-hi\r\n250 STARTTLS"), rb"STARTTLS", b"220 go"),
    "pop3": (b"+OK hi", (rb"CAPA", b"+OK\r\nSTLS\r\nUSER\r\n."), rb"STLS", b"+OK go"),
    "imap": (
        b"* OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN] hi",
        None,
        rb"M1 STARTTLS",
        b"M1 OK go",
    ),
}


@KINDS
async def test_starttls_that_was_stripped(kind: str) -> None:
    """Where STARTTLS is no longer offered, the run ends before any credentials."""
    misdeed = says(b"what?")
    state = "auth" if kind == "smtp" else "login"
    async with scripted_server(DIALOGUES[kind].committing(misdeed, state)) as server:
        ran = await run(probe_of(kind, server_settings(kind, server.port, tls="starttls")))
    hold_to_promises(ran)
    assert ran.result.verdict.reason is Reason.TLS_NOT_OFFERED
    assert not any(b"AUTH" in line for line in server.received)


@KINDS
async def test_octets_injected_before_tls(kind: str) -> None:
    """What follows the answer to STARTTLS in clear is an attack, and ends the run before any credentials."""
    greeting, ehlo, command, go = STARTTLS[kind]

    async def script(peer: Peer) -> None:
        await peer.send(greeting)
        if ehlo is not None:
            await peer.expect(ehlo[0])
            await peer.send(ehlo[1])
        await peer.expect(command)
        await peer.send(go, b"250 injected")

    async with scripted_server(script) as server:
        ran = await run(probe_of(kind, server_settings(kind, server.port, tls="starttls")))
    hold_to_promises(ran)
    assert ran.result.verdict.reason is Reason.TLS_INJECTION
    assert not any(b"AUTH" in line for line in server.received)


HOUR = timedelta(hours=1)


@KINDS
@pytest.mark.parametrize(
    ("name", "ends_in", "is_trusted", "reason"),
    [
        ("127.0.0.1", -HOUR, True, Reason.CERTIFICATE_EXPIRED),
        ("other.example.test", HOUR, True, Reason.CERTIFICATE_NAME),
        ("127.0.0.1", HOUR, False, Reason.CERTIFICATE_UNTRUSTED),
    ],
)
async def test_a_certificate_that_does_not_verify(
    kind: str, name: str, ends_in: timedelta, is_trusted: bool, reason: Reason, tmp_path: Path
) -> None:
    """A certificate that does not verify ends the run before anything is sent over the connection."""
    authority, trusted = trustme.CA(), tmp_path / "ca.pem"
    (authority if is_trusted else trustme.CA()).cert_pem.write_to_path(str(trusted))
    context = server_context(authority, name, not_after=datetime.now(UTC) + ends_in)

    async def script(peer: Peer) -> None:
        await peer.start_tls(context)
        await peer.send(DIALOGUES[kind].greeting)

    async with scripted_server(script) as server:
        settings = server_settings(kind, server.port, tls="implicit", tls_ca=trusted)
        ran = await run(probe_of(kind, settings))
    hold_to_promises(ran)
    assert ran.result.verdict.reason is reason
    assert server.received == []
