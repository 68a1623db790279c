"""The sandbox mail server: its two protocols and its child process."""

import asyncio
import json
import poplib
import signal
import smtplib
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from monitor.demo.sandbox_mail import MESSAGE_LIMIT
from monitor.demo.sandbox_process import Sandbox, SandboxError, started_sandbox

shared_loop = pytest.mark.asyncio(loop_scope="module")

MESSAGE = b"From: canary@sandbox.test\r\nSubject: hello\r\n\r\nfirst\r\n.dotted\r\nlast\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandbox]:
    """Run a sandbox that delivers at once, so that the next login sees any accepted message."""
    directory = tmp_path_factory.mktemp("sandbox")
    instant = {"loss": 0.0, "delay_min": 0.0, "delay_max": 0.0, "slow_max": 0.0}
    async with started_sandbox(directory, seed=1, **instant) as running:
        yield running


def password_of(sandbox: Sandbox) -> str:
    return sandbox.password_file.read_text()


def trust(sandbox: Sandbox) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(sandbox.ca_file))


@contextmanager
def submission(sandbox: Sandbox) -> Iterator[smtplib.SMTP]:
    with smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=60) as client:
        client.starttls(context=trust(sandbox))
        client.ehlo()
        client.login(sandbox.username, password_of(sandbox))
        yield client


@contextmanager
def mailbox(sandbox: Sandbox) -> Iterator[poplib.POP3_SSL]:
    client = poplib.POP3_SSL("127.0.0.1", sandbox.pop3_port, timeout=60, context=trust(sandbox))
    try:
        client.user(sandbox.username)
        client.pass_(password_of(sandbox))
        yield client
    finally:
        client.close()


def submit(sandbox: Sandbox, message: bytes = MESSAGE) -> None:
    with submission(sandbox) as client:
        client.sendmail(sandbox.address, [sandbox.address], message)


def listed_size(client: poplib.POP3_SSL, number: int) -> int:
    answer: object = client.list(number)  # one line of bytes here; typeshed has only the long form
    assert isinstance(answer, bytes)
    return int(answer.split()[2])


def empty(sandbox: Sandbox) -> None:
    with mailbox(sandbox) as client:
        for number in range(1, client.stat()[0] + 1):
            client.dele(number)
        client.quit()


