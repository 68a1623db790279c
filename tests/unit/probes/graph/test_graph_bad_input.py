"""Answers of Graph that are cut short, endless, too large or misleading: the right reason, nothing lost."""

from __future__ import annotations

import secrets
import tracemalloc
from collections.abc import Callable

import pytest

from probes.core.reasons import Reason
from probes.delivery.mailboxes.graph import OVERLAP
from probes.delivery.mailboxes.graph_folder import FIELDS_LIMIT, View
from probes.protocols.graph import GRAPH_PAGE_LIMIT, Listed
from tests.fakes.graph.http import HANG_UP, Answer, Request
from tests.fakes.scripted_server import Peer, scripted_server
from tests.unit.probes.graph.conftest import Bench, OpenBench

FOREIGN = b"From: boss@contoso.com\r\nSubject: lunch\r\n\r\nAt one?\r\n"


def to_lists(answer: Callable[[Request], Answer | object | None]) -> Callable[[Request], object]:
    """Return a script that answers requests for lists of messages, and no others."""
    return lambda request: answer(request) if request.path[-1] == "messages" else None


def cut(request: Request) -> Answer:
    del request
    return Answer(200, b'{"value": [{"id": "AAk', length=1000)


def half(request: Request) -> Answer:
    del request
    return Answer(200, b'{"value": [{"id": "AAk')


def other_host(request: Request) -> Answer:
    del request
    return Answer(200, {"value": [], "@odata.nextLink": "https://evil.example/v1.0/messages?$skip=20"})


def endless(request: Request) -> Answer:
    """Return a page of messages that nobody has seen, and a link to the next."""
    skip = int(request.query.get("$skip", "0")) + 100
    entries = [
        {"id": f"AAk{secrets.token_hex(20)}", "receivedDateTime": "2023-11-14T22:00:00Z"} for _ in range(100)
    ]
    for entry in entries:
        entry["internetMessageHeaders"] = [{"name": "Subject", "value": "x"}]  # type: ignore[assignment]
    host = request.headers["host"]
    link = f"http://{host}/{'/'.join(request.path)}?%24skip={skip}"
    return Answer(200, {"value": entries, "@odata.nextLink": link})


def empty_pages(request: Request) -> Answer:
    link = f"http://{request.headers['host']}/{'/'.join(request.path)}"
    return Answer(200, {"value": [], "@odata.nextLink": link})


def huge(request: Request) -> Answer:
    del request
    return Answer(200, b"[" * 100_000_000)


