from __future__ import annotations

import asyncio
from pathlib import Path
from types import MappingProxyType

import pytest

from monitor.ledger.limits import ROUTES_KEPT, RUNS_KEPT
from monitor.ledger.store import SqlLedger, open_ledger
from tests.unit.ledger.conftest import RUN, NewMessage, OpenLedger, StandingClock


def a_run(number: int, outcome: str = "ok", probe: str = "hq", target: str = "mail") -> dict[str, object]:
    which = {"run": f"{number:032x}", "probe": probe, "target": target}
    return RUN | which | {"outcome": outcome, "detail": f"run {number}"}


async def shown(ledger: SqlLedger, probe: str = "hq", target: str = "mail", **how: bool) -> list[str]:
    return [run["detail"] for run in await ledger.recent_runs(probe, target, limit=1000, **how)]


async def test_failures_are_kept_longer_than_successes(opened: OpenLedger) -> None:
    """A failure can still be found after a hundred good runs."""
    async with opened() as ledger:
        ledger.record_run(a_run(0, probe="quiet"))
        for n in range(1, 3 * RUNS_KEPT + 1):
            ledger.record_run(a_run(n, outcome="failed" if n in {5, 6} else "unknown" if n == 7 else "ok"))
    async with opened() as ledger:
        newest = [f"run {n}" for n in range(3 * RUNS_KEPT, 2 * RUNS_KEPT, -1)]
        assert await shown(ledger) == [*newest, "run 7", "run 6", "run 5"]
        failed = await ledger.recent_runs("hq", "mail", failures=True)
        assert [(run["detail"], run["outcome"]) for run in failed] == [
            ("run 7", "unknown"),
            ("run 6", "failed"),
            ("run 5", "failed"),
        ]
        assert await ledger.recent_runs("quiet", "mail") == [a_run(0, probe="quiet")]
        assert [run["detail"] for run in await ledger.recent_runs("hq", "mail", limit=2)] == newest[:2]


async def test_failures_are_bounded_too(opened: OpenLedger) -> None:
    """A probe that fails for weeks does not fill the disk."""
    async with opened() as ledger:
        for n in range(2 * RUNS_KEPT):
            ledger.record_run(a_run(n, outcome="failed"))
    async with opened() as ledger:
        assert len(await shown(ledger)) == RUNS_KEPT


async def test_a_site_chooses_how_many_runs_are_kept(path: Path, clock: StandingClock) -> None:
    """With `runs_kept`, each route keeps that many of its latest runs and of its latest failures."""
    async with open_ledger(f"sqlite://{path}", clock, "agent-1", "fra1", runs_kept=3) as ledger:
        for n in range(20):
            ledger.record_run(a_run(n, outcome="failed" if n < 10 else "ok"))
    async with open_ledger(f"sqlite://{path}", clock, "agent-1", "fra1", runs_kept=3) as ledger:
        assert await shown(ledger) == [f"run {n}" for n in (19, 18, 17, 9, 8, 7)]


async def test_each_route_of_a_probe_has_its_own_history(opened: OpenLedger) -> None:
    """Each target of a probe keeps its own hundred runs and hundred failures."""
    targets = [f"mx{number}" for number in range(20)]
    last_of_200 = [f"run {n}" for n in range(2 * RUNS_KEPT - 1, RUNS_KEPT - 1, -1)]
    async with opened() as ledger:
        for n in range(2 * RUNS_KEPT):
            for target in targets:
                ledger.record_run(a_run(n, "failed" if target == "mx0" else "ok", target=target))
        for n in range(2 * RUNS_KEPT, 3 * RUNS_KEPT):
            ledger.record_run(a_run(n, target="mx0"))
        ledger.record_run(a_run(1, probe="other", target="mx0"))
    async with opened() as ledger:
        for target in targets[1:]:
            assert await shown(ledger, target=target) == last_of_200
            assert await shown(ledger, target=target, failures=True) == []
        last_of_300 = [f"run {n}" for n in range(3 * RUNS_KEPT - 1, 2 * RUNS_KEPT - 1, -1)]
        assert await shown(ledger, target="mx0") == last_of_300 + last_of_200
        assert await shown(ledger, target="mx0", failures=True) == last_of_200
        assert await shown(ledger, probe="other", target="mx0") == ["run 1"]


