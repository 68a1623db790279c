"""Mail through a real Exim, into maildirs that GNU Mailutils serves by POP3 and IMAP."""

from __future__ import annotations

import poplib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from probes.core.reasons import Outcome, Reason
from tests.real_servers.dovecot import PASSWORD, TlsFiles
from tests.real_servers.exim import Exim
from tests.real_servers.maildirs import Maildirs
from tests.real_servers.mailutils import Mailutils
from tests.real_servers.one_run import (
    SENDER,
    Settings,
    assert_delivered,
    assert_wrong_password,
    run_on_mailboxes,
    run_once,
    server,
    trip,
)

POP3, IMAP = pytest.mark.tried("pop3", "Mailutils"), pytest.mark.tried("imap", "Mailutils")


@dataclass
class Site:
    """Exim and Mailutils with the same maildirs."""

    exim: Exim
    mailutils: Mailutils
    tls: TlsFiles

    def servers(self) -> dict[str, Settings]:
        """Return POP3 with STLS, IMAP with implicit TLS, and submission as ``out``."""
        return {
            "pop3": server("pop3", self.mailutils.pop3_port, self.tls),
            "imap": server("imap", self.mailutils.imaps_port, self.tls, "implicit"),
            "out": server("smtp", self.exim.submission_port, self.tls),
        }


@pytest.fixture(scope="module")
def site(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Site]:
    maildirs = Maildirs(server_directory("mail"))
    maildirs.put("sender", "1.message.host", b"Subject: foreign\n\nnot ours\n")
    exim = Exim(server_directory("exim"), server_tls, maildirs)
    mailutils = Mailutils(server_directory("mailutils"), server_tls, maildirs)
    yield Site(exim, mailutils, server_tls)
    mailutils.stop()
    exim.stop()


@pytest.mark.tried("roundtrip", "Exim", "Mailutils")
@pytest.mark.parametrize("protocol", ["pop3", "imap"])
async def test_round_trip(site: Site, tmp_path: Path, protocol: str) -> None:
    """A message that Exim accepted is found through Mailutils."""
    servers = site.servers()
    (result,) = await run_once(tmp_path, {"out": servers["out"], "in": servers[protocol]}, trip())
    assert_delivered(result)


@POP3
@IMAP
async def test_probes(site: Site, tmp_path: Path) -> None:
    """Both probes log in, and count the message."""
    for result in await run_on_mailboxes(tmp_path, site.servers()):
        assert result.verdict.reason is Reason.NONE, result.verdict.detail
        assert result.verdict.values["messages"] == 1


@POP3
@IMAP
async def test_wrong_password(site: Site, tmp_path: Path) -> None:
    """A wrong password is `auth_failed` by both protocols, and appears in no result."""
    for result in await run_on_mailboxes(tmp_path, site.servers(), "wrong-Pa55word"):
        assert_wrong_password(result, "wrong-Pa55word")


@POP3
async def test_mailbox_in_use(site: Site, tmp_path: Path) -> None:
    """While another POP3 session has the mailbox open, the probe is unknown and says so."""
    other = poplib.POP3("127.0.0.1", site.mailutils.pop3_port)
    other.stls(context=ssl.create_default_context(cafile=site.tls.authority))
    other.user(SENDER)
    other.pass_(PASSWORD)
    pop3, _ = await run_on_mailboxes(tmp_path, site.servers())
    other.quit()
    assert (pop3.verdict.reason, pop3.verdict.outcome) == (Reason.POP3_IN_USE, Outcome.UNKNOWN)
