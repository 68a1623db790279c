"""Delivery reports that are malformed, truncated, endless or hostile."""

from __future__ import annotations

from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.messages import bounce
from tests.fakes.bounces import POSTFIX, SAMPLES, TOKEN, octets, report_of


@given(st.binary(max_size=1000), st.integers(0, len(POSTFIX)))
def test_nothing_that_arrives_raises(octets: bytes, at: int) -> None:
    """Any contents or truncation of a report give a result with texts safe to show."""
    raw = POSTFIX.encode()
    for hostile in (octets, raw[:at], raw[:at] + octets + raw[at:]):
        report = bounce.read_report(hostile)
        if report is not None:
            assert (report.diagnostic + report.recipient + report.reporting_mta).isprintable()
            assert (report.reason is not None) is (report.action == "failed")


def test_endless_report_costs_no_more_than_its_limit() -> None:
    """The number of recipients examined is limited."""
    head, _, _ = POSTFIX.partition("Final-Recipient")
    raw = head + "Action: delayed\n\n" * 1_000_000
    report = bounce.read_report(raw.encode())
    assert report is not None
    assert report.action == "delayed"


@pytest.mark.parametrize("system", SAMPLES)
def test_a_report_cut_off_anywhere(system: str) -> None:
    """A truncated report never gives a different action, recipient or MTA from the whole one."""
    raw = octets(SAMPLES[system])
    whole = bounce.read_report(raw)
    assert whole is not None
    for length in range(len(raw)):
        report = bounce.read_report(raw[:length])
        if report is not None:
            assert report.action == whole.action
            assert report.recipient in f"rfc822;{whole.recipient}"
            assert report.reporting_mta == whole.reporting_mta
            assert report.token is None or TOKEN.startswith(report.token)


PIECES = [
    b"--b\n",
    b"\n",
    b"\n \t",
    b" ",
    b";",
    b'a="',
    b"X-Mailsonde-Token:\n ",
    b"Action: failed\n\n",
    b"Action: x\n\n",
    b"=\n",
    b"Diagnostic-Code: smtp; \n ",
]


WORDS = [
    "user ",
    "account x",
    "550 5.",
    "(#5.",
    "X-Mailsonde-Token: ",
    "the past 1",
    "\n\n",
    "exceeds the ",
    "\u00a0",
]


@pytest.mark.parametrize("parts", ["text/plain", "multipart/mixed; boundary=b\n\n--b"])
@pytest.mark.parametrize("word", WORDS)
def test_no_notice_takes_long(word: str, parts: str) -> None:
    """The worst possible notice within the limit is read quickly."""
    raw = octets(f"Return-Path: <>\nFrom: MAILER-DAEMON\nContent-Type: {parts}\n\nfailure notice\n")
    more = f"\n\nMessage-ID: x\nX-Mailsonde-Token: {TOKEN}\n"
    started = thread_time()
    bounce.read_report(raw + octets(word) * (bounce.REPORT_LIMIT // len(word)))
    bounce.read_report(raw + octets(word) * 1000 + octets(more))
    assert thread_time() - started < 2


@pytest.mark.parametrize("head", ["delivery-status", "rfc822", "rfc822\nContent-Transfer-Encoding: base64"])
@pytest.mark.parametrize("piece", PIECES)
def test_no_repetition_takes_long(piece: bytes, head: str) -> None:
    """The worst possible report within the limit is read quickly."""
    raw = octets(report_of("").removesuffix("--b--\n")) + f"--b\nContent-Type: message/{head}\n\n".encode()
    raw = raw.replace(b"\n--b", b"", 1) if head == "delivery-status" else raw
    started = thread_time()
    bounce.read_report(raw + piece * (bounce.REPORT_LIMIT // len(piece)))
    assert thread_time() - started < 2
