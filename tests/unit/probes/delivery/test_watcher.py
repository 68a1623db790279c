"""Watching a mailbox: correct intervals, one session, and foreign mail not touched."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from email.utils import formatdate
from math import inf
from pathlib import Path

import pytest

from monitor.ledger.store import open_ledger
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Arrivals, Unexpected
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.delivery.message_life import Message
from probes.delivery.polling import ArrivalModel
from probes.delivery.reading_pace import MOST_READ
from probes.delivery.watcher import MailboxWatcher
from probes.messages.token import HEADER, Token, TokenSigner
from tests.fakes.mailbox import FakeMailbox, Stored
from tests.unit.probes.delivery.conftest import MAILBOX, SERVER, SIGNER, Bench, synthetic_message


@pytest.mark.parametrize("delay", [0.0, 0.07, 1.3, 42.0, 250.0])
async def test_truth_lies_in_the_published_interval(bench: Bench, delay: float) -> None:
    """For any delay, the true arrival is within the estimate and its uncertainty."""
    message = await bench.sent()
    bench.arrives(message, delay)
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED
    assert settled.delivery_seconds is not None
    assert settled.uncertainty_seconds is not None
    assert abs(settled.delivery_seconds - delay) <= settled.uncertainty_seconds + 1e-9
    assert settled.uncertainty_seconds <= max(0.1, 0.15 * delay)


async def test_what_arrived_is_deleted(bench: Bench) -> None:
    """A message is deleted once it is recorded, and other messages stay."""
    foreign = Stored("foreign", b"Subject: hello\r\n\r\nmailsonde1:trip")
    bench.mailbox.stored.append(foreign)
    message = await bench.sent()
    copy = bench.arrives(message, 0.2)
    await bench.watcher.await_arrival(message)
    await bench.poll_ended()
    assert bench.mailbox.deleted == [copy.uid]
    assert bench.mailbox.stored == [foreign]


async def test_foreign_messages_are_read_once_and_only_their_headers(bench: Bench) -> None:
    """A foreign message costs one header section for any number of polls."""
    bench.mailbox.stored += [Stored(f"foreign-{n}", b"Subject: hello\r\n\r\nbody") for n in range(20)]
    message = await bench.sent()
    bench.arrives(message, 30.0)
    await bench.watcher.await_arrival(message)
    reads = Counter(bench.mailbox.headers_read)
    assert {reads[f"foreign-{n}"] for n in range(20)} == {1}


async def test_token_in_subject_or_body_counts_for_nothing(bench: Bench) -> None:
    """A person's reply that quotes our token is not an arrival and is not deleted."""
    message = await bench.sent(deadline=5.0)
    token = SIGNER.sign(Token(message.probe, message.id, round(message.created_at * 1e6)))
    reply = f"Subject: Re: mailsonde test message {token}\r\n\r\n> {HEADER}: {token}\r\n"
    bench.mailbox.stored.append(Stored("reply", reply.encode()))
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.LOST
    assert [stored.uid for stored in bench.mailbox.stored] == ["reply"]


async def test_forged_token_counts_for_nothing(bench: Bench) -> None:
    """A token signed by another key is counted once as forged, and its message stays."""
    message = await bench.sent(deadline=5.0)
    forged = TokenSigner(b"another key").sign(
        Token(message.probe, message.id, round(message.created_at * 1e6))
    )
    bench.mailbox.stored.append(Stored("forged", synthetic_message(forged, message)))
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.LOST
    assert bench.found.counts == {Unexpected.FORGED: 1}
    assert bench.mailbox.deleted == []


async def test_second_copy_is_a_duplicate_and_changes_nothing(bench: Bench) -> None:
    """A second copy is counted as a duplicate and deleted; the first one's latency stays."""
    message = await bench.sent()
    bench.arrives(message, 0.1, "first")
    settled = (await bench.watcher.await_arrival(message)).message
    bench.arrives(message, 0.0, "second")
    other = await bench.sent()
    bench.arrives(other, 0.1, "other")
    await bench.watcher.await_arrival(other)
    await bench.poll_ended()
    assert bench.found.counts == {Unexpected.DUPLICATE: 1}
    assert sorted(bench.mailbox.deleted) == ["first", "other", "second"]
    assert await bench.ledger.find(message.id) == settled


