"""Server-sent events of a running agent: what they contain, and their limits."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from monitor.recent import Points
from monitor.web.events import MOST_STREAMS
from tests.fakes.scripted_server import Peer, dialogue
from tests.unit.web.conftest import StartAgent, Watched

SOUND = dialogue(b"220 hello", (rb"EHLO \S+", b"250 hello"), (b"QUIT", b"221 bye"))


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """Yield version and content of each event."""
    version = 0
    async for line in lines:
        if line.startswith("id: "):
            version = int(line[4:])
        elif line.startswith("data: "):
            yield version, json.loads(line[6:])


async def test_changed_rows_come_as_they_are_on_the_page(start_agent: StartAgent) -> None:
    """After a run, the stream sends the same row as the overview."""
    async with start_agent(SOUND) as watched, watched.client.stream("GET", "/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        async for _, told in _events(stream.aiter_lines()):
            assert set(told["rows"]) == {"hq-0 mail"}
            row = told["rows"]["hq-0 mail"]
            if '<span class="badge ok">ok</span>' in row:
                assert row.strip().startswith('<tr data-route="hq-0 mail"')
                assert told["counts"] == {"ok": 1}
                break


async def silent(peer: Peer) -> None:
    """Accept connections and say nothing, so that every probe waits."""
    await peer.octets()


def _run(probe: str, outcome: str) -> dict[str, Any]:
    about = {"run": "0" * 32, "probe": probe, "kind": "smtp", "target": "mail", "outcome": outcome}
    when = {"started_at": "2026-01-01T00:00:00+00:00", "duration_seconds": 1.0, "phases": {}}
    return {**about, **when, "reason": "timeout", "detail": ""}


def _touch_all(watched: Watched) -> None:
    for key in watched.agent.runtime.state.probes:
        watched.agent.recent.touch(key)


@pytest.mark.parametrize(
    ("query", "shown"), [("", 200), ("page=2", 50), ("q=hq-24", 11), ("q=nothing", 0), ("wrong=1", 1)]
)
async def test_a_page_hears_of_its_own_routes(start_agent: StartAgent, query: str, shown: int) -> None:
    """However many routes change, the stream sends only rows that are on its page, and counts all."""
    async with start_agent(SOUND, probes=250, interval="1h") as watched:
        _touch_all(watched)
        watched.agent.recent.take_in(_run("hq-77", "failed"))
        async with watched.client.stream("GET", f"/events?since=1&{query}") as stream:
            _, told = await anext(_events(stream.aiter_lines()))
        assert len(told["rows"]) == shown
        assert set(told["rows"]) == set(told["routes"])
        assert sum(told["counts"].values()) == 250
        assert told["counts"]["failed"] == 1
        assert (query in {"", "wrong=1"}) == ("hq-77 mail" in told["rows"])


async def test_a_route_that_enters_the_page_comes_with_its_row(start_agent: StartAgent) -> None:
    """A failing route takes a place on the first page; one that is well again makes way for another."""
    async with (
        start_agent(silent, probes=250, interval="1h", deadline="1h") as watched,
        watched.client.stream("GET", "/events") as stream,
    ):
        events = _events(stream.aiter_lines())
        watched.agent.recent.take_in(_run("hq-99", "failed"))
        _, told = await anext(events)
        assert told["routes"][0] == "hq-99 mail"
        last = told["routes"][-1]
        watched.agent.recent.take_in(_run("hq-98", "failed"))
        _, told = await anext(events)
        assert (told["routes"][0], last in told["routes"]) == ("hq-98 mail", False)
        assert set(told["rows"]) == {"hq-98 mail"}
        watched.agent.recent.routes["hq-98", "mail"].points = Points()
        watched.agent.recent.touch(("hq-98", "mail"))
        _, told = await anext(events)
        assert (told["routes"][0], told["routes"][-1]) == ("hq-99 mail", last)
        assert set(told["rows"]) == {last}


async def test_a_stream_that_comes_back_misses_nothing(start_agent: StartAgent) -> None:
    """A stream that reconnects with the last event's id gets all changes, even across a restart."""
    async with start_agent(SOUND, probes=2) as watched:
        for _ in range(2):
            await watched.result()
        headers = {"last-event-id": "1"}
        async with watched.client.stream("GET", "/events", headers=headers) as stream:
            version, told = await anext(_events(stream.aiter_lines()))
        assert set(told["rows"]) == {"hq-0 mail", "hq-1 mail"}
        assert version > 1_600_000_000_000


async def test_head_is_no_stream(start_agent: StartAgent) -> None:
    """A HEAD request is refused at once and does not count as a stream."""
    async with start_agent(SOUND) as watched:
        for _ in range(2 * MOST_STREAMS):
            answer = await watched.client.head("/events")
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
        async with watched.client.stream("GET", "/events") as stream:
            assert stream.status_code == 200


async def test_a_probes_page_hears_of_that_probe_alone(start_agent: StartAgent) -> None:
    """A stream for one probe has only that probe's rows."""
    async with (
        start_agent(SOUND, probes=3) as watched,
        watched.client.stream("GET", "/events?since=1&probe=hq-1") as stream,
    ):
        _, told = await anext(_events(stream.aiter_lines()))
        assert set(told["rows"]) == {"hq-1 mail"}


CROWD = """
import socket, sys
request = b"GET /events HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n"
crowd = []
for size in map(int, sys.argv[2:]):
    comers = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(size)]
    for comer in comers:
        comer.sendall(request)
    crowd += [(comer, comer.recv(12)) for comer in comers]
answers = [answer for _, answer in crowd]
print(answers.count(b"HTTP/1.1 200"), answers.count(b"HTTP/1.1 503"), flush=True)
sys.stdin.read()
"""
"""A process that opens streams in bursts of given sizes, says how many were taken, and holds on to them."""


@pytest.mark.parametrize("bursts", [[1] * 1000, [90]], ids=["one after the other", "at once"])
async def test_streams_are_bounded_and_probes_stay_on_time(
    start_agent: StartAgent, bursts: list[int]
) -> None:
    """However many pages are open, only some get streams, and no run or scrape is missed."""
    async with start_agent(SOUND, probes=5) as watched:
        port = watched.agent.address.rpartition(":")[2]
        pipe = asyncio.subprocess.PIPE
        crowd = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CROWD, port, *map(str, bursts), stdin=pipe, stdout=pipe
        )
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        taken, refused = map(int, (await crowd.stdout.readline()).split())
        assert (taken, refused) == (MOST_STREAMS, sum(bursts) - MOST_STREAMS)
        for _ in range(watched.agent.results.qsize() + 15):  # three runs of each probe, with open streams
            result = await asyncio.wait_for(watched.result(), 120)
            assert result.verdict.outcome == "ok"
        assert sum(each.total() for each in watched.agent.runtime.state.skipped.values()) == 0
        assert (await watched.client.get("/metrics")).status_code == 200
        crowd.stdin.close()
        assert await crowd.wait() == 0


async def test_a_stream_that_ended_leaves_its_place_to_others(start_agent: StartAgent) -> None:
    """Closing a page makes room for another stream, even if it closed before the stream began."""
    async with start_agent(SOUND) as watched:
        port = int(watched.agent.address.rpartition(":")[2])
        for _ in range(3 * MOST_STREAMS):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        async for _ in _until_granted(watched.client):
            break


async def _until_granted(client: httpx.AsyncClient) -> AsyncIterator[None]:
    """Request a stream until one is granted; the test's time limit ends the wait if there is none."""
    while True:
        async with client.stream("GET", "/events") as stream:
            if stream.status_code == 200:
                yield
                return