@shared_loop
class TestDelivery:
    async def test_a_submitted_message_arrives_and_can_be_deleted(self, sandbox: Sandbox) -> None:
        """The round trip of the demo works: STARTTLS, AUTH, DATA, then POP3 over TLS, DELE and QUIT."""

        def round_trip() -> None:
            empty(sandbox)
            submit(sandbox)
            with mailbox(sandbox) as client:
                _, lines, _ = client.retr(1)
                assert lines[0].startswith(b"Received: by sandbox.test with ESMTPSA; ")
                assert lines[1:] == MESSAGE.splitlines()
                client.dele(1)
                client.quit()
            with mailbox(sandbox) as client:
                assert client.stat() == (0, 0)

        await asyncio.to_thread(round_trip)

    async def test_a_session_lists_exactly_what_is_not_deleted(self, sandbox: Sandbox) -> None:
        """STAT, LIST, UIDL, TOP and RETR agree after DELE, numbers stay, and RSET restores all."""

        def session() -> None:
            empty(sandbox)
            submit(sandbox)
            submit(sandbox)
            with mailbox(sandbox) as client:
                count, octets = client.stat()
                assert count == 2
                assert client.retr(1)[2] == octets // 2 == listed_size(client, 1)
                uids = client.uidl()[1]
                client.dele(1)
                assert client.stat() == (1, octets // 2)
                assert client.list()[1] == [b"2 %d" % (octets // 2)]
                assert client.uidl()[1] == uids[1:]
                assert client.top(2, 2)[1][-2:] == [b"first", b".dotted"]
                for refused in (client.dele, client.retr, client.uidl, client.list):
                    with pytest.raises(poplib.error_proto, match="No such message"):
                        refused(1)
                client.rset()
                assert client.uidl()[1] == uids
                client.dele(1)
                client.close()  # no QUIT: nothing is deleted (RFC 1939, section 6)
            with mailbox(sandbox) as client:
                assert client.uidl()[1] == uids

        await asyncio.to_thread(session)

    async def test_a_large_message_comes_back_as_it_was_sent(self, sandbox: Sandbox) -> None:
        """Dots at the start of lines survive at any position of the server's blocks."""
        body = [b"." * (1 + i % 70) for i in range(10_000)]

        def there_and_back() -> list[bytes]:
            empty(sandbox)
            submit(sandbox, b"A: b\r\n\r\n" + b"".join(line + b"\r\n" for line in body))
            with mailbox(sandbox) as client:
                return client.retr(1)[1]

        assert (await asyncio.to_thread(there_and_back))[3:] == body

    async def test_capabilities_are_told(self, sandbox: Sandbox) -> None:
        """EHLO under TLS and CAPA have what clients look for."""

        def ask() -> tuple[dict[str, str], set[str]]:
            with submission(sandbox) as client, mailbox(sandbox) as reader:
                return dict(client.esmtp_features), set(reader.capa())

        features, capabilities = await asyncio.to_thread(ask)
        assert features["auth"].split() == ["PLAIN", "LOGIN"]
        assert features["size"] == str(MESSAGE_LIMIT)
        assert "starttls" not in features
        assert {"USER", "UIDL", "TOP", "RESP-CODES"} <= capabilities


@shared_loop
class TestRefusals:
    async def test_auth_before_starttls_is_refused(self, sandbox: Sandbox) -> None:
        """AUTH is neither offered nor accepted without TLS."""

        def attempt() -> tuple[bool, int]:
            with smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=60) as client:
                client.ehlo()
                return client.has_extn("auth"), client.docmd("AUTH", "PLAIN")[0]

        assert await asyncio.to_thread(attempt) == (False, 538)

    @pytest.mark.parametrize("mechanism", ["auth_plain", "auth_login"])
    async def test_both_mechanisms_take_the_right_password_alone(
        self, sandbox: Sandbox, mechanism: str
    ) -> None:
        """A wrong password is 535 5.7.8; the right one is accepted on the same connection."""

        def attempt() -> int:
            with smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=60) as client:
                client.starttls(context=trust(sandbox))
                client.ehlo()
                client.user, client.password = sandbox.username, "wrong"
                name, method = mechanism.removeprefix("auth_").upper(), getattr(client, mechanism)
                with pytest.raises(smtplib.SMTPAuthenticationError) as refusal:
                    client.auth(name, method)
                assert (refusal.value.smtp_code, refusal.value.smtp_error[:5]) == (535, b"5.7.8")
                client.password = password_of(sandbox)
                return client.auth(name, method)[0]

        assert await asyncio.to_thread(attempt) == 235

    @pytest.mark.parametrize("command", ["AUTH", "AUTH PLAIN bm8=", "AUTH PLAIN ?", "AUTH X", "X", ""])
    async def test_nonsense_is_answered_and_the_connection_lives(
        self, sandbox: Sandbox, command: str
    ) -> None:
        """A malformed command gets a 5xx, and the next command works."""

        def attempt() -> tuple[int, int]:
            with smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=60) as client:
                client.starttls(context=trust(sandbox))
                return client.docmd(command)[0] // 100, client.noop()[0]

        assert await asyncio.to_thread(attempt) == (5, 250)

    async def test_a_wrong_pop3_password_is_refused(self, sandbox: Sandbox) -> None:
        """The refusal has [AUTH] (RFC 3206), and no mailbox is open."""

        def attempt() -> None:
            client = poplib.POP3_SSL("127.0.0.1", sandbox.pop3_port, timeout=60, context=trust(sandbox))
            client.user(sandbox.username)
            with pytest.raises(poplib.error_proto, match=r"\[AUTH\]"):
                client.pass_("wrong")
            with pytest.raises(poplib.error_proto, match="Log in first"):
                client.stat()
            client.quit()
            client.close()

        await asyncio.to_thread(attempt)

    async def test_mail_is_taken_from_the_account_for_the_account_alone(self, sandbox: Sandbox) -> None:
        """No relaying: 530 without AUTH, 550 for any other recipient, 452 for a second one."""

        def attempt() -> list[int]:
            with smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=60) as client:
                client.ehlo()
                codes = [client.mail(sandbox.address)[0]]
            with submission(sandbox) as client:
                client.mail(sandbox.address)
                for recipient in ("other@sandbox.test", sandbox.address, sandbox.address):
                    codes.append(client.rcpt(recipient)[0])
            return codes

        assert await asyncio.to_thread(attempt) == [530, 550, 250, 452]

    @pytest.mark.parametrize("declared", [True, False])
    async def test_a_message_beyond_the_limit_is_refused(self, sandbox: Sandbox, declared: bool) -> None:
        """A large message is refused with 552 5.3.4, at MAIL with SIZE, otherwise after the final dot."""

        def attempt() -> tuple[int, bytes]:
            with submission(sandbox) as client:
                size = [f"SIZE={MESSAGE_LIMIT + 1}"] if declared else []
                code, text = client.mail(sandbox.address, size)
                if declared:
                    return code, text
                client.rcpt(sandbox.address)
                return client.data(b"A: b\r\n\r\n" + (b"x" * 998 + b"\r\n") * 1050)

        code, text = await asyncio.to_thread(attempt)
        assert (code, text[:5]) == (552, b"5.3.4")

    async def test_an_endless_line_ends_the_connection(self, sandbox: Sandbox) -> None:
        """Text after an overlong line in a message is never read as commands."""

        def attempt() -> tuple[int, bytes]:
            with submission(sandbox) as client:
                client.mail(sandbox.address)
                client.rcpt(sandbox.address)
                client.docmd("DATA")
                client.send(b"x" * 20_000 + b"\r\nQUIT\r\nNOOP\r\n")
                code, _ = client.getreply()
                assert client.file is not None
                return code, client.file.read()

        assert await asyncio.to_thread(attempt) == (500, b"")

    @pytest.mark.parametrize("port", ["smtp_port", "pop3_port"])
    async def test_connections_beyond_the_limit_are_closed_at_once(self, sandbox: Sandbox, port: str) -> None:
        """Each port serves fifty clients at a time."""
        async with AsyncExitStack() as stack:
            for served in [True] * 50 + [False]:
                reader, writer = await asyncio.open_connection("127.0.0.1", getattr(sandbox, port))
                stack.callback(writer.close)
                if port == "smtp_port" or not served:
                    assert bool(await asyncio.wait_for(reader.read(1), 60)) is served

    async def test_commands_sent_along_with_starttls_are_dropped(self, sandbox: Sandbox) -> None:
        """Plain text after STARTTLS, even a partial line, has no effect under TLS (RFC 3207, section 4.2)."""

        def attempt() -> list[bytes]:
            with socket.create_connection(("127.0.0.1", sandbox.smtp_port), timeout=60) as plain:
                replies = plain.makefile("rb")
                assert replies.readline()[:3] == b"220"
                plain.sendall(b"STARTTLS\r\nNOOP\r\nEHLO inj")
                assert replies.readline()[:3] == b"220"
                replies.close()
                with trust(sandbox).wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
                    encrypted.sendall(b"QUIT\r\n")
                    with encrypted.makefile("rb") as answers:
                        return [line[:3] for line in answers]

        assert await asyncio.to_thread(attempt) == [b"221"]


