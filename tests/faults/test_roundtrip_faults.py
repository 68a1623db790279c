"""Every fault of a submission server and of a mailbox: a round trip accounts for its message.

A message that was not handed over is rejected or deferred, and one whose final dot got no answer is
ambiguous until the mailbox tells. Nothing is called lost that lies in the mailbox: whatever a mailbox's
server does once, the watcher survives it, and the next poll delivers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from tests.fakes.black_hole import black_hole
from tests.fakes.imap_server import ImapServer
from tests.fakes.pop3_server import Pop3Server
from tests.fakes.scripted_server import Peer
from tests.fakes.smtp_server import SmtpServer
from tests.faults.misdeeds import ANYWHERE, Misdeed, breaks_off, flood, says, says_tagged
from tests.faults.round_trip import FINAL_DOT, GREETING, Once, round_trip
from tests.faults.running import (
    PATIENCE,
    TIMEOUT,
    Case,
    bounded_memory,
    hold_to_promises,
    refusing,
)

NEVER_ANSWERS = {fault for fault, (_, reason) in ANYWHERE.items() if reason is Reason.COMMAND_TIMEOUT}

LONGEST = 20.0
"""Seconds that a run may take: measuring memory takes its time."""

SUBMISSION = (GREETING, "EHLO", "AUTH", "MAIL", "RCPT", "DATA", FINAL_DOT, "QUIT")
BY_CODE = {
    "421": (says(b"421 4.3.2 shutting down"), Reason.SMTP_UNAVAILABLE),
    "450": (says(b"450 4.3.2 not now"), Reason.SMTP_DEFERRED),
    "554": (says(b"554 5.3.0 no"), Reason.SMTP_REJECTED),
    "a code of no class": (says(b"999 what?"), Reason.PROTOCOL_ERROR),
    "lines of two codes": (says(b"250-one", b"220 two"), Reason.PROTOCOL_ERROR),
    "421, then close": (breaks_off(b"421 4.3.2 shutting down\r\n"), Reason.SMTP_UNAVAILABLE),
    "a reply without end": (flood(b"250-x\r\n" * 8192), Reason.LINE_TOO_LONG),
}


SUBMISSION_CASES = [
    Case(
        "roundtrip by SMTP",
        state,
        fault,
        commit,
        reason,
        TIMEOUT if fault in NEVER_ANSWERS else PATIENCE,
    )
    for fault, (commit, reason) in {**ANYWHERE, **BY_CODE}.items()
    for state in SUBMISSION
]


def state_after(case: Case) -> MessageState:
    """Return a message's state right after its submission met the fault."""
    if case.state == "QUIT":
        return MessageState.SENT
    if case.reason is Reason.SMTP_REJECTED:
        return MessageState.REJECTED
    is_answer = case.reason in (Reason.SMTP_DEFERRED, Reason.SMTP_UNAVAILABLE)
    return MessageState.AMBIGUOUS if case.state == FINAL_DOT and not is_answer else MessageState.DEFERRED


@pytest.mark.parametrize(
    ("case", "is_taken"),
    [
        (case, is_taken)
        for case in SUBMISSION_CASES
        for is_taken in ((True, False) if state_after(case) is MessageState.AMBIGUOUS else (False,))
    ],
    ids=lambda value: str(value) if isinstance(value, Case) else "taken" if value else "not taken",
)
async def test_a_fault_at_submission(case: Case, is_taken: bool, tmp_path: Path) -> None:
    """The message is rejected, deferred or ambiguous; if the server accepted it, it is delivered."""
    expected = state_after(case)
    mailbox = Pop3Server()
    server = SmtpServer(mailbox.add)

    async def commit(peer: Peer) -> None:
        if is_taken:
            server.deliver()
        await case.commit(peer)

    once = Once(case.state, commit)
    async with round_trip(mailbox, server, tmp_path, of_submission=once, timeout=case.timeout) as trip:
        with bounded_memory() if "without end" in case.fault else nullcontext():
            ran = await trip.run()
        hold_to_promises(ran, LONGEST)
        assert once.is_done
        verdict, message = ran.result.verdict, await trip.message(ran.result.run)
        assert trip.entered(expected) == 1
        if expected is MessageState.SENT or is_taken:
            assert (verdict.reason, message.state) == (Reason.NONE, MessageState.DELIVERED)
        elif expected is MessageState.AMBIGUOUS:
            assert (verdict.reason, message.state) == (Reason.MESSAGE_AMBIGUOUS, MessageState.LOST)
        else:
            assert (verdict.reason, message.state) == (case.reason, expected), verdict.detail
            assert trip.mail.connections == 0
        assert trip.entered(MessageState.LOST) == (message.state is MessageState.LOST)


@pytest.mark.parametrize("kind", ["roundtrip by SMTP"])
@pytest.mark.parametrize(
    ("listener", "reason"),
    [(refusing, Reason.CONNECT_REFUSED), (black_hole, Reason.CONNECT_TIMEOUT)],
    ids=["refused", "black hole"],
)
async def test_no_connection_at_submission(
    kind: str, listener: Callable[[], AbstractContextManager[int]], reason: Reason, tmp_path: Path
) -> None:
    """A message whose server cannot be reached is deferred, and nobody looks for it."""
    mailbox = Pop3Server()
    server = SmtpServer(mailbox.add)
    with listener() as port:
        async with round_trip(mailbox, server, tmp_path, submission_port=port, timeout=TIMEOUT) as trip:
            ran = await trip.run()
            hold_to_promises(ran)
            assert ran.result.verdict.reason is reason
            assert (await trip.message(ran.result.run)).state is MessageState.DEFERRED
            assert trip.mail.connections == 0


