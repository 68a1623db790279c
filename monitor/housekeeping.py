"""What the agent does beside its runs: purging and checking the ledger, reading its pauses, and exporting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from monitor.load import Load
from monitor.runtime import Runtime
from probes.core.clock import Clock
from probes.delivery.message_life import LedgerError

if TYPE_CHECKING:
    from monitor.otlp import OtlpExporter

PURGE_EVERY = 3600.0
"""Seconds between two purges of the ledger."""

CHECK_LEDGER_EVERY = 30.0
"""Seconds between two checks that the ledger can be used, for agents whose probes rarely run."""

PAUSES_EVERY = 2.0
"""Seconds between two looks for pauses in the ledger."""

_log = logging.getLogger("mailsonde.agent")


@asynccontextmanager
async def housekeeping(
    runtime: Runtime, load: Load, exporter: OtlpExporter | None, clock: Clock, started_at: float
) -> AsyncIterator[None]:
    """Purge and check the ledger, read its pauses, watch the load, and export metrics during the block.

    All end after its last run.
    """
    tasks = [
        asyncio.create_task(_purge(runtime, clock), name="purge"),
        asyncio.create_task(check_ledger(runtime, clock), name="check of the ledger"),
        asyncio.create_task(_watch_pauses(runtime, clock), name="pauses"),
        asyncio.create_task(load.watch(), name="load"),
        asyncio.create_task(_recall_last_week(runtime, started_at), name="last week"),
    ]
    if exporter is not None:
        tasks.append(asyncio.create_task(exporter.run(), name="otlp"))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _recall_last_week(runtime: Runtime, started_at: float) -> None:
    """Count the messages of earlier agents, during the first runs, because many take seconds to read."""
    try:
        await runtime.ledger.recall_last_week(started_at)
    except LedgerError as error:  # the counts are only for display
        _log.warning("the pages count only messages from now on: %s", error)


async def check_ledger(runtime: Runtime, clock: Clock) -> None:
    """Log when the ledger becomes unusable, and when it can be used again."""
    is_usable = True
    while True:
        await clock.sleep(CHECK_LEDGER_EVERY)
        try:
            await runtime.ledger.check()
        except LedgerError as error:
            if is_usable:
                _log.error("no messages are sent, because the ledger cannot be used: %s", error)
            is_usable = False
        else:
            if not is_usable:
                _log.warning("the ledger can be used again")
            is_usable = True


async def _watch_pauses(runtime: Runtime, clock: Clock) -> None:
    """Take over pauses that people begin and end on the command line, which writes them to the ledger."""
    while True:
        await clock.sleep(PAUSES_EVERY)
        with suppress(LedgerError):  # the check of the ledger tells
            await runtime.read_pauses()


async def _purge(runtime: Runtime, clock: Clock) -> None:
    """Purge messages past their retention periodically."""
    while True:
        try:
            await runtime.ledger.forget(clock.time() - runtime.assembly.retention)
        except LedgerError as error:
            _log.warning("cannot purge old messages from the ledger now: %s", error)
        await clock.sleep(PURGE_EVERY)
