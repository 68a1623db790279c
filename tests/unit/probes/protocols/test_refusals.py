"""Refusals by the dialects of mail servers, as whole sessions see them."""

from __future__ import annotations

import pytest

from probes.core.reasons import Reason
from probes.core.remedies import GENERAL
from probes.protocols.imap_session import ImapSession
from probes.protocols.replies import TABLES
from tests.fakes import imap_dialogue, pop3_dialogue, smtp_dialogue
from tests.fakes.scripted_server import PASSWORD, dialogue

NOT_CONNECTED = b"User is authenticated but not connected."


@pytest.mark.parametrize(
    ("steps", "reason", "remedy"),
    [
        ([b"421 4.3.2 Service not active"], Reason.MAINTENANCE, "Get-ServerComponentState"),
        (
            [b"220 ready", (b"EHLO .*", b"250-a\r\n250 AUTH PLAIN"), (b"AUTH .*", b"535 5.7.139 %s")],
            Reason.AUTH_DISABLED,
            "Set-CASMailbox",
        ),
        (
            [
                b"220 ready",
                (b"EHLO .*", b"250-a\r\n250 AUTH PLAIN"),
                (b"AUTH .*", b"235 ok"),
                (b"MAIL .*", b"451 4.7.0 Temporary server error. Please try again later. PRX4"),
            ],
            Reason.PROXY_FAILURE,
            GENERAL[Reason.PROXY_FAILURE],
        ),
        (
            [
                b"220 ready",
                (b"EHLO .*", b"250-a\r\n250 AUTH PLAIN"),
                (b"AUTH .*", b"235 ok"),
                (b"MAIL .*", b"452 4.3.1 Insufficient system resources (UsedVersionBuckets)"),
            ],
            Reason.BACK_PRESSURE,
            "resource",
        ),
    ],
)
async def test_smtp(steps: list[bytes | tuple[bytes, bytes]], reason: Reason, remedy: str) -> None:
    """A refusal in greeting, login or envelope has its reason and remedy, and closes the session."""
    said = b"Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant."
    steps = [step if isinstance(step, bytes) else (step[0], step[1].replace(b"%s", said)) for step in steps]
    user = {"username": smtp_dialogue.USER, "allow_insecure_auth": True}
    fault = await smtp_dialogue.fault_of(dialogue(*steps), **user)
    assert fault.reason is reason
    assert remedy in fault.remedy


async def test_pop3() -> None:
    """A throttled login is no wrong password, and has its pause."""
    said = b"-ERR Request is throttled. Suggested Backoff Time: 299910 milliseconds"
    fault = await pop3_dialogue.fault_of_entering(dialogue(*pop3_dialogue.ENTERED[:2], (b"AUTH .*", said)))
    assert fault.reason is Reason.THROTTLED
    assert fault.retry_after == pytest.approx(299.91)
    assert fault.remedy == GENERAL[Reason.THROTTLED]


@pytest.mark.parametrize(
    "answer",
    [
        b"M2 BAD " + NOT_CONNECTED,
        b"* BAD " + NOT_CONNECTED + b"\r\n* BYE Connection closed. 14",
    ],
    ids=["tagged", "BYE after it"],
)
async def test_imap_with_a_mailbox_that_is_not_granted(answer: bytes) -> None:
    """A login that works and a mailbox that is not granted show only in SELECT, also if a BYE follows."""
    script = dialogue(*imap_dialogue.ENTERED, (b"M2 SELECT .*", answer))
    async with imap_dialogue.entered(script) as session:
        with pytest.raises(imap_dialogue.ProbeFault) as caught:
            await session.select("INBOX")
        session.abort()
    assert caught.value.reason is Reason.NOT_GRANTED
    assert "Add-MailboxPermission" in caught.value.remedy


async def test_a_bye_without_a_cause_is_only_a_bye() -> None:
    """A BYE that nothing explains remains what it is."""
    script = dialogue((b"M3 NOOP", b"* BYE Connection closed. 14"))
    fault = await imap_dialogue.fault_of(ImapSession.noop, script)
    assert fault.reason is Reason.IMAP_BYE


async def test_a_hostile_refusal_leaves_nothing_in_the_remedy() -> None:
    """A refusal of 30 KB with escapes and our password has a reason, and a remedy of ours."""
    word = b"basic authentication is disabled \x1b]0;x\x07 " + PASSWORD.encode()
    lines = b"\r\n".join(b"535-5.7.139 " + word * 20 for _ in range(20)) + b"\r\n535 5.7.139 end"
    script = dialogue(b"220 ready", (b"EHLO .*", b"250-a\r\n250 AUTH PLAIN"), (b"AUTH .*", lines))
    fault = await smtp_dialogue.fault_of(script, username=smtp_dialogue.USER, allow_insecure_auth=True)
    assert fault.reason is Reason.AUTH_DISABLED
    assert fault.remedy in {row.remedy for row in TABLES["smtp"]}
    assert fault.detail.isprintable()
