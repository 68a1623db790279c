"""Makes the probes of a configuration, and one watcher per mailbox."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from monitor.config.difference import Unchanged
from monitor.config.models import Configuration
from monitor.ledger.pauses import Pause
from monitor.ledger.store import SqlLedger
from monitor.maintenance import Maintenance
from probes.core.clock import Clock
from probes.core.credentials import Credentials, Tokens
from probes.core.faults import ProbeFault
from probes.core.mail_protocols import KEEP_CONNECTIONS
from probes.core.probe import Probe
from probes.core.settings import MailboxSettings, ProbeSettings, ServerSettings, Site
from probes.core.verdict import MessageState
from probes.delivery.accounts import Accounts
from probes.delivery.arrivals import Arrivals
from probes.delivery.mailboxes.imap import ImapMailbox
from probes.delivery.mailboxes.login_budget import LoginBudget, SlowPolls
from probes.delivery.mailboxes.mailbox import Mailbox
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.delivery.message_life import Message
from probes.delivery.message_probe import MessageContext, MessageProbe, MessageProbeSettings
from probes.delivery.tracing import MessageTracer, TraceObserver
from probes.delivery.watcher import MailboxWatcher, Observer
from probes.messages.token import TokenSigner
from probes.oauth2.settings import RESOURCES, MicrosoftOAuth2
from probes.oauth2.tokens import TokenSource, token_sources
from probes.protocols import connection_limits
from probes.protocols.connection_limits import PER_SERVER, Place
from probes.protocols.tls import client_context
from probes.registry import KINDS

_log = logging.getLogger(__name__)


class AssemblyObserver(Observer, TraceObserver, Protocol):
    """Receives what all parts of an assembly find out."""


@dataclass(frozen=True, slots=True)
class _Budgets:
    """The connections to each host and port, its polls that may take long, and the logins to each server."""

    connections: Mapping[Place, int]
    logins: Mapping[str, LoginBudget]
    slow_polls: Mapping[Place, SlowPolls]


@dataclass(frozen=True, slots=True)
class Assembly:
    """The probes and watchers of one configuration; another assembly can replace it while the agent runs."""

    configuration: Configuration
    probes: dict[str, Probe]
    watchers: dict[str, MailboxWatcher]
    tokens: Mapping[str, TokenSource]
    context: MessageContext
    loops: set[str]
    """The probes whose messages come back from elsewhere, also earlier ones; all watchers have this set."""
    own_loops: Set[str]
    """Those of this configuration."""
    budgets: _Budgets
    sent_copies: Set[str]
    """The mailboxes whose sent folders get copies of our messages, and can be read."""
    unread_copies: Set[str]
    """The accounts whose sent folders get copies that stay there, because no mailbox can be read."""
    maintenance: Maintenance
    """Of this configuration, with the pauses of when it was assembled."""

    def begin(self, earlier: Assembly | None = None) -> None:
        """Open what may be open by this configuration, and take over what ``earlier`` watchers await.

        Those that are not part of this assembly must have been closed.
        """
        budgets = self.budgets
        connection_limits.system.configure(self.configuration.agent.max_connections, budgets.connections)
        for place, slow_polls in budgets.slow_polls.items():
            slow_polls.configure(budgets.connections[place])
        self.loops.difference_update(self.probes)
        self.loops.update(self.own_loops)
        for name, watcher in self.watchers.items():
            watcher.peers = self.watchers
            before = earlier.watchers.get(name) if earlier is not None else None
            if before is not None and before is not watcher:
                watcher.take_over(before)
        for name, ended in (earlier.context.tracers if earlier is not None else {}).items():
            tracer = self.context.tracers.get(name)
            if tracer is None:
                ended.stop()
            elif tracer is not ended:
                tracer.take_over(ended)

    @property
    def retention(self) -> float:
        """How many seconds ended messages stay in the ledger."""
        return self.configuration.agent.retention

    def resume(self, messages: list[Message]) -> None:
        """Resume watching for messages sent earlier, if their mailbox is still configured."""
        lost: defaultdict[str, list[Message]] = defaultdict(list)
        for message in messages:
            probe = self.probes.get(message.probe)
            if message.mailbox not in self.watchers:
                continue
            if message.state is MessageState.LOST:
                self.watchers[message.mailbox].watch_on(message)
                lost[message.probe].append(message)
            elif isinstance(probe, MessageProbe) and probe.mailbox == message.mailbox:
                probe.follow(message)
            else:
                self.watchers[message.mailbox].await_arrival(message)
        for name, of_probe in lost.items():
            if isinstance(probe := self.probes.get(name), MessageProbe):
                probe.trace_lost(of_probe)

    async def close(self) -> None:
        """Stop watching; open messages stay in the ledger as they are."""
        await asyncio.gather(*(tracer.close() for tracer in self.context.tracers.values()))
        await asyncio.gather(*(watcher.close() for watcher in self.watchers.values()))
        await asyncio.gather(*(source.close() for source in self.tokens.values()))


def assemble(
    configuration: Configuration,
    clock: Clock,
    ledger: SqlLedger,
    observer: AssemblyObserver,
    instance: str,
    earlier: Assembly | None = None,
    pauses: Iterable[Pause] = (),
) -> Assembly:
    """Make the probes and watchers of a configuration, without starting them. Any thread may do so.

    What an ``earlier`` assembly has, and the configuration leaves as it is, stays the same object. The
    configuration must be `monitor.config.difference.settled` on that of ``earlier``.
    """
    unchanged = Unchanged(configuration, earlier.configuration if earlier is not None else None)
    agent = configuration.agent
    _load_authorities(configuration, unchanged)
    key = agent.token_key.get_secret_value().encode() if agent.token_key else ledger.token_key
    tokens = token_sources(configuration.oauth2, clock)
    if earlier is not None:
        tokens |= {name: earlier.tokens[name] for name in tokens if unchanged.has("oauth2", name)}
    watchers: dict[str, MailboxWatcher] = {}
    context = MessageContext(
        clock,
        configuration.site,
        ledger,
        TokenSigner(key),
        watchers,
        instance,
        tokens=tokens,
        tracers=_tracers(configuration, clock, tokens, ledger, observer, unchanged, earlier),
    )
    sent_copies, unread_copies = _sent_copies(configuration, context.accounts)
    for account in sorted(unread_copies - (earlier.unread_copies if earlier is not None else set())):
        told = "copies of the messages stay in the sent folder of %s: no IMAP or Graph mailbox is of it"
        _log.warning(told, account)
    assembly = Assembly(
        configuration,
        {},
        watchers,
        tokens,
        context,
        set() if earlier is None else earlier.loops,
        _loops(configuration),
        _budgets(configuration.site, clock, unchanged, earlier),
        sent_copies,
        unread_copies,
        Maintenance.of(configuration, pauses),
    )
    _watch(assembly, observer, unchanged, earlier)
    _probe_all(assembly, unchanged, earlier)
    return assembly


def _watch(assembly: Assembly, observer: Observer, unchanged: Unchanged, earlier: Assembly | None) -> None:
    """Add the watchers to an assembly: those of ``earlier`` whose mailbox has not changed, and new ones."""
    context, retention = assembly.context, assembly.retention
    for name, settings in assembly.configuration.mailboxes.items():
        if (
            earlier is not None
            and unchanged.has("mailboxes", name)
            and retention == earlier.retention
            and (name in assembly.sent_copies) == (name in earlier.sent_copies)
        ):
            assembly.watchers[name] = earlier.watchers[name]
            continue
        arrivals = Arrivals(
            name,
            clock=context.clock,
            ledger=context.ledger,
            signer=context.signer,
            retention=retention,
            loops=assembly.loops,
            authserv_id=settings.authserv_id,
        )
        assembly.watchers[name] = MailboxWatcher(
            name,
            _mailbox(settings, assembly),
            arrivals,
            clock=context.clock,
            observer=observer,
            retention=retention,
            keeps_sent=name in assembly.sent_copies,
        )


def _probe_all(assembly: Assembly, unchanged: Unchanged, earlier: Assembly | None) -> None:
    """Add the probes to an assembly: those of ``earlier`` that have not changed, and new ones."""
    for settings in assembly.configuration.enabled_probes:
        before = earlier.probes.get(settings.name) if earlier is not None else None
        if before is not None and unchanged.is_same(settings, before.settings):
            assembly.probes[settings.name] = before
            continue
        probe = assembly.probes[settings.name] = _probe(settings, assembly.context)
        if before is not None and type(before) is type(probe):
            probe.take_over(before)


def _loops(configuration: Configuration) -> set[str]:
    """Return the probes whose messages come back from elsewhere."""
    return {
        settings.name
        for settings in configuration.enabled_probes
        if isinstance(settings, MessageProbeSettings) and settings.is_loop
    }


def _sent_copies(configuration: Configuration, accounts: Accounts) -> tuple[set[str], set[str]]:
    """Return the mailboxes whose sent folders get copies of our messages, and accounts without such."""
    site, found, unread = configuration.site, set[str](), set[str]()
    senders = {
        account
        for settings in configuration.enabled_probes
        if isinstance(settings, MessageProbeSettings)
        and (account := settings.account_with_copies(site.servers)) is not None
    }
    for account in senders:
        its = {
            name
            for name in accounts.of(account)
            if site.servers[site.mailboxes[name].server].protocol != "pop3"
        }
        if not its:
            unread.add(account)
        found |= its
    return found, unread


def _load_authorities(configuration: Configuration, unchanged: Unchanged) -> None:
    """Make the TLS contexts of servers. Each takes 20 ms, which would count in the first run's latency."""
    for name, server in configuration.servers.items():
        if server.tls in {"implicit", "starttls"} and not unchanged.has("servers", name):
            with suppress(ProbeFault):  # if this fails, each run will report it
                _load_authorities_of(server)


