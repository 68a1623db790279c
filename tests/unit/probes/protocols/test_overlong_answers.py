"""The beginning of overlong and invalid answers is shown, equally in SMTP, POP3 and IMAP."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import SecretStr

from probes.core.clock import SystemClock
from probes.core.faults import DETAIL_LIMIT, ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.transcript import LINE
from probes.core.verdict import PhaseTimer
from probes.protocols.imap_session import ImapSession
from probes.protocols.pop3_session import Pop3Session
from probes.protocols.smtp_session import smtp_session
from tests.fakes.pop3_dialogue import capa
from tests.fakes.scripted_server import PASSWORD, Script, dialogue, scripted_server

USER = "canary@example.test"
HOSTILE = b"\x1b[2J<script>"
SHOWN = r"\x1b[2J<script>"
HUGE = HOSTILE + b"x" * 100_000
EHLO = (rb"EHLO \S+", b"250-mail.example.com\r\n250 AUTH PLAIN")

Command = Callable[[Any], Awaitable[object]]


async def _smtp(server: ServerSettings, phases: PhaseTimer, _: Command | None) -> None:
    async with smtp_session(server, phases, SystemClock()) as session:
        await session.mail("a@example.com")


async def _pop3(server: ServerSettings, phases: PhaseTimer, command: Command | None) -> None:
    session = await Pop3Session.open(
        server, username=USER, password=SecretStr(PASSWORD), phases=phases, clock=SystemClock()
    )
    await (command or Pop3Session.stat)(session)


async def _imap(server: ServerSettings, phases: PhaseTimer, command: Command | None) -> None:
    session = await ImapSession.open(
        server, username=USER, password=SecretStr(PASSWORD), phases=phases, clock=SystemClock()
    )
    await (command or ImapSession.noop)(session)


DIALOGUES = {"smtp": _smtp, "pop3": _pop3, "imap": _imap}


async def shown(
    protocol: str, script: Script, command: Command | None = None, **settings: Any
) -> tuple[ProbeFault, list[str]]:
    """Run a dialogue that fails and closes the connection; return the fault and the dialogue."""
    phases = PhaseTimer(SystemClock())
    async with scripted_server(script) as server:
        with pytest.raises(ProbeFault) as caught:
            await DIALOGUES[protocol](server.settings(protocol, username=USER, **settings), phases, command)
        await server.peer_closed()
    return caught.value, [line[9:] for line in phases.transcript.lines()]


@pytest.mark.parametrize(
    ("protocol", "script", "reason", "said"),
    [
        ("smtp", dialogue(b"220 " + HUGE), Reason.LINE_TOO_LONG, f"220 {SHOWN}xxx"),
        ("smtp", dialogue(b"220 " + HUGE[:9000]), Reason.LINE_TOO_LONG, f"220 {SHOWN}xxx"),
        ("pop3", dialogue(b"+OK " + HUGE), Reason.LINE_TOO_LONG, f"+OK {SHOWN}xxx"),
        ("pop3", dialogue(b"+OK " + HUGE[:3000]), Reason.LINE_TOO_LONG, f"+OK {SHOWN}xxx"),
        ("pop3", dialogue(b"+OK", (b"CAPA", b"+OK\r\n" + HUGE)), Reason.LINE_TOO_LONG, f"{SHOWN}xxx"),
        ("imap", dialogue(b"* OK " + HUGE), Reason.LINE_TOO_LONG, f"* OK {SHOWN}xxx"),
        (
            "imap",
            dialogue(b"* OK hello", (b"M1 CAPABILITY", b"* CAPABILITY " + HUGE)),
            Reason.LINE_TOO_LONG,
            f"* CAPABILITY {SHOWN}xxx",
        ),
        (
            "imap",
            dialogue(b"* OK hello", (b"M1 CAPABILITY", b"* X " + HUGE[:400] + b" {100000}")),
            Reason.RESPONSE_TOO_LARGE,
            f"* X {SHOWN}xxx",
        ),
        (
            "imap",
            dialogue(b"* OK hello", (b"M1 CAPABILITY", (b"* X " + HUGE[:8000] + b"\r\n") * 600)),
            Reason.RESPONSE_TOO_LARGE,
            f"* X {SHOWN}xxx",
        ),
    ],
)
async def test_the_beginning_is_shown(protocol: str, script: Script, reason: Reason, said: str) -> None:
    """The dialogue's last line and the fault show the beginning, escaped, marked as cut, and no more."""
    fault, lines = await shown(protocol, script)
    assert fault.reason is reason
    assert f": {said}" in fault.detail
    assert len(fault.detail) == DETAIL_LIMIT
    assert fault.detail.endswith("…")
    assert lines[-1].startswith(f"S: {said}")
    assert lines[-1].endswith("…")
    assert all(line.isprintable() and len(line) <= LINE + len("S: ") for line in lines)


async def test_of_a_list_without_end_the_beginning_is_shown() -> None:
    """Of 100 KB in many lines, the dialogue shows the first lines and the last one read, and says so."""
    lines_of_capa = b"+OK" + (b"\r\nX-" + HOSTILE + b"x" * 380) * 250
    fault, lines = await shown("pop3", dialogue(b"+OK", (b"CAPA", lines_of_capa)))
    assert fault.reason is Reason.RESPONSE_TOO_LARGE
    assert fault.detail.startswith(f"more than 200 lines, such as: X-{SHOWN}xxx")
    assert lines[5].startswith(f"S: X-{SHOWN}xxx")
    assert sum(map(len, lines)) < 30_000
    short = b"+OK" + b"\r\nX-" + b"\r\nX-".join([b"y"] * 250)
    fault, lines = await shown("pop3", dialogue(b"+OK", (b"CAPA", short)))
    assert fault.detail == "more than 200 lines, such as: X-y…"
    assert (lines[5], lines[-1]) == ("S: X-y", "S: X-y…")


