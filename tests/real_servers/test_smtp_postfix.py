"""The SMTP client and the smtp probe with a real Postfix and Dovecot's authentication."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from monitor.runner import Result, Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.settings import ServerSettings, Site
from probes.core.verdict import PhaseTimer
from probes.protocols.smtp_session import smtp_session
from probes.smtp import Smtp, SmtpSettings
from tests.real_servers.dovecot import PASSWORD, Dovecot, TlsFiles
from tests.real_servers.postfix import DEFERRED, REJECTED, Postfix

pytestmark = pytest.mark.tried("smtp", "Postfix")

USER = Dovecot.username


def settings(port: int, tls_files: TlsFiles | None, **options: Any) -> ServerSettings:
    """Return a server on 127.0.0.1, with canary's credentials if it has TLS."""
    given: dict[str, Any] = {
        "protocol": "smtp",
        "host": "127.0.0.1",
        "port": port,
        "timeout": "5s",
        **options,
    }
    credentials: dict[str, Any] = {}
    if tls_files is not None:
        given["tls_ca"] = str(tls_files.authority)
        credentials = {"username": USER, "password": SecretStr(PASSWORD)}
    return ServerSettings.model_validate(given).model_copy(update=credentials)


@pytest.fixture
def submission(postfix: Postfix, server_tls: TlsFiles) -> ServerSettings:
    return settings(postfix.submission_port, server_tls, tls="starttls")


@pytest.mark.parametrize("auth", ["plain", "login", "cram-md5"])
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_each_mechanism_logs_in(auth: str, tls: str, postfix: Postfix, server_tls: TlsFiles) -> None:
    """Each mechanism logs in with STARTTLS and with implicit TLS, and each phase is timed."""
    port = postfix.submission_port if tls == "starttls" else postfix.submissions_port
    phases = PhaseTimer(SystemClock())
    async with smtp_session(settings(port, server_tls, tls=tls, auth=auth), phases, SystemClock()) as session:
        assert auth in session.extensions.auth_mechanisms
        assert session.certificate_expiry is not None
        await session.mail(USER)
        await session.rcpt(USER)
        await session.quit()
    expected = {"connect", "greeting", "ehlo", "tls", "auth", "mail", "rcpt", "quit"}
    assert set(phases.seconds) == expected | ({"starttls"} if tls == "starttls" else set())
    assert all(seconds > 0 for seconds in phases.seconds.values())


@pytest.mark.parametrize("auth", ["plain", "login", "cram-md5"])
async def test_wrong_password(auth: str, submission: ServerSettings) -> None:
    """A wrong password is reported as such with Postfix's codes, for each mechanism."""
    wrong = submission.model_copy(update={"auth": auth, "password": SecretStr("wrong-Pa55word")})
    with pytest.raises(ProbeFault) as caught:
        async with smtp_session(wrong, PhaseTimer(SystemClock()), SystemClock()):
            pass
    fault = caught.value
    assert (fault.reason, fault.reply_code) == (Reason.AUTH_FAILED, 535)
    assert fault.enhanced_status_code == "5.7.8"
    assert "wrong-Pa55word" not in str(fault)


async def test_certificate_for_another_name(submission: ServerSettings) -> None:
    """Postfix's certificate is refused under a name that it is not for."""
    other = submission.model_copy(update={"tls_server_name": "other.example.com"})
    with pytest.raises(ProbeFault) as caught:
        async with smtp_session(other, PhaseTimer(SystemClock()), SystemClock()):
            pass
    assert caught.value.reason is Reason.CERTIFICATE_NAME


async def run(server: ServerSettings, **options: Any) -> Result:
    """Run an smtp probe of ``server`` once, as the agent does."""
    site = Site("here", {"mail": server}, {})
    probe_settings = SmtpSettings.model_validate(
        {"name": "mail", "kind": "smtp", "server": "mail", "deadline": "10s", **options}
    )
    return await Runner(SystemClock(), "here").run(Smtp(probe_settings, Context(SystemClock(), site)))


async def test_probe_up_to_the_recipient(submission: ServerSettings) -> None:
    """A probe with sender and recipient is ok, and shows the features and the certificate's expiry."""
    result = await run(submission, mail_from=USER, rcpt_to=USER)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.OK, Reason.NONE)
    assert {"starttls", "tls", "auth", "mail", "rcpt", "quit"} <= set(result.verdict.phases)
    assert "data" not in result.verdict.phases
    assert result.verdict.certificate_not_after is not None
    features = result.as_object()["values"]["features"]
    assert "PIPELINING" in features
    assert any(text.startswith("AUTH ") and "CRAM-MD5" in text for text in features)
    assert "mail.example.test" in result.as_object()["values"]["greeting"]


@pytest.mark.parametrize(
    ("recipient", "reason", "codes"),
    [
        (REJECTED, Reason.SMTP_REJECTED, {"reply_code": 550, "enhanced_status_code": "5.1.1"}),
        (DEFERRED, Reason.SMTP_DEFERRED, {"reply_code": 450, "enhanced_status_code": "4.2.0"}),
    ],
)
async def test_refused_recipients(
    recipient: str, reason: Reason, codes: dict[str, object], postfix: Postfix
) -> None:
    """A permanent or temporary refusal of the recipient fails in phase rcpt with Postfix's codes."""
    result = await run(settings(postfix.smtp_port, None, tls="none"), mail_from=USER, rcpt_to=recipient)
    assert (result.verdict.outcome, result.verdict.reason) == (Outcome.FAILED, reason)
    assert result.verdict.values == codes
    assert result.verdict.detail.startswith("in phase rcpt: ")


async def test_expected_features(submission: ServerSettings) -> None:
    """Offered features, with or without parameters, satisfy ``expect_features``."""
    result = await run(submission, expect_features=["PIPELINING", "AUTH PLAIN", "auth login plain", "size"])
    assert result.verdict.reason is Reason.NONE


async def test_missing_features(submission: ServerSettings) -> None:
    """Exactly the keywords and parameters that Postfix does not offer are listed."""
    result = await run(submission, expect_features=["AUTH XOAUTH2", "PIPELINING", "REQUIRETLS"])
    assert result.verdict.reason is Reason.FEATURE_MISSING
    assert result.verdict.detail == "EHLO does not offer: AUTH XOAUTH2, REQUIRETLS"


async def test_certificate_that_expires_soon(submission: ServerSettings) -> None:
    """A certificate within the warning time gives a warning in an ok run."""
    result = await run(submission, certificate_warning="99999999d")
    assert result.verdict.is_warning
    assert result.verdict.reason is Reason.CERTIFICATE_EXPIRING
