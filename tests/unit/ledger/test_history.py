from __future__ import annotations

from types import MappingProxyType

from monitor.ledger.history import KEPT
from tests.unit.ledger.conftest import OpenLedger


def a_run(number: int, outcome: str = "ok", probe: str = "hq") -> dict[str, object]:
    return {"probe": probe, "outcome": outcome, "detail": f"run {number}", "phases": {"connect": 0.25}}


async def test_failures_are_kept_longer_than_successes(opened: OpenLedger) -> None:
    """A failure can still be looked at when a hundred good runs have followed it."""
    async with opened() as ledger:
        ledger.record_run(a_run(0, probe="quiet"))
        for n in range(1, 3 * KEPT + 1):
            ledger.record_run(a_run(n, outcome="failed" if n in {5, 6} else "unknown" if n == 7 else "ok"))
    async with opened() as ledger:
        newest = [f"run {n}" for n in range(3 * KEPT, 2 * KEPT, -1)]
        shown = [run["detail"] for run in await ledger.recent_runs("hq", limit=1000)]
        assert shown == [*newest, "run 7", "run 6", "run 5"]
        failed = await ledger.recent_runs("hq", failures=True)
        assert [(run["detail"], run["outcome"]) for run in failed] == [
            ("run 7", "unknown"),
            ("run 6", "failed"),
            ("run 5", "failed"),
        ]
        assert await ledger.recent_runs("quiet") == [a_run(0, probe="quiet")]
        assert [run["detail"] for run in await ledger.recent_runs(limit=2)] == newest[:2]
        assert len(await ledger.recent_runs(limit=1000)) == KEPT + 4


async def test_failures_are_bounded_too(opened: OpenLedger) -> None:
    """A probe that fails for weeks does not fill the disk."""
    async with opened() as ledger:
        for n in range(2 * KEPT):
            ledger.record_run(a_run(n, outcome="failed"))
    async with opened() as ledger:
        assert len(await ledger.recent_runs("hq", limit=1000)) == KEPT


async def test_a_run_of_read_only_mappings_is_kept(opened: OpenLedger) -> None:
    """Verdicts hold read-only mappings, which are recorded like any other."""
    async with opened() as ledger:
        phases = MappingProxyType({"connect": 0.25})
        ledger.record_run(MappingProxyType({**a_run(1), "phases": phases}))
    async with opened() as ledger:
        assert await ledger.recent_runs() == [a_run(1)]
