"""The POP3 client against a real Dovecot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from monitor.runner import Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.settings import ServerSettings, Site
from probes.core.verdict import PhaseTimer
from probes.pop3 import Pop3, Pop3Settings
from probes.protocols.pop3_session import Pop3Session
from tests.real_servers.dovecot import Dovecot, TlsFiles

pytestmark = pytest.mark.tried("pop3", "Dovecot")

MESSAGE = b"From: a@example.test\r\nSubject: %s\r\n\r\n.one dot\r\n..two dots\r\nlast line\r\n"


@pytest.fixture
def settings_of(server_tls: TlsFiles) -> Callable[..., ServerSettings]:
    """Return a function that makes a Dovecot's settings for one mode of TLS."""

    def make(dovecot: Dovecot, tls: str = "implicit", auth: str = "auto") -> ServerSettings:
        port = dovecot.pop3s_port if tls == "implicit" else dovecot.pop3_port
        made: dict[str, Any] = {
            "protocol": "pop3",
            "host": "127.0.0.1",
            "port": port,
            "tls": tls,
            "auth": auth,
        }
        if tls != "none":
            made["tls_ca"] = str(server_tls.authority)
        return ServerSettings.model_validate({**made, "timeout": "10s"})

    return make


@asynccontextmanager
async def entered(
    server: ServerSettings, password: str = Dovecot.password, username: str = Dovecot.username
) -> AsyncIterator[Pop3Session]:
    clock = SystemClock()
    session = await Pop3Session.open(
        server, username=username, password=SecretStr(password), phases=PhaseTimer(clock), clock=clock
    )
    try:
        yield session
    finally:
        session.abort()


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
@pytest.mark.parametrize("auth", ["auto", "plain", "login", "cram-md5", "apop", "user"])
async def test_each_way_in(
    tls: str, auth: str, dovecot: Dovecot, settings_of: Callable[..., ServerSettings]
) -> None:
    """With POP3S and STLS, each login method opens the mailbox."""
    async with entered(settings_of(dovecot, tls, auth)) as session:
        messages, octets = await session.stat()
        assert messages >= 0
        assert octets >= 0
        assert session.certificate_expiry is not None
        assert session.capabilities.has("UIDL")
        await session.quit()


async def test_apop_in_clear(dovecot: Dovecot, settings_of: Callable[..., ServerSettings]) -> None:
    """Without TLS, the digest of the banner's timestamp opens the mailbox."""
    async with entered(settings_of(dovecot, "none", "apop")) as session:
        await session.stat()
        await session.quit()


@pytest.mark.parametrize("auth", ["plain", "login", "cram-md5", "apop", "user"])
async def test_a_wrong_password(
    auth: str, dovecot: Dovecot, settings_of: Callable[..., ServerSettings]
) -> None:
    """A wrong password is reported as such with any method, and is in no text."""
    with pytest.raises(ProbeFault) as caught:
        async with entered(settings_of(dovecot, "implicit", auth), password="wrong-Pa55word"):
            pass
    assert caught.value.reason is Reason.AUTH_FAILED
    assert "wrong-Pa55word" not in str(caught.value)


async def test_a_wrong_password_is_tried_in_two_ways(
    dovecot: Dovecot, settings_of: Callable[..., ServerSettings]
) -> None:
    """With `auto`, a wrong password costs two attempts on one connection, and both are named."""
    with pytest.raises(ProbeFault) as caught:
        async with entered(settings_of(dovecot, "none"), password="wrong-Pa55word"):
            pass
    assert caught.value.reason is Reason.AUTH_FAILED
    assert re.fullmatch(r"CRAM-MD5: \[AUTH\].*; PLAIN: \[AUTH\].*", caught.value.detail)


async def test_a_long_password(dovecot: Dovecot, settings_of: Callable[..., ServerSettings]) -> None:
    """Dovecot asks for a response too long for the AUTH line, and checks it like any other."""
    with pytest.raises(ProbeFault) as caught:
        async with entered(settings_of(dovecot, "implicit", "plain"), password="x" * 250):
            pass
    assert caught.value.reason is Reason.AUTH_FAILED


