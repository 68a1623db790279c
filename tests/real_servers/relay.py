"""A relay for tests between Postfix and Dovecot, by LMTP (RFC 2033) on both sides.

Postfix learns at once that a message is accepted. A treatment says what happens to it then, and when.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import re
import smtplib
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate, make_msgid

from probes.messages.token import HEADER
from tests.real_servers.dovecot import DOMAIN, Dovecot
from tests.real_servers.process import free_port

HOST = f"mail.{DOMAIN}"
_PATH = re.compile(rb"<([^<>\r\n]*)>")


@dataclass(frozen=True)
class Mail:
    """The content of an LMTP transaction: the message with CRLF line ends, and its envelope."""

    raw: bytes
    sender: str
    recipients: tuple[str, ...]


@dataclass(frozen=True)
class Delivery:
    """What to deliver to Dovecot after ``delay`` seconds; sender and recipients are those of the mail.

    ``folder`` is the folder for Dovecot, by the detail of the recipient's address (RFC 5233).
    """

    raw: bytes
    delay: float = 0.0
    recipient: str | None = None
    folder: str | None = None
    sender: str | None = None


Treatment = Callable[[Mail], Iterable[Delivery]]
"""Says what is delivered for a mail. Treatments run one at a time, in the order in which the mail came."""


def untouched(mail: Mail) -> list[Delivery]:
    """Deliver the message unchanged."""
    return [Delivery(mail.raw)]


class Relay:
    """An LMTP server on ``port`` that delivers the results of ``treatment`` for each mail to Dovecot.

    ``treatment`` may be changed at any time, for later mail; ``taken`` is the mail so far. Deliveries happen
    one after the other, in the order in which they are due.
    """

    def __init__(self, dovecot: Dovecot, treatment: Treatment = untouched) -> None:
        self.treatment = treatment
        self.taken: list[Mail] = []
        self.port = free_port()
        self._onward_port = dovecot.lmtp_port
        self._arrivals: queue.SimpleQueue[tuple[Treatment, Mail] | None] = queue.SimpleQueue()
        self._failures: list[Exception] = []
        self._server = _Server(("127.0.0.1", self.port), _Session)
        self._server.take = self._take
        self._threads = [threading.Thread(target=run) for run in (self._server.serve_forever, self._work)]
        for thread in self._threads:
            thread.start()

    def _take(self, mail: Mail) -> None:
        self.taken.append(mail)
        self._arrivals.put((self.treatment, mail))

    def _work(self) -> None:
        due: list[tuple[float, int, Mail, Delivery]] = []
        order = itertools.count()
        while True:
            wait = max(0.0, due[0][0] - time.monotonic()) if due else None
            try:
                if wait == 0.0:
                    self._deliver(*heapq.heappop(due)[2:])
                    continue
                with suppress(queue.Empty):
                    arrival = self._arrivals.get(timeout=wait)
                    if arrival is None:
                        return
                    treatment, mail = arrival
                    for delivery in treatment(mail):
                        at = time.monotonic() + delivery.delay
                        heapq.heappush(due, (at, next(order), mail, delivery))
            except Exception as error:  # close() raises it, in the test's own thread
                self._failures.append(error)

    def _deliver(self, mail: Mail, delivery: Delivery) -> None:
        sender = mail.sender if delivery.sender is None else delivery.sender
        recipients = mail.recipients if delivery.recipient is None else (delivery.recipient,)
        for recipient in recipients:  # one by one, because smtplib reads one reply where LMTP has many
            local, _, domain = recipient.rpartition("@")
            address = f"{local}+{delivery.folder}@{domain}" if delivery.folder else recipient
            with smtplib.LMTP("127.0.0.1", self._onward_port) as lmtp:
                lmtp.sendmail(sender, address, delivery.raw)

    def excuse_failures(self) -> None:
        """Forget the failures so far, caused by a test that stopped Dovecot."""
        self._failures.clear()

    def close(self) -> None:
        """Stop, without delivering mail that is held; raise the first error of a treatment or a delivery."""
        self._server.shutdown()
        self._server.server_close()
        self._arrivals.put(None)
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True  # Postfix keeps connections open, which must not delay the end of a test
    request_queue_size = 100
    take: Callable[[Mail], None]


class _Session(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        sender, recipients = "", list[str]()
        self._reply(f"220 {HOST} LMTP")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            path = _PATH.search(line)
            if verb == b"QUIT":
                self._reply("221 2.0.0 bye")
                return
            if verb == b"LHLO":
                self._reply(f"250-{HOST}\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES")
            elif verb == b"DATA":
                self._reply("354 go on")
                self.server.take(Mail(self._content(), sender, tuple(recipients)))
                for _ in recipients:
                    self._reply("250 2.0.0 taken")
            else:
                if verb == b"MAIL" and path:
                    sender, recipients = path[1].decode(), []
                elif verb == b"RCPT" and path:
                    recipients.append(path[1].decode())
                self._reply("250 2.0.0 ok")

    def _content(self) -> bytes:
        """Return what follows DATA, without stuffed dots (RFC 5321 section 4.5.2)."""
        lines = []
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            lines.append(line.removeprefix(b"."))
        return b"".join(lines)

    def _reply(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


def duplicated(mail: Mail) -> list[Delivery]:
    """Deliver the message twice."""
    return [Delivery(mail.raw), Delivery(mail.raw)]


def dropped(_: Mail) -> list[Delivery]:
    """Deliver nothing."""
    return []


def altered_subject(mail: Mail) -> list[Delivery]:
    """Put a tag before the subject, as gateways do."""
    return [Delivery(with_field(mail.raw, "Subject", b"[EXTERNAL] " + field(mail.raw, "Subject")))]


def altered_body(mail: Mail) -> list[Delivery]:
    """Add a disclaimer to the text, as gateways do."""
    return [Delivery(_with_footer(mail.raw, b"This message may be confidential."))]


def altered_attachment(mail: Mail) -> list[Delivery]:
    """Change the first octets of the second part, which is in base64; raises `ValueError` without one."""
    delimiter = _delimiter(mail.raw)
    before, text, attachment, *rest = mail.raw.split(delimiter) if delimiter else [mail.raw, b""]
    fields, blank, content = attachment.partition(b"\r\n\r\n")
    other = b"////" if content.startswith(b"AAAA") else b"AAAA"
    return [Delivery(delimiter.join([before, text, fields + blank + other + content[4:], *rest]))]


def marked_as_spam(mail: Mail) -> list[Delivery]:
    """Add SpamAssassin's field at the top."""
    return [Delivery(b"X-Spam-Flag: YES\r\n" + mail.raw)]