def deep(request: Request) -> Answer:
    del request
    return Answer(200, b"[" * 100_000)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (cut, Reason.CONNECTION_LOST),
        (half, Reason.PROTOCOL_ERROR),
        (other_host, Reason.PROTOCOL_ERROR),
        (endless, Reason.RESPONSE_TOO_LARGE),
        (empty_pages, Reason.RESPONSE_TOO_LARGE),
        (huge, Reason.RESPONSE_TOO_LARGE),
        (deep, Reason.PROTOCOL_ERROR),
        (lambda _: Answer(200, b"<html>"), Reason.PROTOCOL_ERROR),
        (lambda _: Answer(200, {"value": {}}), Reason.PROTOCOL_ERROR),
        (lambda _: Answer(302, b"", {"Location": "https://evil.example/"}), Reason.GRAPH_ERROR),
        (lambda _: Answer(500), Reason.GRAPH_UNAVAILABLE),
        (lambda _: Answer(503, b"", {"Retry-After": "5"}), Reason.THROTTLED),
        (lambda _: HANG_UP, Reason.CONNECTION_LOST),
    ],
)
async def test_an_odd_list_has_the_right_reason(
    bench: OpenBench, answer: Callable[[Request], object], reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poll fails with the reason, in bounded memory; once the lists are in order, nothing is missing."""
    monkeypatch.setattr("probes.protocols.graph.GRAPH_PAGE_LIMIT", 256 * 1024)
    monkeypatch.setattr("probes.delivery.mailboxes.graph.MOST_PAGES", 100)
    async with bench() as made:
        made.graph.instead = to_lists(answer)
        await made.watcher.poll_now()
        assert made.watcher.fault is not None
        assert made.watcher.fault.reason is reason
        assert "messages" in made.graph.requests[0]
        made.graph.instead = lambda _: None
        made.clock.now += 10.0
        assert (await made.run()).verdict.reason is Reason.NONE


async def test_odd_entries_hide_no_others(bench: OpenBench) -> None:
    """An entry that is no message is left out, and said to be in doubt; a message beside it is found."""

    def odd(request: Request) -> Answer:
        answer = made.graph._answer(request)
        assert isinstance(answer, Answer)
        assert isinstance(answer.body, dict)
        more = [
            None,
            {"id": 7},
            {"id": "a b"},
            {
                "id": "AAkX",
                "receivedDateTime": "yesterday",
                "internetMessageHeaders": [{"name": "Su\nbject"}, 3],
            },
        ]
        return Answer(200, {**answer.body, "value": [*more, *answer.body["value"]]})

    async with bench() as made:
        made.graph.instead = to_lists(odd)
        assert (await made.run()).verdict.reason is Reason.NONE
        await made.polled()
        assert "could not be read" in made.mailbox.doubt


async def test_a_message_behind_thousands_is_found(bench: OpenBench) -> None:
    """Ours is found and removed beside 3,000 messages of others, which stay as they are."""
    async with bench() as made:
        others = [made.graph.put(FOREIGN) for _ in range(3000)]
        assert (await made.run()).verdict.reason is Reason.NONE
        await made.polled()
        assert made.graph.mailboxes["canary@contoso.com"] == others
        before = len(made.graph.requests)
        made.clock.now += 60.0
        assert (await made.run()).verdict.reason is Reason.NONE
        assert len(made.graph.requests) - before < 20


async def test_a_message_from_the_future_hides_none_of_today(bench: OpenBench) -> None:
    """A message with a wrong date of arrival stands first in each list; ours are found at once."""
    async with bench() as made:
        made.graph.put(FOREIGN).received += 30 * 86400.0
        made.graph.delay = 2.0
        for _ in range(3):
            result = await made.run()
            await made.polled()
            assert result.verdict.reason is Reason.NONE
            assert result.verdict.message.uncertainty_seconds < 2.0
            made.clock.now += 2 * OVERLAP


async def test_a_page_is_small_enough_to_be_parsed_at_once(bench: OpenBench) -> None:
    """No list has more than 25 messages, of which 40 KB each fit into a page of 1 MiB.

    A page is parsed in one piece, and no other probe goes on meanwhile.
    """
    asked = []

    def note(request: Request) -> None:
        if "$top" in request.query:
            asked.append(int(request.query["$top"]))

    async with bench() as made:
        for _ in range(60):
            made.graph.put(FOREIGN)
        made.graph.instead = note
        assert (await made.run()).verdict.reason is Reason.NONE
    assert max(asked) == 25
    assert 25 * 40_000 < GRAPH_PAGE_LIMIT <= 2**20


async def test_long_header_sections_hide_no_message(
    bench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If header fields make a page too large, it is read without them, and each message by itself."""
    monkeypatch.setattr("probes.protocols.graph.GRAPH_PAGE_LIMIT", 64 * 1024)
    long = b"".join(b"X-Filler-%d: %s\r\n" % (n, b"x" * 900) for n in range(12)) + FOREIGN
    async with bench() as made:
        others = [made.graph.put(long) for _ in range(30)]
        assert (await made.run()).verdict.reason is Reason.NONE
        others += [made.graph.put(long) for _ in range(6)]
        assert (await made.run()).verdict.reason is Reason.NONE
        await made.polled()
        assert made.graph.mailboxes["canary@contoso.com"] == others


async def test_an_answer_of_100_mb_is_not_read(bench: OpenBench) -> None:
    """Of an endless answer, only as much as a page may have is read; the next poll is sound."""
    sent = 0

    async def flood(peer: Peer) -> None:
        nonlocal sent
        await peer.expect(rb"GET .*")
        await peer.send(b"HTTP/1.1 200 OK", b"Content-Length: 100000000", b"")
        for _ in range(100):
            await peer.chunks(b"[" * 1_000_000)
            sent += 1_000_000

    async with bench() as made, scripted_server(flood) as server:
        sound, made.mailbox._server = made.mailbox._server, made.graph.settings(port=server.port)
        tracemalloc.start()
        try:
            await made.watcher.poll_now()
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert made.watcher.fault is not None
        assert made.watcher.fault.reason is Reason.RESPONSE_TOO_LARGE
        assert most < 24 * 2**20
        assert sent < 20 * 2**20
        made.mailbox._server = sound
        made.clock.now += 10.0
        assert (await made.run()).verdict.reason is Reason.NONE


def test_header_fields_of_a_full_mailbox_have_a_limit() -> None:
    """However much a mailbox lists at once, only so many header fields are kept; the rest is read later."""
    view, fields = View("inbox"), b"Subject: " + b"x" * 60_000
    for page in range(20):
        view.add([Listed(f"{page}-{number}", 0.0, fields) for number in range(100)])
    kept = [found for found in view.pending.values() if found is not None]
    assert len(view.pending) == 2000
    assert 0.9 * FIELDS_LIMIT < sum(map(len, kept)) <= FIELDS_LIMIT


async def test_a_message_without_header_fields_is_read(bench: OpenBench) -> None:
    """If a list lacks the header fields, the message itself shows whose it is."""

    def without(request: Request) -> Answer:
        answer = made.graph._answer(request)
        assert isinstance(answer, Answer)
        assert isinstance(answer.body, dict)
        for entry in answer.body["value"]:
            entry["internetMessageHeaders"] = None
        return answer

    async with bench() as made:
        made.graph.put(FOREIGN)
        made.graph.instead = to_lists(without)
        assert (await made.run()).verdict.reason is Reason.NONE
        await made.polled()
        assert [item.raw for item in made.graph.mailboxes["canary@contoso.com"]] == [FOREIGN]


async def test_one_copy_that_cannot_be_read_spoils_no_other(bench: OpenBench) -> None:
    """A report whose content is refused again and again is left alone; the run is not affected."""

    def refuse(request: Request) -> Answer | None:
        return Answer(500) if request.path[-2:] == [report.id, "$value"] else None

    async with bench() as made:
        report = made.graph.put(
            b"From: postmaster@contoso.com\r\nReturn-Path: <>\r\nSubject: Undeliverable\r\n"
            b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b--\r\n"
        )
        made.graph.instead = refuse
        for _ in range(4):
            assert (await made.run()).verdict.reason is Reason.NONE
            await made.polled()
            made.clock.now += 60.0
        assert made.mailbox.doubt == "a message could not be read"
        assert made.graph.mailboxes["canary@contoso.com"] == [report]


async def test_a_token_that_is_echoed_is_not_shown(bench: OpenBench) -> None:
    """A server that repeats the token in its error shows it nowhere."""

    def echo(request: Request) -> Answer:
        return Answer(400, {"error": {"code": "Bad", "message": request.headers["authorization"]}})

    async with bench() as made:
        made.graph.instead = echo
        result = await made.run()
        token = await _token(made)
        assert result.verdict.reason is Reason.GRAPH_ERROR
        assert token[:20] not in f"{result.verdict.detail} {result.transcript.lines()}"


async def test_a_token_in_a_link_is_not_shown(bench: OpenBench, caplog: pytest.LogCaptureFixture) -> None:
    """A link to the next page that has the token in it appears in no fault and no log."""

    def echo(request: Request) -> Answer:
        token = request.headers["authorization"].split()[-1]
        return Answer(200, {"value": [], "@odata.nextLink": f"https://evil.example/{token}"})

    async with bench() as made:
        made.graph.instead = to_lists(echo)
        await made.watcher.poll_now()
        assert made.watcher.fault is not None
        assert made.watcher.fault.detail == "(withheld)"
        assert (await _token(made))[:20] not in caplog.text


async def _token(made: Bench) -> str:
    from probes.core.verdict import PhaseTimer

    source = made.probe.context.tokens["contoso"]
    return (await source.token("graph", "", PhaseTimer(made.clock))).get_secret_value()
