"""Mail through a real OpenSMTPD into a real Dovecot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from tests.real_servers.dovecot import DOMAIN, Dovecot, TlsFiles
from tests.real_servers.one_run import SENDER, Settings, assert_delivered, run_once, server, trip
from tests.real_servers.opensmtpd import UNKNOWN, OpenSmtpd

TRIP = pytest.mark.tried("roundtrip", "OpenSMTPD", "Dovecot")

BOUNCES = {"gone": Reason.BOUNCE_NO_MAILBOX, "forwarded": Reason.BOUNCE_EXPIRED}
"""Users whose mail OpenSMTPD accepts and then returns, and why."""


@pytest.fixture(scope="module")
def opensmtpd(dovecot: Dovecot, server_directory: Callable[[str], Path]) -> Iterator[OpenSmtpd]:
    running = OpenSmtpd(server_directory("opensmtpd"), dovecot.lmtp_port)
    yield running
    running.stop()


@pytest.fixture
def servers(opensmtpd: OpenSmtpd, dovecot: Dovecot, server_tls: TlsFiles) -> dict[str, Settings]:
    """Submission to OpenSMTPD as ``out``, and Dovecot as ``in``."""
    return {
        "out": server("smtp", opensmtpd.smtp_port, None),
        "in": server("imap", dovecot.imaps_port, server_tls, "implicit"),
    }


@TRIP
async def test_round_trip(servers: dict[str, Settings], tmp_path: Path) -> None:
    """A message that OpenSMTPD accepts is delivered, and Dovecot shows it."""
    (result,) = await run_once(tmp_path, servers, trip())
    assert_delivered(result)


@TRIP
async def test_bounces(servers: dict[str, Settings], tmp_path: Path) -> None:
    """OpenSMTPD's reports have no report type, and call an expired message delayed; both bounce."""
    probes = [trip(user, to="sender", recipient=f"{user}@{DOMAIN}", deadline="60s") for user in BOUNCES]
    results = await run_once(tmp_path, servers, *probes)
    assert {result.probe: result.verdict.reason for result in results} == BOUNCES
    states = [result.verdict.message.state for result in results if result.verdict.message]
    assert states == [MessageState.BOUNCED] * len(BOUNCES)


@TRIP
async def test_refused_recipient(servers: dict[str, Settings], tmp_path: Path) -> None:
    """A refused recipient has its code and phase."""
    (result,) = await run_once(tmp_path, servers, trip(recipient=UNKNOWN))
    assert (result.verdict.reason, result.verdict.values["reply_code"]) == (Reason.SMTP_REJECTED, 550)
    assert result.verdict.detail.startswith("in phase rcpt: ")


@pytest.mark.tried("smtp", "OpenSMTPD")
@pytest.mark.parametrize(("recipient", "reason"), [(SENDER, Reason.NONE), (UNKNOWN, Reason.SMTP_REJECTED)])
async def test_smtp_probe(
    servers: dict[str, Settings], tmp_path: Path, recipient: str, reason: Reason
) -> None:
    """The probe goes as far as the recipient, and reports whether it is accepted."""
    probe = {"name": "smtp", "kind": "smtp", "server": "out", "mail_from": SENDER, "rcpt_to": recipient}
    (result,) = await run_once(tmp_path, servers, probe)
    assert result.verdict.reason is reason, result.verdict.detail
