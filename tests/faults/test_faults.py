"""Every fault of a mail server, in every state, for every kind, and the result of the run.

Each run keeps its deadline, shows no secret, closes its sockets, and does not affect a healthy probe. If the
server sends endlessly, the run uses bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest

from probes.core.reasons import Reason
from tests.fakes.scripted_server import Peer, dialogue, scripted_server
from tests.faults.dialogues import DIALOGUES, POP3
from tests.faults.misdeeds import (
    ANYWHERE,
    Misdeed,
    breaks_off,
    flood,
    says,
    says_tagged,
)
from tests.faults.running import (
    PATIENCE,
    TIMEOUT,
    Case,
    bounded_memory,
    hold_to_promises,
    probe_of,
    run,
    server_settings,
)

FAREWELL = {"smtp": "quit", "pop3": "quit", "imap": "logout"}

LISTINGS = {"imap": ("namespace", "list")}
"""States in which an answer that cannot be read costs what it would have told, and not the run."""

_UNREADABLE = frozenset({Reason.LINE_TOO_LONG, Reason.PROTOCOL_ERROR, Reason.RESPONSE_TOO_LARGE})


def expected(kind: str, state: str, reason: Reason) -> Reason:
    """Return the expected result of a fault in ``state`` that means ``reason`` elsewhere."""
    if state == FAREWELL[kind] or (state in LISTINGS.get(kind, ()) and reason in _UNREADABLE):
        return Reason.NONE
    return reason


def each(kind: str, fault: str, commit: Misdeed, reason: Reason, *, without: str = "") -> list[Case]:
    """Return a case for every state of a kind except those in ``without``."""
    states = " ".join(state for state in DIALOGUES[kind].names if state not in without.split())
    return at(kind, states, fault, commit, reason)


def at(kind: str, states: str, fault: str, commit: Misdeed, reason: Reason) -> list[Case]:
    """Return a case for each of these states."""
    timeout = TIMEOUT if reason is Reason.COMMAND_TIMEOUT else PATIENCE
    return [
        Case(kind, state, fault, commit, expected(kind, state, reason), timeout) for state in states.split()
    ]


def beside_the_answer(
    kind: str, fault: str, made: Callable[[bytes], bytes], reason: Reason, *, without: str = ""
) -> list[Case]:
    """Return a case for every state with a misdeed made from the correct answer."""
    return [
        case
        for state in DIALOGUES[kind].names
        if state not in without.split()
        for case in at(kind, state, fault, says(made(DIALOGUES[kind].answer(state))), reason)
    ]


async def refuse_capa(peer: Peer) -> None:
    """Behave like an older server without CAPA, and correctly otherwise."""
    await peer.send(b"-ERR unknown command")
    await dialogue((rb"USER .*", b"+OK"), (rb"PASS .*", b"+OK"), *[*POP3.states.values()][2:])(peer)


CASES = [
    *(
        case
        for kind in DIALOGUES
        for fault, committed in ANYWHERE.items()
        for case in each(kind, fault, *committed)
    ),
    *(
        case
        for kind in DIALOGUES
        for case in beside_the_answer(kind, "NUL first", lambda answer: b"\0" + answer, Reason.PROTOCOL_ERROR)
    ),
    # SMTP
    *each("smtp", "421", says(b"421 4.3.2 shutting down"), Reason.SMTP_UNAVAILABLE),
    *beside_the_answer(
        "smtp",
        "421 behind the answer",
        lambda answer: answer + b"\r\n421 4.3.2 shutting down",
        Reason.SMTP_UNAVAILABLE,
    ),
    *each("smtp", "450", says(b"450 4.3.2 not now"), Reason.SMTP_DEFERRED),
    *each("smtp", "554", says(b"554 5.3.0 no"), Reason.SMTP_REJECTED),
    *each("smtp", "354", says(b"354 go on"), Reason.PROTOCOL_ERROR),
    *each("smtp", "a code of no class", says(b"999 what?"), Reason.PROTOCOL_ERROR),
    *each("smtp", "NUL behind the code", says(b"250\0\0 ok"), Reason.PROTOCOL_ERROR),
    *each("smtp", "lines of two codes", says(b"250-one", b"220 two"), Reason.PROTOCOL_ERROR),
    *each("smtp", "a reply without end", flood(b"250-x\r\n" * 8192), Reason.LINE_TOO_LONG),
    *at("smtp", "auth", "535", says(b"535 5.7.8 wrong"), Reason.AUTH_FAILED),
    # POP3
    *each("pop3", "-ERR", says(b"-ERR no"), Reason.POP3_ERROR, without="capa login uidl"),
    *at("pop3", "capa", "-ERR", refuse_capa, Reason.NONE),
    *at("pop3", "uidl", "-ERR", says(b"-ERR no"), Reason.NONE),
    *at("pop3", "login", "-ERR", says(b"-ERR no"), Reason.LOGIN_REFUSED),
    *at("pop3", "login", "-ERR [AUTH]", says(b"-ERR [AUTH] no"), Reason.AUTH_FAILED),
    *each("pop3", "-ERR [IN-USE]", says(b"-ERR [IN-USE] no"), Reason.POP3_IN_USE, without="capa"),
    *each(
        "pop3", "-ERR [LOGIN-DELAY]", says(b"-ERR [LOGIN-DELAY] no"), Reason.POP3_LOGIN_DELAY, without="capa"
    ),
    *each("pop3", "-ERR [SYS/TEMP]", says(b"-ERR [SYS/TEMP] no"), Reason.POP3_SYS_TEMP, without="capa"),
    *each("pop3", "-ERR [SYS/PERM]", says(b"-ERR [SYS/PERM] no"), Reason.POP3_SYS_PERM, without="capa"),
    *each("pop3", "OK without its plus", says(b"OK fine"), Reason.PROTOCOL_ERROR),
    *each("pop3", "NUL behind +OK", says(b"+OK\0 fine"), Reason.PROTOCOL_ERROR),
    *at("pop3", "stat", "no number", says(b"+OK many large"), Reason.PROTOCOL_ERROR),
    *at(
        "pop3",
        "capa",
        "a response without end",
        flood(b"X" * 60 + b"\r\n", b"+OK\r\n"),
        Reason.RESPONSE_TOO_LARGE,
    ),
    *at(
        "pop3",
        "uidl",
        "a response without end",
        flood(b"1 a\r\n" * 8192, b"+OK\r\n"),
        Reason.RESPONSE_TOO_LARGE,
    ),
    *at(
        "pop3",
        "capa uidl",
        "a listed line without end",
        flood(b"x" * 65536, b"+OK\r\n"),
        Reason.LINE_TOO_LONG,
    ),
    # IMAP
    *each("imap", "BYE", says(b"* BYE shutting down"), Reason.IMAP_BYE, without="logout"),
    *each("imap", "BYE behind a close", breaks_off(b"* BYE shutting down\r\n"), Reason.IMAP_BYE),
    *at(
        "imap",
        "greeting",
        "BYE [ALERT]",
        says(b"* BYE [ALERT] Too many simultaneous connections"),
        Reason.THROTTLED,
    ),
    *at("imap", "greeting", "NO", says(b"* NO not now"), Reason.IMAP_NO),
    *at("imap", "greeting", "PREAUTH", says(b"* PREAUTH welcome"), Reason.PROTOCOL_ERROR),
    *beside_the_answer(
        "imap",
        "an ALERT before the answer",
        lambda answer: b"* OK [ALERT] disk is 99% full\r\n" + answer,
        Reason.NONE,
        without="greeting",
    ),
    *beside_the_answer(
        "imap",
        "a NO before the answer",
        lambda answer: b"* NO [ALERT] disk is 99% full\r\n" + answer,
        Reason.NONE,
        without="greeting",
    ),
    *at(
        "imap",
        "login",
        "NO [AUTHENTICATIONFAILED]",
        says_tagged(b"NO [AUTHENTICATIONFAILED] no"),
        Reason.AUTH_FAILED,
    ),
    *at("imap", "login", "NO [INUSE]", says_tagged(b"NO [INUSE] no"), Reason.IMAP_IN_USE),
    *at(
        "imap",
        "login",
        "NO [ALERT]",
        says_tagged(b"NO [ALERT] Too many simultaneous connections"),
        Reason.THROTTLED,
    ),
    *at(
        "imap",
        "login select",
        "NO [UNAVAILABLE]",
        says_tagged(b"NO [UNAVAILABLE] no"),
        Reason.IMAP_UNAVAILABLE,
    ),
    *at(
        "imap", "namespace list logout", "NO [UNAVAILABLE]", says_tagged(b"NO [UNAVAILABLE] no"), Reason.NONE
    ),
    *at("imap", "select", "NO", says_tagged(b"NO no such mailbox"), Reason.IMAP_NO_FOLDER),
    *at("imap", "namespace list logout", "NO", says_tagged(b"NO no"), Reason.NONE),
    *at("imap", "login select", "BAD", says_tagged(b"BAD what?"), Reason.IMAP_BAD),
    *at("imap", "namespace list logout", "BAD", says_tagged(b"BAD what?"), Reason.NONE),
    *each("imap", "another tag", says(b"M99 OK"), Reason.PROTOCOL_ERROR),
    *each("imap", "NUL behind the tag", says(b"M1\0 OK"), Reason.PROTOCOL_ERROR),
    *each(
        "imap",
        "a literal of 4 GB",
        says(b'* LIST () "/" {4294967296}'),
        Reason.RESPONSE_TOO_LARGE,
        without="greeting",
    ),
    *at(
        "imap",
        "namespace list",
        "close within a literal",
        breaks_off(b'* LIST () "/" {100}\r\nJun'),
        Reason.CONNECTION_LOST,
    ),
    *each(
        "imap",
        "responses without end",
        flood((b"* OK " + b"x" * 4000 + b"\r\n") * 16),
        Reason.RESPONSE_TOO_LARGE,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_fault_in_any_state(case: Case) -> None:
    """A fault has its reason; at QUIT or LOGOUT it changes nothing, and in a list only the list."""
    is_endless = "without end" in case.fault
    async with scripted_server(DIALOGUES[case.kind].committing(case.commit, case.state)) as server:
        settings = server_settings(case.kind, server.port, timeout=case.timeout)
        with bounded_memory() if is_endless else nullcontext():
            ran = await run(probe_of(case.kind, settings))
    hold_to_promises(ran)
    verdict = ran.result.verdict
    assert verdict.reason is case.reason, f"{verdict.reason}: {verdict.detail}"


@pytest.mark.parametrize("kind", [*DIALOGUES])
@pytest.mark.parametrize("is_late", [False, True], ids=["with the greeting", "in place of an answer"])
async def test_an_empty_line_behind_the_greeting(kind: str, is_late: bool) -> None:
    """If a server sends an unexpected empty line, the detail quotes what it said before."""
    sound = DIALOGUES[kind]
    misdeed = says(b"") if is_late else says(sound.greeting, b"")
    state = sound.names[1] if is_late else "greeting"
    async with scripted_server(sound.committing(misdeed, state)) as server:
        ran = await run(probe_of(kind, server_settings(kind, server.port)))
    hold_to_promises(ran)
    verdict = ran.result.verdict
    assert verdict.reason is Reason.PROTOCOL_ERROR
    assert verdict.detail.endswith(f": an empty line, after {sound.greeting.decode()}")
