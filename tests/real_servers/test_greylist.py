"""The greylisting policy server, as tests of retries rely on it."""

from __future__ import annotations

import smtplib
import ssl
import time
from collections.abc import Callable

from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.greylist import Greylist
from tests.real_servers.postfix import REJECTED, Postfix
from tests.real_servers.process import wait_until

SENDER = "sender@example.test"


def test_greylisting(
    dovecot: Dovecot,
    start_postfix: Callable[..., Postfix],
    start_greylist: Callable[[float], Greylist],
    server_tls: TlsFiles,
) -> None:
    """Port 25 refuses an unknown sender temporarily, for each recipient; submission does not."""
    greylist = start_greylist(3600.0)
    postfix = start_postfix(dovecot, greylist=greylist)
    with smtplib.SMTP("127.0.0.1", postfix.smtp_port) as smtp:
        smtp.starttls(context=ssl.create_default_context(cafile=server_tls.authority))
        smtp.ehlo()
        assert not smtp.has_extn("auth")
        smtp.mail(SENDER)
        for _ in range(2):
            code, text = smtp.rcpt("staff@example.test")
            assert (code, text[:5], b"Greylisted" in text) == (450, b"4.2.0", True)
        assert smtp.rcpt(REJECTED)[0] == 550
        greylist.seconds = 0.0
        assert smtp.rcpt("staff@example.test")[0] == 250
        greylist.seconds = 3600.0
        assert smtp.rcpt("canary@example.test")[0] == 450
    tried = [("127.0.0.1", SENDER, "staff@example.test"), ("127.0.0.1", SENDER, "canary@example.test")]
    assert list(greylist.tries) == tried
    with smtplib.SMTP("127.0.0.1", postfix.submission_port) as smtp:
        smtp.starttls(context=ssl.create_default_context(cafile=server_tls.authority))
        smtp.login("staff@example.test", Dovecot.password)
        smtp.mail(SENDER)
        assert smtp.rcpt("canary@example.test")[0] == 250


def test_greylisting_ends(
    dovecot: Dovecot, start_postfix: Callable[..., Postfix], start_greylist: Callable[[float], Greylist]
) -> None:
    """A sender who retries after the time is accepted, but not before."""
    postfix = start_postfix(dovecot, greylist=start_greylist(0.5))

    def replied() -> int:
        with smtplib.SMTP("127.0.0.1", postfix.smtp_port) as smtp:
            smtp.ehlo()
            smtp.mail(SENDER)
            return smtp.rcpt("staff@example.test")[0]

    before = time.monotonic()
    assert replied() == 450
    wait_until(lambda: replied() == 250, "the sender is let in")
    assert time.monotonic() - before >= 0.5
