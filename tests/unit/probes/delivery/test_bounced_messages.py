"""A bounce settles the message that it proves to be about, in any form; nothing else does."""

from __future__ import annotations

import pytest

from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.message_life import Message
from probes.messages.token import Token, TokenSigner
from tests.corpus import files
from tests.fakes.mailbox import Stored
from tests.unit.probes.delivery.conftest import SIGNER, Bench


def about(message: Message, folder: str, name: str, signer: TokenSigner = SIGNER) -> Stored:
    """Return a file of the corpus, changed to be about ``message``."""
    token = signer.sign(Token(message.probe, message.id, round(message.created_at * 1e6)))
    raw = files.octets(folder, name)
    raw = raw.replace(files.TOKEN.encode(), token.encode())
    raw = raw.replace(files.ENVELOPE_ID.encode(), signer.envelope_id(message.id).encode())
    return Stored(name, raw)


@pytest.mark.parametrize(
    ("name", "reason", "code", "words"),
    [
        ("opensmtpd-unknown-user", Reason.BOUNCE_NO_MAILBOX, "5.1.1", "550 5.1.1 <nobody@example.test>"),
        ("qmail-queue-too-long", Reason.BOUNCE_EXPIRED, "4.4.1", "in the queue too long"),
        ("exim-text-unrouteable", Reason.BOUNCE_NO_MAILBOX, "5.0.0", "Unrouteable address"),
        ("gateway-message-without-a-status", Reason.BOUNCE_NO_MAILBOX, "5.0.0", "recipient not found"),
        ("postfix-without-our-message", Reason.BOUNCE_NO_MAILBOX, "5.1.1", "User unknown"),
        ("exchange-online-daily-limit", Reason.BOUNCE_POLICY, "5.1.90", "daily limit"),
        ("gateway-action-expired-without-a-status", Reason.BOUNCE_EXPIRED, "5.4.7", "gw.example.net"),
    ],
)
async def test_bounce_ends_its_message(
    bench: Bench, name: str, reason: Reason, code: str, words: str
) -> None:
    """The message is bounced with the report's reason and text, and the report is deleted."""
    message = await bench.sent()
    bench.mailbox.stored.append(about(message, "bounces", name))
    bounced = (await bench.watcher.await_arrival(message)).message
    assert (bounced.state, bounced.reason) == (MessageState.BOUNCED, reason)
    assert bounced.enhanced_status_code == code
    assert words in bounced.detail
    await bench.poll_ended()
    assert bench.mailbox.deleted == [name]


@pytest.mark.parametrize(
    "name", ["opensmtpd-unknown-user", "qmail-no-mailbox", "exim-text-quota", "postfix-without-our-message"]
)
async def test_forged_bounce_counts_for_nothing(bench: Bench, name: str) -> None:
    """A report with a token or envelope id from another key changes nothing and is not deleted."""
    message = await bench.sent(deadline=5.0)
    bench.mailbox.stored.append(about(message, "bounces", name, TokenSigner(b"another key")))
    assert (await bench.watcher.await_arrival(message)).message.state is MessageState.LOST
    assert bench.mailbox.deleted == []


@pytest.mark.parametrize("name", files.names("not_bounces"))
async def test_mail_that_quotes_our_message_is_left_alone(bench: Bench, name: str) -> None:
    """Mail from people, auto-responders and lists is not a bounce and stays, even with a valid token."""
    message = await bench.sent(deadline=5.0)
    bench.mailbox.stored.append(about(message, "not_bounces", name))
    assert (await bench.watcher.await_arrival(message)).message.state is MessageState.LOST
    assert bench.mailbox.deleted == []


@pytest.mark.parametrize("name", ["exim-text-delayed", "opensmtpd-delayed"])
async def test_report_of_a_delay_changes_nothing(bench: Bench, name: str) -> None:
    """After a report of a delay, the message is still watched for; the report is deleted."""
    message = await bench.sent()
    bench.mailbox.stored.append(about(message, "bounces", name))
    bench.arrives(message, 20.0, "arrival")
    assert (await bench.watcher.await_arrival(message)).message.state is MessageState.DELIVERED
    await bench.poll_ended()
    assert bench.mailbox.deleted == [name, "arrival"]


@pytest.mark.parametrize("name", ["qmail-no-mailbox", "postfix-without-our-message"])
async def test_bounce_after_the_arrival_changes_nothing(bench: Bench, name: str) -> None:
    """A message that has arrived stays delivered after a bounce."""
    message = await bench.sent()
    bench.arrives(message, 0.1, "arrival")
    await bench.watcher.await_arrival(message)
    bench.mailbox.stored.append(about(message, "bounces", name))
    other = await bench.sent()
    bench.arrives(other, 0.1, "other")
    await bench.watcher.await_arrival(other)
    found = await bench.ledger.find(message.id)
    assert found is not None
    assert found.state is MessageState.DELIVERED