async def test_lost_then_late(bench: Bench) -> None:
    """A message that is missing after its deadline is lost; if it arrives, it is late, with its latency."""
    message = await bench.sent(deadline=10.0)
    bench.arrives(message, 100.0)
    lost = (await bench.watcher.await_arrival(message)).message
    assert lost.state is MessageState.LOST
    assert bench.clock.now - message.created_mono == pytest.approx(10.0, abs=0.1)
    another = await bench.sent()
    bench.arrives(another, 200.0)
    await bench.watcher.await_arrival(another)
    late = await bench.ledger.find(message.id)
    assert late is not None
    assert late.state is MessageState.LATE
    assert late.delivery_seconds == pytest.approx(100.0, abs=(late.uncertainty_seconds or 0) + 0.1)


@pytest.mark.parametrize("deadline", [3.0, 17.0, 47.0, 230.0])
async def test_loss_is_told_at_the_deadline(bench: Bench, deadline: float) -> None:
    """On any route there is a poll right after the deadline."""
    message = await bench.sent(deadline=deadline)
    lost = (await bench.watcher.await_arrival(message)).message
    assert lost.state is MessageState.LOST
    assert bench.clock.now - message.created_mono == pytest.approx(deadline, abs=0.1)


@pytest.mark.parametrize("arrival", [7.0, 8.0, 9.0, 9.5, 9.9, 9.99])
async def test_look_that_began_before_the_deadline_proves_no_loss(bench: Bench, arrival: float) -> None:
    """A slow poll that ends after the deadline proves nothing about arrivals since it began."""
    bench.mailbox.command_seconds = 3.0
    message = await bench.sent(deadline=10.0)
    bench.arrives(message, arrival)
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED


async def test_look_that_left_something_unread_proves_no_loss(bench: Bench) -> None:
    """A message behind more new mail than one poll reads is found by a later poll, not lost."""
    message = await bench.sent(deadline=0.6)
    bench.arrives(message, 0.5)
    bench.mailbox.stored += [
        Stored(f"foreign-{number}", b"Subject: hello\r\n\r\n", bench.clock.now + 0.5)
        for number in range(3 * MOST_READ)
    ]
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED


async def test_unreadable_mailbox_does_not_lose_messages(bench: Bench) -> None:
    """While no poll succeeds after the deadline, the message is not lost; then it is delivered."""
    message = await bench.sent(deadline=10.0)
    bench.arrives(message, 5.0)
    bench.mailbox.login_fault = ProbeFault(Reason.POP3_SYS_TEMP)
    arrival = bench.watcher.await_arrival(message)

    def mend_after_three_logins() -> None:
        if len(bench.mailbox.logins) > 3:
            bench.mailbox.login_fault = None

    bench.mailbox.on_login = mend_after_three_logins
    settled = (await arrival).message
    assert bench.clock.now > message.created_mono + 10.0
    assert settled.state is MessageState.DELIVERED
    assert abs((settled.delivery_seconds or 0) - 5.0) <= (settled.uncertainty_seconds or 0)


@pytest.mark.parametrize(
    ("fault", "pause"),
    [
        (ProbeFault(Reason.POP3_SYS_TEMP), 60.0),
        (ProbeFault(Reason.POP3_LOGIN_DELAY, retry_after=120.0), 120.0),
        (ProbeFault(Reason.THROTTLED), 60.0),
        (ProbeFault(Reason.THROTTLED, retry_after=299.91), 299.91),
        (ProbeFault(Reason.AUTH_FAILED), 300.0),
        (ProbeFault(Reason.AUTH_DISABLED), 300.0),
        (ProbeFault(Reason.NOT_GRANTED), 300.0),
    ],
)
async def test_server_that_wants_peace_is_left_alone(bench: Bench, fault: ProbeFault, pause: float) -> None:
    """After [SYS/TEMP], [LOGIN-DELAY], throttling or a refused login, the next login waits long enough."""
    message = await bench.sent(deadline=3000.0)
    bench.arrives(message, 1.0)
    bench.mailbox.login_fault = fault

    def mend() -> None:
        bench.mailbox.login_fault = None if len(bench.mailbox.logins) > 1 else fault

    bench.mailbox.on_login = mend
    await bench.watcher.await_arrival(message)
    first, second = bench.mailbox.logins[:2]
    assert second - first >= pause
    assert bench.found.throttled == (["canary"] if fault.reason is Reason.THROTTLED else [])


