"""What a transcript shows of a dialogue, and what it must never show."""

from __future__ import annotations

import base64
import hmac

import pytest
from pydantic import SecretStr

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.redaction import WITHHELD
from probes.core.transcript import FIRST, LAST, LATEST, LINE, REPLY, Transcript
from probes.core.verdict import PhaseTimer
from probes.protocols.imap_session import ImapSession
from probes.protocols.mail_session import MailSession
from probes.protocols.pop3_session import Pop3Session
from probes.protocols.smtp_session import smtp_session
from tests.fakes.clock import InstantClock
from tests.fakes.scripted_server import PASSWORD, Peer, Script, dialogue, scripted_server

USER = "canary@example.test"
PLAIN = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode())
CHALLENGE = b"<1.2@mail.example.com>"
DIGEST = hmac.new(PASSWORD.encode(), CHALLENGE, "md5").hexdigest()
SECRETS = (PASSWORD, PLAIN.decode(), base64.b64encode(PASSWORD.encode()).decode(), DIGEST)


def texts(transcript: Transcript) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in transcript.lines()]


async def test_a_dialogue_is_shown_as_it_was_with_seconds() -> None:
    """Commands, lines of replies, and remarks are in order, with the seconds since the start."""
    clock = InstantClock()
    transcript = Transcript(clock)
    transcript.note("connected to 192.0.2.1 port 25")
    await clock.sleep(1.25)
    transcript.sent(b"EHLO [192.0.2.9]")
    transcript.received("250-mail.example.com\n250 PIPELINING")
    assert transcript.lines() == [
        "   0.000 #: connected to 192.0.2.1 port 25",
        "   1.250 C: EHLO [192.0.2.9]",
        "   1.250 S: 250-mail.example.com",
        "   1.250 S: 250 PIPELINING",
    ]


def test_hostile_lines_are_escaped_and_cut() -> None:
    """Terminal escapes are escaped, and 100 KB are cut."""
    transcript = Transcript(InstantClock())
    transcript.received(b"220 \x1b[31mred\x07 \xff")
    transcript.received(b"220 " + b"x" * 100_000)
    shown, cut = texts(transcript)
    assert shown == r"S: 220 \x1b[31mred\x07 \xff"
    assert len(cut) <= LINE + 3
    assert cut.endswith("…")


def test_a_long_dialogue_keeps_its_beginning_and_its_end() -> None:
    """A long dialogue is bounded, and says how much is missing."""
    transcript = Transcript(InstantClock())
    for number in range(1000):
        transcript.sent(b"NOOP %d" % number)
    lines = transcript.lines()
    assert len(lines) == FIRST + 1 + LAST
    assert lines[FIRST] == f"… {1000 - FIRST - LAST} left out …"
    assert (lines[0].endswith("NOOP 0"), lines[-1].endswith("NOOP 999")) == (True, True)


def test_a_session_that_stays_open_keeps_only_the_end() -> None:
    """However long it lasts, little is kept, but an empty answer is still explained by the one before it."""
    transcript = Transcript(InstantClock())
    for number in range(200):
        transcript.sent(b"NOOP %d" % number)
    transcript.keep_latest_only()
    for number in range(200):
        transcript.sent(b"M%d NOOP" % number)
        transcript.received(b"M%d OK done" % number)
    transcript.sent(b"M200 NOOP")
    assert transcript.shown(b"") == "an empty line, after M199 OK done"
    assert len(transcript.lines()) <= 2 * LATEST


def test_only_what_is_said_to_be_public_of_a_line_with_credentials() -> None:
    """Only the part named by the caller is shown, even if the password looks like a command."""
    transcript = Transcript(InstantClock())
    for public, line in (("M1 LOGIN", b"M1 LOGIN {9}"), ("", b"LOGIN 9x"), ("", b"AUTH"), ("", b"PASS word")):
        transcript.sent(line, public)
    transcript.sent(b"LOGOUT")
    assert texts(transcript) == [
        f"C: M1 LOGIN {WITHHELD}",
        f"C: {WITHHELD}",
        f"C: {WITHHELD}",
        f"C: {WITHHELD}",
        "C: LOGOUT",
    ]