def _load_authorities_of(server: ServerSettings) -> None:
    if server.protocol == "graph":
        from probes.protocols.https import http_context  # half a second, which only some sites need

        http_context(server.tls_ca)
        return
    client_context(server.tls_ca)
    if server.protocol != "smtp":
        client_context(server.tls_ca, resumes=True)


def _probe(settings: ProbeSettings, context: MessageContext) -> Probe:
    kind = KINDS[settings.kind]
    if issubclass(kind, MessageProbe):
        return kind.made_for(settings, context)
    return kind(settings, context)


def _tracers(
    configuration: Configuration,
    clock: Clock,
    tokens: Tokens,
    ledger: SqlLedger,
    observer: TraceObserver,
    unchanged: Unchanged,
    earlier: Assembly | None,
) -> dict[str, MessageTracer]:
    """Return the tracer of each entry of ``oauth2`` that may; at the Graph server with that entry."""
    servers = {
        server.oauth2: server for server in configuration.servers.values() if server.protocol == "graph"
    }
    tracers = {}
    for name, entry in configuration.oauth2.items():
        if isinstance(entry, MicrosoftOAuth2) and (entry.message_trace or entry.service_health):
            host = urlsplit(RESOURCES["graph"][entry.cloud]).hostname
            usual = {"protocol": "graph", "host": host, "oauth2": name}
            server = servers.get(name) or ServerSettings.model_validate(usual)
            before = earlier.context.tracers.get(name) if earlier is not None else None
            if before is not None and unchanged.has("oauth2", name) and before.server == server:
                tracers[name] = before
                continue
            tracers[name] = MessageTracer(
                server,
                Credentials("", tokens[name], "graph"),
                clock,
                ledger,
                observer,
                traces=entry.message_trace,
                health=entry.service_health,
            )
    return tracers