async def test_one_session_at_a_time_for_many_messages(bench: Bench) -> None:
    """With many messages, the mailbox has one session at a time, and each message is matched."""
    messages = [await bench.sent() for _ in range(50)]
    for number, message in enumerate(messages):
        bench.arrives(message, number * 0.3)
    arrivals = [bench.watcher.await_arrival(message) for message in messages]
    states = [(await arrival).message.state for arrival in arrivals]
    assert states == [MessageState.DELIVERED] * 50
    assert bench.mailbox.most_sessions == 1


async def test_failed_quit_counts_no_duplicate(bench: Bench) -> None:
    """A copy whose deletion was not confirmed is deleted later and not counted again."""
    message = await bench.sent()
    bench.arrives(message, 0.1, "copy")
    bench.mailbox.quit_fault = ProbeFault(Reason.CONNECTION_LOST)
    await bench.watcher.await_arrival(message)
    await bench.poll_ended()
    assert [stored.uid for stored in bench.mailbox.stored] == ["copy"]
    bench.mailbox.quit_fault = None
    other = await bench.sent()
    bench.arrives(other, 10.0, "other")
    await bench.watcher.await_arrival(other)
    await bench.poll_ended()
    assert bench.mailbox.deleted == ["copy", "other"]
    assert bench.found.counts == {}


async def test_restart_after_a_crash_before_deletion_counts_no_duplicate(bench: Bench) -> None:
    """A copy recorded before a crash is deleted after it, and is not a duplicate."""
    message = await bench.sent()
    bench.arrives(message, 0.0, "copy")
    await bench.ledger.advance(message.id, MessageState.DELIVERED, mailbox_uid="copy", delivery_seconds=0.1)
    other = await bench.sent()
    bench.arrives(other, 0.1, "other")
    await bench.watcher.await_arrival(other)
    assert "copy" in bench.mailbox.deleted
    assert bench.found.counts == {}


def of_instance(message: Message, instance: str) -> Message:
    """Return a new message like ``message`` that belongs to another process."""
    same = {name: getattr(message, name) for name in Message.__slots__}
    new = {"id": secrets.token_hex(16), "instance": instance, "state": MessageState.INTENT}
    return Message(**{**same, **new})


async def test_message_of_another_process_is_left_to_it(bench: Bench, tmp_path: Path) -> None:
    """The agent neither counts nor deletes a message of a running `check`."""
    async with open_ledger(f"sqlite://{tmp_path}/ledger.db", bench.clock, "check-1", "here"):
        message = await bench.sent()
        await bench.ledger.intend(theirs := of_instance(message, "check-1"))
        bench.arrives(theirs, 0.0, "theirs")
        bench.arrives(message, 0.2, "ours")
        await bench.watcher.await_arrival(message)
        await bench.poll_ended()
        assert bench.mailbox.deleted == ["ours"]
        assert bench.found.counts == {}


async def test_a_second_copy_of_a_message_of_maintenance_is_only_deleted(bench: Bench) -> None:
    """A server may deliver again what it had while somebody worked on it, which nobody needs to be told."""
    bench.ledger.counts_from = lambda *_: inf
    message = await bench.sent()
    bench.arrives(message, 0.1, "first")
    await bench.watcher.await_arrival(message)
    bench.ledger.counts_from = lambda *_: -inf
    bench.arrives(message, 0.0, "second")
    other = await bench.sent()
    bench.arrives(other, 0.1, "other")
    await bench.watcher.await_arrival(other)
    await bench.poll_ended()
    assert sorted(bench.mailbox.deleted) == ["first", "other", "second"]
    assert bench.found.counts == {}


async def test_copies_that_an_earlier_process_left_behind(bench: Bench) -> None:
    """After a restart, a delivered copy is deleted, and another one is a duplicate."""
    message = await bench.sent()
    await bench.ledger.intend(earlier := of_instance(message, "agent-before"))
    now = bench.clock.now
    await bench.ledger.advance(earlier.id, MessageState.SENT, connected_mono=now, dot_mono=now)
    await bench.ledger.advance(
        earlier.id, MessageState.DELIVERED, delivery_seconds=0.1, uncertainty_seconds=0.1, mailbox_uid="left"
    )
    bench.arrives(earlier, 0.0, "left")
    bench.arrives(earlier, 0.0, "second")
    bench.arrives(message, 0.2, "ours")
    await bench.watcher.await_arrival(message)
    await bench.poll_ended()
    assert sorted(bench.mailbox.deleted) == ["left", "ours", "second"]
    assert bench.found.counts == {Unexpected.DUPLICATE: 1}