def test_a_secret_that_the_cut_divides_is_withheld() -> None:
    """A long answer shows no part of a password, even if only half of it is kept."""
    transcript = Transcript(InstantClock())
    transcript.redaction.add(PASSWORD)
    lines = "\n".join(["250-" + "x" * 95] * 40).encode()
    assert len(lines) < REPLY - 6
    padding = b"\n" + b"y" * (REPLY - len(lines) - 6) + b"\n"
    assert transcript.quoted(lines + padding + PASSWORD.encode()) == f"250-{WITHHELD}"
    assert texts(transcript) == [f"S: 250-{WITHHELD}"]


def test_what_is_cut_is_marked() -> None:
    """A cut or unfinished answer ends with an ellipsis on its last line."""
    transcript = Transcript(InstantClock())
    kept = transcript.quoted("250-mail\n" * 1000)
    assert (len(kept), kept[-1]) == (REPLY + 1, "…")
    assert texts(transcript)[-1].endswith("…")
    assert transcript.quoted(b"250-mail", cut=True) == "250-mail…"
    assert texts(transcript)[-1] == "S: 250-mail…"


def require_no_secret(lines: list[str]) -> None:
    shown = "\n".join(lines)
    assert WITHHELD in shown
    for secret in SECRETS:
        assert secret[:6] not in shown


SMTP_LOGINS: dict[str, tuple[tuple[bytes, bytes], ...]] = {
    "plain": ((rb"AUTH PLAIN \S+", b"235 " + PLAIN),),
    "login": (
        (b"AUTH LOGIN", b"334 VXNlcm5hbWU6"),
        (rb"[\w=+/]+", b"334 UGFzc3dvcmQ6"),
        (rb"[\w=+/]+", b"235 ok " + PASSWORD.encode()),
    ),
    "cram-md5": ((b"AUTH CRAM-MD5", b"334 " + base64.b64encode(CHALLENGE)), (rb"[\w=+/]+", b"235 in")),
}


@pytest.mark.parametrize("mechanism", SMTP_LOGINS)
async def test_no_smtp_transcript_shows_a_password(mechanism: str) -> None:
    """With any mechanism, no credentials are shown, even if the server repeats them."""
    ehlo = (rb"EHLO \S+", b"250-mail.example.com\r\n250 AUTH PLAIN LOGIN CRAM-MD5")
    mail = (b"MAIL FROM:<a@example.com>", b"250 I know that it is " + PASSWORD.encode())
    phases = PhaseTimer(SystemClock())
    script = dialogue(b"220 mail.example.com", ehlo, *SMTP_LOGINS[mechanism], mail)
    async with scripted_server(script) as server:
        settings = server.settings("smtp", auth=mechanism, username=USER)
        async with smtp_session(settings, phases, SystemClock()) as session:
            await session.mail("a@example.com")
    lines = texts(phases.transcript)
    require_no_secret(lines)
    assert lines[0].startswith("#: connected to 127.0.0.1 port ")
    assert lines[1:3] == ["S: 220 mail.example.com", "C: EHLO [127.0.0.1]"]
    assert f"C: AUTH {mechanism.upper()}" in "\n".join(lines)
    assert lines[-2:] == ["C: MAIL FROM:<a@example.com>", f"S: 250 {WITHHELD}"]


async def test_no_transcript_shows_a_message() -> None:
    """Only the size of the content sent by DATA is shown."""
    phases = PhaseTimer(SystemClock())
    script = dialogue(b"220 hi", (rb"EHLO \S+", b"250 hi"), (b"DATA", b"354 go"), then=_take_message)
    async with scripted_server(script) as server:
        settings = server.settings("smtp")
        async with smtp_session(settings, phases, SystemClock()) as session:
            await session.data(b"X-Token: abc\r\n\r\ntext\r\n")
    assert texts(phases.transcript)[-4:] == [
        "C: DATA",
        "S: 354 go",
        "#: the message: 22 octets, and the final dot",
        "S: 250 taken",
    ]


