"""Reads the configuration of a running agent again, and puts it to use whole or not at all."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from monitor.assembly import Assembly
from monitor.config.difference import needing_restart, settled
from monitor.config.document import CHANGED, Mistake
from monitor.config.load import ConfigurationError, load
from monitor.config.models import Configuration
from monitor.config.sources import Sources
from monitor.notify import notify
from monitor.recent import Recent
from monitor.reload_request import Outcome
from monitor.runtime import Runtime
from monitor.schedule import Schedule
from monitor.slices import in_slices
from probes.core.clock import Clock
from probes.core.garbage import no_collection, take_apart
from probes.core.probe import Probe
from probes.delivery.message_life import LedgerError

READINGS = 3
"""How often files that change while they are read are read before the reload is refused."""

READ_PAUSE = 1.0
"""Seconds between these readings."""

LOOK_EVERY = 5.0
"""Seconds between two looks whether files have changed, if they are watched."""

READING_INTERVAL = 0.00005
"""Seconds until the thread that reads a configuration lets the event loop continue."""

MISTAKES_TOLD = 50
"""Maximum number of mistakes in the log, on the page and in an answer."""

STOPPING = "the agent is stopping"

_log = logging.getLogger("mailsonde.agent")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration comes from: its file, and all that were read."""

    path: Path
    files: Sources


