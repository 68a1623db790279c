"""Putting the parts together: probes with their tools, watchers, state and runner, on an open ledger."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from monitor.config.models import Configuration
from monitor.ledger.store import SqlLedger, open_ledger
from monitor.runner import Runner
from monitor.state import AgentState
from probes.clock import Clock
from probes.message_life import Message
from probes.probe import Probe
from probes.registry import KINDS
from probes.tls import client_context
from probes.token import TokenSigner
from probes.tools import Tools
from probes.watcher import MailboxWatcher


@dataclass(frozen=True, slots=True)
class Assembly:
    """What runs a configuration's probes."""

    probes: Mapping[str, Probe]
    watchers: Mapping[str, MailboxWatcher]
    state: AgentState
    runner: Runner
    ledger: SqlLedger
    retention: float  # seconds that ended messages stay in the ledger

    def resume(self, messages: list[Message]) -> None:
        """Watch on for messages that an earlier process sent, where their mailbox is still configured."""
        for message in messages:
            if message.mailbox in self.watchers:
                self.watchers[message.mailbox].await_arrival(message)


@asynccontextmanager
async def assembled(configuration: Configuration, clock: Clock, role: str) -> AsyncIterator[Assembly]:
    """Open the ledger and put everything together; closed when the block is left.

    ``role`` begins this process's name in the ledger, such as ``agent``. Raises LedgerError.
    """
    instance = f"{role}-{secrets.token_hex(8)}"
    async with open_ledger(configuration.agent.ledger, clock, instance) as ledger:
        assembly = _assemble(configuration, clock, ledger, instance)
        try:
            yield assembly
        finally:
            await asyncio.gather(*(watcher.close() for watcher in assembly.watchers.values()))


def _assemble(configuration: Configuration, clock: Clock, ledger: SqlLedger, instance: str) -> Assembly:
    site, agent = configuration.site, configuration.agent
    for server in site.servers.values():
        if server.tls != "none":
            client_context(server.tls_ca)  # costs 20 ms: now, and not in the first run's latency
    key = agent.token_key.get_secret_value().encode() if agent.token_key else ledger.token_key
    signer = TokenSigner(key)
    state = AgentState(site.mailboxes)
    watchers = {
        name: MailboxWatcher(
            name,
            mailbox,
            site.servers[mailbox.server],
            clock=clock,
            ledger=ledger,
            signer=signer,
            observer=state,
            instance=instance,
            retention=agent.retention,
        )
        for name, mailbox in site.mailboxes.items()
    }
    tools = Tools(clock, site, ledger, signer, watchers, instance)
    probes = {settings.name: KINDS[settings.kind](settings, tools) for settings in configuration.probes}
    for probe in probes.values():
        state.add(probe, clock.time())
    return Assembly(probes, watchers, state, Runner(clock, agent.location), ledger, agent.retention)
