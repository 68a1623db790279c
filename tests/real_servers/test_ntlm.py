"""NTLM with servers that we did not write: Dovecot with Samba's ntlm_auth, Postfix behind it, and Cyrus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from monitor.runner import Result
from probes.core.reasons import Reason
from tests.real_servers.cyrus import Cyrus
from tests.real_servers.dovecot import DOMAIN, Dovecot, TlsFiles
from tests.real_servers.ntlm_auth import WINDOWS_DOMAIN, ntlm_settings
from tests.real_servers.one_run import (
    Settings,
    assert_delivered,
    assert_wrong_password,
    run_on_mailboxes,
    run_once,
    server,
    trip,
)
from tests.real_servers.postfix import Postfix

SMTP, POP3 = pytest.mark.tried("smtp", "Postfix"), pytest.mark.tried("pop3", "Dovecot")
IMAP = pytest.mark.tried("imap", "Dovecot")

NAMES = (f"{WINDOWS_DOMAIN}\\sender", f"sender@{DOMAIN}", "SENDER")
"""The forms in which Windows takes user names."""


class NtlmSite:
    """A Dovecot and a Postfix that take NTLM and PLAIN."""

    def __init__(self, directory: Callable[[str], Path], tls: TlsFiles, stack: ExitStack) -> None:
        self._tls = tls
        self.dovecot = Dovecot(directory("dovecot"), tls, extra=ntlm_settings(directory("ntlm")))
        stack.callback(self.dovecot.stop)
        self.postfix = Postfix(directory("postfix"), self.dovecot, tls)
        stack.callback(self.postfix.stop)

    def servers(self, **given: str) -> dict[str, Settings]:
        """Return a server for each protocol."""
        ports = {
            "smtp": self.postfix.submission_port,
            "pop3": self.dovecot.pop3_port,
            "imap": self.dovecot.imap_port,
        }
        return {protocol: server(protocol, port, self._tls, **given) for protocol, port in ports.items()}

    async def logins(self, directory: Path, password: str = Dovecot.password, **given: str) -> list[Result]:
        """Return the results of a login over each protocol, one after another.

        Dovecot has one ntlm_auth, which confuses two exchanges at the same time.
        """
        servers, results = self.servers(**given), []
        for protocol in servers:
            probe = {"name": protocol, "kind": protocol, "server": protocol}
            results += await run_once(directory, servers, probe, password=password)
        return results


@pytest.fixture(scope="module")
def site(server_directory: Callable[[str], Path], server_tls: TlsFiles) -> Iterator[NtlmSite]:
    with ExitStack() as stack:
        yield NtlmSite(server_directory, server_tls, stack)


@SMTP
@POP3
@IMAP
@pytest.mark.parametrize("username", NAMES)
async def test_each_form_of_a_user_name(username: str, tmp_path: Path, site: NtlmSite) -> None:
    """NTLM logs in over each protocol, with the domain before or behind the user name or without it."""
    for result in await site.logins(tmp_path, username=username, auth="ntlm"):
        assert result.verdict.reason is Reason.NONE, result.verdict.detail


@SMTP
@POP3
@IMAP
async def test_preferred_to_sending_the_password(tmp_path: Path, site: NtlmSite) -> None:
    """``auth: auto`` takes NTLM where PLAIN is offered too, and shows no message that proves the password."""
    for result in await site.logins(tmp_path):
        assert result.verdict.reason is Reason.NONE, result.verdict.detail
        transcript = str(result.with_transcript())
        assert " NTLM" in transcript
        assert "PLAIN (withheld)" not in transcript
        assert "TlRMTVNT" not in transcript  # how every NTLM message begins


@SMTP
@POP3
@IMAP
async def test_wrong_password(tmp_path: Path, site: NtlmSite) -> None:
    """A wrong password is `auth_failed`."""
    for result in await site.logins(tmp_path, "wrong-Pa55word", auth="ntlm"):
        assert_wrong_password(result, "wrong-Pa55word")


@pytest.mark.tried("roundtrip", "Postfix", "Dovecot")
async def test_round_trip(tmp_path: Path, site: NtlmSite) -> None:
    """A message that is submitted by NTLM is delivered."""
    servers = {"out": site.servers(auth="ntlm")["smtp"], "in": site.servers(auth="plain")["imap"]}
    (result,) = await run_once(tmp_path, servers, trip())
    assert_delivered(result)


@pytest.mark.tried("pop3", "Cyrus")
@pytest.mark.tried("imap", "Cyrus")
async def test_cyrus(tmp_path: Path, server_directory: Callable[[str], Path], server_tls: TlsFiles) -> None:
    """A second implementation of NTLM accepts the password, and refuses a wrong one as `auth_failed`."""
    cyrus = Cyrus(server_directory("cyrus"), server_tls)
    servers = {
        "pop3": server("pop3", cyrus.pop3_port, server_tls, auth="ntlm"),
        "imap": server("imap", cyrus.imaps_port, server_tls, "implicit", auth="ntlm"),
    }
    try:
        for result in await run_on_mailboxes(tmp_path, servers):
            assert result.verdict.reason is Reason.NONE, result.verdict.detail
        for result in await run_on_mailboxes(tmp_path, servers, "wrong-Pa55word"):
            assert_wrong_password(result, "wrong-Pa55word")
    finally:
        cyrus.stop()