@shared_loop
class TestProcess:
    async def test_it_listens_on_loopback_only(self, sandbox: Sandbox) -> None:
        """The sandbox cannot be reached from the network."""
        ports = {sandbox.smtp_port, sandbox.pop3_port}
        tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
        rows = [
            row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]
        ]
        listening = {row[1] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) in ports}
        assert {address.split(":")[0] for address in listening} == {"0100007F"}
        assert len(listening) == 2

    async def test_only_its_user_reads_the_password(self, sandbox: Sandbox) -> None:
        """The password file is private, and no other file contains a secret."""
        assert sandbox.password_file.stat().st_mode & 0o777 == 0o600
        assert len(password_of(sandbox)) >= 32
        assert sorted(sandbox.ca_file.parent.iterdir()) == sorted([sandbox.ca_file, sandbox.password_file])
        assert "PRIVATE KEY" not in sandbox.ca_file.read_text()

    @pytest.mark.parametrize("ending", ["end of input", "SIGTERM"])
    async def test_it_ends_in_order(self, tmp_path: Path, ending: str) -> None:
        """SIGINT is ignored; the end of its input and SIGTERM end it at once, with code 0."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "monitor.demo.sandbox", "--directory", str(tmp_path)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            announced = json.loads(await asyncio.wait_for(child.stdout.readline(), 60))
            child.send_signal(signal.SIGINT)
            _, writer = await asyncio.open_connection("127.0.0.1", announced["smtp_port"])
            if ending == "SIGTERM":
                child.terminate()
            else:
                child.stdin.close()
            assert await asyncio.wait_for(child.wait(), 60) == 0
            assert await child.stdout.read() == b""
            writer.close()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

    async def test_missing_libraries_are_told_with_their_remedy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without the extra, the error has the command that installs it."""
        (tmp_path / "twisted.py").write_text("raise ImportError('not there')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(SandboxError, match=r"pip install 'mailsonde\[demo\]'"):
            async with started_sandbox(tmp_path):
                pytest.fail("it started without its libraries")

    async def test_a_failed_start_tells_the_reason(self, tmp_path: Path) -> None:
        """The child's standard error is in the exception."""
        with pytest.raises(SandboxError, match=r"No such file or directory: .*/absent/"):
            async with started_sandbox(tmp_path / "absent"):
                pytest.fail("it started without a directory")

    async def test_a_slow_start_is_given_up(self, tmp_path: Path) -> None:
        """The wait for the child has a time limit, after which the child is gone."""
        with pytest.raises(SandboxError, match="did not start within"):
            async with started_sandbox(tmp_path, start_timeout=0.001):
                pytest.fail("it started too soon for this test")
