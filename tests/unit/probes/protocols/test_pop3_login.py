"""Logins to POP3 servers: choice of method, TLS before it, refusals, and no secret shown."""

from __future__ import annotations

import asyncio
import base64
import hmac
import ssl
from typing import Any

import pytest
import trustme

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import TURN, PhaseTimer
from tests.fakes.clock import InstantClock
from tests.fakes.logins import USER
from tests.fakes.pop3_dialogue import ENTERED, STAMP, capa, enter, entered, fault_of_entering
from tests.fakes.scripted_server import PASSWORD, Peer, dialogue, scripted_server
from tests.fakes.scripted_server import server_context as context_for
from tests.real_servers.dovecot import TlsFiles

NAME = base64.b64encode(USER.encode())
WORD = base64.b64encode(PASSWORD.encode())
CRAM = base64.b64encode(f"{USER} {hmac.new(PASSWORD.encode(), b'<x>', 'md5').hexdigest()}".encode())


@pytest.mark.parametrize(
    ("auth", "stamp", "offered", "login"),
    [
        ("auto", STAMP, ["SASL PLAIN", "USER"], [(rb"APOP canary@example\.test [0-9a-f]{32}", b"+OK")]),
        ("auto", "", ["SASL PLAIN", "USER"], [(rb"AUTH PLAIN \S+", b"+OK")]),
        ("auto", "", ["USER"], [(b"USER canary@example.test", b"+OK"), (b"PASS s3cret-Pa55word", b"+OK")]),
        ("user", STAMP, ["SASL PLAIN", "USER"], [(b"USER .*", b"+OK"), (b"PASS .*", b"+OK")]),
        ("plain", STAMP, ["SASL PLAIN", "USER"], [(rb"AUTH PLAIN \S+", b"+OK")]),
        ("apop", STAMP, ["SASL PLAIN", "USER"], [(b"APOP .*", b"+OK")]),
        ("auto", STAMP, ["SASL PLAIN CRAM-MD5"], [(b"AUTH CRAM-MD5", b"+ PHg+"), (CRAM, b"+OK")]),
        ("login", "", ["SASL LOGIN"], [(b"AUTH LOGIN", b"+ "), (NAME, b"+ UGFzc3dvcmQ6"), (WORD, b"+OK")]),
    ],
)
async def test_how_to_log_in_in_clear(
    auth: str, stamp: str, offered: list[str], login: list[tuple[bytes, bytes]]
) -> None:
    """Without TLS, a method that hides the password comes first; a configured method is used."""
    script = dialogue(f"+OK ready {stamp}".encode(), capa(*offered), *login, (b"QUIT", b"+OK"))
    async with entered(script, auth=auth) as session:
        await session.quit()


async def test_a_server_without_capa() -> None:
    """A server without CAPA gets USER and PASS."""
    script = dialogue(b"+OK", (b"CAPA", b"-ERR what?"), (b"USER .*", b"+OK"), (b"PASS .*", b"+OK"))
    async with entered(script) as session:
        assert session.capabilities.listed() == []
        session.abort()


@pytest.mark.parametrize(
    ("auth", "offered"),
    [
        ("plain", ["USER"]),
        ("apop", ["USER", "SASL PLAIN"]),
        ("user", ["SASL PLAIN"]),
        ("auto", ["SASL X-UNHEARD-OF"]),
    ],
)
async def test_a_way_that_is_not_offered(auth: str, offered: list[str]) -> None:
    """A method that is not offered is not tried, and no credentials are sent."""
    fault = await fault_of_entering(dialogue(b"+OK ready", capa(*offered)), auth=auth)
    assert fault.reason is Reason.AUTH_NOT_OFFERED


async def test_user_is_tried_where_capa_names_no_method() -> None:
    """A server whose CAPA has neither USER nor SASL gets USER and PASS."""
    script = dialogue(b"+OK", capa("TOP"), (b"USER .*", b"+OK"), (b"PASS .*", b"+OK"))
    async with entered(script) as session:
        session.abort()


BY_USER = (b"+OK ready", capa("USER", "UIDL"), (b"USER .*", b"+OK"))


