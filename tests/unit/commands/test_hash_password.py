"""`mailsonde hash-password`: by a pipe and at a terminal."""

from __future__ import annotations

import os
import subprocess
import sys

import bcrypt
import pytest
from click.testing import CliRunner, Result

from monitor.commands.hash_password import hash_password
from monitor.config.web_config import WebConfig

TOO_LONG = "a password has 1 to 72 octets, which is all that bcrypt reads"


def piped(octets: bytes) -> Result:
    return CliRunner().invoke(hash_password, ["--cost", "4"], input=octets)


@pytest.mark.parametrize(
    ("octets", "password"),
    [
        (b"correct horse\n", b"correct horse"),
        (b"correct horse", b"correct horse"),
        (b"windows\r\nsecond line\n", b"windows"),
        (b" spaces \n", b" spaces "),
        ("pässword\n".encode(), "pässword".encode()),
        (b"latin-1 \xe4\n", b"latin-1 \xe4"),
        (b"x" * 72 + b"\r\n", b"x" * 72),
    ],
)
def test_the_first_line_of_a_pipe_is_hashed(octets: bytes, password: bytes) -> None:
    """The hash is of the line without its end, octet by octet, and web.yml takes it."""
    done = piped(octets)
    assert done.exit_code == 0
    digest = done.stdout.removesuffix("\n")
    assert bcrypt.checkpw(password, digest.encode())
    assert WebConfig.model_validate({"basic_auth_users": {"alice": digest}}).basic_auth_users


@pytest.mark.parametrize(
    ("octets", "told"),
    [
        (b"", TOO_LONG),
        (b"\n", TOO_LONG),
        (b"x" * 73, TOO_LONG),
        (b"x" * 1_000_000, TOO_LONG),
        ("ä".encode() * 37 + b"\n", TOO_LONG),
        (b"a\0b\n", "a password has no NUL, at which bcrypt stops reading"),
    ],
)
def test_passwords_that_bcrypt_would_not_tell_apart(octets: bytes, told: str) -> None:
    """A password of which bcrypt ignores a part, and an empty one, are refused with the reason."""
    done = piped(octets)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", f"Error: {told}\n")


def test_a_terminal_is_asked_twice_and_shows_nothing() -> None:
    """At a terminal, the password is asked for until both entries are the same, and never shown."""
    master, slave = os.openpty()
    command = [sys.executable, "-m", "monitor", "hash-password", "--cost", "4"]
    asked = subprocess.Popen(
        command, stdin=slave, stdout=subprocess.PIPE, stderr=slave, start_new_session=True
    )
    os.close(slave)
    shown = b""
    for answer in (b"first", b"second", b"c0rrect horse", b"c0rrect horse"):
        begun = len(shown)
        while not shown[begun:].rstrip().endswith(b":"):
            shown += os.read(master, 1000)
        os.write(master, answer + b"\n")
    digest, _ = asked.communicate(timeout=60)
    os.close(master)
    assert asked.returncode == 0
    assert bcrypt.checkpw(b"c0rrect horse", digest.strip())
    assert b"c0rrect" not in shown
