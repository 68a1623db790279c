"""The pages of an agent with a history from another version."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from monitor.ledger.store import open_ledger
from probes.core.clock import SystemClock
from tests.fakes.scripted_server import Peer
from tests.unit.web.conftest import StartAgent, Watched

JSON = {"accept": "application/json"}
RUN = {
    "run": "a" * 32,
    "probe": "hq-0",
    "kind": "smtp",
    "target": "mail",
    "location": "local",
    "outcome": "ok",
    "reason": "none",
    "detail": "",
    "started_at": "2027-01-15T08:00:00.000000+00:00",
    "duration_seconds": 0.25,
    "phases": {"connect": 0.25},
    "values": {},
}
BY_A_NEWER = RUN | {"run": "b" * 32, "outcome": "failed", "reason": "quota_exceeded", "detail": "90 % used"}
BY_AN_OLDER = {
    name: RUN[name] for name in ("probe", "target", "outcome", "reason", "started_at", "duration_seconds")
}
RENAMED = RUN | {"run": "d" * 32, "outcome": "unknown", "reason": "imap_throttled"}

Waiting = Callable[[], AbstractAsyncContextManager[Watched]]


@pytest.fixture
def start_waiting(start_agent: StartAgent) -> Waiting:
    """Return a function that starts an agent whose first run does not end: its pages show only history."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Watched]:
        over = asyncio.Event()

        async def silent(peer: Peer) -> None:
            await over.wait()
            await peer.close()

        async with start_agent(silent, interval="1h") as watched:
            yield watched
            over.set()

    return start


async def write_history(directory: Path, *runs: Mapping[str, object]) -> None:
    async with open_ledger(f"sqlite://{directory}/ledger.db", SystemClock(), "earlier", "local") as ledger:
        for run in runs:
            ledger.record_run({"run": "", **run})


def spoil(directory: Path, statement: str) -> None:
    with sqlite3.connect(directory / "ledger.db") as other:
        other.execute(statement)
    other.close()


@pytest.mark.parametrize(
    ("last", "word", "said"),
    [
        (BY_A_NEWER, "failed", "This version does not know the reason 'quota_exceeded': 90 % used."),
        (BY_A_NEWER | {"outcome": "ok"}, "warning", "does not know the reason 'quota_exceeded'"),
        (BY_A_NEWER | {"outcome": "paused"}, "unknown", "does not know the reason 'quota_exceeded'"),
        (BY_A_NEWER | {"message": {"id": "b" * 32, "state": "held"}}, "failed", "'quota_exceeded'"),
        (BY_AN_OLDER, "ok", "the last run took 250 ms."),
        (RENAMED, "unknown", "The server limits how often or how much this client may ask or send."),
    ],
    ids=["failed", "warning", "unknown", "message", "older", "renamed"],
)
async def test_runs_of_other_versions_are_shown(
    tmp_path: Path, start_waiting: Waiting, last: dict[str, object], word: str, said: str
) -> None:
    """After an upgrade or downgrade the agent starts, and its pages show unknown words as unknown."""
    await write_history(tmp_path, RUN, last)
    async with start_waiting() as watched:
        (probe,) = (await watched.client.get("/", headers=JSON)).json()["probes"]
        assert probe["state"] == word
        assert said in probe["sentence"]
        paths = ["/", "/probes/hq-0", *([f"/probes/hq-0/runs/{last['run']}"] if "run" in last else [])]
        for path in paths:
            page = await watched.client.get(path, headers={"accept": "text/html"})
            assert page.status_code == 200
            assert f'<span class="badge {word}">' in page.text


async def test_a_broken_history_keeps_no_agent_from_starting(tmp_path: Path, start_waiting: Waiting) -> None:
    """Broken rows are left out. If no row is readable, the pages start empty, and probes still run."""
    await write_history(tmp_path, RUN, RUN | {"run": "c" * 32})
    spoil(tmp_path, f"UPDATE runs SET document = '' WHERE run = '{'c' * 32}'")  # noqa: S608 # no input
    async with start_waiting() as watched:
        shown = (await watched.client.get("/probes/hq-0", headers=JSON)).json()
        assert [run["run"] for run in shown["runs"]] == ["a" * 32]
        assert shown["last"]["run"] == "a" * 32
    spoil(tmp_path, "UPDATE runs SET document = CAST(X'ff' AS TEXT)")
    async with start_waiting() as watched:
        (probe,) = (await watched.client.get("/", headers=JSON)).json()["probes"]
        assert probe["state"] == "waiting"
        assert (await watched.client.get("/probes/hq-0", headers=JSON)).status_code == 503
        assert (await watched.client.get("/-/ready")).status_code == 200


async def test_what_exchange_wrote_is_below_the_hops(tmp_path: Path, start_waiting: Waiting) -> None:
    """A run has Exchange's stages and filter by name, foreign text escaped; other members do no harm."""
    exchange = {"stages": {"front_end": 0.025, "hub": 2.5}, "end_to_end_seconds": 3.5, "newer": [1]}
    exchange["builds"] = {"mbx1.fabrikam.test": "15.2.1748.36, <b>"}
    told = exchange | {"original_arrival_at": 1_750_334_411.5, "scl": "1", "sfv": "<script>", "cat": "NONE"}
    await write_history(tmp_path, RUN | {"values": {"hops": [], "exchange": told}})
    async with start_waiting() as watched:
        page = (
            await watched.client.get(f"/probes/hq-0/runs/{RUN['run']}", headers={"accept": "text/html"})
        ).text
    for words in (
        "Inside Exchange",
        "front end",
        "2.500 s",
        "3.500 s",
        "&lt;script&gt;",
        "2025-06-19",
        "mbx1.fabrikam.test",
        "15.2.1748.36, &lt;b&gt;",
    ):
        assert words in page
    assert '<td class="said"><script>' not in page