async def test_message_seen_before_its_reply_was_recorded(bench: Bench) -> None:
    """A copy seen while the ledger still says intent keeps the interval of its first sighting."""
    first = await bench.sent()
    bench.arrives(first, 3.0)
    created = bench.clock.now
    early = Message(
        **{
            **{name: getattr(first, name) for name in Message.__slots__},
            "id": secrets.token_hex(16),
            "state": MessageState.INTENT,
        }
    )
    await bench.ledger.intend(early)
    bench.arrives(early, 1.0)
    await bench.watcher.await_arrival(first)
    assert bench.clock.now > created + 2.5
    recorded = await bench.ledger.advance(
        early.id, MessageState.SENT, connected_mono=created, dot_mono=created, accepted_mono=bench.clock.now
    )
    assert recorded is not None
    settled = (await bench.watcher.await_arrival(recorded)).message
    assert settled.delivery_seconds == pytest.approx(1.0, abs=(settled.uncertainty_seconds or 0) + 0.01)
    assert settled.delivery_seconds < 2.0


async def test_after_a_reboot_the_wall_clock_serves(bench: Bench) -> None:
    """A message from before a reboot has an interval that starts when it was sent."""
    message = await bench.sent(deadline=600.0)
    bench.arrives(message, 20.0)
    bench.clock.now += 100.0
    bench.clock.boot = "boot-2"
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED
    assert abs((settled.delivery_seconds or 0) - 20.0) <= (settled.uncertainty_seconds or 0)


async def test_lost_message_that_a_restarted_agent_finds_is_late(bench: Bench) -> None:
    """A message that an earlier process recorded as lost is late when found, after any polls."""
    message = await bench.sent(deadline=10.0)
    lost = await bench.ledger.advance(message.id, MessageState.LOST)
    assert lost is not None
    bench.arrives(message, 5.0)
    bench.clock.now += 100.0
    bench.watcher.watch_on(lost)
    while not bench.found.messages:
        await bench.clock.sleep(0.1)
    assert [found.state for found in bench.found.messages] == [MessageState.LATE]
    assert bench.found.counts == {}


async def test_our_own_interruption_never_reads_as_lost(bench: Bench) -> None:
    """A message left ambiguous by our own interruption stays ambiguous if it never arrives."""
    message = await bench.sent(deadline=5.0, state=MessageState.AMBIGUOUS, reason=str(Reason.INTERRUPTED))
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.AMBIGUOUS


async def test_huge_foreign_headers_are_passed_over(bench: Bench) -> None:
    """A foreign message with endless headers costs one failed poll and does not end the watching."""
    bench.mailbox.stored.append(Stored("huge", b"X: " + b"x" * 100_000 + b"\r\n\r\n"))
    message = await bench.sent()
    bench.arrives(message, 0.1)
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED
    assert Counter(bench.mailbox.headers_read)["huge"] == 1


