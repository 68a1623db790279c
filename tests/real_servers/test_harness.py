"""The test servers work as tests expect, with the standard library's clients."""

from __future__ import annotations

import poplib
import smtplib
import ssl
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from tests.real_servers.bind import Named
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.postfix import DEFERRED, REJECTED, Postfix
from tests.real_servers.process import wait_until
from tests.real_servers.prometheus import Prometheus, promtool


@pytest.fixture
def context(server_tls: TlsFiles) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=server_tls.authority)


def _submit(postfix: Postfix, context: ssl.SSLContext, subject: str) -> None:
    message = EmailMessage()
    message["From"] = message["To"] = "staff@example.test"
    message["Subject"] = subject
    with smtplib.SMTP("127.0.0.1", postfix.submission_port) as smtp:
        smtp.starttls(context=context)
        smtp.login("staff@example.test", Dovecot.password)
        smtp.send_message(message)


def test_mail_goes_through_postfix_into_dovecot(
    postfix: Postfix, dovecot: Dovecot, context: ssl.SSLContext
) -> None:
    """A submitted mail is read by POP3S."""
    _submit(postfix, context, "harness through")
    wait_until(lambda: any(b"harness through" in raw for raw in dovecot.messages("staff")), "mail in Dovecot")
    pop = poplib.POP3_SSL("127.0.0.1", dovecot.pop3s_port, context=context)
    pop.user("staff@example.test")
    pop.pass_(Dovecot.password)
    assert pop.stat()[0] >= 1
    pop.quit()


def test_hold_and_release(postfix: Postfix, dovecot: Dovecot, context: ssl.SSLContext) -> None:
    """A held queue keeps mail, and a released one delivers it to Dovecot."""
    before = len(postfix.log_lines())
    postfix.hold()
    _submit(postfix, context, "harness held")
    wait_until(
        lambda: any("deferred transport" in line for line in postfix.log_lines()[before:]),
        "deferral",
        5,
        postfix.log,
    )
    assert not any(b"harness held" in raw for raw in dovecot.messages("staff"))
    postfix.release()
    wait_until(lambda: any(b"harness held" in raw for raw in dovecot.messages("staff")), "mail in Dovecot")


def test_refused_recipients(postfix: Postfix) -> None:
    """The two addresses for refusals are refused as documented."""
    with smtplib.SMTP("127.0.0.1", postfix.smtp_port) as smtp:
        smtp.ehlo()
        smtp.mail("someone@example.org")
        assert smtp.rcpt(REJECTED)[0] == 550
        assert smtp.rcpt(DEFERRED)[0] == 450


def test_named_answers_refuses_and_truncates(start_named: Callable[..., Named]) -> None:
    """BIND answers for a zone, gives SERVFAIL for a broken one, and truncates large UDP answers."""
    many = "".join(f"@ IN MX {n} mail-{n:04d}-{'x' * 30}.big.test.\n" for n in range(90))
    named = start_named(
        {"good.test": "@ IN MX 10 mx.good.test.\nmx IN A 192.0.2.1\n", "big.test": many}, ("bad.test",)
    )

    def ask(zone: str) -> dns.message.Message:
        return dns.query.udp(dns.message.make_query(zone, "MX"), "127.0.0.1", port=named.port, timeout=5)

    assert "mx.good.test." in ask("good.test").to_text()
    assert ask("bad.test").rcode() == dns.rcode.SERVFAIL
    assert ask("big.test").flags & dns.flags.TC


def test_prometheus_answers(start_prometheus: Callable[[Path], Prometheus], tmp_path: Path) -> None:
    """Prometheus starts with a configuration and answers a query."""
    config = tmp_path / "prometheus.yml"
    config.write_text("global: {scrape_interval: 1s}\n")
    prometheus = start_prometheus(config)
    assert prometheus.query("vector(7)") == [({}, 7.0)]
    assert promtool("check", "config", config).returncode == 0
