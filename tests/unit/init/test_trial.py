"""Trying servers: what is sent before the user agrees, and why a server is not used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from monitor.init.endpoint import Endpoint, TlsMode
from monitor.init.trial import reach, try_out
from monitor.init.writing import written
from monitor.runner import Result
from probes.core.clock import SystemClock
from tests.fakes.scripted_server import dialogue, scripted_server
from tests.unit.init.test_writing import PLAN

PASSWORD = SecretStr("s3cret-Pa55word")


@pytest.fixture(autouse=True)
def no_ledger_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary ledgers are gone after each test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(tmp_path.iterdir()) == []


def endpoint(port: int, tls: TlsMode = "none") -> Endpoint:
    return Endpoint("smtp", "127.0.0.1", port, tls, "test", vouched=True)


@pytest.mark.parametrize(
    ("offer", "obstacle"),
    [
        (b"250-mail\r\n250 AUTH PLAIN", ""),
        (b"250-mail\r\n250 SIZE", "auth_not_offered: accepts no login here"),
        (b"554 go \x1b[31maway", "smtp_rejected: in phase ehlo: 554 go \\x1b[31maway"),
    ],
)
async def test_server_is_looked_at_without_credentials(offer: bytes, obstacle: str) -> None:
    """A server gets only EHLO and QUIT, and its obstacle has no control characters."""
    script = dialogue(
        b"220 mail", (b"EHLO .*", offer), *([(b"QUIT", b"221 bye")] if offer[:3] == b"250" else [])
    )
    async with scripted_server(script) as server:
        found = endpoint(server.port)
        assert await reach([found], None, SystemClock()) == [(found, obstacle)]
        assert all(line.startswith((b"EHLO ", b"QUIT")) for line in server.received)


async def test_server_without_starttls_is_not_used() -> None:
    """A server with STARTTLS removed is not used for a login."""
    async with scripted_server(dialogue(b"220 mail", (b"EHLO .*", b"250 AUTH PLAIN"))) as server:
        ((_, obstacle),) = await reach([endpoint(server.port, "starttls")], None, SystemClock())
    assert obstacle.startswith("tls_not_offered: ")


async def test_nobody_is_asked() -> None:
    """If nothing was found, nothing is tried."""
    assert await reach([], None, SystemClock()) == []


async def test_no_message_is_sent_where_the_login_fails() -> None:
    """If the login fails, no message is sent, and no secret or ledger remains."""
    seen: list[Result] = []
    text = written(PLAN).replace("mail.example.com", "127.0.0.1").replace("port: 587", "port: 9")
    text = text.replace("port: 993", "port: 9")
    before = dict(os.environ)
    results = await try_out(text, PASSWORD, SystemClock(), seen.append)
    assert sorted(result.kind for result in results) == ["imap", "smtp"]
    assert {str(result.verdict.reason) for result in seen} == {"connect_refused"}
    assert dict(os.environ) == before


async def test_password_is_never_tried_in_clear_unasked() -> None:
    """A configuration that would send the password unencrypted without permission is not tried."""
    text = written(PLAN).replace("tls: starttls", "tls: none")
    with pytest.raises(ValidationError, match="credentials would be sent unencrypted"):
        await try_out(text, PASSWORD, SystemClock(), lambda _: None)