async def test_stuck_mailbox_delays_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one server hangs, messages in another mailbox with its own budget are found in time."""
    never = asyncio.Event()

    async def hanging(server: object, **credentials: object) -> None:
        if credentials["username"] == "stuck":
            await never.wait()
        return await bench.mailbox.open_session(server, **credentials)

    monkeypatch.setattr("probes.delivery.mailboxes.pop3.Pop3Session.open", hanging)
    stuck_settings = MAILBOX.model_copy(update={"username": "stuck"})
    budget = LoginBudget(6000.0, bench.clock)
    options = {"clock": bench.clock, "ledger": bench.ledger, "signer": SIGNER}
    stuck = MailboxWatcher(
        "stuck",
        Pop3Mailbox(stuck_settings, SERVER, bench.clock, budget),
        Arrivals("stuck", **options, retention=86400.0),
        clock=bench.clock,
        observer=bench.found,
        retention=86400.0,
    )
    waiting = stuck.await_arrival(await bench.sent())
    message = await bench.sent()
    bench.arrives(message, 0.5)
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.delivery_seconds == pytest.approx(0.5, abs=0.1)
    assert not waiting.done()
    await stuck.close()


async def test_report_in_another_mailbox_settles_the_message(bench: Bench) -> None:
    """A delivery report in the sender's mailbox settles the message in its own mailbox."""
    message = await bench.sent(deadline=3000.0)
    token = SIGNER.sign(Token(message.probe, message.id, round(message.created_at * 1e6)))
    arrival = bench.watcher.await_arrival(message)
    report = (
        "Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n"
        "--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx\r\n\r\n"
        "Final-Recipient: rfc822; canary@example.com\r\nAction: failed\r\nStatus: 5.2.2\r\n\r\n"
        f"--b\r\nContent-Type: text/rfc822-headers\r\n\r\n{HEADER}: {token}\r\n\r\n--b--\r\n"
    )
    others = FakeMailbox(bench.clock, stored=[Stored("report", report.encode(), bench.clock.now + 5.0)])

    async def open_session(server: object, **credentials: object) -> object:
        if credentials["username"] == "sender":
            return await others.open_session(server, **credentials)
        # Otherwise polls could move the clock past the deadline while the ledger is still writing.
        await asyncio.wait([arrival])
        return await bench.mailbox.open_session(server, **credentials)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probes.delivery.mailboxes.pop3.Pop3Session.open", open_session)
        settings = MAILBOX.model_copy(update={"username": "sender"})
        options = {"clock": bench.clock, "ledger": bench.ledger, "signer": SIGNER}
        sender = MailboxWatcher(
            "sender",
            Pop3Mailbox(settings, SERVER, bench.clock, LoginBudget(6000.0, bench.clock)),
            Arrivals("sender", **options, retention=86400.0),
            clock=bench.clock,
            observer=bench.found,
            retention=86400.0,
            peers={"canary": bench.watcher},
        )
        sender.await_report(message, arrival)
        async with asyncio.timeout(120):
            settled = (await arrival).message
        await sender.close()
    assert settled.state is MessageState.BOUNCED
    assert (settled.reason, settled.enhanced_status_code) == ("bounce_mailbox_full", "5.2.2")
    assert others.deleted == ["report"]


async def test_defect_of_the_watcher_does_not_end_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of ours while planning a poll is kept as the fault, and the watching continues."""
    message = await bench.sent()
    bench.arrives(message, 30.0)
    seen: list[ProbeFault | None] = []

    def broken(model: ArrivalModel, age: float) -> float:
        seen.append(bench.watcher.fault)
        if len(seen) > 2:
            monkeypatch.undo()
            monkeypatch.setattr("probes.delivery.mailboxes.pop3.Pop3Session.open", bench.mailbox.open_session)
        raise ZeroDivisionError

    monkeypatch.setattr(ArrivalModel, "gap", broken)
    settled = (await bench.watcher.await_arrival(message)).message
    assert settled.state is MessageState.DELIVERED
    assert seen[-1] is not None
    assert seen[-1].reason is Reason.INTERNAL


async def test_stamp_at_the_beginning_of_a_long_submission(bench: Bench) -> None:
    """The clock of a host that stamps a message before its final dot is not called wrong."""
    message = await bench.sent(dot_mono=bench.clock.now + 60.0)
    stored = bench.arrives(message, after=61.0)
    stamp = formatdate(bench.clock.time() + 1.0)
    stored.raw = f"Received: from us by mx.example.com with ESMTPS; {stamp}\r\n".encode() + stored.raw
    (hop,) = (await bench.watcher.await_arrival(message)).hops
    assert (hop.by, hop.skewed) == ("mx.example.com", False)


async def test_what_exchange_wrote(bench: Bench) -> None:
    """An arrival has Exchange's own latencies, except those longer than it took by our clock."""
    message = await bench.sent()
    stored = bench.arrives(message, after=5.0)
    fields = b"X-MS-Exchange-Organization-MessageLatency: SRV=a:TOTAL-HUB=2.5|CAT=0.5\r\n"
    fields += b"X-MS-Exchange-Transport-EndToEndLatency: 09:00:00\r\n"
    stored.raw = fields + stored.raw
    exchange = (await bench.watcher.await_arrival(message)).exchange
    assert exchange is not None
    assert exchange.stages == {"hub": 2.0, "categorizer": 0.5}
    assert (exchange.end_to_end_seconds, exchange.disbelieved) == (None, 1)
