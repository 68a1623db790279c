"""`mailsonde init` against a real Postfix and Dovecot, found through a real BIND."""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from monitor.config.load import load
from tests.real_servers.bind import Named
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.newcomer import (
    ADDRESS,
    ANSWERS,
    BEHIND_A_FILTER,
    EXCHANGE_ONLINE,
    PASSWORD,
    QUESTION,
    Place,
    zones,
)
from tests.real_servers.postfix import Postfix
from tests.real_servers.process import PATIENCE
from tests.real_servers.site import MAILSONDE


@pytest.fixture
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    start_dovecot: Callable[..., Dovecot],
    start_named: Callable[..., Named],
    server_tls: TlsFiles,
    postfix: Postfix,
    dovecot: Dovecot,
) -> Iterator[Place]:
    """A new user, whose domain has the DNS records in the parameter, or another IMAP server, or neither."""
    special = getattr(request, "param", None)
    imap = start_dovecot(users=("staff",)) if isinstance(special, str) else dovecot
    named = start_named(special if isinstance(special, dict) else zones(postfix, imap, dovecot))
    yield Place(tmp_path, named, server_tls, postfix, dovecot)
    assert dovecot.messages() == [], "a test message was left in the mailbox"


class Terminal:
    """The command on a terminal, with typed input and Ctrl-C."""

    def __init__(self, place: Place, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        # setsid makes it the process's terminal, where the password is asked for.
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *MAILSONDE, "init", *place.guided, *arguments],
            cwd=place.work,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**place.environment, "TERM": "xterm", "COLUMNS": "200"},
        )
        os.close(slave)
        self.shown = ""

    def until(self, text: str, seconds: float = PATIENCE) -> None:
        """Read until ``text`` is on the terminal."""
        ends = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._master], [], [], max(0.0, ends - time.monotonic()))
            assert ready, f"no {text!r} in:\n{self.shown}"
            assert self._read(), f"ended without {text!r}:\n{self.shown}"

    def _read(self) -> bool:
        try:
            chunk = os.read(self._master, 65536)
        except OSError:  # the end of a terminal on Linux
            chunk = b""
        self.shown += chunk.decode()
        return bool(chunk)

    def answer(self, question: str, line: str) -> None:
        """Wait for a question and type the answer."""
        self.until(question)
        self.shown = self.shown.replace(question, "(asked)")
        os.write(self._master, line.encode() + b"\n")

    def interrupt(self) -> int:
        """Press Ctrl-C until it has an effect, and return the exit status.

        Python loses one that comes just as it begins to read a line, so users press it again.
        """
        going_on = True
        while going_on:
            os.write(self._master, b"\x03")
            while going_on and select.select([self._master], [], [], 2.0)[0]:
                going_on = self._read()
        os.close(self._master)
        return self._process.wait(PATIENCE)


