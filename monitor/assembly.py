"""Putting the parts together: probes with their tools, watchers, state and runner, on an open ledger."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from monitor.config.models import Configuration
from monitor.ledger.store import SqlLedger, open_ledger
from monitor.runner import Result, Runner
from monitor.state import AgentState
from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.probe import Probe
from probes.delivery.arrivals import Arrivals
from probes.delivery.login_budget import LoginBudget
from probes.delivery.mailboxes.imap import ImapMailbox
from probes.delivery.mailboxes.mailbox import Mailbox
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.delivery.message_life import Message
from probes.delivery.tools import Tools
from probes.delivery.watcher import MailboxWatcher
from probes.messages.token import TokenSigner
from probes.protocols.tls import client_context
from probes.registry import KINDS
from probes.roundtrip import RoundtripSettings


@dataclass(frozen=True, slots=True)
class Assembly:
    """What runs a configuration's probes."""

    probes: Mapping[str, Probe]
    watchers: Mapping[str, MailboxWatcher]
    state: AgentState
    runner: Runner
    ledger: SqlLedger
    clock: Clock
    retention: float  # seconds that ended messages stay in the ledger

    async def run(self, probe: Probe, take_in: Callable[[Result], None]) -> None:
        """Run ``probe`` once, then its sub-probes, all at the same time; take in each result."""
        take_in(await self.runner.run(probe))
        if not probe.sub_probes:
            return
        self.state.keep_sub_probes(probe, self.clock.time())

        async def run_sub_probe(sub_probe: Probe) -> None:
            take_in(await self.runner.run(sub_probe))

        async with asyncio.TaskGroup() as group:
            for sub_probe in probe.sub_probes:
                group.create_task(run_sub_probe(sub_probe))

    def resume(self, messages: list[Message]) -> None:
        """Watch on for messages that an earlier process sent, where their mailbox is still configured."""
        for message in messages:
            probe = self.probes.get(message.probe)
            if message.mailbox not in self.watchers:
                continue
            if probe is not None and probe.mailbox == message.mailbox:
                probe.follow(message)
            else:
                self.watchers[message.mailbox].await_arrival(message)


@asynccontextmanager
async def assembled(configuration: Configuration, clock: Clock, role: str) -> AsyncIterator[Assembly]:
    """Open the ledger and put everything together; closed when the block is left.

    ``role`` begins this process's name in the ledger, such as ``agent``. Raises LedgerError.
    """
    instance = f"{role}-{secrets.token_hex(8)}"
    async with open_ledger(configuration.agent.ledger, clock, instance) as ledger:
        assembly = _assemble(configuration, clock, ledger, instance)
        for probe in assembly.probes.values():
            if probe.settings.scheduled or role != "agent":
                assembly.state.add(probe, clock.time())
        try:
            yield assembly
        finally:
            await asyncio.gather(*(watcher.close() for watcher in assembly.watchers.values()))


def _assemble(configuration: Configuration, clock: Clock, ledger: SqlLedger, instance: str) -> Assembly:
    site, agent = configuration.site, configuration.agent
    for server in site.servers.values():
        if server.tls in {"implicit", "starttls"}:
            with suppress(ProbeFault):  # each run says so then
                client_context(server.tls_ca)  # costs 20 ms: now, and not in the first run's latency
    key = agent.token_key.get_secret_value().encode() if agent.token_key else ledger.token_key
    signer = TokenSigner(key)
    state = AgentState(site.mailboxes)
    watchers: dict[str, MailboxWatcher] = {}
    loops = {
        settings.name
        for settings in configuration.probes
        if isinstance(settings, RoundtripSettings) and settings.is_loop
    }
    for name, mailbox in _mailboxes(configuration, clock).items():
        arrivals = Arrivals(
            name,
            clock=clock,
            ledger=ledger,
            signer=signer,
            observer=state,
            instance=instance,
            retention=agent.retention,
            loops=loops,
            authserv_id=site.mailboxes[name].authserv_id,
        )
        watchers[name] = MailboxWatcher(
            name, mailbox, arrivals, clock=clock, retention=agent.retention, peers=watchers
        )
    tools = Tools(clock, site, ledger, signer, watchers, instance)
    probes = {
        settings.name: KINDS[settings.kind].made_for(settings, tools) for settings in configuration.probes
    }
    runner = Runner(clock, agent.location)
    return Assembly(probes, watchers, state, runner, ledger, clock, agent.retention)


def _mailboxes(configuration: Configuration, clock: Clock) -> dict[str, Mailbox]:
    """Return each configured mailbox, as its server's protocol reads it, on its server's budget of logins."""
    site = configuration.site
    budgets = {name: LoginBudget(server.logins_per_minute, clock) for name, server in site.servers.items()}
    mailboxes: dict[str, Mailbox] = {}
    for name, settings in site.mailboxes.items():
        server, budget = site.servers[settings.server], budgets[settings.server]
        if server.protocol == "imap":
            mailboxes[name] = ImapMailbox(settings, server, clock, budget, configuration.agent.retention)
        else:
            mailboxes[name] = Pop3Mailbox(settings, server, clock, budget)
    return mailboxes
