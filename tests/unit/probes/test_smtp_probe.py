"""The smtp probe's results for scripted dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from monitor.runner import Result, Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.reasons import Outcome, Reason
from probes.core.redaction import WITHHELD
from probes.core.setting_types import AddressFamily
from probes.core.settings import Site
from probes.protocols import name_resolution
from probes.smtp import Smtp, SmtpSettings
from tests.fakes.dns_server import dns_server, zone
from tests.fakes.resolver_files import resolution
from tests.fakes.scripted_server import PASSWORD, Peer, Script, Step, dialogue, scripted_server

BANNER = b"220 mail.example.com ESMTP"
EHLO = (rb"EHLO .*", b"250-mail.example.com\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 AUTH PLAIN LOGIN")
AUTH = (rb"AUTH PLAIN .*", b"235 welcome")
QUIT = (rb"QUIT", b"221 bye")
SENDER, RECIPIENT = "a@example.com", "b@example.com"


async def run(script: Script, *, username: str | None = None, **options: Any) -> tuple[Result, list[bytes]]:
    """Run a probe once with ``script``; return its result and what the server received."""
    async with scripted_server(script) as server:
        site = Site("here", {"mail": server.settings("smtp", username=username)}, {})
        probe = Smtp(
            SmtpSettings(name="mail", kind="smtp", server="mail", **options), Context(SystemClock(), site)
        )
        assert probe.target == "mail"
        result = await Runner(SystemClock(), "here").run(probe)
        await server.peer_closed()
    return result, server.received


async def test_dialogue_without_sender() -> None:
    """Without a sender, the probe reads the greeting and the features, and quits."""
    result, received = await run(dialogue(BANNER, EHLO, QUIT))
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.OK, Reason.NONE)
    assert set(result.verdict.phases) == {"connect", "greeting", "ehlo", "quit"}
    assert received[1:] == [b"QUIT"]
    assert result.verdict.values == {
        "greeting": "mail.example.com ESMTP",
        "features": ["8BITMIME", "AUTH PLAIN LOGIN", "SIZE 1000"],
    }
    assert result.verdict.certificate_not_after is None


@pytest.mark.parametrize(("family", "reason"), [("ipv4", Reason.NONE), ("ipv6", Reason.DNS_NO_ADDRESS)])
async def test_family_of_the_server(
    family: AddressFamily, reason: Reason, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's family decides which addresses are used, and a missing one is reported."""
    async with (
        dns_server(zone("mail.test. 300 IN A 127.0.0.1")) as dns,
        scripted_server(dialogue(BANNER, EHLO, QUIT)) as server,
    ):
        monkeypatch.setattr(name_resolution, "system", resolution(tmp_path, port=dns.port))
        settings = server.settings("smtp").model_copy(update={"host": "mail.test", "family": family})
        context = Context(SystemClock(), Site("here", {"mail": settings}, {}))
        probe = Smtp(SmtpSettings(name="mail", kind="smtp", server="mail"), context)
        verdict = (await Runner(SystemClock(), "here").run(probe)).verdict
        assert {query.question[0].rdtype.name for query in dns.asked_over_udp} <= {"A", "AAAA"}
        assert len(dns.asked_over_udp) == 1
    assert verdict.reason is reason
    assert ("mail.test has no IPv6 address" in verdict.detail) == (family == "ipv6")


async def test_dialogue_up_to_the_recipient() -> None:
    """With credentials, sender and recipient, the probe goes as far as RCPT, and sends nothing."""
    steps: tuple[Step, ...] = (
        (rb"MAIL FROM:<a@example.com>", b"250 ok"),
        (rb"RCPT TO:<b@example.com>", b"250 ok"),
        QUIT,
    )
    result, received = await run(
        dialogue(BANNER, EHLO, AUTH, *steps), username="canary", mail_from=SENDER, rcpt_to=RECIPIENT
    )
    assert result.verdict.reason is Reason.NONE
    assert set(result.verdict.phases) == {"connect", "greeting", "ehlo", "auth", "mail", "rcpt", "quit"}
    assert b"DATA" not in received
    assert PASSWORD not in repr(result)


@pytest.mark.parametrize(
    ("mail", "rcpt", "phase", "reason"),
    [
        (b"552 5.7.1 not you", None, "mail", Reason.SMTP_REJECTED),
        (b"250 ok", b"550 5.7.1 not you", "rcpt", Reason.SMTP_REJECTED),
        (b"250 ok", b"452 5.7.1 later", "rcpt", Reason.SMTP_DEFERRED),
        (b"250 ok", b"354 what", "rcpt", Reason.PROTOCOL_ERROR),
    ],
)
async def test_refusals_keep_phase_and_codes(
    mail: bytes, rcpt: bytes | None, phase: str, reason: Reason
) -> None:
    """A refused sender or recipient fails with the phase and the server's codes."""
    steps: list[Step] = [(rb"MAIL .*", mail)]
    if rcpt is not None:
        steps.append((rb"RCPT .*", rcpt))
    result, _ = await run(dialogue(BANNER, EHLO, *steps), mail_from=SENDER, rcpt_to=RECIPIENT)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.FAILED, reason)
    assert result.verdict.detail.startswith(f"in phase {phase}: ")
    assert result.verdict.values["reply_code"] == int((rcpt or mail)[:3])
    assert result.verdict.values["enhanced_status_code"] == (None if rcpt == b"354 what" else "5.7.1")