@pytest.mark.parametrize(
    ("protocol", "first"),
    [("smtp", b"* OK ready"), ("smtp", b"SSH-2.0-x"), ("pop3", b"220 mail"), ("imap", b"220 mail")],
)
async def test_what_is_none_of_the_protocol_is_shown(protocol: str, first: bytes) -> None:
    """A greeting in another protocol is in the dialogue and the fault."""
    fault, lines = await shown(protocol, dialogue(first + b" " + HOSTILE, b"x" * 1000))
    assert fault.reason is Reason.PROTOCOL_ERROR
    assert f"{first.decode()} {SHOWN}" in fault.detail
    assert f"S: {first.decode()} {SHOWN}" in lines
    assert sum(map(len, lines)) < 500


@pytest.mark.parametrize(
    ("protocol", "script"),
    [
        ("smtp", dialogue(b"220 hi", (EHLO[0], EHLO[1] + b"\r\n250 " + HOSTILE))),
        ("pop3", dialogue(b"+OK hi\r\n+OK " + HOSTILE)),
    ],
)
async def test_a_reply_before_its_command_is_shown(protocol: str, script: Script) -> None:
    """A premature reply is in the dialogue, because the fault is about it."""
    fault, lines = await shown(protocol, script, auth="plain")
    assert fault.reason is Reason.PROTOCOL_ERROR
    assert fault.detail.endswith(f"a reply before its command: {lines[-1][3:]}")
    assert lines[-1].endswith(SHOWN)


ECHO = b"is it " + PASSWORD.encode() + b"x" * 100_000
LOGINS: dict[str, tuple[Any, ...]] = {
    "smtp": (b"220 hi", EHLO, (rb"AUTH PLAIN \S+",)),
    "pop3": (b"+OK hi", capa("SASL PLAIN", "TOP"), (rb"AUTH PLAIN \S+",)),
    "imap": (b"* OK [CAPABILITY SASL-IR AUTH=PLAIN] hi", (rb"M1 AUTHENTICATE PLAIN \S+",)),
}
GOOD = {"smtp": b"235 in", "pop3": b"+OK in", "imap": b"M1 OK [CAPABILITY X] in"}
FIRST = {"smtp": b"250 ", "pop3": b"+OK ", "imap": b"* OK "}


@pytest.mark.parametrize("is_in", [False, True], ids=["login", "later"])
@pytest.mark.parametrize("protocol", DIALOGUES)
async def test_credentials_are_withheld(protocol: str, is_in: bool) -> None:
    """If a server repeats the password in 100 KB, at or after the login, it is shown nowhere."""
    *before, login = LOGINS[protocol]
    said = FIRST[protocol] + ECHO
    steps = [(*login, GOOD[protocol]), (rb".*", said)] if is_in else [(*login, said)]
    fault, lines = await shown(protocol, dialogue(*before, *steps), auth="plain")
    assert fault.reason is Reason.LINE_TOO_LONG
    assert re.fullmatch(r"S: (?:\S+ )*\(withheld\)", lines[-1])
    while fault is not None:
        text = "\n".join([*lines, str(fault), repr(vars(fault))])
        assert PASSWORD[:4] not in text
        fault = fault.__cause__ or (None if fault.__suppress_context__ else fault.__context__)  # type: ignore[assignment] # any error


MAIL = b"Subject: for nobody else"


HEADERS: dict[str, Command] = {
    "pop3": lambda session: session.top(1, limit=5000),
    "imap": lambda session: session.header_section(5, limit=5000),
}
TOP = (b"TOP 1 0", b"+OK\r\n")
FETCH = (b"M2 UID FETCH .*", b"* 1 FETCH (UID 5 BODY[HEADER]<0> ")


@pytest.mark.parametrize(
    ("protocol", "step", "answer"),
    [
        ("pop3", TOP, MAIL + HUGE),
        ("imap", FETCH, b'"' + MAIL + HUGE),
        ("imap", FETCH, b"{3}\r\nabc" + MAIL + HUGE),
        ("imap", FETCH, b"{3}\r\nabc)\r\n" + MAIL),
        ("imap", FETCH, b'"' + MAIL + b'" BODY[HEADER]<0> {100000}'),
    ],
    ids=["pop3 line", "imap line", "imap line behind a literal", "imap garbage", "imap literal"],
)
async def test_mail_is_not_shown(protocol: str, step: tuple[bytes, bytes], answer: bytes) -> None:
    """Overlong or invalid text in place of requested mail may be anybody's mail, and is not shown."""
    *before, login = LOGINS[protocol]
    script = dialogue(*before, (*login, GOOD[protocol]), (step[0], step[1] + answer))
    fault, lines = await shown(protocol, script, HEADERS[protocol], auth="plain")
    assert MAIL.decode() not in "\n".join([*lines, str(fault)])
    assert fault.reason in {Reason.LINE_TOO_LONG, Reason.RESPONSE_TOO_LARGE, Reason.PROTOCOL_ERROR}
