"""The IMAP client against a real Dovecot."""

from __future__ import annotations

import asyncio
import imaplib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from probes.core.clock import SystemClock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols.imap import FolderStatus, encode_folder
from probes.protocols.imap_session import ImapSession
from tests.real_servers.dovecot import Dovecot, TlsFiles

pytestmark = pytest.mark.tried("imap", "Dovecot")

MESSAGE = b"From: a@example.test\r\nSubject: %s\r\nX-Long: %s\r\n\r\nbody\r\n"
UMLAUTS = "Entwürfe & Ablage"
JUNK = """
namespace inbox {
  inbox = yes
  separator = /
  mailbox "Müll & Spam" {
    auto = create
    special_use = \\Junk
  }
}
"""


@pytest.fixture
def settings_of(server_tls: TlsFiles) -> Callable[..., ServerSettings]:
    """Return a function that makes a Dovecot's settings for one mode of TLS."""

    def make(dovecot: Dovecot, tls: str = "implicit", auth: str = "auto") -> ServerSettings:
        port = dovecot.imaps_port if tls == "implicit" else dovecot.imap_port
        made: dict[str, Any] = {"protocol": "imap", "host": "127.0.0.1", "port": port, "tls": tls}
        if tls != "none":
            made["tls_ca"] = str(server_tls.authority)
        return ServerSettings.model_validate({**made, "auth": auth, "timeout": "10s"})

    return make


@asynccontextmanager
async def entered(server: ServerSettings, password: str = Dovecot.password) -> AsyncIterator[ImapSession]:
    clock, secret = SystemClock(), SecretStr(password)
    session = await ImapSession.open(
        server, username=Dovecot.username, password=secret, phases=PhaseTimer(clock), clock=clock
    )
    try:
        yield session
    finally:
        session.abort()


@contextmanager
def other_client(dovecot: Dovecot, server_tls: TlsFiles) -> Iterator[imaplib.IMAP4]:
    """Log in with Python's own client, for what ours cannot do."""
    context = ssl.create_default_context(cafile=server_tls.authority)
    with imaplib.IMAP4_SSL("127.0.0.1", dovecot.imaps_port, ssl_context=context) as client:
        client.login(dovecot.username, dovecot.password)
        yield client


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
@pytest.mark.parametrize("auth", ["auto", "plain", "login", "cram-md5"])
async def test_each_way_in(
    tls: str, auth: str, dovecot: Dovecot, settings_of: Callable[..., ServerSettings]
) -> None:
    """With IMAPS and STARTTLS, each login method opens the mailbox, and logging out works."""
    async with entered(settings_of(dovecot, tls, auth)) as session:
        assert session.certificate_expiry is not None
        assert {"IDLE", "UIDPLUS", "NAMESPACE"} <= session.capabilities
        await session.select("INBOX")
        assert session.uid_validity > 0
        await session.log_out()


@pytest.mark.parametrize("auth", ["plain", "login", "cram-md5"])
async def test_a_wrong_password(
    auth: str, dovecot: Dovecot, settings_of: Callable[..., ServerSettings]
) -> None:
    """A wrong password is reported as such with any method, and is in no text."""
    for password in ("wrong-Pa55word", "wröng-Pa55word", 'wrong-"Pa55\\word', "x" * 1000):
        with pytest.raises(ProbeFault) as caught:
            async with entered(settings_of(dovecot, "implicit", auth), password=password):
                pass
        assert caught.value.reason is Reason.AUTH_FAILED
        assert password[:8] not in str(caught.value)


async def test_folders(
    start_dovecot: Callable[..., Dovecot], settings_of: Callable[..., ServerSettings], server_tls: TlsFiles
) -> None:
    """Folders are listed and opened by their decoded names; the junk folder is marked."""
    dovecot = start_dovecot(extra=JUNK)
    with other_client(dovecot, server_tls) as client:
        assert client.create(encode_folder(UMLAUTS).decode())[0] == "OK"
        assert client.create('"back\\\\slash \\"quoted\\""')[0] == "OK"
    assert [path.name for path in dovecot.directory.glob("mail/canary*/.Ent*")] == [".Entw&APw-rfe &- Ablage"]
    async with entered(settings_of(dovecot)) as session:
        folders = {folder.name: folder for folder in await session.folders()}
        assert set(folders) == {"INBOX", UMLAUTS, "Müll & Spam", 'back\\slash "quoted"'}
        assert "\\JUNK" in folders["Müll & Spam"].attributes
        assert "\\JUNK" not in folders[UMLAUTS].attributes
        assert folders["INBOX"].delimiter == "/"
        assert await session.namespace() == [""]
        for name in folders:
            await session.select(name, read_only=True)
            assert session.folder == name
            told = session.exists, session.uid_next, session.uid_validity
            assert await session.status_of(name) == FolderStatus(*told)
        for command in (session.select("Nirgends"), session.status_of("Nirgends")):
            with pytest.raises(ProbeFault) as caught:
                await command
            assert caught.value.reason is Reason.IMAP_NO_FOLDER
        await session.log_out()


