"""Logging in to IMAP servers: choice of method, TLS before it, refusals, and no secret shown."""

from __future__ import annotations

import base64
import hmac
import ssl

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import PhaseTimer
from tests.fakes.clock import InstantClock
from tests.fakes.imap_dialogue import THROTTLED, close, enter, entered, fault_of_entering, greeting
from tests.fakes.logins import PLAIN, USER
from tests.fakes.scripted_server import (
    PASSWORD,
    Peer,
    Script,
    dialogue,
    scripted_server,
)
from tests.real_servers.dovecot import TlsFiles

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


@pytest.mark.parametrize("auth", ["plain", "login"])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"M1 NO [AUTHENTICATIONFAILED] no", Reason.AUTH_FAILED),
        (b"M1 NO LOGIN failed.", Reason.AUTH_FAILED),
        (b"M1 NO [UNAVAILABLE] later", Reason.IMAP_UNAVAILABLE),
        (b"M1 NO [INUSE] locked", Reason.IMAP_IN_USE),
        (b"M1 BAD what?", Reason.IMAP_BAD),
        (b"M1 BAD " + THROTTLED, Reason.THROTTLED),
        (b"* BYE " + THROTTLED, Reason.THROTTLED),
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
    assert fault.retry_after == (pytest.approx(299.91) if reason is Reason.THROTTLED else None)


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