def test_from_an_address_and_a_password(place: Place) -> None:
    """Five answers lead to a valid configuration, with the password in a private file."""
    done = place.run(typed=ANSWERS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(QUESTION.findall(done.stdout + done.stderr)) == 5
    secret = place.work / "mailsonde.password"
    assert secret.read_text() == f"{PASSWORD}\n"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in place.config.read_text() + done.stdout + done.stderr
    validated = subprocess.run(
        [*MAILSONDE, "validate", place.config], capture_output=True, text=True, cwd=place.work
    )
    assert validated.stdout == f"{place.config}: valid, 4 probes\n", validated.stderr
    made = load(place.config)
    assert {name: server.port for name, server in made.servers.items()} == {
        "submission@localhost": place.postfix.submission_port,
        "imap@localhost": place.dovecot.imaps_port,
    }
    assert [probe.kind for probe in made.probes] == ["roundtrip", "smtp", "imap", "mx"]
    assert list(place.temporary.iterdir()) == []


def test_hosts_are_shown_before_the_password_is_asked_for(place: Place) -> None:
    """A user who declines a server found only in DNS has sent it nothing, and there is no file."""
    done = place.run(typed=f"{ADDRESS}\nn\n")
    assert done.returncode == 1
    assert f"IMAP localhost port {place.dovecot.imaps_port}, TLS (from SRV _imaps)" in done.stdout
    assert "outside example.test, and only unsigned DNS points to it: localhost" in done.stdout
    assert "Password" not in done.stdout + done.stderr
    place.require_nothing_left()


@pytest.mark.parametrize("answers", range(1, 5))
def test_nothing_is_written_before_it_is_confirmed(place: Place, answers: int) -> None:
    """If the input ends before the last question, no file is written."""
    lines = [ADDRESS, "y", PASSWORD, "file", "y"][:answers]
    done = place.run(typed="".join(f"{line}\n" for line in lines))
    assert done.returncode == 1
    assert "stopped; nothing was written" in done.stderr
    place.require_nothing_left()


def test_writing_is_declined(place: Place) -> None:
    """If the last answer is no, no file is written."""
    assert place.run(typed=f"{ADDRESS}\ny\n{PASSWORD}\nenv\nn\n").returncode == 1
    place.require_nothing_left()


def test_wrong_password_first(place: Place) -> None:
    """A refused login shows step and answer and asks again; with the right password, it continues."""
    done = place.run(
        typed=f"{ADDRESS}\ny\nwr0ng-Passw0rd\n\n{PASSWORD}\nenv\ny\n",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "auth_failed: in phase auth: PLAIN: 535 5.7.8" in done.stdout
    assert "auth_failed: in phase login: " in done.stdout
    assert "wr0ng" not in done.stdout + done.stderr
    assert yaml.safe_load(place.config.read_text())["mailboxes"]["canary"]["password"] == {
        "env": "MAILSONDE_PASSWORD"
    }
    assert "export MAILSONDE_PASSWORD=" in done.stdout
    assert [path.name for path in place.work.iterdir()] == ["mailsonde.yaml"]


def test_passwords_are_not_tried_for_ever(place: Place) -> None:
    """After three refused passwords, the command ends, to avoid locking the account."""
    done = place.run("--username", ADDRESS, typed=f"{ADDRESS}\ny\n" + "wrong\n" + "\nwrong\n" * 9)
    assert done.returncode == 2
    assert done.stdout.count("in phase auth: PLAIN: 535") == 3
    assert done.stderr.endswith(
        "mailsonde cannot continue: the login does not work; "
        "the lines above show the step and the server's answer\n"
    )
    place.require_nothing_left()


def test_without_any_question(place: Place) -> None:
    """With everything in options there is no question, and the file has the same variable."""
    done = place.run(
        *("--yes", "--address", ADDRESS, "--password-env", "CANARY", "--location", "fra1"),
        *place.named_servers,
        CANARY=PASSWORD,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert QUESTION.findall(done.stdout + done.stderr) == []
    written = yaml.safe_load(place.config.read_text())
    assert written["agent"]["location"] == "fra1"
    assert next(iter(written["servers"].values()))["password"] == {"env": "CANARY"}
    assert "\x1b" not in done.stdout, "no colours or movements off a terminal"


def test_script_with_a_wrong_password(place: Place) -> None:
    """A script with a refused password exits 2 after one login, and writes nothing."""
    secret = place.directory / "secret"
    secret.write_text("wrong\n")
    done = place.run("--no-input", "--address", ADDRESS, "--password-file", str(secret), *place.named_servers)
    assert done.returncode == 2
    assert done.stdout.count("in phase auth: PLAIN: 535") == 1
    place.require_nothing_left()


def test_script_sends_no_password_to_a_stranger(place: Place) -> None:
    """Without a question, a host outside the domain that only DNS names gets no credentials."""
    done = place.run("--yes", "--address", ADDRESS, "--password-env", "CANARY", CANARY=PASSWORD)
    assert done.returncode == 2
    assert "not sending the password to a server outside example.test" in done.stderr
    assert "Logging in" not in done.stdout
    place.require_nothing_left()


@pytest.mark.parametrize("place", ["other IMAP server"], indirect=True)
def test_pop3_where_imap_refuses(place: Place) -> None:
    """If the IMAP server does not know the account, POP3 is used without another question."""
    done = place.run(typed=f"{ADDRESS}\ny\n{PASSWORD}\nenv\ny\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "IMAP cannot be used; trying POP3 localhost" in done.stdout
    made = yaml.safe_load(place.config.read_text())
    assert [probe["kind"] for probe in made["probes"]] == ["roundtrip", "smtp", "pop3", "mx"]


@pytest.mark.parametrize("name", ["mailsonde.yaml", "mailsonde.password"])
def test_no_file_is_overwritten(place: Place, name: str) -> None:
    """An existing file is not changed, and the error comes before any question or message."""
    (place.work / name).write_text("mine\n")
    done = place.run(typed=ANSWERS)
    assert done.returncode == 2
    assert f"{name} already exists; move it away, or name another file with --out" in done.stderr
    assert [path.name for path in place.work.iterdir()] == [name]
    assert (place.work / name).read_text() == "mine\n"
    if name == "mailsonde.yaml":
        assert done.stdout == ""


def test_untrusted_certificate_gets_no_password(place: Place) -> None:
    """A server with an untrusted certificate is refused before the login, with the remedy."""
    place.guided = place.guided[:2]
    done = place.run("--yes", "--address", ADDRESS, "--password-env", "X", *place.named_servers, X=PASSWORD)
    assert done.returncode == 2
    assert "certificate_untrusted: in phase tls" in done.stdout
    assert "name yours: --smtp HOST:PORT, and its CA if it is your own: --tls-ca FILE" in done.stderr
    place.require_nothing_left()


def test_message_that_does_not_come_back(place: Place) -> None:
    """If the server refuses the message, a script ends with its reply and without a file."""
    done = place.run(
        *("--yes", "--address", "deferred@example.test", "--username", ADDRESS, "--password-env", "X"),
        *place.named_servers,
        X=PASSWORD,
    )
    assert done.returncode == 2
    assert "in phase rcpt: 450 4.2.0" in done.stdout
    place.require_nothing_left()


@pytest.mark.parametrize("stage", ["address", "servers", "password", "storage", "write"])
def test_ctrl_c_leaves_nothing_behind(place: Place, stage: str) -> None:
    """Ctrl-C at any question exits 1 without a file, a ledger, or a traceback."""
    terminal = Terminal(place)
    questions = {
        "address": ("account for mailsonde:", ADDRESS),
        "servers": (f"Log in at these servers as {ADDRESS}? [Y/n]:", "y"),
        "password": ("Password:", PASSWORD),
        "storage": ("(file, env) [file]:", "file"),
        "write": ("Write mailsonde.yaml and mailsonde.password? [Y/n]:", "y"),
    }
    for name, (question, line) in questions.items():
        if name == stage:
            terminal.until(question)
            break
        terminal.answer(question, line)
    assert terminal.interrupt() == 1
    assert "stopped; nothing was written" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert PASSWORD not in terminal.shown
    place.require_nothing_left()


def test_ctrl_c_while_servers_are_tried(place: Place) -> None:
    """Ctrl-C while waiting for a server ends at once, and removes the temporary ledger."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"localhost:{silent.getsockname()[1]}"
        terminal = Terminal(place, "--address", ADDRESS, "--smtp", where, "--mailbox", f"imaps://{where}")
        terminal.until("Connecting, without logging in")
        connection, _ = silent.accept()
        with connection:
            assert terminal.interrupt() == 1
    assert "stopped; nothing was written" in terminal.shown
    assert "Traceback" not in terminal.shown
    place.require_nothing_left()


def mailsonde(place: Place, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAILSONDE, *arguments],
        capture_output=True,
        text=True,
        cwd=place.work,
        env={**place.environment, **environment},
    )


@pytest.mark.parametrize("place", [BEHIND_A_FILTER], indirect=True, ids=["alias"])
def test_exchange_online_behind_a_filter(place: Place) -> None:
    """If the MX record names a filter, the alias for Outlook shows the provider."""
    done = place.run("--yes", "--address", ADDRESS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(autodiscover.example.test is an alias of autodiscover.outlook.com)" in done.stdout
    assert "graph" in place.config.read_text()


@pytest.mark.parametrize("place", [EXCHANGE_ONLINE], indirect=True, ids=["MX"])
def test_exchange_online(place: Place) -> None:
    """A domain at Exchange Online gets OAuth2 and no login; the doctor says what is missing first."""
    done = place.run("--address", ADDRESS, typed="y\n\n1-2-3\nenv\nAPP_SECRET\ny\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Exchange Online (MX record example-test.mail.protection.outlook.com)" in done.stdout
    assert "assword:" not in done.stdout + done.stderr
    assert done.stdout.endswith("  mailsonde doctor mailbox canary --config mailsonde.yaml\n")
    valid = mailsonde(place, "validate", "mailsonde.yaml", APP_SECRET="x")
    assert valid.stdout == "mailsonde.yaml: valid, 2 probes\n", valid.stderr
    examined = mailsonde(place, *done.stdout.split()[-5:])
    assert examined.returncode == 2
    assert "environment variable APP_SECRET is not set" in examined.stderr


@pytest.mark.parametrize(
    "place",
    [{"example.test": "@ MX 5 \\027[31mx\\032y.mail.protection.outlook.com.\n"}],
    indirect=True,
    ids=["escape"],
)
def test_mx_record_that_is_no_host(place: Place) -> None:
    """An MX record with control characters shows no provider, and reaches the terminal only escaped."""
    done = place.run("--yes", "--address", ADDRESS, "--password-env", "X", X=PASSWORD)
    assert done.returncode == 2
    assert "no submission server was found" in done.stderr
    assert "Exchange Online" not in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    place.require_nothing_left()


@pytest.mark.parametrize("place", [EXCHANGE_ONLINE], indirect=True, ids=["MX"])
def test_ctrl_c_before_oauth2_is_written(place: Place) -> None:
    """Ctrl-C at the last question leaves no file behind."""
    terminal = Terminal(place, "--address", ADDRESS, "--client-id", "1-2-3")
    terminal.answer("Tenant: its id, or one of its domains [example.test]:", "")
    terminal.answer("(env, file, certificate) [env]:", "certificate")
    terminal.answer("File [app.pem]:", "")
    terminal.until("Write mailsonde.yaml? [Y/n]:")
    assert terminal.interrupt() == 1
    assert "stopped; nothing was written" in terminal.shown
    assert "Traceback" not in terminal.shown
    place.require_nothing_left()
