"""What happens to mail between Postfix and the mailboxes, and when, as Dovecot has it."""

from __future__ import annotations

import time
from email.message import EmailMessage

from tests.real_servers.dovecot import Dovecot
from tests.real_servers.process import wait_until


def test_saved_at_is_when_the_message_was_there(dovecot: Dovecot) -> None:
    """Dovecot's log dates a delivery after its start, not before its file was complete, and before now."""
    message = EmailMessage()
    message["Message-ID"] = "<saved-at@example.test>"
    before = time.time()
    dovecot.deliver(message.as_bytes(), "staff")
    wait_until(lambda: "<saved-at@example.test>" in dovecot.saved_at(), "the line in the log", 5)
    saved_at = dovecot.saved_at()["<saved-at@example.test>"]
    mailbox = dovecot.directory / "mail" / "staff@example.test"
    (file,) = (path for path in mailbox.glob("new/*") if b"<saved-at@" in path.read_bytes())
    assert before <= saved_at <= time.time()
    assert file.stat().st_ctime <= saved_at
