"""Recording runs on a slow or locked disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from monitor.ledger.run_recorder import RUNS_A_STEP, RunRecorder
from monitor.ledger.transaction import Transaction
from probes.delivery.message_life import LedgerError

RUN = {"probe": "p", "target": "t"}


async def test_runs_that_finish_meanwhile_do_not_prolong_a_write() -> None:
    """However slow each transaction is, those who wait for the queued runs wait for these alone."""
    transactions = 0

    def submit(_: Callable[[Transaction], object]) -> asyncio.Future[Any]:
        nonlocal transactions
        transactions += 1
        assert transactions < 10, "this goes on as long as runs finish"
        for _run in range(RUNS_A_STEP):
            recorder.record(RUN)
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    recorder = RunRecorder(submit, "fra1", 100)
    recorder.record(RUN)
    await recorder.flush(grown_by=1000)
    assert transactions == 1


async def test_locked_ledger_is_waited_for_once() -> None:
    """If runs cannot be added, only those are dropped; the others stay for the next time."""
    added = list[bool]()

    def submit(_: Callable[[Transaction], object]) -> asyncio.Future[Any]:
        done = asyncio.get_running_loop().create_future()
        added.append(len(added) > 0)
        if added[-1]:
            done.set_result(None)
        else:
            done.set_exception(LedgerError("locked"))
        return done

    recorder = RunRecorder(submit, "fra1", 100)
    for _ in range(3 * RUNS_A_STEP):
        recorder.record(RUN)
    await recorder.flush(grown_by=1000)
    assert (added, recorder.dropped) == ([False], RUNS_A_STEP)
    await recorder.flush(grown_by=1000)
    assert (added, recorder.dropped) == ([False, True, True], RUNS_A_STEP)