POP3 = (GREETING, "CAPA", "AUTH", "UIDL", "TOP", "RETR", "DELE", "QUIT")
IMAP = (
    *(GREETING, "CAPABILITY", "AUTHENTICATE", "LIST", "SELECT", "UID SEARCH", "UID FETCH"),
    *("STATUS", "UID STORE", "UID EXPUNGE", "NOOP"),
)
IN_SESSION = IMAP[1:]
OF_CODES = ("AUTHENTICATE", "SELECT", "UID FETCH", "UID STORE")
"""States in which each response code is tried."""

IN_ANY_STATE = {
    fault: commit
    for fault, (commit, _) in ANYWHERE.items()
    if fault
    not in ("close within a line", "one octet at a time")  # which the watcher cannot distinguish from others
}
IN_THE_MAILBOX: dict[tuple[str, tuple[str, ...]], dict[str, Misdeed]] = {
    ("POP3", POP3): {
        **IN_ANY_STATE,
        "-ERR": says(b"-ERR no"),
        "-ERR [IN-USE]": says(b"-ERR [IN-USE] no"),
        "close within a listing": breaks_off(b"+OK\r\n1 u"),
        "nothing listed": says(b"+OK", b"."),
    },
    ("POP3", ("AUTH", "UIDL", "TOP", "DELE")): {
        "-ERR [AUTH]": says(b"-ERR [AUTH] no"),
        "-ERR [LOGIN-DELAY]": says(b"-ERR [LOGIN-DELAY] no"),
        "-ERR [SYS/TEMP]": says(b"-ERR [SYS/TEMP] no"),
        "-ERR [SYS/PERM]": says(b"-ERR [SYS/PERM] no"),
    },
    ("POP3", ("CAPA", "UIDL", "TOP", "RETR")): {
        "lines without end": flood(b"1 a\r\n" * 8192, b"+OK\r\n"),
        "a listed line without end": flood(b"x" * 65536, b"+OK\r\n"),
    },
    ("IMAP", IMAP): {
        **IN_ANY_STATE,
        "BYE": breaks_off(b"* BYE shutting down\r\n"),
        "another tag": says(b"M99 OK"),
    },
    ("IMAP", IN_SESSION): {
        "NO": says_tagged(b"NO no"),
        "BAD": says_tagged(b"BAD what?"),
        "a literal of 4 GB": says(b'* LIST () "/" {4294967296}'),
        "close within a literal": breaks_off(b"* 1 FETCH (UID 1 BODY[] {100}\r\nJun"),
        "responses without end": flood((b"* OK " + b"x" * 4000 + b"\r\n") * 16),
        "new UIDVALIDITY": says_tagged(b"OK", before=b"* OK [UIDVALIDITY 99] new"),
    },
    ("IMAP", OF_CODES): {
        "NO [UNAVAILABLE]": says_tagged(b"NO [UNAVAILABLE] no"),
        "NO [INUSE]": says_tagged(b"NO [INUSE] no"),
        "NO [ALERT]": says_tagged(b"NO [ALERT] Too many simultaneous connections"),
        "NO [AUTHENTICATIONFAILED]": says_tagged(b"NO [AUTHENTICATIONFAILED] no"),
    },
    ("IMAP", ("LIST", "SELECT", "UID SEARCH", "UID FETCH", "STATUS", "NOOP")): {
        "nothing said": says_tagged(b"OK"),
    },
}
ALTERED = ("lines without end", "a listed line without end", "nothing listed")
"""What a server can send in place of our message, in answer to RETR, so that it reads as altered."""


UNREADABLE = {("TOP", "lines without end"), ("TOP", "a listed line without end")}
"""What sets our message aside, until it is looked at once more before it would be called lost."""


def reason_of(fault: str, state: str) -> Reason:
    """Return the reason of a round trip."""
    return Reason.MESSAGE_ALTERED if state == "RETR" and fault in ALTERED else Reason.NONE


MAILBOX_CASES = [
    Case(
        f"roundtrip by {protocol}",
        state,
        fault,
        commit,
        reason_of(fault, state),
        TIMEOUT if fault in NEVER_ANSWERS else PATIENCE,
    )
    for (protocol, states), misdeeds in IN_THE_MAILBOX.items()
    for fault, commit in misdeeds.items()
    for state in states
]


@pytest.mark.parametrize("case", MAILBOX_CASES, ids=str)
async def test_a_fault_in_the_mailbox(case: Case, tmp_path: Path) -> None:
    """After any single fault of the mailbox's server, the next poll delivers, and no copy stays."""
    mailbox = Pop3Server() if case.kind.endswith("POP3") else ImapServer()
    held: list[bytes] = []

    def add(raw: bytes) -> None:
        if isinstance(mailbox, Pop3Server):
            mailbox.add(raw)
        else:
            mailbox.folders["INBOX"].add(raw)

    async def commit(peer: Peer) -> None:
        while held:
            add(held.pop())
        await case.commit(peer)

    # There is a NOOP only if earlier polls showed nothing.
    server = SmtpServer(held.append if case.state == "NOOP" else add)
    once = Once(case.state, commit)
    async with round_trip(mailbox, server, tmp_path, of_mailbox=once, timeout=case.timeout) as trip:
        with bounded_memory() if "without end" in case.fault else nullcontext():
            ran = await trip.run()
        connections = trip.mail.connections
        hold_to_promises(ran, LONGEST)
        assert ran.result.verdict.reason is case.reason, ran.result.verdict
        assert (await trip.message(ran.result.run)).state is MessageState.DELIVERED
        assert trip.entered(MessageState.LOST) == 0
        assert connections <= 2 or (case.state, case.fault) in UNREADABLE
        async with asyncio.timeout(120):
            while trip.left_in_mailbox or not once.is_done:
                await trip.watcher.poll_now()