async def test_a_certificate_that_nobody_trusts(
    dovecot: Dovecot, settings_of: Callable[..., ServerSettings]
) -> None:
    """Without the authority's file, the server's certificate is refused."""
    server = settings_of(dovecot).model_copy(update={"tls_ca": None})
    with pytest.raises(ProbeFault) as caught:
        await Pop3Session.connect(server, PhaseTimer(SystemClock()), SystemClock())
    assert caught.value.reason is Reason.CERTIFICATE_UNTRUSTED


async def test_find_read_and_delete(
    start_dovecot: Callable[..., Dovecot], settings_of: Callable[..., ServerSettings]
) -> None:
    """Messages are listed and read as delivered, and deleted only by QUIT."""
    dovecot = start_dovecot()
    server = settings_of(dovecot)
    for subject in (b"one", b"two"):
        dovecot.deliver(MESSAGE % subject)
    async with entered(server) as session:
        listed = await session.uidl()
        assert sorted(listed) == [1, 2]
        assert len(set(listed.values())) == 2
        head = await session.top(2, limit=65536)
        assert b"\r\nSubject: two\r\n" in head
        assert b"last line" not in head
        assert (await session.retr(1, limit=65536)).endswith((MESSAGE % b"one").partition(b"\r\n\r\n")[2])
        with pytest.raises(ProbeFault, match="pop3_error"):
            await session.top(3, limit=65536)
        await session.dele(1)
    assert len(dovecot.messages()) == 2  # the session ended before QUIT
    async with entered(server) as session:
        assert await session.uidl() == listed
        await session.dele(1)
        await session.quit()
    async with entered(server) as session:
        assert list((await session.uidl()).values()) == [listed[2]]
        await session.quit()


async def test_what_a_session_does_not_show_came_after_its_login(
    start_dovecot: Callable[..., Dovecot], settings_of: Callable[..., ServerSettings]
) -> None:
    """A message that was there at the login is shown; a later one is in the next session."""
    dovecot = start_dovecot()
    async with entered(settings_of(dovecot)) as session:
        await asyncio.to_thread(dovecot.deliver, MESSAGE % b"later")
        assert await session.uidl() == {}
        await session.quit()
    async with entered(settings_of(dovecot)) as session:
        assert len(await session.uidl()) == 1
        await session.quit()


async def test_a_mailbox_in_use(
    start_dovecot: Callable[..., Dovecot], settings_of: Callable[..., ServerSettings]
) -> None:
    """A second session is refused as in use, which says nothing about the mail system."""
    server = settings_of(start_dovecot(extra="mail_max_userip_connections = 1\n"))
    # With another name for the host, the account is locked separately, as in another process.
    elsewhere = server.model_copy(update={"host": "localhost"})
    async with entered(server) as first:
        await first.stat()
        with pytest.raises(ProbeFault) as caught:
            async with entered(elsewhere):
                pass
    assert caught.value.reason is Reason.POP3_IN_USE
    assert caught.value.reason.outcome is Outcome.UNKNOWN


async def test_the_agent_runs_the_probe(
    start_dovecot: Callable[..., Dovecot], settings_of: Callable[..., ServerSettings]
) -> None:
    """A pop3 probe is ok with its phases, counts the messages, and does not change them."""
    dovecot = start_dovecot()
    dovecot.deliver(MESSAGE % b"one")
    credentials = {"username": dovecot.username, "password": SecretStr(dovecot.password)}
    server = settings_of(dovecot, "starttls").model_copy(update=credentials)
    context = Context(SystemClock(), Site("here", {"pop": server}, {}))
    probe = Pop3(Pop3Settings(name="pop", kind="pop3", server="pop"), context)
    verdict = (await Runner(SystemClock(), "here").run(probe)).verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.OK, Reason.NONE)
    phases = {"connect", "greeting", "capa", "starttls", "tls", "login", "stat", "uidl", "quit"}
    assert set(verdict.phases) == phases
    assert verdict.values["messages"] == 1
    assert verdict.certificate_not_after is not None
    assert len(dovecot.messages()) == 1