def forged(mail: Mail) -> list[Delivery]:
    """Change the signature of every token in the message."""
    return [
        Delivery(
            re.sub(
                rb"(mailsonde1:[\w.-]+:[0-9a-f]{32}:\d{16}:[0-9a-f]{31})([0-9a-f])",
                lambda token: token[1] + (b"1" if token[2] == b"0" else b"0"),
                mail.raw,
            )
        )
    ]


def replayed(seconds: float) -> Treatment:
    """Deliver the message at once, and again after ``seconds``."""
    return lambda mail: [Delivery(mail.raw), Delivery(mail.raw, delay=seconds)]


def delayed(seconds: float) -> Treatment:
    """Deliver the message after ``seconds``."""
    return lambda mail: [Delivery(mail.raw, delay=seconds)]


def reordered(count: int) -> Treatment:
    """Hold messages until there are ``count``, and deliver them in reverse order."""
    held: list[Delivery] = []

    def treatment(mail: Mail) -> list[Delivery]:
        held.extend(Delivery(mail.raw, recipient=to, sender=mail.sender) for to in mail.recipients)
        if len(held) < count:
            return []
        released = held[::-1]
        held.clear()
        return released

    return treatment


def junked(mail: Mail) -> list[Delivery]:
    """Deliver the message into the folder Junk."""
    return [Delivery(mail.raw, folder="Junk")]


def forwarded(mail: Mail) -> list[Delivery]:
    """Deliver a new message with the text of the old one, as when a person forwards it."""
    subject = b"Fwd: " + field(mail.raw, "Subject")
    raw = with_field(with_field(mail.raw, HEADER, None), "Subject", subject)
    raw = with_field(raw, "Message-ID", make_msgid(domain=HOST).encode())
    raw = with_field(raw, "From", f"A Colleague <staff@{DOMAIN}>".encode())
    return [Delivery(_with_footer(raw, b"-- \r\nForwarded by A Colleague"), sender=f"staff@{DOMAIN}")]


def auto_replied(mail: Mail) -> list[Delivery]:
    """Deliver the message, and send an automatic reply to its sender (RFC 3834)."""
    if not mail.sender:
        return untouched(mail)
    message_id = field(mail.raw, "Message-ID")
    quoted = re.sub(rb"(?m)^", b"> ", mail.raw.partition(b"\r\n\r\n")[2])
    fields = [
        f"From: <{mail.recipients[0]}>".encode(),
        f"To: <{mail.sender}>".encode(),
        f"Date: {formatdate()}".encode(),
        f"Message-ID: {make_msgid(domain=HOST)}".encode(),
        b"Subject: Auto: " + field(mail.raw, "Subject"),
        b"Auto-Submitted: auto-replied",
        b"In-Reply-To: " + message_id,
        b"References: " + message_id,
    ]
    reply = b"\r\n".join([*fields, b"", b"I am away until Monday.", b"", quoted])
    return [Delivery(mail.raw), Delivery(reply, recipient=mail.sender, sender="")]


