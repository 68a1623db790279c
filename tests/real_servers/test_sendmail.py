"""Mail through a real Sendmail into a real Dovecot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from tests.real_servers.dovecot import DOMAIN, Dovecot, TlsFiles
from tests.real_servers.one_run import SENDER, Settings, assert_delivered, run_once, server, trip
from tests.real_servers.sendmail import UNKNOWN, Sendmail

TRIP = pytest.mark.tried("roundtrip", "Sendmail", "Dovecot")
SMTP = pytest.mark.tried("smtp", "Sendmail")
PROBE: Settings = {"name": "smtp", "kind": "smtp", "server": "out"}


@pytest.fixture(scope="module")
def sendmail(
    dovecot: Dovecot, server_tls: TlsFiles, server_directory: Callable[[str], Path]
) -> Iterator[Sendmail]:
    running = Sendmail(server_directory("sendmail"), server_tls, dovecot.lmtp_port)
    yield running
    running.stop()


@pytest.fixture
def servers(sendmail: Sendmail, dovecot: Dovecot, server_tls: TlsFiles) -> dict[str, Settings]:
    """Submission to Sendmail as ``out``, and Dovecot as ``in``."""
    return {
        "out": server("smtp", sendmail.submission_port, server_tls),
        "in": server("imap", dovecot.imaps_port, server_tls, "implicit"),
    }


@TRIP
async def test_round_trip(servers: dict[str, Settings], tmp_path: Path) -> None:
    """A message that Sendmail accepted is found through Dovecot."""
    (result,) = await run_once(tmp_path, servers, trip())
    assert_delivered(result)


@TRIP
async def test_bounce(servers: dict[str, Settings], tmp_path: Path) -> None:
    """A message that Dovecot refuses bounces, with Dovecot's code and reason."""
    (result,) = await run_once(tmp_path, servers, trip(to="sender", recipient=f"gone@{DOMAIN}"))
    assert result.verdict.reason is Reason.BOUNCE_NO_MAILBOX
    assert result.verdict.values["enhanced_status_code"] == "5.1.1"
    assert result.verdict.message is not None
    assert result.verdict.message.state is MessageState.BOUNCED


@TRIP
async def test_refused_recipient(servers: dict[str, Settings], tmp_path: Path) -> None:
    """When Sendmail refuses a recipient, the verdict has the code and the phase."""
    (result,) = await run_once(tmp_path, servers, trip(recipient=UNKNOWN))
    assert (result.verdict.reason, result.verdict.values["enhanced_status_code"]) == (
        Reason.SMTP_REJECTED,
        "5.1.1",
    )
    assert result.verdict.detail.startswith("in phase rcpt: ")


@SMTP
@pytest.mark.parametrize("auth", ["plain", "login", "cram-md5"])
async def test_smtp_probe(servers: dict[str, Settings], tmp_path: Path, auth: str) -> None:
    """Each mechanism logs in after STARTTLS, and the recipient is accepted."""
    out = {"out": {**servers["out"], "auth": auth}}
    (result,) = await run_once(tmp_path, out, {**PROBE, "mail_from": SENDER, "rcpt_to": SENDER})
    assert result.verdict.reason is Reason.NONE, result.verdict.detail
    assert {"tls", "auth", "rcpt"} <= result.verdict.phases.keys()


@SMTP
async def test_wrong_password(servers: dict[str, Settings], tmp_path: Path) -> None:
    """A wrong password is `auth_failed`, and appears nowhere in the result."""
    (result,) = await run_once(tmp_path, {"out": servers["out"]}, PROBE, password="wrong-Pa55word")
    assert (result.verdict.reason, result.verdict.values["reply_code"]) == (Reason.AUTH_FAILED, 535)
    assert "wrong-Pa55word" not in str(result.as_object())
