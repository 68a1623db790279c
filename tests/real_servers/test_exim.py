"""Mail through a real Exim, into maildirs that a real Courier serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from tests.real_servers.courier import Courier
from tests.real_servers.dovecot import DOMAIN, TlsFiles
from tests.real_servers.exim import DEFERRED, UNKNOWN, Exim
from tests.real_servers.maildirs import Maildirs
from tests.real_servers.one_run import SENDER, Settings, assert_delivered, run_once, server, trip

BOUNCES = {
    "gone": Reason.BOUNCE_NO_MAILBOX,
    "full": Reason.BOUNCE_MAILBOX_FULL,
    "forwarded": Reason.BOUNCE_EXPIRED,
}
"""Users whose mail Exim accepts and then returns, and why."""

SMTP: Settings = {"name": "smtp", "kind": "smtp", "server": "mail"}


@dataclass
class Site:
    """Exim and Courier with the same maildirs."""

    maildirs: Maildirs
    exim: Exim
    courier: Courier
    tls: TlsFiles

    def servers(self, protocol: str = "imap") -> dict[str, Settings]:
        """Return submission to Exim as ``out``, and Courier as ``in``."""
        ways_in = {
            "pop3": server("pop3", self.courier.pop3_port, self.tls),
            "imap": server("imap", self.courier.imaps_port, self.tls, "implicit"),
        }
        return {"out": server("smtp", self.exim.submission_port, self.tls), "in": ways_in[protocol]}


@pytest.fixture(scope="module")
def site(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Site]:
    maildirs = Maildirs(server_directory("mail"))
    exim = Exim(server_directory("exim"), server_tls, maildirs)
    courier = Courier(server_directory("courier"), server_tls, maildirs)
    yield Site(maildirs, exim, courier, server_tls)
    courier.stop()
    exim.stop()


@pytest.mark.tried("roundtrip", "Exim", "Courier")
@pytest.mark.parametrize("protocol", ["pop3", "imap"])
async def test_round_trip(site: Site, tmp_path: Path, protocol: str) -> None:
    """A message that Exim accepts is delivered, and Courier shows it."""
    (result,) = await run_once(tmp_path, site.servers(protocol), trip())
    assert_delivered(result)


@pytest.mark.tried("roundtrip", "Exim", "Courier")
async def test_a_message_that_courier_cannot_read(site: Site, tmp_path: Path) -> None:
    """A message with an unreadable file affects no other."""
    site.maildirs.put("canary", "1.unreadable.host", b"Subject: foreign\n\nnot ours\n").chmod(0)
    (result,) = await run_once(tmp_path, site.servers("imap"), trip())
    assert result.verdict.reason is Reason.NONE, result.verdict.detail


@pytest.mark.tried("roundtrip", "Exim", "Courier")
async def test_bounces(site: Site, tmp_path: Path) -> None:
    """Exim's reports have no code except 5.0.0, and the reason is in their text."""
    probes = [trip(user, to="sender", recipient=f"{user}@{DOMAIN}") for user in BOUNCES]
    results = await run_once(tmp_path, site.servers(), *probes)
    assert {result.probe: result.verdict.reason for result in results} == BOUNCES
    states = [result.verdict.message.state for result in results if result.verdict.message]
    assert states == [MessageState.BOUNCED] * len(BOUNCES)


@pytest.mark.tried("roundtrip", "Exim")
@pytest.mark.parametrize(
    ("recipient", "reason", "code"),
    [(UNKNOWN, Reason.SMTP_REJECTED, 550), (DEFERRED, Reason.SMTP_DEFERRED, 451)],
)
async def test_refused_recipients(
    site: Site, tmp_path: Path, recipient: str, reason: Reason, code: int
) -> None:
    """A permanent or temporary refusal of a recipient has its code and phase."""
    (result,) = await run_once(tmp_path, site.servers(), trip(recipient=recipient))
    assert (result.verdict.reason, result.verdict.values["reply_code"]) == (reason, code)
    assert result.verdict.detail.startswith("in phase rcpt: ")


@pytest.mark.tried("smtp", "Exim")
@pytest.mark.parametrize("auth", ["plain", "login"])
@pytest.mark.parametrize("how", ["starttls", "implicit"])
async def test_smtp_probe(site: Site, tmp_path: Path, how: str, auth: str) -> None:
    """With each mode of TLS and each mechanism, the recipient is accepted."""
    port = site.exim.submission_port if how == "starttls" else site.exim.submissions_port
    servers = {"mail": server("smtp", port, site.tls, how, auth=auth)}
    (result,) = await run_once(tmp_path, servers, {**SMTP, "mail_from": SENDER, "rcpt_to": SENDER})
    assert result.verdict.reason is Reason.NONE, result.verdict.detail
    assert {"tls", "auth", "rcpt"} <= result.verdict.phases.keys()


@pytest.mark.tried("smtp", "Exim")
async def test_wrong_password(site: Site, tmp_path: Path) -> None:
    """A wrong password is `auth_failed`, and appears nowhere in the result."""
    servers = {"mail": server("smtp", site.exim.submission_port, site.tls)}
    (result,) = await run_once(tmp_path, servers, SMTP, password="wrong-Pa55word")
    assert (result.verdict.reason, result.verdict.values["reply_code"]) == (Reason.AUTH_FAILED, 535)
    assert "wrong-Pa55word" not in str(result.as_object())
