"""The POP3 and IMAP probes with a real Courier, including faults of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from monitor.runner import Result
from probes.core.reasons import Reason
from tests.real_servers.courier import Courier
from tests.real_servers.dovecot import DOMAIN, PASSWORD, TlsFiles
from tests.real_servers.maildirs import Maildirs
from tests.real_servers.one_run import assert_wrong_password, run_on_mailboxes, server

pytestmark = [pytest.mark.tried("pop3", "Courier"), pytest.mark.tried("imap", "Courier")]

WORDS = "in phase login: PLAIN: Temporary problem, please try again later"
"""What Courier says at login about every fault of its own."""


@pytest.fixture
def courier(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Courier]:
    """A Courier for one test; only ``sender`` has a maildir, with one message."""
    maildirs = Maildirs(server_directory("mail"))
    maildirs.put("sender", "1.message.host", b"Subject: foreign\n\nnot ours\n")
    running = Courier(server_directory("courier"), server_tls, maildirs)
    yield running
    running.stop()


async def run(
    courier: Courier, tls: TlsFiles, directory: Path, password: str = PASSWORD, **login: str
) -> tuple[Result, Result]:
    """Return the results of a POP3 probe with STLS, and of an IMAP probe with implicit TLS."""
    servers = {
        "pop3": server("pop3", courier.pop3_port, tls, **login),
        "imap": server("imap", courier.imaps_port, tls, "implicit", **login),
    }
    pop3, imap = await run_on_mailboxes(directory, servers, password)
    return pop3, imap


async def test_probes(courier: Courier, server_tls: TlsFiles, tmp_path: Path) -> None:
    """Both probes are ok, and count the message."""
    for result in await run(courier, server_tls, tmp_path):
        assert (result.verdict.reason, result.verdict.values["messages"]) == (Reason.NONE, 1)


async def test_wrong_password(courier: Courier, server_tls: TlsFiles, tmp_path: Path) -> None:
    """A wrong password is `auth_failed` by both protocols."""
    for result in await run(courier, server_tls, tmp_path, "wrong-Pa55word"):
        assert_wrong_password(result, "wrong-Pa55word")


async def test_no_maildir(courier: Courier, server_tls: TlsFiles, tmp_path: Path) -> None:
    """When Courier cannot open a mailbox, the credentials are not to blame."""
    pop3, imap = await run(courier, server_tls, tmp_path, username=f"staff@{DOMAIN}")
    assert (pop3.verdict.reason, pop3.verdict.detail) == (Reason.LOGIN_REFUSED, WORDS)
    assert (imap.verdict.reason, imap.verdict.detail) == (Reason.IMAP_BYE, WORDS)


async def test_no_authentication(courier: Courier, server_tls: TlsFiles, tmp_path: Path) -> None:
    """Without its authentication daemon, Courier has a temporary fault; the credentials are not blamed."""
    courier.end_authentication()
    pop3, imap = await run(courier, server_tls, tmp_path)
    assert (pop3.verdict.reason, pop3.verdict.detail) == (Reason.LOGIN_REFUSED, WORDS)
    assert (imap.verdict.reason, imap.verdict.detail) == (Reason.IMAP_BYE, WORDS)
