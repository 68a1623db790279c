"""Round trips that are sent and read through Microsoft Graph."""

from __future__ import annotations

import asyncio

import pytest

from probes.core.reasons import Outcome, Reason
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Unexpected
from tests.fakes.graph.http import HANG_UP, Answer, Request
from tests.unit.probes.graph.conftest import OpenBench

FOREIGN = b"From: boss@contoso.com\r\nTo: canary@contoso.com\r\nSubject: lunch\r\n\r\nAt one?\r\n"


async def test_a_message_goes_there_and_back(bench: OpenBench) -> None:
    """What Graph takes is found in the inbox, measured between two polls, and removed for good."""
    async with bench() as made:
        foreign = made.graph.put(FOREIGN)
        made.graph.delay = 2.0
        result = await made.run()
        await made.polled()
        assert (result.verdict.reason, result.verdict.detail) == (Reason.NONE, "")
        message = result.verdict.message
        assert message.delivery_seconds == pytest.approx(2.0, abs=message.uncertainty_seconds + 0.1)
        assert made.graph.mailboxes["canary@contoso.com"] == [foreign]
        assert len(made.graph.removed) == len(made.graph.sent) == 1
        assert made.graph.entra.issued == 1
        assert await made.ledger.discrepancies() == []


async def test_one_connection_serves_all_polls(bench: OpenBench) -> None:
    """Polls cost one request each, and are spent as those of POP3."""
    async with bench() as made:
        made.graph.delay = 5.0
        for _ in range(8):
            await made.run()
            made.clock.now += 60.0
        before = len(made.graph.requests)
        await made.run()
        lists = [line for line in made.graph.requests[before:] if line.endswith("inbox/messages")]
        assert 2 <= len(lists) <= 14
        assert made.graph.most_at_a_time <= 4


async def test_junk_is_told(bench: OpenBench) -> None:
    """A message that arrives in the junk folder is found there, and removed."""
    async with bench() as made:
        made.graph.folder = "junkemail"
        result = await made.run()
        await made.polled()
        assert result.verdict.reason is Reason.MESSAGE_JUNKED
        assert made.graph.mailboxes["canary@contoso.com"] == []


async def test_altered_content_is_told(bench: OpenBench) -> None:
    """A body that was changed on the way is a warning."""
    async with bench() as made:
        made.graph.on_the_way = lambda raw: raw + b"Sent by a disclaimer.\r\n"
        assert (await made.run()).verdict.reason is Reason.MESSAGE_ALTERED


async def test_hops_are_read(bench: OpenBench) -> None:
    """The Received fields of the whole message are in the result, with the builds of Exchange in them."""
    async with bench() as made:
        made.graph.on_the_way = lambda raw: (
            b"Received: from a.contoso.com (10.0.0.1) by b.contoso.com (10.0.0.2) with Microsoft SMTP Server"
            b" id 15.2.1748.0; Tue, 14 Nov 2023 22:13:20 +0000\r\n" + raw
        )
        values = (await made.run()).verdict.values
        assert [hop["by"] for hop in values["hops"]] == ["b.contoso.com"]
        assert values["exchange"]["builds"]["b.contoso.com"].startswith("15.2.1748.0, Exchange 2019 CU15; ")


async def test_duplicates_are_counted_and_removed(bench: OpenBench) -> None:
    """A second copy counts as a duplicate, and neither stays."""
    async with bench() as made:
        made.graph.copies = 2
        assert (await made.run()).verdict.reason is Reason.NONE
        await made.watcher.poll_now()
        assert made.found.counts == [Unexpected.DUPLICATE]
        assert made.graph.mailboxes["canary@contoso.com"] == []


