"""An IMAP server's errors that must not matter, and its texts that must not be lost."""

from __future__ import annotations

import asyncio

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from probes.protocols import imap_connection
from probes.protocols.imap_session import ImapSession
from tests.fakes.clock import InstantClock
from tests.fakes.imap_dialogue import (
    ENTERED,
    close,
    enter,
    entered,
    fault_of,
    fault_of_entering,
    greeting,
    opened,
)
from tests.fakes.scripted_server import PASSWORD, Peer, Script, dialogue, scripted_server


@pytest.mark.parametrize("told", [b"* 1 EXISTS", b"* OK [UIDVALIDITY 0] x", b"* OK [UIDVALIDITY x] x"])
async def test_a_folder_without_uidvalidity(told: bytes) -> None:
    """A folder without UIDVALIDITY can be opened; the value is then unknown."""
    steps = [(b"M2 SELECT .*", told + b"\r\nM2 OK"), (b"M3 NOOP", b"M3 OK")]
    async with entered(dialogue(*ENTERED, *steps)) as session:
        await session.select("INBOX")
        assert session.folder == "INBOX"
        assert session.uid_validity is None
        await session.noop()
        session.abort()


async def test_a_status_without_uidnext() -> None:
    """An incomplete STATUS is a fault of that folder only; the session continues."""
    steps = [(b"M3 STATUS .*", b'* STATUS "Junk" ()\r\nM3 OK'), (b"M4 NOOP", b"M4 OK")]
    async with opened(dialogue(*steps)) as session:
        with pytest.raises(ProbeFault) as caught:
            await session.status_of("Junk")
        assert caught.value.reason is Reason.PROTOCOL_ERROR
        await session.noop()
        session.abort()