async def test_find_and_read(
    start_dovecot: Callable[..., Dovecot], settings_of: Callable[..., ServerSettings]
) -> None:
    """Messages are found; their header fields, header sections and beginnings are read as delivered."""
    dovecot = start_dovecot()
    for subject in (b"one", b"two", b"three"):
        dovecot.deliver(MESSAGE % (subject, b"x" * 900))
    async with entered(settings_of(dovecot)) as session:
        await session.select("INBOX", read_only=True)
        assert session.exists == 3
        uids = await session.uid_search(b"UNDELETED")
        assert len(uids) == 3
        fields = await session.fetch_fields(uids[1], ["Subject", "X-Nowhere"])
        assert fields == {uids[1]: b"Subject: two\r\n\r\n", uids[2]: b"Subject: three\r\n\r\n"}
        assert await session.fetch_fields(uids[2] + 1, ["Subject"]) == {}
        found = await session.fetch_fields_of([uids[2], uids[0], 9999], ["X-Nowhere"])
        assert found == {uids[0]: b"\r\n", uids[2]: b"\r\n"}
        head = await session.header_section(uids[0], limit=4000)
        assert head is not None
        assert head.endswith(b"x" * 900 + b"\r\n\r\n")
        assert await session.header_section(uids[0], limit=len(head)) == head
        with pytest.raises(ProbeFault) as caught:
            await session.header_section(uids[0], limit=len(head) - 1)
        assert caught.value.reason is Reason.RESPONSE_TOO_LARGE
        whole = await session.part_of(uids[0], 0, 10000)
        assert whole == head + b"body\r\n"
        assert await session.part_of(uids[0], 0, 20) == whole[:20]
        assert await session.part_of(uids[0], 5, 20) == whole[5:25]
        assert not await session.part_of(uids[0], len(whole), 20)
        assert await session.header_section(9999, limit=100) is None
        assert await session.uid_search(b"SEEN") == []
        await session.log_out()


async def test_only_our_own_message_is_deleted(
    start_dovecot: Callable[..., Dovecot], settings_of: Callable[..., ServerSettings], server_tls: TlsFiles
) -> None:
    """A message marked as deleted by someone else survives the deletion of ours (RFC 4315)."""
    dovecot = start_dovecot()
    for subject in (b"theirs", b"ours"):
        dovecot.deliver(MESSAGE % (subject, b""))
    with other_client(dovecot, server_tls) as client:
        client.select()
        client.store("1", "+FLAGS", "\\Deleted")
        client.unselect()
    async with entered(settings_of(dovecot)) as session:
        await session.select("INBOX")
        theirs, ours = await session.uid_search(b"ALL")
        assert await session.delete([ours])
        assert not session.changed  # what we deleted ourselves needs no poll
        assert session.exists == 1
        assert await session.uid_search(b"ALL") == [theirs]
        await session.log_out()
    assert [b"theirs" in text for text in dovecot.messages()] == [True]


async def test_a_message_that_another_client_expunged(
    start_dovecot: Callable[..., Dovecot], settings_of: Callable[..., ServerSettings], server_tls: TlsFiles
) -> None:
    """A message expunged by another client reads as gone, and the session continues."""
    dovecot = start_dovecot()
    dovecot.deliver(MESSAGE % (b"one", b""))
    async with entered(settings_of(dovecot)) as session:
        await session.select("INBOX")
        (uid,) = await session.uid_search(b"ALL")
        with other_client(dovecot, server_tls) as client:
            client.select()
            client.store("1", "+FLAGS", "\\Deleted")
            client.expunge()
        assert await session.header_section(uid, limit=1000) is None
        assert await session.fetch_fields_of([uid], ["Subject"]) == {}
        await session.delete([uid])
        await session.noop()
        assert session.exists == 0
        await session.log_out()


async def test_idle_tells_of_an_arrival(
    start_dovecot: Callable[..., Dovecot], settings_of: Callable[..., ServerSettings]
) -> None:
    """A change is reported during IDLE, and the next command finds the message."""
    dovecot = start_dovecot()
    async with entered(settings_of(dovecot)) as session:
        await session.select("INBOX")
        news = asyncio.create_task(session.news())
        before = SystemClock().monotonic()
        await asyncio.to_thread(dovecot.deliver, MESSAGE % (b"one", b""))
        async with asyncio.timeout(120):
            await news
        assert session.changed
        assert session.exists == 1
        assert before < session.heard_at <= await session.noop()
        assert len(await session.fetch_fields(1, ["Subject"])) == 1
        await session.log_out()


async def test_cancelled_news_cost_nothing(
    start_dovecot: Callable[..., Dovecot], settings_of: Callable[..., ServerSettings]
) -> None:
    """A wait for changes may be cancelled at any time; the session keeps working."""
    dovecot = start_dovecot()
    async with entered(settings_of(dovecot)) as session:
        await session.select("INBOX")
        for turns in range(12):
            news = asyncio.create_task(session.news())
            for _ in range(turns):
                await asyncio.sleep(0)
            news.cancel()
            await asyncio.wait([news])
            if turns % 2:
                await session.noop()
        await asyncio.to_thread(dovecot.deliver, MESSAGE % (b"one", b""))
        async with asyncio.timeout(120):
            await session.news()
        assert session.exists == 1
        await session.log_out()


async def test_a_session_too_many(
    start_dovecot: Callable[..., Dovecot], settings_of: Callable[..., ServerSettings]
) -> None:
    """A session beyond the server's limit is refused, without blaming the credentials."""
    server = settings_of(start_dovecot(extra="mail_max_userip_connections = 1\n"))
    async with entered(server) as first:
        with pytest.raises(ProbeFault) as caught:
            async with entered(server):
                pass
        assert caught.value.reason is Reason.IMAP_IN_USE
        await first.log_out()