def _connections_per_server(site: Site) -> dict[Place, int]:
    """Return how many connections each host and port may have; the lowest limit of their entries."""
    limits: dict[Place, int] = {}
    defaults: Counter[Place] = Counter()
    for server in site.servers.values():
        place = server.host, server.port
        defaults[place] = PER_SERVER
        if server.max_connections is not None:
            limits[place] = min(server.max_connections, limits.get(place, server.max_connections))
    for mailbox in site.mailboxes.values():
        server = site.servers[mailbox.server]
        defaults[server.host, server.port] += server.protocol in KEEP_CONNECTIONS
    return {**defaults, **limits}


def _budgets(site: Site, clock: Clock, unchanged: Unchanged, earlier: Assembly | None) -> _Budgets:
    """Return the budgets of all servers; those of unchanged servers stay."""
    known = earlier.budgets if earlier is not None else _Budgets({}, {}, {})
    connections = _connections_per_server(site)
    slow_polls = {
        place: known.slow_polls.get(place) or SlowPolls(most) for place, most in connections.items()
    }
    logins = {
        name: known.logins[name]
        if unchanged.has("servers", name)
        else LoginBudget(server.logins_per_minute, clock, slow_polls[server.host, server.port])
        for name, server in site.servers.items()
    }
    return _Budgets(connections, logins, slow_polls)


def _mailbox(settings: MailboxSettings, assembly: Assembly) -> Mailbox:
    """Return a configured mailbox, with its server's protocol and login budget."""
    clock, tokens, retention = assembly.context.clock, assembly.tokens, assembly.retention
    server, budget = assembly.configuration.servers[settings.server], assembly.budgets.logins[settings.server]
    if server.protocol == "imap":
        return ImapMailbox(settings, server, clock, budget, retention, tokens)
    if server.protocol == "graph":
        from probes.delivery.mailboxes.graph import GraphMailbox  # loads httpx

        return GraphMailbox(settings, server, clock, budget, retention, tokens)
    return Pop3Mailbox(settings, server, clock, budget, tokens)