async def test_a_bounce_is_matched_to_its_message(bench: OpenBench) -> None:
    """A delivery report in the inbox ends the run with its reason, and is removed."""

    def report(raw: bytes) -> bytes:
        return (
            b"From: postmaster@contoso.com\r\nTo: canary@contoso.com\r\nSubject: Undeliverable\r\n"
            b"Return-Path: <>\r\nMIME-Version: 1.0\r\n"
            b'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
            b"--b\r\nContent-Type: text/plain\r\n\r\nIt could not be delivered.\r\n"
            b"--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns;mx.contoso.com\r\n\r\n"
            b"Final-Recipient: rfc822;canary@contoso.com\r\nAction: failed\r\nStatus: 5.2.2\r\n"
            b"Diagnostic-Code: smtp;552 5.2.2 mailbox full\r\n\r\n"
            b"--b\r\nContent-Type: message/rfc822\r\n\r\n" + raw + b"\r\n--b--\r\n"
        )

    async with bench() as made:
        made.graph.on_the_way = report
        result = await made.run()
        await made.polled()
        assert result.verdict.reason is Reason.BOUNCE_MAILBOX_FULL
        assert made.graph.mailboxes["canary@contoso.com"] == []


async def test_any_folder_by_its_name(bench: OpenBench) -> None:
    """A rule may file the messages: a folder is found by its name, quotes included."""
    async with bench(mailbox={"folder": "Bob's probes"}) as made:
        made.graph.named["Bob's probes"] = made.graph.folder = "AAMkfolder="
        assert (await made.run()).verdict.reason is Reason.NONE


async def test_a_missing_folder_is_told_at_once(bench: OpenBench) -> None:
    """A folder that does not exist ends the run before its deadline, and is named."""
    async with bench(deadline="50s", mailbox={"folder": "Nowhere"}) as made:
        began, sleep = made.clock.now, made.clock.sleep

        async def sleep_unless_told(seconds: float) -> None:
            is_told = made.watcher._misconfigured.is_set()  # from now on, the watcher must not run ahead
            await (asyncio.Event().wait() if is_told else sleep(seconds))

        made.clock.sleep = sleep_unless_told  # type: ignore[method-assign] # a clock that can be held
        verdict = (await made.run()).verdict
        assert (verdict.reason, await made.state()) == (Reason.GRAPH_NOT_FOUND, MessageState.SENT)
        assert "folder 'Nowhere'" in verdict.detail
        assert verdict.remedy == "Correct `folder`, or create the folder."
        assert made.clock.now - began < 10.0


async def test_a_mailbox_without_its_junk_folder_is_watched(bench: OpenBench) -> None:
    """A junk folder that cannot be read does not keep a message from being found."""
    async with bench(mailbox={"junk_folder": "Nowhere"}) as made:
        assert (await made.run()).verdict.reason is Reason.NONE
        await made.polled()
        assert "junk" in made.mailbox.doubt


async def test_without_permanent_delete_messages_are_moved(bench: OpenBench) -> None:
    """Where messages cannot be removed for good, ours go to Deleted Items, and only ours."""
    async with bench() as made:
        foreign = made.graph.put(FOREIGN)
        made.graph.has_permanent_delete = False
        assert (await made.run()).verdict.reason is Reason.NONE
        await made.polled()
        (ours,) = [item for item in made.graph.mailboxes["canary@contoso.com"] if item is not foreign]
        assert (ours.folder, foreign.folder) == ("deleteditems", "inbox")