@pytest.mark.parametrize(
    "refusal",
    [
        b"-ERR Temporary problem, please try again later",
        b"-ERR chdir Maildir failed",
        b"-ERR Server error: no such backend",
        b"-ERR Unable to lock maildrop",
    ],
)
async def test_a_refusal_that_tells_of_other_trouble(refusal: bytes) -> None:
    """A refusal with another cause does not blame the credentials."""
    fault = await fault_of_entering(dialogue(*BY_USER, (b"PASS .*", refusal)))
    assert fault.reason is Reason.LOGIN_REFUSED


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (b"-ERR", Reason.LOGIN_REFUSED),
        (b"-ERR no", Reason.LOGIN_REFUSED),
        (b"-ERR [AUTH] no", Reason.AUTH_FAILED),
    ],
)
async def test_a_server_that_would_say_so(refusal: bytes, reason: Reason) -> None:
    """With AUTH-RESP-CODE (RFC 3206), only a refusal with [AUTH] blames the credentials."""
    script = dialogue(
        b"+OK ready", capa("USER", "AUTH-RESP-CODE"), (b"USER .*", b"+OK"), (b"PASS .*", refusal)
    )
    assert (await fault_of_entering(script)).reason is reason


async def test_credentials_that_worked_do_not_turn_wrong() -> None:
    """An unexplained refusal blames new credentials, but not those that were accepted before."""
    answers = iter([b"-ERR", b"+OK", b"-ERR", b"-ERR [AUTH] changed"])

    async def script(peer: Peer) -> None:
        await dialogue(*BY_USER, (b"PASS .*", next(answers)))(peer)

    async with scripted_server(script) as server:
        reasons: list[Reason | None] = []
        for _ in range(4):
            try:
                (await enter(server)).abort()
                reasons.append(None)
            except ProbeFault as fault:
                reasons.append(fault.reason)
            await server.peer_closed()
    assert reasons == [Reason.AUTH_FAILED, None, Reason.LOGIN_REFUSED, Reason.AUTH_FAILED]


async def test_one_session_of_an_account_at_a_time() -> None:
    """A probe and a watcher of one mailbox take turns, because many servers allow one session (RFC 1939)."""
    async with scripted_server(dialogue(*BY_USER, (b"PASS .*", b"+OK"))) as server:
        first = await enter(server)
        phases = PhaseTimer(InstantClock())
        second = asyncio.create_task(enter(server, phases=phases))
        async with asyncio.timeout(60):
            while phases.current != TURN:  # noqa: ASYNC110 # a phase has no event
                await asyncio.sleep(0)
        assert not second.done()
        first.abort()
        (await second).abort()


async def test_a_long_response_waits_for_the_continuation() -> None:
    """An AUTH line over 255 octets has no initial response (RFC 5034 section 4)."""
    long = base64.b64encode(f"\0{USER}\0{'p' * 200}".encode())
    script = dialogue(b"+OK", capa("SASL PLAIN"), (b"AUTH PLAIN", b"+ "), (long, b"+OK"))
    async with entered(script, password="p" * 200) as session:
        session.abort()


async def test_a_server_that_asks_all_the_same() -> None:
    """A server that ignores the initial response gets it when it asks."""
    script = dialogue(b"+OK", capa("SASL PLAIN"), (b"AUTH PLAIN .+", b"+"), (rb"[\w=+/]+", b"+OK"))
    async with entered(script) as session:
        session.abort()


@pytest.mark.parametrize("auth", ["apop", "plain", "user"])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"-ERR [IN-USE] another session", Reason.POP3_IN_USE),
        (b"-ERR [LOGIN-DELAY] minimum time between mail checks", Reason.POP3_LOGIN_DELAY),
        (b"-ERR [AUTH] no", Reason.AUTH_FAILED),
        (b"-ERR [SYS/TEMP] later", Reason.POP3_SYS_TEMP),
        (b"-ERR [SYS/PERM] never", Reason.POP3_SYS_PERM),
        (b"-ERR no", Reason.AUTH_FAILED),
        (b"HTTP/1.1 400 Bad Request", Reason.PROTOCOL_ERROR),
    ],
)
async def test_a_refused_login(auth: str, answer: bytes, reason: Reason) -> None:
    """Every refusal has its reason with any method, and a delay the seconds from CAPA."""

    async def refusing(peer: Peer) -> None:
        capabilities = capa("SASL PLAIN", "USER", "LOGIN-DELAY 600")
        await dialogue(b"+OK ready " + STAMP.encode(), capabilities)(peer)
        if await peer.expect(b"(AUTH|USER|APOP) .*") == b"USER canary@example.test":
            await dialogue(b"+OK")(peer)
            await peer.expect(b"PASS .*")
        await peer.send(answer)

    fault = await fault_of_entering(refusing, auth=auth)
    assert fault.reason is reason
    assert fault.retry_after == (600.0 if reason is Reason.POP3_LOGIN_DELAY else None)