async def test_old_runs_go_while_the_agent_runs(opened: OpenLedger) -> None:
    """Old runs are removed without a restart, for all routes."""
    async with opened() as ledger:
        for n in range(3 * RUNS_KEPT):
            for target in ("mx1", "mx2"):
                ledger.record_run(a_run(n, target=target))
        assert [len(await shown(ledger, target=target)) for target in ("mx1", "mx2")] == [
            RUNS_KEPT,
            RUNS_KEPT,
        ]


async def test_hosts_that_come_and_go_do_not_fill_the_ledger(opened: OpenLedger) -> None:
    """Only the latest routes of a probe are kept. The others are removed with all runs and counts."""
    async with opened() as ledger:
        ledger.record_run(a_run(0, target="example.com"))
        ledger.record_run(a_run(0, probe="other", target="mail"))
        for n in range(2 * ROUTES_KEPT):
            ledger.record_run(a_run(n, outcome="failed", target=f"mx{n}"))
        ledger.record_run(a_run(1, target="example.com"))
        await ledger.forget(0.0)
        assert not ledger._recorder._grown
        assert await shown(ledger, target="example.com") == ["run 1", "run 0"]
        kept = [bool(await shown(ledger, target=f"mx{n}")) for n in range(2 * ROUTES_KEPT)]
        assert kept == [n > ROUTES_KEPT for n in range(2 * ROUTES_KEPT)]  # example.com is one of them
        assert await shown(ledger, probe="other") == ["run 0"]


async def test_a_run_is_found_by_its_id_with_what_was_said(opened: OpenLedger) -> None:
    """A single run has its dialogue, lists of runs do not, and an id is valid only for its own probe."""
    async with opened() as ledger:
        for n in range(3):
            ledger.record_run(a_run(n, target=f"mx{n}") | {"transcript": [f"S: 220 {n}", "C: QUIT"]})
        ledger.record_run(a_run(3))
        wanted = str(a_run(1)["run"])
        found = await ledger.find_run("hq", wanted)
        assert found == a_run(1, target="mx1") | {"transcript": ["S: 220 1", "C: QUIT"]}
        assert await ledger.recent_runs("hq", "mx1") == [a_run(1, target="mx1")]
        assert await ledger.find_run("hq", str(a_run(3)["run"])) == a_run(3)
        assert await ledger.find_run("other", wanted) is None
        assert await ledger.find_run("hq", "0" * 31 + "9") is None


async def test_runs_let_messages_through(
    opened: OpenLedger, new_message: NewMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many runs are added, and removed, by small transactions, and messages are recorded in between."""
    monkeypatch.setattr("monitor.ledger.run_recorder.RUNS_A_STEP", 25)
    async with opened() as ledger:
        for n in range(125):
            for target in ("mx1", "mx2"):
                ledger.record_run(a_run(n, target=target))
        reading = asyncio.create_task(ledger.recent_runs("hq", "mx1", limit=1000))
        let_through = 0
        while not reading.done():
            await ledger.intend(new_message())
            let_through += 1
        assert len(await reading) == RUNS_KEPT
        assert let_through >= 5


@pytest.mark.parametrize(("most", "each"), [(1000, 40), (30, 10), (2, 1)], ids=["all", "fewer", "one"])
async def test_the_newest_runs_of_every_route(opened: OpenLedger, most: int, each: int) -> None:
    """Every route has its newest runs, at least one, even if other routes ran far more often."""
    async with opened() as ledger:
        for n in range(50):
            ledger.record_run(a_run(n, target="slow"))
        for n in range(RUNS_KEPT):
            ledger.record_run(a_run(n, target="busy"))
            ledger.record_run(a_run(n, probe="removed"))
        ledger.record_run(a_run(0, probe="new"))
        newest = await ledger.newest_runs({"hq", "new", "never ran"}, 40, most)
        by_route: dict[tuple[str, str], list[str]] = {}
        for run in newest:
            by_route.setdefault((run["probe"], run["target"]), []).append(run["detail"])
        assert by_route == {
            ("hq", "slow"): [f"run {n}" for n in range(50 - each, 50)],
            ("hq", "busy"): [f"run {n}" for n in range(RUNS_KEPT - each, RUNS_KEPT)],
            ("new", "mail"): ["run 0"],
        }


async def test_a_run_of_read_only_mappings_is_kept(opened: OpenLedger) -> None:
    """Verdicts with read-only mappings are recorded like any other."""
    async with opened() as ledger:
        phases = MappingProxyType({"connect": 0.25})
        ledger.record_run(MappingProxyType({**a_run(1), "phases": phases}))
    async with opened() as ledger:
        assert await ledger.recent_runs("hq", "mail") == [a_run(1)]
