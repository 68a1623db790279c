"""What lives as long as the process and outlasts a reload: ledger, state, runner and clock."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from monitor.assembly import Assembly, assemble
from monitor.config.models import Configuration
from monitor.ledger.pauses import PAUSES_KEPT, Pause
from monitor.ledger.store import AGENT, SqlLedger, open_ledger
from monitor.maintenance import Maintenance
from monitor.runner import Result, Runner
from monitor.state import AgentState
from probes.core.clock import Clock
from probes.core.probe import Probe
from probes.delivery.message_probe import MessageProbe


class Runtime:
    """Runs probes on an open ledger; ``assembly`` has the probes and watchers of the current configuration.

    ``instance`` is this process's name in the ledger. ``runs_all`` says whether probes that are not
    scheduled, and run only by `check` and `/probe`, have metrics too.
    """

    def __init__(
        self,
        configuration: Configuration,
        clock: Clock,
        ledger: SqlLedger,
        instance: str,
        *,
        runs_all: bool,
    ) -> None:
        self.clock = clock
        self.ledger = ledger
        self.runner = Runner(clock, configuration.agent.location)
        self.state = AgentState(location=configuration.agent.location)
        self._instance = instance
        self._runs_all = runs_all
        self._pauses: tuple[Pause, ...] = ()
        ledger.counts_from = lambda probe, now: self.state.maintenance.counts_from(probe, now)
        self.assembly = self._assembled(configuration)

    def _assembled(self, configuration: Configuration) -> Assembly:
        assembly = assemble(configuration, self.clock, self.ledger, self.state, self._instance)
        self.state.keep_only(
            (probe for probe in assembly.probes.values() if probe.settings.scheduled or self._runs_all),
            configuration.site,
            self.clock.time(),
        )
        self.state.maintenance = Maintenance.of(configuration, self._pauses)
        return assembly

    async def read_pauses(self) -> None:
        """Take over the pauses that are in the ledger. Raises LedgerError."""
        found = await self.ledger.pauses(self.clock.time() - PAUSES_KEPT)
        if found != self._pauses:
            self._pauses = found
            self.state.maintenance = self.state.maintenance.paused(found)

    async def replace(self, configuration: Configuration) -> None:
        """Replace the current configuration with ``configuration``.

        Routes that are in both keep their counts. Runs in progress continue. Messages in flight are still
        watched for if their mailbox is still configured.
        """
        earlier, self.assembly = self.assembly, self._assembled(configuration)
        await earlier.close()  # first, because a mailbox allows one session at a time
        for name in earlier.watchers.keys() & self.assembly.watchers.keys():
            self.assembly.watchers[name].take_over(earlier.watchers[name])

    def overdue_after(self, name: str, target: str) -> float | None:
        """Return the age, in seconds, from which on a route's messages in flight are overdue, if known."""
        probe = self.assembly.probes.get(name)
        if not isinstance(probe, MessageProbe):
            return None
        usual = self.ledger.last_week.route(name, target).usual(self.clock.time())
        return probe.settings.overdue_after(usual)

    async def run(self, probe: Probe, take_in: Callable[[Result], None]) -> None:
        """Run ``probe`` and its siblings once, then its sub-probes; pass each result to ``take_in``."""

        async def run_one(one: Probe) -> None:
            take_in(await self.runner.run(one))

        if not probe.siblings:  # nearly all
            await run_one(probe)
        else:
            async with asyncio.TaskGroup() as group:
                for one in (probe, *probe.siblings):
                    group.create_task(run_one(one))
        if not probe.sub_probes:
            return
        self.state.keep_sub_probes(probe, self.clock.time())
        async with asyncio.TaskGroup() as group:
            for sub_probe in probe.sub_probes:
                group.create_task(run_one(sub_probe))


@asynccontextmanager
async def open_runtime(configuration: Configuration, clock: Clock, role: str) -> AsyncIterator[Runtime]:
    """Open the ledger and make the configured probes and watchers, for the block.

    The process's name in the ledger begins with ``role``, such as ``agent``. Raises LedgerError.
    """
    instance = f"{role}-{secrets.token_hex(8)}"
    agent = configuration.agent
    async with open_ledger(agent.ledger, clock, instance, agent.location, agent.runs_kept) as ledger:
        runtime = Runtime(configuration, clock, ledger, instance, runs_all=role != AGENT)
        try:
            await runtime.read_pauses()
            yield runtime
        finally:
            await runtime.assembly.close()