APOP = (rb"APOP canary@example\.test [0-9a-f]{32}", b"-ERR no such command")
PASS = (b"PASS .*", b"-ERR [AUTH] wrong password")


@pytest.mark.parametrize(
    ("offered", "login"),
    [
        (["USER"], [(b"USER .*", b"+OK"), (b"PASS .*", b"+OK")]),
        (["SASL PLAIN", "USER"], [(rb"AUTH PLAIN \S+", b"+OK")]),
    ],
)
async def test_a_refused_apop_gives_way(offered: list[str], login: list[tuple[bytes, bytes]]) -> None:
    """A timestamp in the banner is no guarantee: if APOP is refused, USER or PLAIN logs in."""
    async with entered(dialogue(b"+OK " + STAMP.encode(), capa(*offered), APOP, *login)) as session:
        session.abort()


async def test_a_password_that_was_handed_over_is_refused_once(
    server_context: ssl.SSLContext, server_tls: TlsFiles
) -> None:
    """Over TLS, after a method that sends the password is refused, no other is tried, to avoid a lockout."""

    async def encrypted(peer: Peer) -> None:
        await peer.start_tls(server_context)
        refused = (rb"AUTH PLAIN \S+", b"-ERR [AUTH] no")
        await dialogue(b"+OK " + STAMP.encode(), capa("SASL PLAIN CRAM-MD5", "USER"), refused)(peer)

    async with scripted_server(encrypted, server_tls.authority) as server:
        with pytest.raises(ProbeFault) as caught:
            await enter(server, tls="implicit")
        await server.peer_closed()
    assert caught.value.reason is Reason.AUTH_FAILED
    assert len(server.received) == 2


@pytest.mark.parametrize(
    ("options", "stamp", "login", "detail"),
    [
        ({}, STAMP, [APOP, (b"USER .*", b"+OK"), PASS], "APOP: no such command; USER: [AUTH] wrong password"),
        ({"auth": "apop"}, STAMP, [APOP], "APOP: no such command"),
        ({}, "", [(b"USER .*", b"+OK"), PASS], "USER: [AUTH] wrong password"),
    ],
)
async def test_a_refusal_names_the_method(
    options: dict[str, str], stamp: str, login: list[tuple[bytes, bytes]], detail: str
) -> None:
    """The detail has each failed method; a configured one is the only one."""
    script = dialogue(b"+OK " + stamp.encode(), capa("USER"), *login)
    fault = await fault_of_entering(script, **options)
    assert (fault.reason, fault.detail) == (Reason.AUTH_FAILED, detail)


async def test_a_server_that_hangs_up_after_a_refusal() -> None:
    """A hang-up after a refusal is a refused login, not a lost connection."""

    async def closing(peer: Peer) -> None:
        await dialogue(b"+OK " + STAMP.encode(), capa("USER"), APOP)(peer)
        await peer.close()

    fault = await fault_of_entering(closing)
    assert (fault.reason, fault.detail) == (Reason.AUTH_FAILED, "APOP: no such command")


async def test_a_busy_mailbox_is_not_asked_twice() -> None:
    """Only refused credentials lead to another method; a mailbox in use does not."""
    busy = (APOP[0], b"-ERR [IN-USE] locked")
    fault = await fault_of_entering(dialogue(b"+OK " + STAMP.encode(), capa("USER"), busy))
    assert (fault.reason, fault.detail) == (Reason.POP3_IN_USE, "APOP: [IN-USE] locked")


async def test_a_server_that_never_stops_asking() -> None:
    """A server that keeps sending challenges ends the login."""
    asking = [(b"AUTH PLAIN .*", b"+ "), (rb"[\w=+/]+", b"+ more")]
    fault = await fault_of_entering(dialogue(b"+OK", capa("SASL PLAIN"), *asking))
    assert fault.reason is Reason.PROTOCOL_ERROR