def bounced(status: str = "5.1.1") -> Treatment:
    """Deliver a failure report (RFC 3464) in Postfix's layout to the sender instead.

    ``status`` is from RFC 3463; mail with a null sender is dropped.
    """

    def treatment(mail: Mail) -> list[Delivery]:
        if not mail.sender:
            return []
        return [Delivery(_report(mail, status), recipient=mail.sender, sender="")]

    return treatment


def _report(mail: Mail, status: str) -> bytes:
    boundary = f"4BOUNCE.{time.time_ns()}/{HOST}"
    diagnostic = f"{status[0]}50 {status} this is what the test wants"
    notification = [f"{HOST} could not deliver your message.", ""]
    report = [
        f"Reporting-MTA: dns; {HOST}",
        "X-Postfix-Queue-ID: 4BOUNCE",
        f"X-Postfix-Sender: rfc822; {mail.sender}",
        f"Arrival-Date: {formatdate()}",
    ]
    for recipient in mail.recipients:
        notification += [f"<{recipient}>: host 127.0.0.1[127.0.0.1] said:", f"    {diagnostic}", ""]
        report += [
            "",
            f"Final-Recipient: rfc822; {recipient}",
            f"Original-Recipient: rfc822;{recipient}",
            "Action: failed",
            f"Status: {status}",
            "Remote-MTA: dns; 127.0.0.1",
            f"Diagnostic-Code: smtp; {diagnostic}",
        ]
    top = [
        f"Received: by {HOST} (Postfix)\r\n\tid 4BOUNCE; {formatdate()}",
        f"Date: {formatdate()}",
        f"From: Mail Delivery System <MAILER-DAEMON@{HOST}>",
        "Subject: Undelivered Mail Returned to Sender",
        f"To: {mail.sender}",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="{boundary}"',
        "Content-Transfer-Encoding: 8bit",
        f"Message-Id: {make_msgid(domain=HOST)}",
        "",
        "This is a MIME-encapsulated message.",
        "",
    ]
    parts = [
        _part(boundary, "Notification", "text/plain; charset=utf-8", notification),
        _part(boundary, "Delivery report", "message/delivery-status", [*report, ""], encoding=None),
        _part(boundary, "Undelivered Message Headers", "text/rfc822-headers", []),
    ]
    returned = f"Return-Path: <{mail.sender}>\r\n".encode() + mail.raw.partition(b"\r\n\r\n")[0]
    lines = [*top, *itertools.chain.from_iterable(parts)]
    return "\r\n".join(lines).encode() + b"\r\n" + returned + f"\r\n\r\n--{boundary}--\r\n".encode()


def _part(
    boundary: str, description: str, kind: str, lines: list[str], encoding: str | None = "8bit"
) -> list[str]:
    encodings = [f"Content-Transfer-Encoding: {encoding}"] if encoding else []
    return [
        f"--{boundary}",
        f"Content-Description: {description}",
        f"Content-Type: {kind}",
        *encodings,
        "",
        *lines,
    ]


def _field_pattern(name: str) -> re.Pattern[bytes]:
    return re.compile(rb"^%s:[ \t]*([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)\r\n" % name.encode(), re.I | re.M)


def field(raw: bytes, name: str) -> bytes:
    """Return the folded body of a message's first header field with that name; empty without one."""
    found = _field_pattern(name).search(raw.partition(b"\r\n\r\n")[0] + b"\r\n")
    return found[1] if found else b""


def with_field(raw: bytes, name: str, value: bytes | None) -> bytes:
    """Return the message with another body in its first field of that name; `None` removes it."""
    header_section, _, body = raw.partition(b"\r\n\r\n")
    line = b"" if value is None else b"%s: %s\r\n" % (name.encode(), value)
    return _field_pattern(name).sub(lambda _: line, header_section + b"\r\n", count=1) + b"\r\n" + body


def _delimiter(raw: bytes) -> bytes:
    """Return the delimiter of the parts of a multipart message (RFC 2046); empty for other types."""
    found = re.match(rb'multipart/.*boundary="?([^";\r\n]+)', field(raw, "Content-Type"), re.S)
    return b"\r\n--" + found[1] if found else b""


def _with_footer(raw: bytes, footer: bytes) -> bytes:
    """Return the message with a footer below its text, in the first part if there are several."""
    delimiter = _delimiter(raw)
    if not delimiter:
        return raw + footer + b"\r\n"
    before, text, *rest = raw.split(delimiter)
    return delimiter.join([before, text + b"\r\n" + footer, *rest])