@pytest.mark.parametrize(
    ("roles", "granted", "what"),
    [
        (["Mail.ReadWrite"], None, "Mail.Send"),
        (["Mail.Send"], None, "reads"),
        (None, set[str](), "Mail.Send"),
    ],
)
async def test_a_missing_permission_is_told(
    bench: OpenBench,
    roles: list[str] | None,
    granted: set[str] | None,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A permission that is missing for sending or reading is `not_granted`, with what to do."""
    monkeypatch.setattr("probes.roundtrip.POLL_GRACE", 0.0)
    async with bench(deadline="1s") as made:
        made.graph.entra.roles = made.graph.entra.roles if roles is None else roles
        made.graph.granted = granted
        verdict = (await made.run()).verdict
        assert verdict.reason is Reason.NOT_GRANTED
        assert "403 ErrorAccessDenied" in verdict.detail
        assert (await made.state() is MessageState.REJECTED) == (what == "Mail.Send")


async def test_an_unknown_mailbox_is_told(bench: OpenBench) -> None:
    """An address without a mailbox has its own reason; the message was not handed over."""
    async with bench() as made:
        made.graph.mailboxes.clear()
        verdict = (await made.run()).verdict
        assert (verdict.reason, await made.state()) == (Reason.GRAPH_NO_MAILBOX, MessageState.REJECTED)


async def test_a_refused_token_is_not_used_for_ever(bench: OpenBench) -> None:
    """After a 401, the next request has a new token."""
    async with bench() as made:
        refused = Answer(401, {"error": {"code": "InvalidAuthenticationToken", "message": "no"}})
        made.graph.answer_next.append(refused)
        assert (await made.run()).verdict.reason is Reason.AUTH_FAILED
        assert (await made.run()).verdict.reason is Reason.NONE
        assert made.graph.entra.issued == 2


async def test_throttled_sending_waits_as_long_as_it_is_told(bench: OpenBench) -> None:
    """A message refused by 429 was not handed over, and no request follows before Retry-After is over."""
    async with bench() as made:
        made.graph.throttle(100.0)
        verdict = (await made.run()).verdict
        assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, Reason.THROTTLED)
        assert verdict.throttled == 1
        assert await made.state() is MessageState.DEFERRED
        asked = len(made.graph.requests)
        made.clock.now += 60.0
        assert (await made.run()).verdict.reason is Reason.THROTTLED
        assert len(made.graph.requests) == asked
        made.clock.now += 60.0
        assert (await made.run()).verdict.reason is Reason.NONE
        assert await made.ledger.discrepancies() == []


async def test_throttled_polls_wait_as_long_as_they_are_told(bench: OpenBench) -> None:
    """While Retry-After lasts, the mailbox is not polled; the message is found afterwards."""
    async with bench(deadline="200s") as made:
        send = made.graph.instead

        def throttle_then(request: object) -> None:
            if len(made.graph.requests) == 3:
                made.graph.throttle(40.0)
            return send(request)

        made.graph.instead = throttle_then
        made.graph.delay = 3.0
        assert (await made.run()).verdict.reason is Reason.NONE
        gaps = [
            later - earlier
            for earlier, later in zip(made.graph.asked_at, made.graph.asked_at[1:], strict=False)
        ]
        assert max(gaps) > 39.0


@pytest.mark.parametrize(
    ("delivers", "state", "reason"),
    [
        (True, MessageState.DELIVERED, Reason.NONE),
        (False, MessageState.LOST, Reason.MESSAGE_AMBIGUOUS),
    ],
)
async def test_a_connection_that_breaks_after_the_request_leaves_it_open(
    bench: OpenBench, *, delivers: bool, state: MessageState, reason: Reason
) -> None:
    """Without an answer to the request, only the mailbox shows whether Graph took the message."""
    async with bench(deadline="10s") as made:
        if delivers:
            made.graph.is_answer_lost = True
        else:
            made.graph.answer_next.append(HANG_UP)
        verdict = (await made.run()).verdict
        assert verdict.reason is reason
        assert await made.state() is state
        assert len([line for line in made.graph.requests if "sendMail" in line]) == 1
        assert await made.ledger.discrepancies() == []


async def test_a_gateway_error_leaves_the_message_open(bench: OpenBench) -> None:
    """A gateway that answers 504 does not know whether the server behind it took the message."""

    def gateway(request: Request) -> Answer | None:
        if request.path[-1] != "sendMail":
            return None
        made.graph._answer(request)
        return Answer(504)

    async with bench() as made:
        made.graph.instead = gateway
        await made.run()
        assert await made.state() is MessageState.DELIVERED


async def test_a_server_that_is_away_takes_no_message(bench: OpenBench) -> None:
    """If no connection comes about, the message was never handed over."""
    async with bench() as made:
        (port, made.graph.port) = (made.graph.port, 1)
        made.probe._submission._server = made.graph.settings()
        verdict = (await made.run()).verdict
        assert (verdict.reason, await made.state()) == (Reason.CONNECT_REFUSED, MessageState.DEFERRED)
        made.graph.port = port