async def test_a_password_repeated_after_the_login_is_withheld() -> None:
    """If the server repeats the password in a later reply, no part of the result shows it."""
    refusal = f"550-5.7.1 I know\r\n550 5.7.1 {PASSWORD.upper()}".encode()
    script = dialogue(BANNER, EHLO, AUTH, (rb"MAIL .*", refusal))
    result, _ = await run(script, username="canary", mail_from=SENDER)
    assert result.verdict.detail == f"in phase mail: 550 5.7.1 {WITHHELD}"
    assert result.verdict.values == {"reply_code": 550, "enhanced_status_code": "5.7.1"}
    assert PASSWORD.upper() not in repr(result.with_transcript())


@pytest.mark.parametrize(
    ("expected", "missing"),
    [
        (("SIZE", "8bitmime"), None),
        (("AUTH LOGIN", "auth login plain"), None),
        (("SIZE 1000",), None),
        (("STARTTLS", "SIZE", "AUTH CRAM-MD5", "AUTH PLAIN"), "STARTTLS, AUTH CRAM-MD5"),
        (("AUTH PLAIN XOAUTH2",), "AUTH PLAIN XOAUTH2"),
    ],
)
async def test_expected_features(expected: tuple[str, ...], missing: str | None) -> None:
    """Expected keywords and parameters match in any case and order; missing ones are listed."""
    script = dialogue(BANNER, EHLO) if missing else dialogue(BANNER, EHLO, QUIT)
    result, _ = await run(script, expect_features=expected)
    if missing is None:
        assert result.verdict.reason is Reason.NONE
    else:
        assert (result.verdict.outcome, result.verdict.reason) == (Outcome.FAILED, Reason.FEATURE_MISSING)
        assert result.verdict.detail == f"EHLO does not offer: {missing}"


async def test_hostile_greeting_is_shown_legibly() -> None:
    """A server's control characters and overlong text never reach a log or page unchanged."""
    hostile = b"220 \x1b[2J" + b"x" * 5000
    ehlo = (rb"EHLO .*", b"250-mail\r\n250-X\x07Y " + b"z" * 5000 + b"\r\n250 \xff\xfe")
    result, _ = await run(dialogue(hostile, ehlo, QUIT))
    values = result.as_object()["values"]
    shown = [values["greeting"], *values["features"]]
    assert all(text.isprintable() and len(text) <= 300 for text in shown)


@pytest.mark.parametrize("feature", [" ", "   "])
def test_blank_feature_is_refused(feature: str) -> None:
    """A blank expected feature is refused in the configuration."""
    with pytest.raises(ValidationError, match="write an EHLO keyword"):
        SmtpSettings(name="mail", kind="smtp", server="mail", expect_features=(feature,))


async def test_deadline_closes_the_connection() -> None:
    """A run ended by its deadline has the phase that hung, and leaves no connection open."""
    result, _ = await run(dialogue(BANNER), deadline="100ms")
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.FAILED, Reason.TIMEOUT)
    assert result.verdict.detail == "in phase ehlo: not done after 0.1 s"


def test_recipient_needs_a_sender() -> None:
    """A recipient without a sender is refused when the configuration is read."""
    with pytest.raises(ValidationError, match="rcpt_to without mail_from"):
        SmtpSettings(name="mail", kind="smtp", server="mail", rcpt_to=RECIPIENT)


class HeldClock(SystemClock):
    """A clock that a script moves on."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


async def test_back_pressure_before_any_refusal() -> None:
    """An ok run in which only MAIL FROM waited says so, and times it as a phase of its own."""
    clock = HeldClock()

    async def hold_mail_back(peer: Peer) -> None:
        await dialogue(BANNER, EHLO)(peer)
        await peer.expect(b"MAIL FROM:.*")
        clock.ahead += 10
        await peer.send(b"250 2.1.0 Sender OK")
        await dialogue((b"RCPT TO:.*", b"250 2.1.5 Recipient OK"), QUIT)(peer)

    async with scripted_server(hold_mail_back) as server:
        site = Site("here", {"mail": server.settings("smtp")}, {})
        settings = SmtpSettings(name="mail", kind="smtp", server="mail", mail_from=SENDER, rcpt_to=RECIPIENT)
        result = await Runner(clock, "here").run(Smtp(settings, Context(clock, site)))
        await server.peer_closed()
    assert result.verdict.reason is Reason.NONE, result.verdict.detail
    assert result.verdict.values["delayed_answers"] == "back pressure: the answer to MAIL FROM took 10 s"
    assert 10 <= result.verdict.phases["mail"] < 15
