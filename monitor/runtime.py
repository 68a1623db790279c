"""What lives as long as the process and outlasts a reload: ledger, state, runner and clock."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from monitor.assembly import Assembly, assemble
from monitor.config.models import Configuration
from monitor.ledger.pauses import PAUSES_KEPT
from monitor.ledger.store import AGENT, SqlLedger, open_ledger
from monitor.runner import Result, Runner
from monitor.state import AgentState
from probes.core.clock import Clock
from probes.core.probe import Probe
from probes.core.verdict import MessageState
from probes.delivery.message_life import LedgerError
from probes.delivery.message_probe import MessageProbe

_log = logging.getLogger("mailsonde.agent")


@dataclass(frozen=True, slots=True)
class Replaced:
    """What one assembly has in place of another: new and changed probes, and the names of those gone."""

    probes: Sequence[Probe]
    gone: Sequence[str]

    @classmethod
    def between(cls, earlier: Assembly, assembly: Assembly) -> Self:
        """Return what is different between two assemblies."""
        before = earlier.probes
        probes = [probe for name, probe in assembly.probes.items() if before.get(name) is not probe]
        return cls(probes, [name for name in before if name not in assembly.probes])


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
        ledger.counts_from = lambda probe, now: self.state.maintenance.counts_from(probe, now)
        self.assembly = assemble(configuration, clock, ledger, self.state, instance)
        self.assembly.begin()
        self.state.keep_only(
            filter(self.has_metrics, self.assembly.probes.values()), configuration.site, clock.time()
        )
        self.state.maintenance = self.assembly.maintenance

    async def read_pauses(self) -> None:
        """Take over the pauses that are in the ledger. Raises LedgerError."""
        found = await self.ledger.pauses(self.clock.time() - PAUSES_KEPT)
        current = self.state.maintenance
        if found == current.pauses:
            return
        changed = await asyncio.to_thread(current.paused, found)  # many probes take seconds
        if self.state.maintenance is current:  # otherwise a reload came between: see it next time
            self.state.maintenance = changed

    def has_metrics(self, probe: Probe) -> bool:
        """Return whether a probe of the assembly has metrics."""
        return probe.settings.scheduled or self._runs_all

    def assembled(self, configuration: Configuration) -> Assembly:
        """Return what can `replace` the current assembly. Any thread may call it."""
        pauses = self.state.maintenance.pauses
        return assemble(
            configuration, self.clock, self.ledger, self.state, self._instance, self.assembly, pauses
        )

    async def replace(self, assembly: Assembly) -> Replaced:
        """Replace the current assembly with one that `assembled` has made from it.

        What has not changed continues: watchers with their connections, token sources, and probes. Routes
        that are in both keep their counts. Runs in progress continue. Messages in flight are still watched
        for if their mailbox is still configured. The state has no more the routes that are gone; those that
        have changed or are new are for the caller to configure.
        """
        earlier, watched = self.assembly, set(map(id, assembly.watchers.values()))
        replaced = await asyncio.to_thread(Replaced.between, earlier, assembly)  # many take a while
        ending = [watcher for watcher in earlier.watchers.values() if id(watcher) not in watched]
        # First, because a mailbox allows one session at a time. Until then, the earlier probes go on.
        closed = await asyncio.gather(*(watcher.close() for watcher in ending), return_exceptions=True)
        for defect in filter(None, closed):
            _log.error("defect while a mailbox was left", exc_info=defect)
        self.assembly = assembly
        self.state.maintenance = assembly.maintenance.after(self.state.maintenance, self.clock.time())
        assembly.begin(earlier)
        for name in replaced.gone:
            self.state.forget(name)
        for probe in replaced.probes:
            self.state.forget(probe.settings.name, probe if self.has_metrics(probe) else None)
        self.state.keep_mailboxes(assembly.configuration.site)
        self.runner.cancel(
            lambda probe: isinstance(probe, MessageProbe) and probe.mailbox not in assembly.watchers
        )
        await self._resume(assembly.watchers.keys() - earlier.watchers.keys(), self.clock.time())
        return replaced

    async def _resume(self, mailboxes: Set[str], before: float) -> None:
        """Watch for messages in mailboxes that are new, if they were sent ``before`` they were removed."""
        if not mailboxes:
            return
        try:
            messages = await self.ledger.open_messages()
        except LedgerError as error:
            _log.warning("earlier messages are not watched for in %s: %s", ", ".join(mailboxes), error)
            return
        self.assembly.resume(
            [
                each
                for each in messages
                if each.mailbox in mailboxes
                and each.instance == self._instance
                and each.created_at < before
                and each.state is not MessageState.INTENT
            ]
        )

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
        if not probe.sub_probes or self.assembly.probes.get(probe.settings.name) is not probe:
            return  # without any, or replaced by a reload in the meantime
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
