"""Delivery reports for tests: whole ones of mail systems, and parts to make others from."""

from __future__ import annotations

from probes.messages import bounce
from tests.corpus import files

TOKEN = files.TOKEN
POSTFIX = files.text("bounces", "postfix-unknown-user")
BOUNDARY = "4SV0Xk2Zz3z1abc.1700000000/mail.example.com"
SAMPLES = {
    "postfix": POSTFIX,
    "exim": files.text("bounces", "exim-quota-in-the-diagnostic"),
    "exchange": files.text("bounces", "exchange-mailbox-full"),
    "sendmail": files.text("bounces", "sendmail-delayed"),
    "gmail": files.text("bounces", "gmail-unknown-user"),
}

RETURNED = f"""\
Date: Mon, 23 Nov 2026 20:00:00 +0000
From: mailsonde <canary@example.com>
To: <nobody@example.test>
Subject: mailsonde test message
 {TOKEN}
X-Mailsonde-Token: {TOKEN}
MIME-Version: 1.0
"""


def octets(lines: str, line_end: str = "\r\n") -> bytes:
    return lines.replace("\n", line_end).encode()


def read(lines: str) -> bounce.DeliveryReport:
    report = bounce.read_report(octets(lines))
    assert report is not None
    return report


def report_of(*recipients: str, about: str = "Reporting-MTA: dns; mx.example.com\n\n", head: str = "") -> str:
    """Return a report with these groups for recipients, and fields at the beginning of its part."""
    return (
        "Content-Type: multipart/report; report-type=delivery-status; boundary=b\n\n"
        f"--b\nContent-Type: message/delivery-status\n{head}\n{about}" + "\n".join(recipients) + "\n--b--\n"
    )


def block(action: str = "failed", status: str = "5.1.1", who: str = "a@example.test", more: str = "") -> str:
    return f"Final-Recipient: rfc822; {who}\nAction: {action}\nStatus: {status}\n{more}"