@contextmanager
def _giving_way() -> Iterator[None]:
    """Let the event loop continue sooner during the block, which computes for seconds on a thread.

    The loop waits this long each time that it has sent or received something, which it does for each probe.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(READING_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


class Reloader:
    """Reloads on request, one reload at a time.

    Requests during a reload are answered by the next one, because files may have changed in between.
    """

    def __init__(
        self, source: Source, runtime: Runtime, recent: Recent, schedule: Schedule, clock: Clock
    ) -> None:
        self._path = source.path
        self._in_use = self._latest = source.files
        self._runtime = runtime
        self._recent = recent
        self._schedule = schedule
        self._clock = clock
        self._wake = asyncio.Event()
        self._asked: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._serve(), name="reload")]

    def watch_files(self) -> None:
        """From now on, reload whenever a file has changed."""
        self._tasks.append(asyncio.create_task(self._watch(), name="watch of the configuration"))

    def request(self) -> asyncio.Future[Outcome]:
        """Request a reload; the future gets its outcome. Several requests may get the same one."""
        self._wake.set()
        return self._asked

    async def reload(self) -> Outcome:
        """Reload, and return the outcome."""
        return await asyncio.shield(self.request())

    async def stop(self) -> None:
        """End without another reload; one in progress has no effect any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._answer(self._asked, Outcome(is_applied=False, began_at=self._clock.time(), told=[STOPPING]))

    async def _serve(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            asked, self._asked = self._asked, asyncio.get_running_loop().create_future()
            began_at = self._clock.time()
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                outcome = await self._reload(began_at)
            except asyncio.CancelledError:
                self._answer(asked, Outcome(is_applied=False, began_at=began_at, told=[STOPPING]))
                raise
            notify("READY=1")
            self._answer(asked, outcome)
            try:
                await self._runtime.ledger.leave(outcome.as_text())
            except LedgerError as error:  # only `mailsonde reload` waits for it
                _log.warning("the result of the reload cannot be passed on: %s", error)

    def _answer(self, asked: asyncio.Future[Outcome], outcome: Outcome) -> None:
        if not asked.done():
            asked.set_result(outcome)

    async def _reload(self, began_at: float) -> Outcome:
        """Read the configuration and use it if it is valid; tell the state and the log what came of it."""
        state = self._runtime.state
        try:
            prepared, files, pending = await asyncio.to_thread(self._prepared)
        except ConfigurationError as error:
            return self._refused(began_at, [str(mistake) for mistake in error.mistakes])
        except Exception as error:
            _log.exception("defect while the configuration was read again")
            return self._refused(began_at, [f"{type(error).__name__}; the log has the traceback"])
        try:
            told = await self._apply(prepared)
        except Exception as error:
            _log.exception("defect while a configuration was applied: restart the agent")
            defect = f"applied only in part ({type(error).__name__}); restart the agent, and report its log"
            return self._refused(began_at, [defect])
        self._in_use = files
        state.refused, state.configured_at = (), began_at
        _log.info("configuration reloaded: %s", told)
        kept = [f"{setting} keeps its value until the agent is restarted" for setting in pending]
        for each in kept:
            _log.warning("%s", each)
        return Outcome(is_applied=True, began_at=began_at, told=[told, *kept])

    def _refused(self, began_at: float, mistakes: Sequence[str]) -> Outcome:
        told = [*mistakes[:MISTAKES_TOLD]]
        if len(mistakes) > MISTAKES_TOLD:
            told.append(f"and {len(mistakes) - MISTAKES_TOLD} more; mailsonde validate shows all")
        self._runtime.state.refused = told
        _log.error("configuration refused, and the earlier one stays in use: %s", "; ".join(told))
        return Outcome(is_applied=False, began_at=began_at, told=told)

    def _prepared(self) -> tuple[Assembly, Sources, Sequence[str]]:
        """Return what can replace the current assembly, its files, and settings that need a restart."""
        with no_collection(), _giving_way():
            configuration, files = self._read()
            earlier = self._runtime.assembly.configuration
            pending = needing_restart(configuration, earlier)
            used = settled(configuration, files, earlier, self._in_use)
            spare = [
                *configuration.probes,
                *configuration.mailboxes.values(),
                *configuration.servers.values(),
            ]
            del configuration
            take_apart(spare)
            return self._runtime.assembled(used), files, pending

    def _read(self) -> tuple[Configuration, Sources]:
        """Return the configuration, all of it as the files are now, and its files.

        Raises `ConfigurationError`, also if a file changes again and again while it is read.
        """
        for number in range(READINGS):
            if number:
                time.sleep(READ_PAUSE)
            self._latest = files = Sources()
            try:
                configuration = load(self._path, sources=files)
            except ConfigurationError:
                if not files.changed():
                    raise
            else:
                if not files.changed():
                    return configuration, files
        raise ConfigurationError([Mistake(path, 0, "", CHANGED) for path in files.changed() or [self._path]])

    async def _apply(self, assembly: Assembly) -> str:
        """Use an assembly in place of the current one, and return what is different about it."""
        runtime, earlier = self._runtime, self._runtime.assembly
        replaced = await runtime.replace(assembly)
        for name in replaced.gone:
            self._schedule.remove(name)
            self._recent.keep_only(name, ())
        async for probe in in_slices(replaced.probes):
            self._configure(probe, among=len(replaced.probes))
        has_thresholds = assembly.configuration.alerts is earlier.configuration.alerts
        async for probe in in_slices(assembly.probes.values()):
            if earlier.probes.get(probe.settings.name) is probe:
                probe.move(assembly.context)
                if not has_thresholds and runtime.has_metrics(probe):
                    runtime.state.configure(probe, self._clock.time())
        new = len(assembly.probes.keys() - earlier.probes.keys())
        return (
            f"{len(assembly.probes)} probes: {len(replaced.probes) - new} changed, {new} new, "
            f"{len(replaced.gone)} removed"
        )

    def _configure(self, probe: Probe, among: int) -> None:
        """Begin with a new or changed probe, one of ``among``."""
        name, targets = probe.settings.name, probe.targets
        if self._runtime.has_metrics(probe):
            self._runtime.state.configure(probe, self._clock.time())
            self._schedule.replace(probe, among)
            for target in targets:
                self._recent.touch((name, target))
            self._recent.keep_only(name, targets)
        else:
            self._schedule.remove(name)
            self._recent.keep_only(name, ())

    async def _watch(self) -> None:
        """Reload when a file that was read the last time has changed, whether it was used or refused."""
        while True:
            await self._clock.sleep(LOOK_EVERY)
            if await asyncio.to_thread(self._latest.changed):
                await self.reload()