@pytest.mark.parametrize(
    "farewell",
    [
        dialogue((b"M3 LOGOUT", b"M3 BYE see you")),
        dialogue((b"M3 LOGOUT", b"* BYE see you"), then=close),
        dialogue((b"M3 LOGOUT", b"M3 NO stay")),
        dialogue((b"M3 LOGOUT", b"\xff\xff")),
        dialogue((b"M3 LOGOUT", b"M3 OK\r\nM3 OK")),
        dialogue(b"* BYE you were idle", then=close),
        dialogue(),
        close,
    ],
)
async def test_the_farewell_changes_nothing(farewell: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any answer or no answer to LOGOUT raises nothing and takes little time."""
    monkeypatch.setattr(imap_connection, "FAREWELL_TIMEOUT", 0.1)
    async with asyncio.timeout(30), opened(farewell, timeout="60s") as session:
        await session.log_out()


@pytest.mark.parametrize(
    ("first", "reason", "detail"),
    [
        (b"* NO Service down for backup", Reason.IMAP_NO, "Service down for backup"),
        (b"* NO [UNAVAILABLE] no database", Reason.IMAP_UNAVAILABLE, "[UNAVAILABLE] no database"),
        (b"* NO too many connections from you", Reason.THROTTLED, "too many connections from you"),
        (b"* BAD what?", Reason.IMAP_BAD, "what?"),
        (b"* PREAUTH in you come", Reason.PROTOCOL_ERROR, "not a greeting: PREAUTH in you come"),
    ],
)
async def test_the_words_of_a_greeting_that_lets_nobody_in(first: bytes, reason: Reason, detail: str) -> None:
    """A refusal in place of the greeting is in the fault, with its reason."""
    fault = await fault_of_entering(dialogue(first))
    assert (fault.reason, fault.detail) == (reason, detail)


@pytest.mark.parametrize(
    ("then", "reason"), [(None, Reason.COMMAND_TIMEOUT), (close, Reason.CONNECTION_LOST)]
)
async def test_an_untagged_complaint_in_place_of_an_answer(then: Script | None, reason: Reason) -> None:
    """An untagged BAD or NO without an answer is quoted, whether the server waits or hangs up."""
    script = dialogue((b"M3 NOOP", b"* BAD Error in IMAP command"), then=then)
    fault = await fault_of(ImapSession.noop, script, timeout="300ms")
    assert fault.reason is reason
    assert fault.detail.endswith("; before that it said: BAD Error in IMAP command")


async def test_a_complaint_shows_no_password() -> None:
    """An untagged complaint with the credentials is withheld."""
    phases = PhaseTimer(InstantClock())
    script = dialogue(greeting("AUTH=PLAIN", "SASL-IR"), (b"M1 .*", b"* BAD no " + PASSWORD.encode()))
    fault = await fault_of_entering(script, timeout="300ms", phases=phases)
    assert PASSWORD not in f"{fault} {phases.transcript.lines()}"


async def test_a_complaint_that_an_answer_follows() -> None:
    """A complaint belongs to its own command and does not explain a later silence."""

    async def complaining(peer: Peer) -> None:
        await dialogue((b"M3 NOOP", b"* NO disk is nearly full\r\nM3 OK"), (b"M4 NOOP", b"* 1 EXISTS"))(peer)

    async with opened(complaining, timeout="300ms") as session:
        await session.noop()
        with pytest.raises(ProbeFault) as caught:
            await session.noop()
        assert "disk" not in caught.value.detail


@pytest.mark.parametrize("auth", ["plain", "login"])
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"[AUTHENTICATIONFAILED] wrong", Reason.AUTH_FAILED),
        (b"[AUTHORIZATIONFAILED] not you", Reason.AUTH_FAILED),
        (b"[EXPIRED] too old", Reason.AUTH_FAILED),
        (b"Invalid credentials", Reason.AUTH_FAILED),
        (b"[CAPABILITY IMAP4rev1] Invalid credentials", Reason.AUTH_FAILED),
        (b"[UNAVAILABLE] Temporary authentication failure", Reason.IMAP_UNAVAILABLE),
        (b"[SERVERBUG] oops", Reason.IMAP_UNAVAILABLE),
        (b"[CONTACTADMIN] ask them", Reason.IMAP_UNAVAILABLE),
        (b"[INUSE] locked", Reason.IMAP_IN_USE),
        (b"[LIMIT] too many sessions", Reason.IMAP_IN_USE),
        (b"[ALERT] Too many simultaneous connections. (Failure)", Reason.THROTTLED),
        (b"[ALERT] Please log in by your browser", Reason.LOGIN_REFUSED),
        (b"[PRIVACYREQUIRED] not in clear", Reason.LOGIN_REFUSED),
        (b"Temporary problem, please try again later", Reason.LOGIN_REFUSED),
        (b"Internal error", Reason.LOGIN_REFUSED),
    ],
)
async def test_which_refusals_blame_the_credentials(auth: str, said: bytes, reason: Reason) -> None:
    """The credentials are wrong only if the code says so, or without a code and another cause."""
    login = (b"M1 .*", b"M1 NO " + said)
    fault = await fault_of_entering(dialogue(greeting("SASL-IR", "AUTH=PLAIN"), login), auth=auth)
    assert fault.reason is reason


@pytest.mark.parametrize(
    ("said", "reason"),
    [(b"no", Reason.LOGIN_REFUSED), (b"[AUTHENTICATIONFAILED] changed", Reason.AUTH_FAILED)],
)
async def test_credentials_that_worked_before(said: bytes, reason: Reason) -> None:
    """Credentials accepted before do not become wrong by an unexplained refusal."""
    answers = iter([b"M1 OK [CAPABILITY IMAP4rev1] in", b"M1 NO " + said])

    async def changing(peer: Peer) -> None:
        await dialogue(greeting("SASL-IR", "AUTH=PLAIN"), (b"M1 .*", next(answers)))(peer)

    async with scripted_server(changing) as server:
        (await enter(server)).abort()
        with pytest.raises(ProbeFault) as caught:
            await enter(server)
    assert caught.value.reason is reason
