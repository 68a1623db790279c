"""Mail between Postfix and the mailboxes: the relay's treatments, and Dovecot's timestamps."""

from __future__ import annotations

import base64
import imaplib
import smtplib
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest

from probes.messages.bounce import read_report
from probes.messages.token import HEADER, Token, TokenSigner
from tests.real_servers import relay as treatments
from tests.real_servers.dovecot import Dovecot, TlsFiles
from tests.real_servers.postfix import GONE, Postfix
from tests.real_servers.process import wait_until
from tests.real_servers.relay import Delivery, Mail, Relay, Treatment

SENDER = "sender@example.test"
SIGNER = TokenSigner(b"key of the test")
TEXT = "This is a test.\r\n.This line begins with a dot, and hälf of it is not ASCII.\r\n"
ATTACHMENT = bytes(range(200))
MULTIPART = f"""\
Content-Type: multipart/mixed; boundary="b1"

--b1
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

{TEXT.rstrip()}
--b1
Content-Type: application/octet-stream
Content-Transfer-Encoding: base64

{base64.encodebytes(ATTACHMENT).decode().rstrip()}
--b1--
""".replace("\r\n", "\n")
PLAIN = f"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n{TEXT}".replace(
    "\r\n", "\n"
)


@dataclass
class Route:
    """Postfix, the relay and Dovecot."""

    postfix: Postfix
    relay: Relay
    dovecot: Dovecot

    def submit(self, *, recipients: tuple[str, ...] = (Dovecot.address,), content: str = MULTIPART) -> str:
        """Submit a message with a token; return the run, which is also in the subject and the Message-ID."""
        run = uuid.uuid4().hex
        token = SIGNER.sign(Token("trip", run, time.time_ns() // 1000))
        head = f"From: {SENDER}\nTo: {recipients[0]}\nMessage-ID: <{run}@example.test>\n{HEADER}: {token}\n"
        raw = f"{head}MIME-Version: 1.0\nSubject: a test\n {token}\n{content}"
        with smtplib.SMTP("127.0.0.1", self.postfix.smtp_port) as smtp:
            options = ["BODY=8BITMIME"]
            smtp.sendmail(SENDER, recipients, raw.replace("\n", "\r\n").encode(), options)
        return run

    def stored(self, run: str, user: str = "canary", folder: str = "INBOX") -> list[EmailMessage]:
        """Return the messages in a folder that belong to the run."""
        found = self.dovecot.messages(user, folder)
        return [message_from_bytes(raw, policy=default) for raw in found if run.encode() in raw]

    def await_stored(self, run: str, user: str = "canary", folder: str = "INBOX", count: int = 1) -> list:
        """Return the run's messages in a folder once there are ``count`` and all due deliveries are done."""
        log = self.dovecot.directory / "dovecot.log"
        wait_until(lambda: len(self.stored(run, user, folder)) >= count, "messages", log=log)
        self.pass_one()
        found = self.stored(run, user, folder)
        assert len(found) == count
        return found

    def pass_one(self) -> None:
        """Return when a later message has arrived, so that all earlier due deliveries are done."""
        self.relay.treatment = treatments.untouched
        run = self.submit(recipients=("staff@example.test",))
        wait_until(lambda: self.stored(run, "staff") != [], "a later message")


@pytest.fixture(scope="module")
def started(server_tls: TlsFiles, server_directory: Callable[[str], Path]) -> Iterator[Route]:
    dovecot = Dovecot(server_directory("dovecot"), server_tls)
    with Relay(dovecot) as relay:
        postfix = Postfix(server_directory("postfix"), dovecot, server_tls, relay=relay)
        yield Route(postfix, relay, dovecot)
        postfix.stop()
    dovecot.stop()


@pytest.fixture
def treated(started: Route) -> Callable[[Treatment], Route]:
    """Set the treatment."""

    def treat(treatment: Treatment) -> Route:
        started.relay.treatment = treatment
        return started

    return treat


def text_of(message: EmailMessage) -> str:
    part = message.get_body(("plain",))
    assert part is not None
    return part.get_content()


def attachment_of(message: EmailMessage) -> bytes:
    (part,) = message.iter_attachments()
    return part.get_content()


def token_of(message: EmailMessage) -> Token | None:
    return SIGNER.verify(message[HEADER])


def test_saved_at_is_when_the_message_was_there(dovecot: Dovecot) -> None:
    """Dovecot logs a delivery after its start, not before the file was complete, and before now."""
    message = EmailMessage()
    message["Message-ID"] = "<saved-at@example.test>"
    before = time.time()
    dovecot.deliver(message.as_bytes(), "staff")
    wait_until(lambda: "<saved-at@example.test>" in dovecot.saved_at(), "the line in the log")
    saved_at = dovecot.saved_at()["<saved-at@example.test>"]
    mailbox = dovecot.directory / "mail" / "staff@example.test"
    (file,) = (path for path in mailbox.glob("new/*") if b"<saved-at@" in path.read_bytes())
    assert before <= saved_at <= time.time()
    assert file.stat().st_ctime <= saved_at


def test_saved_at_has_the_first_time(dovecot: Dovecot) -> None:
    """A message delivered twice keeps the time of its first delivery."""
    raw = b"Message-ID: <saved-twice@example.test>\r\n\r\n"
    dovecot.deliver(raw, "staff")
    wait_until(lambda: "<saved-twice@example.test>" in dovecot.saved_at(), "the line in the log")
    first = dovecot.saved_at()["<saved-twice@example.test>"]
    dovecot.deliver(raw, "staff")
    log = dovecot.directory / "dovecot.log"
    wait_until(lambda: log.read_text().count("msgid=<saved-twice@") == 2, "the second line")
    assert dovecot.saved_at()["<saved-twice@example.test>"] == first


def test_untouched(treated: Callable[[Treatment], Route]) -> None:
    """Without a treatment, each recipient gets the message once, unchanged."""
    route = treated(treatments.untouched)
    run = route.submit(recipients=(Dovecot.address, "staff@example.test"))
    (message,) = route.await_stored(run)
    (other,) = route.await_stored(run, "staff")
    assert text_of(message) == text_of(other) == TEXT.replace("\r\n", "\n").rstrip()
    assert attachment_of(message) == ATTACHMENT
    assert token_of(message) is not None


@pytest.mark.parametrize("treatment", [treatments.duplicated, treatments.replayed(0.2)])
def test_delivered_twice(treatment: Treatment, treated: Callable[[Treatment], Route]) -> None:
    """A duplicated or replayed message is there twice, the same both times."""
    route = treated(treatment)
    one, other = route.await_stored(route.submit(), count=2)
    assert one.as_bytes().partition(b"From: ")[2] == other.as_bytes().partition(b"From: ")[2]


def test_dropped(treated: Callable[[Treatment], Route]) -> None:
    """A dropped message is accepted from Postfix and never arrives."""
    route = treated(treatments.dropped)
    run = route.submit()
    wait_until(lambda: any(run.encode() in mail.raw for mail in route.relay.taken), "the message is taken")
    route.pass_one()
    assert route.stored(run) == []


def test_altered_subject(treated: Callable[[Treatment], Route]) -> None:
    """Only the subject differs."""
    route = treated(treatments.altered_subject)
    (message,) = route.await_stored(route.submit())
    assert message["Subject"].startswith("[EXTERNAL] a test mailsonde1:")
    assert text_of(message) == TEXT.replace("\r\n", "\n").rstrip()
    assert token_of(message) is not None


@pytest.mark.parametrize("content", [MULTIPART, PLAIN], ids=["multipart", "plain"])
def test_altered_body(content: str, treated: Callable[[Treatment], Route]) -> None:
    """A disclaimer is below the text, with or without an attachment, which is unchanged."""
    route = treated(treatments.altered_body)
    (message,) = route.await_stored(route.submit(content=content))
    expected = TEXT.replace("\r\n", "\n") + "This message may be confidential."
    assert text_of(message).rstrip() == expected
    assert [part.get_content() for part in message.iter_attachments()] == [
        ATTACHMENT
    ] * message.is_multipart()


def test_altered_attachment(treated: Callable[[Treatment], Route]) -> None:
    """The attachment has the same length but differs; the text is unchanged."""
    route = treated(treatments.altered_attachment)
    (message,) = route.await_stored(route.submit())
    assert attachment_of(message)[3:] == ATTACHMENT[3:]
    assert attachment_of(message)[:3] != ATTACHMENT[:3]
    assert text_of(message) == TEXT.replace("\r\n", "\n").rstrip()


def test_marked_as_spam(treated: Callable[[Treatment], Route]) -> None:
    """The field is there, the message is in the inbox, and the token is valid."""
    route = treated(treatments.marked_as_spam)
    (message,) = route.await_stored(route.submit())
    assert message["X-Spam-Flag"] == "YES"
    assert token_of(message) is not None


def test_junked(treated: Callable[[Treatment], Route]) -> None:
    """The message is in the folder Junk, not in the inbox."""
    route = treated(treatments.junked)
    run = route.submit()
    (message,) = route.await_stored(run, folder="Junk")
    assert token_of(message) is not None
    assert route.stored(run) == []


def test_forged(treated: Callable[[Treatment], Route]) -> None:
    """The token has the same run and an invalid signature, also in the subject."""
    route = treated(treatments.forged)
    run = route.submit()
    (message,) = route.await_stored(run)
    (sent,) = (mail.raw for mail in route.relay.taken if run.encode() in mail.raw)
    assert message[HEADER][:-1] == treatments.field(sent, HEADER).decode()[:-1]
    assert token_of(message) is None
    assert message["Subject"].endswith(message[HEADER])


def test_delayed(treated: Callable[[Treatment], Route]) -> None:
    """Delayed messages arrive after the given delay, and others overtake them."""
    route = treated(treatments.delayed(1.0))
    sent_at = time.time()
    late = route.submit()
    wait_until(lambda: any(late.encode() in mail.raw for mail in route.relay.taken), "the message is taken")
    route.relay.treatment = treatments.untouched
    quick = route.submit()
    route.await_stored(late)
    saved_at = route.dovecot.saved_at()
    assert saved_at[f"<{quick}@example.test>"] < saved_at[f"<{late}@example.test>"]
    assert saved_at[f"<{late}@example.test>"] >= sent_at + 1.0


def test_held_messages_are_off_postfix_at_once(
    started: Route, start_relay: Callable[..., Relay], start_postfix: Callable[..., Postfix]
) -> None:
    """Messages held by the relay are no longer in Postfix's queue."""
    relay = start_relay(started.dovecot, treatments.delayed(3600))
    route = Route(start_postfix(started.dovecot, relay=relay), relay, started.dovecot)
    runs = {route.submit() for _ in range(30)}
    wait_until(lambda: len(relay.taken) == 30, "Postfix has handed over everything", log=route.postfix.log)
    wait_until(lambda: not route.postfix.queue_ids(), "Postfix's queue is empty", log=route.postfix.log)
    route.pass_one()
    assert not any(map(route.stored, runs))


def test_reordered(treated: Callable[[Treatment], Route]) -> None:
    """Messages arrive in reverse order once the last is there."""
    route = treated(treatments.reordered(3))
    runs = [route.submit(), route.submit()]
    wait_until(lambda: runs[1].encode() in b"".join(mail.raw for mail in route.relay.taken), "two are taken")
    assert not any(map(route.stored, runs))
    runs.append(route.submit())
    wait_until(lambda: all(map(route.stored, runs)), "all three")
    taken = [run for mail in route.relay.taken for run in runs if run.encode() in mail.raw]
    ids = [f"<{run}@example.test>" for run in taken]
    wait_until(lambda: set(ids) <= route.dovecot.saved_at().keys(), "the lines in the log")
    assert sorted(ids, key=route.dovecot.saved_at().__getitem__) == ids[::-1]


def layout(report: EmailMessage) -> list[tuple[str, list[str]]]:
    """Return the types of a bounce's parts with their fields' names, without the returned mail."""
    parts = [part for part in report.walk() if part.get_content_type() != "message/rfc822"]
    kinds = [(part.get_content_type(), part.keys()) for part in parts]
    notification = next(n for n, (kind, _) in enumerate(kinds) if kind == "message/delivery-status")
    return kinds[: notification + 3]


def test_bounced(treated: Callable[[Treatment], Route]) -> None:
    """The sender gets a report like Postfix's, with the requested status and the returned header."""
    route = treated(treatments.bounced("5.2.2"))
    run = route.submit()
    (report,) = route.await_stored(run, "sender")
    assert report["Return-Path"] == "<>"
    status = {}
    for part in report.walk():
        status.update(part.items())
    assert (status["Action"], status["Status"]) == ("failed", "5.2.2")
    assert status["Final-Recipient"] == f"rfc822; {Dovecot.address}"
    assert status["Diagnostic-Code"].startswith("smtp; 550 5.2.2 ")
    (returned,) = (part for part in report.walk() if part.get_content_type() == "text/rfc822-headers")
    original = message_from_bytes(returned.get_payload(decode=True), policy=default)
    assert original["Message-ID"] == f"<{run}@example.test>"
    assert token_of(original) is not None
    assert route.stored(run) == []


def test_bounced_is_laid_out_as_by_postfix(
    treated: Callable[[Treatment], Route], start_postfix: Callable[..., Postfix]
) -> None:
    """A generated bounce has the same parts and fields as a real one from Postfix."""
    route = treated(treatments.bounced())
    (made,) = route.await_stored(route.submit(), "sender")
    direct = Route(start_postfix(route.dovecot), route.relay, route.dovecot)
    run = direct.submit(recipients=(GONE,))
    wait_until(lambda: direct.stored(run, "sender") != [], "Postfix's own bounce", log=direct.postfix.log)
    (real,) = direct.stored(run, "sender")
    assert layout(made) == layout(real)


def test_postfix_names_the_envelope_id(
    treated: Callable[[Treatment], Route], start_postfix: Callable[..., Postfix]
) -> None:
    """Postfix's bounce has the ENVID of the submission unchanged, which identifies the run."""
    route = treated(treatments.untouched)
    direct = Route(start_postfix(route.dovecot), route.relay, route.dovecot)
    run = uuid.uuid4().hex
    with smtplib.SMTP("127.0.0.1", direct.postfix.smtp_port) as smtp:
        assert smtp.ehlo()[0] == 250
        assert smtp.has_extn("dsn")
        options = [f"ENVID={SIGNER.envelope_id(run)}"]
        smtp.sendmail(SENDER, (GONE,), f"From: {SENDER}\r\nSubject: {run}\r\n\r\n".encode(), options)
    wait_until(lambda: direct.stored(run, "sender") != [], "Postfix's bounce", log=direct.postfix.log)
    (raw,) = (raw for raw in direct.dovecot.messages("sender", "INBOX") if run.encode() in raw)
    report = read_report(raw)
    assert report is not None
    assert (report.action, report.token) == ("failed", None)
    assert report.envelope_id is not None
    assert SIGNER.verify_envelope_id(report.envelope_id) == run


def test_forwarded(treated: Callable[[Treatment], Route]) -> None:
    """A forwarded message is from somebody else, without our header field, but with the content."""
    route = treated(treatments.forwarded)
    run = route.submit()
    (message,) = route.await_stored(run)
    assert message[HEADER] is None
    assert message["Message-ID"] != f"<{run}@example.test>"
    assert message["From"].addresses[0].addr_spec == "staff@example.test"
    assert message["Subject"].startswith("Fwd: a test mailsonde1:trip:")
    assert text_of(message).rstrip().endswith("-- \nForwarded by A Colleague")
    assert message["Return-Path"] == "<staff@example.test>"


def test_auto_replied(treated: Callable[[Treatment], Route]) -> None:
    """The message arrives, and its sender gets an automatic reply without our header field."""
    route = treated(treatments.auto_replied)
    run = route.submit(content=PLAIN)
    (message,) = route.await_stored(run)
    (reply,) = route.await_stored(run, "sender")
    assert reply["Auto-Submitted"] == "auto-replied"
    assert reply["In-Reply-To"] == message["Message-ID"] == f"<{run}@example.test>"
    assert reply["Subject"].startswith("Auto: a test mailsonde1:")
    assert reply["Return-Path"] == "<>"
    assert reply[HEADER] is None
    assert "> This is a test." in reply.get_content()


def test_null_sender_gets_no_answer() -> None:
    """A report gets neither a bounce nor an automatic reply (RFC 5321 section 4.5.5)."""
    mail = Mail(b"Subject: x\r\n\r\n", "", (Dovecot.address,))
    assert list(treatments.bounced()(mail)) == []
    assert list(treatments.auto_replied(mail)) == [Delivery(mail.raw)]


@pytest.mark.parametrize("content", ["", "\r\n\r\nx", "Content-Type: text/plain\r\n\r\nx"])
def test_failure_is_not_passed_over(content: str, dovecot: Dovecot) -> None:
    """A treatment that fails makes the test fail."""
    relay = Relay(dovecot, treatments.altered_attachment)
    with smtplib.LMTP("127.0.0.1", relay.port) as lmtp:
        lmtp.sendmail(SENDER, "staff@example.test", content.encode())
    with pytest.raises(ValueError, match="not enough values to unpack"):
        relay.close()


def test_refusal_is_not_passed_over(dovecot: Dovecot) -> None:
    """A recipient unknown to Dovecot makes the test fail."""
    relay = Relay(dovecot)
    with smtplib.LMTP("127.0.0.1", relay.port) as lmtp:
        lmtp.sendmail(SENDER, GONE, b"Subject: x\r\n\r\n")
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        relay.close()


def test_many_foreign_messages(started: Route, server_tls: TlsFiles) -> None:
    """Messages stored as files have the right number, and Dovecot serves them unchanged."""
    started.dovecot.deliver_many(100, lambda n: b"Subject: foreign %d\r\n\r\nbody\r\n" % n, "sender")
    with imaplib.IMAP4("127.0.0.1", started.dovecot.imap_port) as imap:
        imap.starttls(ssl.create_default_context(cafile=server_tls.authority))
        imap.login(SENDER, Dovecot.password)
        imap.select()
        found = imap.search(None, "SUBJECT", "foreign")[1][0].split()
        assert len(found) == 100
        last = imap.fetch(found[-1], "(RFC822)")[1][0][1]
    assert last == b"Subject: foreign 99\r\n\r\nbody\r\n"
