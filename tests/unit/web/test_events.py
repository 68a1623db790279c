"""Events of a running agent: what changed, to a bounded number of pages, and never in the probes' way."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from monitor.web.events import MOST_STREAMS
from tests.fakes.scripted_server import dialogue
from tests.unit.web.conftest import StartAgent

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
    """After a run the stream brings the row that the overview has then."""
    async with start_agent(SOUND) as watched, watched.client.stream("GET", "/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        async for _, told in _events(stream.aiter_lines()):
            assert set(told["rows"]) == {"hq-0 mail"}
            row = told["rows"]["hq-0 mail"]
            if '<span class="badge ok">ok</span>' in row:
                assert row.strip().startswith('<tr data-route="hq-0 mail"')
                assert told["counts"] == {"ok": 1}
                break


async def test_a_stream_that_comes_back_misses_nothing(start_agent: StartAgent) -> None:
    """With the last event's id, even from before the agent began, all that changed comes at once."""
    async with start_agent(SOUND, probes=2) as watched:
        for _ in range(2):
            await watched.result()
        headers = {"last-event-id": "1"}
        async with watched.client.stream("GET", "/events", headers=headers) as stream:
            version, told = await anext(_events(stream.aiter_lines()))
        assert set(told["rows"]) == {"hq-0 mail", "hq-1 mail"}
        assert version > 1_600_000_000_000


async def test_a_probes_page_hears_of_that_probe_alone(start_agent: StartAgent) -> None:
    """A stream for one probe has no rows of others."""
    async with (
        start_agent(SOUND, probes=3) as watched,
        watched.client.stream("GET", "/events?since=1&probe=hq-1") as stream,
    ):
        _, told = await anext(_events(stream.aiter_lines()))
        assert set(told["rows"]) == {"hq-1 mail"}


CROWD = """
import socket, sys
crowd, answers = [], []
for _ in range(1000):
    crowd.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
    crowd[-1].sendall(b"GET /events HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    answers.append(crowd[-1].recv(12))
print(answers.count(b"HTTP/1.1 200"), answers.count(b"HTTP/1.1 503"), flush=True)
sys.stdin.read()
"""
"""A process that opens a thousand streams, says how many were taken and refused, and holds on to them."""


async def test_a_thousand_streams_are_bounded_and_probes_stay_on_time(start_agent: StartAgent) -> None:
    """Of a thousand pages that watch a few are told; the others have to wait, and no run is left out."""
    async with start_agent(SOUND, probes=5) as watched:
        port = watched.agent.address.rpartition(":")[2]
        pipe = asyncio.subprocess.PIPE
        crowd = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CROWD, port, stdin=pipe, stdout=pipe
        )
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        taken, refused = map(int, (await crowd.stdout.readline()).split())
        assert (taken, refused) == (MOST_STREAMS, 1000 - MOST_STREAMS)
        for _ in range(watched.agent.results.qsize() + 15):  # three rounds of all five, with the streams open
            result = await asyncio.wait_for(watched.result(), 10)
            assert result.verdict.outcome == "ok"
        assert sum(watched.agent.assembly.state.skipped.values()) == 0
        crowd.stdin.close()
        assert await crowd.wait() == 0
