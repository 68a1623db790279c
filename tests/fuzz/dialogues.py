"""Targets for whole sessions: whatever a server says, the client returns a result or a fault."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from pydantic import SecretStr

from probes.core.faults import ProbeFault
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import PhaseTimer
from probes.delivery.mailboxes.imap import ImapMailbox
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.mailbox import Mailbox
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.protocols.http_login import HttpLogin, LoginAttempt
from probes.protocols.https import HttpClient
from probes.protocols.imap_session import ImapSession
from probes.protocols.line_transport import LineTransport
from probes.protocols.pop3_session import Pop3Session
from probes.protocols.smtp import WHOLE_REPLY
from probes.protocols.smtp_session import SmtpSession
from tests.fakes.clock import InstantClock
from tests.fakes.ntlm import CHALLENGE
from tests.fuzz.target import Target, require_shown
from tests.fuzz.wire import ECHO, LINE, TURN, connections

PASSWORD = "s3cret-Pa55word"
# The password as it is, and in base64 wherever in the text it begins, but for what its neighbours share.
_SHOWN_NOWHERE = tuple(
    form.casefold()
    for form in (
        PASSWORD,
        *(base64.b64encode(bytes(before) + PASSWORD.encode()).decode()[4:-4] for before in range(3)),
    )
)

Step = Callable[[], Awaitable[object]]


def _server(protocol: str, **options: object) -> ServerSettings:
    return ServerSettings.model_validate(
        {"protocol": protocol, "host": "192.0.2.1", "tls": "none", "allow_insecure_auth": True, **options}
    )


def _dialogue(octets: bytes, talk: Callable[[PhaseTimer, InstantClock], Awaitable[object]]) -> None:
    """Talk to a server that says ``octets``, divided according to the first one; all shown text is safe."""
    clock = InstantClock()
    phases = PhaseTimer(clock)
    script = octets[1:] if octets[:1] in _CUTS else octets
    with connections(script.split(TURN), _CUTS.get(octets[:1], 0)):
        try:
            asyncio.run(_bounded(talk(phases, clock)))
        except ProbeFault as fault:
            _require_harmless(fault.detail)
    for line in phases.transcript.lines():
        _require_harmless(line, LINE + 20)


_CUTS = {b"\x01": 1, b"\x02": 7}


async def _bounded(talk: Awaitable[object]) -> None:
    """Await ``talk``; an endless wait is a defect, because the server always hangs up in the end."""
    defects: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: defects.append(context))
    async with asyncio.timeout(30):
        await talk
    assert not defects, defects


def _require_harmless(text: str, limit: int = 300) -> None:
    require_shown(text, limit)
    assert not any(secret in text.casefold() for secret in _SHOWN_NOWHERE), f"shows a password: {text!r}"


async def _each(*steps: Step) -> None:
    """Take one step after the other, whatever the results of earlier ones."""
    for step in steps:
        try:
            await step()
        except ProbeFault as fault:
            _require_harmless(fault.detail)


def lines(octets: bytes) -> None:
    """Read lines, replies and literals; what is read does not depend on where the network cuts it."""
    read = [asyncio.run(_read(octets, piece)) for piece in (0, 1, 7)]
    assert read[0] == read[1] == read[2]


async def _read(octets: bytes, piece: int) -> list[object]:
    """Return what was read of ``octets`` when it arrives in pieces, and the reason why no more was."""
    found: list[object] = []
    with connections([octets], piece):
        wire = await LineTransport.connect("192.0.2.1", 25, PhaseTimer(InstantClock()), 20.0)
        try:
            while True:
                found.append(await wire.read_line(100))
                found.append(await wire.read_answer(WHOLE_REPLY, line_limit=80, limit=200))
                found.append(await wire.read_exactly(5))
        except ProbeFault as fault:
            require_shown(fault.detail)
            found.append(fault.reason)
    return found


def smtp(octets: bytes) -> None:
    """Log in over SMTP and send a message."""

    async def talk(phases: PhaseTimer, clock: InstantClock) -> None:
        session = await SmtpSession.connect(_server("smtp"), phases, clock)
        await _each(
            lambda: session.log_in("canary@example.com", SecretStr(PASSWORD)),
            lambda: session.mail("canary@example.com", 2000, "mailsonde-envelope1:x"),
            lambda: session.rcpt("canary@example.com"),
            lambda: session.data(b"Subject: x\r\n\r\n.\r\n"),
            session.quit,
        )
        session.abort()

    _dialogue(octets, talk)


def pop3(octets: bytes) -> None:
    """Log in over POP3 and use every operation on a mailbox."""

    async def talk(phases: PhaseTimer, clock: InstantClock) -> None:
        session = await Pop3Session.connect(_server("pop3"), phases, clock)
        try:
            await _each(
                lambda: session.log_in("canary", SecretStr(PASSWORD)),
                session.stat,
                session.uidl,
                lambda: session.top(1, limit=2000),
                lambda: session.beginning(1, octets=2000),
                lambda: session.retr(1, limit=2000),
                lambda: session.dele(1),
                session.quit,
            )
        finally:
            session.abort()

    _dialogue(octets, talk)


def imap(octets: bytes) -> None:
    """Log in over IMAP and use every operation on a mailbox."""

    async def talk(phases: PhaseTimer, clock: InstantClock) -> None:
        session = await ImapSession.connect(_server("imap"), phases, clock)

        async def idle() -> None:
            session.changed = False
            await session.news()

        try:
            await _each(
                lambda: session.log_in("canary", SecretStr(PASSWORD)),
                session.folders,
                session.namespace,
                lambda: session.select("INBOX"),
                lambda: session.status_of("Junk"),
                lambda: session.uid_search(b"ALL"),
                lambda: session.fetch_fields(1, ["Subject"]),
                lambda: session.header_section(1, limit=2000),
                lambda: session.part_of(1, 0, 2000),
                session.noop,
                lambda: session.delete([1]),
                idle,
                session.log_out,
            )
        finally:
            session.abort()

    _dialogue(octets, talk)


def _polled(mailbox: Mailbox) -> Callable[[PhaseTimer, InstantClock], Awaitable[None]]:
    """Return a function that polls a mailbox twice, with every operation of the watcher on each copy."""

    async def talk(_: PhaseTimer, __: InstantClock) -> None:
        for afresh in (False, True):
            try:
                async with mailbox.poll(afresh=afresh) as folders:
                    for opened in folders:
                        folder = await opened()
                        known: dict[str, bytes] = {}
                        async for found in folder.identify(folder.uids[:5]):
                            known |= found
                        for whole in (False, True):
                            async for contents in folder.contents(dict.fromkeys(known, 2000), whole=whole):
                                assert contents.keys() <= known.keys()
                        await folder.delete(list(known))
            except ProbeFault as fault:
                _require_harmless(fault.detail)
            _require_harmless(mailbox.doubt, 2000)
        await mailbox.close()

    return talk


def _mailbox_settings(server: str) -> MailboxSettings:
    return MailboxSettings.model_construct(
        address="canary@example.com", server=server, username="canary", password=SecretStr(PASSWORD)
    )


def pop3_mailbox(octets: bytes) -> None:
    """Poll a POP3 mailbox."""
    clock = InstantClock()
    budget = LoginBudget(60000.0, clock)
    _dialogue(octets, _polled(Pop3Mailbox(_mailbox_settings("pop3"), _server("pop3"), clock, budget)))


def imap_mailbox(octets: bytes) -> None:
    """Poll an IMAP mailbox and its junk folder."""
    clock = InstantClock()
    budget = LoginBudget(60000.0, clock)
    mailbox = ImapMailbox(_mailbox_settings("imap"), _server("imap"), clock, budget, 7 * 86400.0)
    _dialogue(octets, _polled(mailbox))


def http(octets: bytes) -> None:
    """Fetch a page, following redirects."""

    async def talk(phases: PhaseTimer, _: InstantClock) -> None:
        async with HttpClient(phases, seconds=20.0) as client:
            page = await client.request("GET", "http://192.0.2.1/a?b=c", limit=2000, redirects=2)
        assert len(page.body) <= 2000
        assert page.header("x-a") == ", ".join(page.header_lines("x-a"))
        require_shown(page.host, 253)
        assert page.is_encoded in {True, False}

    _dialogue(octets, talk)


@dataclass(frozen=True)
class _Challenged:
    """An answer with status 401, or the page after the last one."""

    status: int
    challenges: list[str]
    body: bytes = b""
    is_cut: bool = False

    def header_lines(self, name: str) -> list[str]:
        return self.challenges if name == "www-authenticate" else []


def http_login(octets: bytes) -> None:
    """Log in over HTTP; each turn has the values of WWW-Authenticate in one answer, a line each."""
    turns = [turn.decode("latin-1").split("\n") for turn in octets.split(TURN)]
    sent: list[str] = []
    network = SimpleNamespace(connections=1, certificate=None)

    async def ask(fields: Mapping[str, str], phase: str) -> _Challenged:
        sent.append(fields.get("authorization", ""))
        echo = ECHO.decode()
        said = [line.replace(echo, sent[-1]) for line in turns.pop(0)] if turns else []
        return _Challenged(401 if said else 200, said)

    async def talk(phases: PhaseTimer) -> None:
        attempt = LoginAttempt(HttpLogin("canary", SecretStr(PASSWORD)), "192.0.2.1", phases)
        await attempt.answer(ask, {}, network)  # type: ignore[arg-type] # it has what the login uses

    told = ""
    try:
        asyncio.run(_bounded(talk(PhaseTimer(InstantClock()))))
    except ProbeFault as fault:
        told = fault.detail
    _require_harmless(told)
    assert not any(secret and secret[10:40] in told for secret in sent)
    assert len(sent) <= 3


def _turns(*turns: bytes) -> bytes:
    return TURN.join(turns)


_OK = b"+OK\r\n"
_SHOWN_BY_POP3 = b"+OK\r\nSubject: x\r\n\r\n.\r\n"
_POP3_SEED = _turns(
    b"+OK <1.2@example.com> ready\r\n",
    b"+OK\r\nTOP\r\nUIDL\r\nUSER\r\nSASL PLAIN CRAM-MD5\r\nLOGIN-DELAY 900 USER\r\n.\r\n",
    b"+ PDFAYT4=\r\n",
    b"-ERR [AUTH] " + ECHO + b"\r\n",
    b"+ \r\n",
    b"+OK\r\n",
    b"+OK 2 3000\r\n",
    b"+OK\r\n1 u1\r\n2 u2\r\n.\r\n",
    b"+OK\r\nSubject: x\r\n\r\n.\r\n",
    b"+OK\r\nSubject: x\r\n\r\n..\r\n.\r\n",
    b"+OK\r\nSubject: x\r\n\r\na\r\n.\r\n",
    _OK,
    _OK,
)
_POP3_MAILBOX = _turns(
    b"+OK ready\r\n",
    b"+OK\r\nTOP\r\nUIDL\r\nUSER\r\n.\r\n",
    _OK,
    _OK,
    b"+OK\r\n1 u1\r\n2 u1\r\nbad\r\n.\r\n",
    *(_SHOWN_BY_POP3,) * 6,
    _OK,
    b"-ERR [SYS/TEMP] no\r\n",
    _OK,
    b"+OK ready\r\n",
    b"-ERR\r\n",
    _OK,
    _OK,
    b"+OK\r\n1 u1\r\n.\r\n",
    b"-ERR [SYS/PERM] no\r\n",
    _OK,
)
_POP3_REFUSED = _turns(
    b"+OK ready\r\n",
    b"+OK\r\nUSER\r\n.\r\n",
    b"+OK\r\n",
    b"-ERR no such thing as " + ECHO + b"\r\n",
    b"-ERR " + ECHO + b"\r\n",
)
_IMAP_REFUSED = _turns(
    b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready\r\n",
    b"* NO I heard " + ECHO + b"\r\nM1 NO [AUTHENTICATIONFAILED] " + ECHO + b"\r\n",
)
_SMTP_REFUSED = _turns(
    b"220 mx.example.com\r\n",
    b"250-mx.example.com\r\n250 AUTH PLAIN\r\n",
    b"535-5.7.8 " + ECHO + b"\r\n535 5.7.8 " + ECHO + b"\r\n",
)
_IMAP_SEED = _turns(
    b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=CRAM-MD5 IDLE UIDPLUS SPECIAL-USE LIST-EXTENDED "
    b"NAMESPACE] ready\r\n",
    b"M1 OK [CAPABILITY IMAP4rev1 IDLE UIDPLUS NAMESPACE] in\r\n",
    b'* LIST (\\HasNoChildren \\Junk) "/" {4}\r\nJunk\r\n* LIST () NIL INBOX\r\nM2 OK\r\n',
    b'* NAMESPACE (("" "/")) NIL NIL\r\nM3 OK\r\n',
    b"* 2 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [UIDNEXT 9] x\r\nM4 OK [READ-WRITE]\r\n",
    b'* STATUS "Junk" (MESSAGES 1 UIDNEXT 2 UIDVALIDITY 3)\r\nM5 OK\r\n',
    b"* SEARCH 1 8\r\nM6 OK\r\n",
    b"* 1 FETCH (UID 1 BODY[HEADER.FIELDS (SUBJECT)]<0> {14}\r\nSubject: x\r\n\r\n)\r\nM7 OK\r\n",
    b"* 1 FETCH (UID 1 BODY[HEADER]<0> {14}\r\nSubject: x\r\n\r\n)\r\nM8 OK\r\n",
    b'* 1 FETCH (UID 1 BODY[]<0> "x")\r\nM9 OK\r\n',
    b"* 3 EXISTS\r\nM10 OK\r\n",
    b"* 1 FETCH (FLAGS (\\Deleted))\r\nM11 OK\r\n",
    b"* 1 EXPUNGE\r\nM12 OK\r\n",
    b"+ idling\r\n* 4 EXISTS\r\n",
    b"M13 OK\r\n",
    b"* BYE\r\nM14 OK\r\n",
)
_SMTP_SEED = _turns(
    b"220 mx.example.com ESMTP\r\n",
    b"250-mx.example.com\r\n250-SIZE 1000\r\n250-DSN\r\n250-AUTH=LOGIN\r\n250 AUTH PLAIN LOGIN CRAM-MD5\r\n",
    b"334 PDFAYT4=\r\n",
    b"535 5.7.8 " + ECHO + b"\r\n",
    b"235 2.7.0 ok\r\n",
    b"250 2.1.0 ok\r\n",
    b"250 2.1.5 ok\r\n",
    b"354 go\r\n",
    b"250 2.0.0 queued as 1\r\n",
    b"221 bye\r\n",
)
_TAGGED = (TURN, *(b"M%d OK\r\n" % number for number in range(1, 17)))
_HTTP_SEEDS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 4\r\n\r\n<a/>",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: \xe4\r\n\r\n4\r\n<a/>\r\n0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: https://[::1]:99999/\xff\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx",
)

_LOGIN_SEEDS = (
    _turns(b"Negotiate\nNTLM", b"NTLM " + base64.b64encode(CHALLENGE), b"NTLM"),
    _turns(b'Basic realm="a, \\" NTLM", Negotiate', b"Negotiate " + base64.b64encode(CHALLENGE[:60])),
    _turns(b"Basic", ECHO),
)

TARGETS = (
    Target(
        "http_login", http_login, _LOGIN_SEEDS, (b"NTLM ", b"Negotiate ", b"Basic", b"TlRMTVNTUAACAAAA", ECHO)
    ),
    Target(
        "lines",
        lines,
        (
            b"a\r\n250-b\r\n250 c\r\n12345d\n250 " + b"e" * 200 + b"\r\n",
            b"x" * 101 + b"\n",
            b"a\n250-b\n251 c\n123",
        ),
        (b"\r\n", b"\n", b"\r", b"250-", b"250 ", b"x" * 70),
        2000,
    ),
    Target(
        "smtp_dialogue",
        smtp,
        (_SMTP_SEED, b"\x01" + _SMTP_SEED, _SMTP_REFUSED),
        (TURN, ECHO, b"250-", b"250 ", b"421 4.3.2 bye\r\n", b"334 ", b"535 ", b"\r\n", b"AUTH ", b"\0"),
    ),
    Target(
        "pop3_dialogue",
        pop3,
        (_POP3_SEED, b"\x02" + _POP3_SEED, _POP3_REFUSED),
        (TURN, ECHO, b"+OK ", b"-ERR ", b"+ ", b"[IN-USE] ", b".\r\n", b"\r\n", b"SASL ", b"TOP\r\n", b"\0"),
    ),
    Target(
        "imap_dialogue",
        imap,
        (_IMAP_SEED, b"\x01" + _IMAP_SEED, _IMAP_REFUSED),
        (*_TAGGED, ECHO, b"* ", b"+ ", b"OK ", b"NO ", b"BAD ", b"* BYE ", b"{3}\r\n", b"[ALERT] ", b"\r\n"),
    ),
    Target(
        "pop3_mailbox",
        pop3_mailbox,
        (
            _POP3_MAILBOX,
            _POP3_MAILBOX.replace(b"USER\r\n.", b"USER\r\nPIPELINING\r\n."),
        ),
        (TURN, b"+OK ", b"-ERR ", b".\r\n", b"\r\n", b"1 ", b"2 ", b"[SYS/PERM] ", b"\0"),
    ),
    Target(
        "imap_mailbox",
        imap_mailbox,
        (
            _turns(
                b"* OK [CAPABILITY IMAP4rev1 IDLE UIDPLUS] ready\r\n",
                b"M1 OK [CAPABILITY IMAP4rev1 IDLE UIDPLUS] in\r\n",
                b'* LIST (\\Junk) "/" Junk\r\nM2 OK\r\n',
                b"* 2 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [UIDNEXT 9] x\r\nM3 OK\r\n",
                b"* SEARCH 1 8\r\nM4 OK\r\n",
                b"* 1 FETCH (UID 8 BODY[HEADER.FIELDS (SUBJECT)]<0> {14}\r\nSubject: x\r\n\r\n)\r\nM5 OK\r\n",
                b"* 1 FETCH (UID 8 BODY[]<0> {14}\r\nSubject: x\r\n\r\n)\r\nM6 OK\r\n",
                b"* 1 FETCH (UID 8 BODY[]<0> {14}\r\nSubject: x\r\n\r\n)\r\nM7 OK\r\n",
                b"M8 OK\r\n",
                b"* 2 EXPUNGE\r\nM9 OK\r\n",
                b"* STATUS Junk (MESSAGES 0 UIDNEXT 1 UIDVALIDITY 4)\r\nM10 OK\r\n",
                b"* 1 EXISTS\r\n* OK [UIDVALIDITY 4] x\r\nM11 OK\r\n",
                b"* SEARCH\r\nM12 OK\r\n",
                b"* 2 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\nM13 OK\r\n",
                b"* SEARCH 1\r\nM14 OK\r\n",
                b"* 1 FETCH (UID 1 BODY[HEADER.FIELDS (A)]<0> {14}\r\nSubject: x\r\n\r\n)\r\nM15 OK\r\n",
                b"M16 NO no permission\r\n",
            ),
        ),
        (
            *_TAGGED,
            b"* ",
            b"NO ",
            b"UID ",
            b"FETCH (",
            b"{3}\r\n",
            b"NIL",
            b"4294967295",
            b"\r\n",
            b"* BYE\r\n",
        ),
    ),
    Target(
        "http_dialogue", http, _HTTP_SEEDS, (b"\r\n", b": ", b"HTTP/1.1 ", b"Location: ", b"chunked", TURN)
    ),
)
