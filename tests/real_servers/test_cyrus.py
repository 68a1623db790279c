"""Mail through a real OpenSMTPD into a real Cyrus, and its POP3 and IMAP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from tests.real_servers.cyrus import Cyrus
from tests.real_servers.dovecot import DOMAIN, TlsFiles
from tests.real_servers.one_run import (
    Settings,
    assert_delivered,
    assert_wrong_password,
    run_on_mailboxes,
    run_once,
    server,
    trip,
)
from tests.real_servers.opensmtpd import OpenSmtpd

TRIP = pytest.mark.tried("roundtrip", "OpenSMTPD", "Cyrus")
POP3, IMAP = pytest.mark.tried("pop3", "Cyrus"), pytest.mark.tried("imap", "Cyrus")

BOUNCES = {"gone": Reason.BOUNCE_NO_MAILBOX, "full": Reason.BOUNCE_MAILBOX_FULL}
"""Users whose mail Cyrus refuses, and why."""


@dataclass
class Site:
    """OpenSMTPD, delivering to Cyrus."""

    cyrus: Cyrus
    opensmtpd: OpenSmtpd
    tls: TlsFiles

    def servers(self, **given: str) -> dict[str, Settings]:
        """Return POP3 with STLS, IMAP with implicit TLS, and submission as ``out``."""
        return {
            "pop3": server("pop3", self.cyrus.pop3_port, self.tls, **given),
            "imap": server("imap", self.cyrus.imaps_port, self.tls, "implicit", **given),
            "out": server("smtp", self.opensmtpd.smtp_port, None),
        }


@pytest.fixture(scope="module")
def site(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Site]:
    cyrus = Cyrus(server_directory("cyrus"), server_tls)
    opensmtpd = OpenSmtpd(server_directory("opensmtpd"), cyrus.lmtp_port)
    yield Site(cyrus, opensmtpd, server_tls)
    opensmtpd.stop()
    cyrus.stop()


@TRIP
@pytest.mark.parametrize("protocol", ["pop3", "imap"])
async def test_round_trip(site: Site, tmp_path: Path, protocol: str) -> None:
    """A message that OpenSMTPD accepts is delivered, and Cyrus shows it."""
    servers = site.servers()
    (result,) = await run_once(tmp_path, {"out": servers["out"], "in": servers[protocol]}, trip())
    assert_delivered(result)


@TRIP
async def test_bounces(site: Site, tmp_path: Path) -> None:
    """A message that Cyrus refuses bounces with Cyrus' reason, even from a reply with many lines."""
    servers = site.servers()
    probes = [trip(user, to="sender", recipient=f"{user}@{DOMAIN}") for user in BOUNCES]
    results = await run_once(tmp_path, {"out": servers["out"], "in": servers["imap"]}, *probes)
    assert {result.probe: result.verdict.reason for result in results} == BOUNCES
    states = [result.verdict.message.state for result in results if result.verdict.message]
    assert states == [MessageState.BOUNCED] * len(BOUNCES)


@POP3
@IMAP
@pytest.mark.parametrize("auth", ["plain", "login", "cram-md5"])
async def test_probes(site: Site, tmp_path: Path, auth: str) -> None:
    """Each mechanism logs in by both protocols, and the junk folder is known."""
    pop3, imap = await run_on_mailboxes(tmp_path, site.servers(auth=auth))
    assert (pop3.verdict.reason, imap.verdict.reason) == (Reason.NONE, Reason.NONE)
    assert imap.verdict.values["special_use"] == {"junk": "Junk"}


@POP3
@IMAP
async def test_wrong_password(site: Site, tmp_path: Path) -> None:
    """A wrong password is `auth_failed` by both protocols."""
    for result in await run_on_mailboxes(tmp_path, site.servers(), "wrong-Pa55word"):
        assert_wrong_password(result, "wrong-Pa55word")
