"""Makes the probes of a configuration, and one watcher per mailbox."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from monitor.config.models import Configuration
from monitor.ledger.store import SqlLedger
from probes.core.clock import Clock
from probes.core.context import Context
from probes.core.credentials import Credentials, Tokens
from probes.core.faults import ProbeFault
from probes.core.mail_protocols import KEEP_CONNECTIONS
from probes.core.probe import Probe
from probes.core.settings import ProbeSettings, ServerSettings, Site
from probes.core.verdict import MessageState
from probes.delivery.accounts import Accounts
from probes.delivery.arrivals import Arrivals
from probes.delivery.mailboxes.imap import ImapMailbox
from probes.delivery.mailboxes.login_budget import LoginBudget, SlowPolls
from probes.delivery.mailboxes.mailbox import Mailbox
from probes.delivery.mailboxes.pop3 import Pop3Mailbox
from probes.delivery.message_life import Message
from probes.delivery.message_probe import MessageContext, MessageProbe, MessageProbeSettings
from probes.delivery.tracing import MessageTracer
from probes.delivery.watcher import MailboxWatcher, Observer
from probes.messages.token import TokenSigner
from probes.oauth2.settings import RESOURCES, MicrosoftOAuth2
from probes.oauth2.tokens import TokenSource, token_sources
from probes.protocols import connection_limits
from probes.protocols.connection_limits import PER_SERVER, Place
from probes.protocols.tls import client_context
from probes.registry import KINDS

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Assembly:
    """The probes and watchers of one configuration; another assembly can replace it while the agent runs."""

    configuration: Configuration
    probes: Mapping[str, Probe]
    watchers: Mapping[str, MailboxWatcher]
    tokens: Mapping[str, TokenSource]

    @property
    def retention(self) -> float:
        """How many seconds ended messages stay in the ledger."""
        return self.configuration.agent.retention

    def resume(self, messages: list[Message]) -> None:
        """Resume watching for messages sent earlier, if their mailbox is still configured."""
        for message in messages:
            probe = self.probes.get(message.probe)
            if message.mailbox not in self.watchers:
                continue
            if message.state is MessageState.LOST:
                self.watchers[message.mailbox].watch_on(message)
            elif isinstance(probe, MessageProbe) and probe.mailbox == message.mailbox:
                probe.follow(message)
            else:
                self.watchers[message.mailbox].await_arrival(message)

    async def close(self) -> None:
        """Stop watching; open messages stay in the ledger as they are."""
        await asyncio.gather(*(watcher.close() for watcher in self.watchers.values()))
        await asyncio.gather(*(source.close() for source in self.tokens.values()))


def assemble(
    configuration: Configuration, clock: Clock, ledger: SqlLedger, observer: Observer, instance: str
) -> Assembly:
    """Make the probes and watchers of a configuration, without starting them."""
    site, agent = configuration.site, configuration.agent
    connection_limits.system.configure(agent.max_connections, _connections_per_server(site))
    for server in site.servers.values():
        if server.tls in {"implicit", "starttls"}:
            with suppress(ProbeFault):  # if this fails, each run will report it
                _load_authorities(server)
    key = agent.token_key.get_secret_value().encode() if agent.token_key else ledger.token_key
    signer = TokenSigner(key)
    watchers: dict[str, MailboxWatcher] = {}
    loops = {
        settings.name
        for settings in configuration.enabled_probes
        if isinstance(settings, MessageProbeSettings) and settings.is_loop
    }
    tokens = token_sources(configuration.oauth2, clock)
    tracers = _tracers(configuration, clock, tokens)
    context = Context(clock, site, tokens=tokens)
    message_context = MessageContext(
        clock, site, ledger, signer, watchers, instance, tokens=tokens, tracers=tracers
    )
    with_sent_copies = _with_sent_copies(configuration, message_context.accounts)
    for name, mailbox in _mailboxes(configuration, clock, tokens).items():
        arrivals = Arrivals(
            name,
            clock=clock,
            ledger=ledger,
            signer=signer,
            retention=agent.retention,
            loops=loops,
            authserv_id=site.mailboxes[name].authserv_id,
        )
        watchers[name] = MailboxWatcher(
            name,
            mailbox,
            arrivals,
            clock=clock,
            observer=observer,
            retention=agent.retention,
            peers=watchers,
            keeps_sent=name in with_sent_copies,
        )
    probes = {
        settings.name: _probe(settings, context, message_context) for settings in configuration.enabled_probes
    }
    return Assembly(configuration, probes, watchers, tokens)


def _with_sent_copies(configuration: Configuration, accounts: Accounts) -> set[str]:
    """Return the mailboxes whose sent folders get copies of our messages, and can be read."""
    site, found = configuration.site, set[str]()
    senders = {
        account
        for settings in configuration.enabled_probes
        if isinstance(settings, MessageProbeSettings)
        and (account := settings.account_with_copies(site.servers)) is not None
    }
    for account in sorted(senders):
        its = {
            name
            for name in accounts.of(account)
            if site.servers[site.mailboxes[name].server].protocol != "pop3"
        }
        if not its:
            told = "copies of the messages stay in the sent folder of %s: no IMAP or Graph mailbox is of it"
            _log.warning(told, account)
        found |= its
    return found


def _load_authorities(server: ServerSettings) -> None:
    """Make the TLS contexts of a server. That takes 20 ms, which would count in the first run's latency."""
    if server.protocol == "graph":
        from probes.protocols.https import http_context  # half a second, which only some sites need

        http_context(server.tls_ca)
        return
    client_context(server.tls_ca)
    if server.protocol != "smtp":
        client_context(server.tls_ca, resumes=True)


def _probe(settings: ProbeSettings, context: Context, message_context: MessageContext) -> Probe:
    kind = KINDS[settings.kind]
    if issubclass(kind, MessageProbe):
        return kind.made_for(settings, message_context)
    return kind(settings, context)


def _tracers(configuration: Configuration, clock: Clock, tokens: Tokens) -> dict[str, MessageTracer]:
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
            tracers[name] = MessageTracer(
                server,
                Credentials("", tokens[name], "graph"),
                clock,
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


def _mailboxes(configuration: Configuration, clock: Clock, tokens: Tokens) -> dict[str, Mailbox]:
    """Return each configured mailbox, with its server's protocol and login budget."""
    site = configuration.site
    slow_polls = {place: SlowPolls(most) for place, most in _connections_per_server(site).items()}
    budgets = {
        name: LoginBudget(server.logins_per_minute, clock, slow_polls[server.host, server.port])
        for name, server in site.servers.items()
    }
    mailboxes: dict[str, Mailbox] = {}
    for name, settings in site.mailboxes.items():
        server, budget = site.servers[settings.server], budgets[settings.server]
        if server.protocol == "imap":
            mailboxes[name] = ImapMailbox(
                settings, server, clock, budget, configuration.agent.retention, tokens
            )
        elif server.protocol == "graph":
            from probes.delivery.mailboxes.graph import GraphMailbox  # loads httpx

            mailboxes[name] = GraphMailbox(
                settings, server, clock, budget, configuration.agent.retention, tokens
            )
        else:
            mailboxes[name] = Pop3Mailbox(settings, server, clock, budget, tokens)
    return mailboxes