async def _take_message(peer: Peer) -> None:
    while await peer.expect(rb".*") != b".":
        pass
    await peer.send(b"250 taken")


POP3_LOGINS: dict[str, tuple[tuple[bytes, bytes], ...]] = {
    "plain": ((rb"AUTH PLAIN \S+", b"-ERR not " + PLAIN),),
    "user": ((b"USER .*", b"+OK"), (b"PASS .*", b"-ERR wrong: " + PASSWORD.encode())),
    "apop": ((rb"APOP \S+ [0-9a-f]{32}", b"-ERR no"),),
}


@pytest.mark.parametrize("way", POP3_LOGINS)
async def test_no_pop3_transcript_shows_a_password(way: str) -> None:
    """A refused POP3 login is shown without the credentials."""
    capabilities = (b"CAPA", b"+OK\r\nSASL PLAIN\r\nUSER\r\n.")
    script = dialogue(b"+OK ready " + CHALLENGE, capabilities, *POP3_LOGINS[way])
    lines = await _refused(Pop3Session, "pop3", way, script)
    assert lines[1:6] == [
        f"S: +OK ready {CHALLENGE.decode()}",
        "C: CAPA",
        "S: +OK",
        "S: SASL PLAIN",
        "S: USER",
    ]


async def test_a_password_that_reads_like_a_command_is_withheld() -> None:
    """A password that begins with LOGIN, on a line of its own, is not shown."""
    password = "LOGIN é9 hunter2"
    script = dialogue(
        b"* OK [CAPABILITY IMAP4rev1] ready",
        (rb'M1 LOGIN "canary@example.test" \{17\}', b"+ go on"),
        (rb"LOGIN .*", b"M1 NO no"),
    )
    phases = PhaseTimer(InstantClock())
    async with scripted_server(script) as server:
        settings = server.settings("imap")
        with pytest.raises(ProbeFault):
            await ImapSession.open(
                settings, username=USER, password=SecretStr(password), phases=phases, clock=InstantClock()
            )
    assert [text for text in texts(phases.transcript) if text.startswith("C:")] == [
        f"C: M1 LOGIN {WITHHELD}",
        f"C: {WITHHELD}",
    ]


IMAP_LOGINS: dict[str, tuple[tuple[bytes, bytes], ...]] = {
    "plain": ((rb"M1 AUTHENTICATE PLAIN", b"+ "), (rb"[\w=+/]+", b"M1 NO not " + PLAIN)),
    "login": ((rb"M1 LOGIN .*", b"M1 NO wrong: " + PASSWORD.encode()),),
}


@pytest.mark.parametrize("way", IMAP_LOGINS)
async def test_no_imap_transcript_shows_a_password(way: str) -> None:
    """A refused IMAP login is shown without the credentials."""
    script = dialogue(b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready", *IMAP_LOGINS[way])
    lines = await _refused(ImapSession, "imap", way, script)
    assert lines[1] == "S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready"
    assert lines[2] in {"C: M1 AUTHENTICATE PLAIN", f"C: M1 LOGIN {WITHHELD}"}


async def _refused(kind: type[MailSession], protocol: str, way: str, script: Script) -> list[str]:
    clock = InstantClock()
    phases = PhaseTimer(clock)
    async with scripted_server(script) as server:
        settings = server.settings(protocol, auth=way)
        secret = SecretStr(PASSWORD)
        with pytest.raises(ProbeFault):
            await kind.open(settings, username=USER, password=secret, phases=phases, clock=clock)
    lines = texts(phases.transcript)
    require_no_secret(lines)
    return lines