@pytest.mark.parametrize("auth", ["apop", "plain", "user", "login", "cram-md5"])
@pytest.mark.parametrize("prefix", [b"", b"-ERR unknown command: "])
@pytest.mark.parametrize("suffix", [b"", b" that is " + PASSWORD.encode(), b"x" * 3000])
async def test_no_fault_shows_a_password(auth: str, prefix: bytes, suffix: bytes) -> None:
    """If a server echoes the login or its password, no fault shows it."""
    secrets = [PASSWORD]

    async def echoing(peer: Peer) -> None:
        await dialogue(b"+OK ready " + STAMP.encode(), capa("SASL PLAIN LOGIN CRAM-MD5", "USER"))(peer)
        line = await peer.expect(b".*")
        if line.startswith(b"USER"):
            await peer.send(b"+OK")
            line = await peer.expect(b".*")
        for _ in range({b"AUTH LOGIN": 2, b"AUTH CRAM-MD5": 1}.get(line, 0)):
            await peer.send(b"+ PHg+")
            line = await peer.expect(b".*")
        secrets.append(line.split()[-1].decode())
        await peer.send(prefix + line + suffix)

    fault: BaseException | None = await fault_of_entering(echoing, auth=auth)
    while fault is not None:
        assert not [secret for secret in secrets if secret in f"{fault} {vars(fault)}"]
        fault = fault.__cause__ or (None if fault.__suppress_context__ else fault.__context__)


async def test_no_repr_shows_a_password() -> None:
    """No repr of a session, as in tracebacks and logs, has the password."""
    async with entered(dialogue(*ENTERED)) as session:
        assert PASSWORD not in repr(session) + repr(vars(session))
        session.abort()


@pytest.fixture
def server_context(server_tls: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_tls.certificate, server_tls.key)
    return context


async def test_stls(server_context: ssl.SSLContext, server_tls: TlsFiles) -> None:
    """After STLS, the capabilities are requested again, and earlier ones are discarded."""

    async def upgrading(peer: Peer) -> None:
        await dialogue(b"+OK", capa("STLS", "SASL PLAIN", "X-CLEAR"), (b"STLS", b"+OK"))(peer)
        await peer.start_tls(server_context)
        await dialogue(capa("USER"), (b"USER .*", b"+OK"), (b"PASS .*", b"+OK"), (b"QUIT", b"+OK"))(peer)

    phases = PhaseTimer(InstantClock())
    async with scripted_server(upgrading, server_tls.authority) as server:
        session = await enter(server, phases=phases, tls="starttls")
        assert session.capabilities.listed() == ["USER"]
        assert session.certificate_expiry is not None
        await session.quit()
        await server.peer_closed()
    assert list(phases.seconds) == ["connect", "greeting", "capa", "starttls", "tls", "login", "quit"]


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ((b"+OK", capa("USER", "SASL PLAIN")), Reason.TLS_NOT_OFFERED),
        ((b"+OK", (b"CAPA", b"-ERR")), Reason.TLS_NOT_OFFERED),
        ((b"+OK", capa("STLS"), (b"STLS", b"-ERR [SYS/TEMP] not now")), Reason.POP3_SYS_TEMP),
        ((b"+OK", capa("STLS"), (b"STLS", b"+OK\r\n+OK injected")), Reason.TLS_INJECTION),
    ],
)
async def test_no_tls_no_login(steps: tuple[Any, ...], reason: Reason) -> None:
    """If STLS is stripped, refused or preceded by injected lines, no credentials are sent."""
    async with scripted_server(dialogue(*steps)) as server:
        with pytest.raises(ProbeFault) as caught:
            await enter(server, tls="starttls")
        await server.peer_closed()
    assert caught.value.reason is reason
    assert set(server.received) <= {b"CAPA", b"STLS"}


async def test_implicit_tls_for_another_name(certificate_authority: trustme.CA, server_tls: TlsFiles) -> None:
    """A certificate for another name ends the session before any command."""

    async def wrong(peer: Peer) -> None:
        await peer.start_tls(context_for(certificate_authority, "other.test"))

    phases = PhaseTimer(InstantClock())
    async with scripted_server(wrong, server_tls.authority) as server:
        with pytest.raises(ProbeFault) as caught:
            await enter(server, phases=phases, tls="implicit")
        await server.peer_closed()
    assert caught.value.reason is Reason.CERTIFICATE_NAME
    assert phases.current == "tls"


async def test_implicit_tls_under_a_configured_name(
    certificate_authority: trustme.CA, server_tls: TlsFiles
) -> None:
    """``tls_server_name`` is the name that is verified."""

    async def other(peer: Peer) -> None:
        await peer.start_tls(context_for(certificate_authority, "other.test"))
        await dialogue(*ENTERED)(peer)

    async with scripted_server(other, server_tls.authority) as server:
        session = await enter(server, tls="implicit", tls_server_name="other.test")
        session.abort()
        await server.peer_closed()
