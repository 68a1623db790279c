"""Mailboxes in the cloud: the latency error through Graph beside POP3's, and the processor time of a look.

An agent sends through Graph's double, which delays each message by a random time around its route's own.
Each route has its own mailbox; half are read through Graph, half by POP3, at the default budget of polls.
Looks are those of the watcher, without a message to find, by TLS: Graph's double in another thread, and
Dovecot, which checks the tokens of another server.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import random
import re
import sqlite3
import ssl
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr, TypeAdapter

from probes.core.clock import SystemClock
from probes.core.settings import MailboxSettings, ServerSettings
from probes.delivery.mailboxes.graph import GraphMailbox
from probes.delivery.mailboxes.imap import ImapMailbox
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.mailboxes.mailbox import Mailbox
from probes.oauth2.settings import AnyOAuth2
from probes.oauth2.tokens import token_sources
from tests.benchmarks.latency import DELAYS, LEARNING, SPREAD
from tests.benchmarks.processes import workplace
from tests.fakes.graph.http import Request
from tests.fakes.graph.server import GraphDouble, graph_double
from tests.fakes.pop3_server import Pop3Server
from tests.fakes.scripted_server import scripted_server
from tests.real_servers.dovecot import DOMAIN, PASSWORD, Dovecot, TlsFiles
from tests.real_servers.process import free_port
from tests.real_servers.site import AgentProcess
from tests.real_servers.token_server import TokenServer

SECONDS = 180.0
ROUNDS, LOOKS, LOGINS = 5, 100, 20
_ROUTES = [(protocol, number) for protocol in ("graph", "pop3") for number in range(len(DELAYS))]
_MESSAGE = re.compile(rb"^X-Mailsonde-Token: mailsonde1:(graph|pop3)-(\d):([0-9a-f]{32}):", re.MULTILINE)
_SENDER = "sender@contoso.com"


class Transit:
    """Takes the messages that are sent through Graph, and lets each arrive late."""

    def __init__(self, graph: GraphDouble) -> None:
        self.arrived: dict[str, float] = {}
        """Monotonic times at which messages became visible, by their ids."""
        self.polls: Counter[tuple[str, int]] = Counter()
        self.boxes = [Pop3Server() for _ in DELAYS]
        self._graph = graph
        self._chance = random.Random(1)  # noqa: S311 # a simulation
        graph.instead = self.take
        for address in (_SENDER, *(_address("graph", number) for number in range(len(DELAYS)))):
            graph.mailboxes[address] = []

    def take(self, request: Request) -> None:
        """Count a poll, or decide when a message arrives."""
        if request.path[-1] == "messages" and "inbox" in request.path:
            self.polls["graph", int(request.path[2].partition("@")[0].rpartition("-")[2])] += 1
        if request.path[-1] != "sendMail":
            return
        raw = base64.b64decode(request.body)
        found = _MESSAGE.search(raw)
        assert found is not None
        number, key = int(found[2]), found[3].decode()
        delay = DELAYS[number] * math.exp(self._chance.gauss(0.0, SPREAD))
        if found[1] == b"graph":
            self._graph.delay = delay
            self.arrived[key] = time.monotonic() + delay
        else:
            asyncio.get_running_loop().call_later(delay, self._store, number, key, raw)

    def _store(self, number: int, key: str, raw: bytes) -> None:
        self.boxes[number].messages[key] = raw
        self.arrived[key] = time.monotonic()

    def pop3(self, number: int) -> Any:
        """Return the script of a route's POP3 server."""

        async def script(peer: Any) -> None:
            self.polls["pop3", number] += 1
            peer.received.clear()
            await self.boxes[number].script(peer)

        return script


def _address(protocol: str, number: int) -> str:
    return f"{protocol}-{number}@contoso.com"


def _configuration(directory: Path, graph: GraphDouble, ports: Mapping[int, int], listen: int) -> Path:
    (directory / "secret").write_text(graph.entra.secret)
    local = {"host": "127.0.0.1", "tls": "none", "allow_insecure_auth": True, "logins_per_minute": 60000}
    application = {"tenant": graph.entra.tenant, "client_id": graph.entra.client_id}
    through_graph = {
        "protocol": "graph",
        "port": graph.port,
        "oauth2": "contoso",
        "messages_per_minute": 6000,
    }
    password = {"password": {"file": "secret"}}
    document = {
        "agent": {"listen": f"127.0.0.1:{listen}", "ledger": f"sqlite:{directory}/ledger.db"},
        "oauth2": {
            "contoso": {
                "provider": "microsoft",
                "authority": graph.entra.url,
                "client_secret": {"file": "secret"},
                **application,
            }
        },
        "servers": {
            "graph": local | through_graph,
            **{f"pop3-{n}": local | {"protocol": "pop3", "port": port} for n, port in ports.items()},
        },
        "mailboxes": {
            f"{protocol}-{number}": {
                "address": _address(protocol, number),
                "username": _address(protocol, number),
                "server": "graph" if protocol == "graph" else f"pop3-{number}",
                **({"oauth2": "contoso"} if protocol == "graph" else password),
            }
            for protocol, number in _ROUTES
        },
        "probes": [
            {
                "name": f"{protocol}-{number}",
                "kind": "roundtrip",
                "interval": f"{min(max(2.0, DELAYS[number] / 15), 4.0)}s",
                "deadline": "5m",
                "from": _SENDER,
                "send_via": "graph",
                "to": f"{protocol}-{number}",
            }
            for protocol, number in _ROUTES
        ],
    }
    path = directory / "mailsonde.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


async def _latency(directory: Path) -> None:
    async with AsyncExitStack() as stack:
        graph = await stack.enter_async_context(graph_double(SystemClock()))
        transit, ports = Transit(graph), {}
        for number in range(len(DELAYS)):
            opened = await stack.enter_async_context(scripted_server(transit.pop3(number)))
            ports[number] = opened.port
        listen = free_port()
        path = _configuration(directory, graph, ports, listen)
        agent = await asyncio.to_thread(
            AgentProcess,
            path,
            directory / "agent.log",
            listen,
            seconds=120.0,  # on a busy machine
        )
        try:
            await asyncio.sleep(SECONDS)
        finally:
            await asyncio.to_thread(agent.stop)
    _print_errors(directory / "ledger.db", transit)


def _print_errors(ledger: Path, transit: Transit) -> None:
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        rows = connection.execute(
            "SELECT probe, id, connected_mono, delivery_seconds, uncertainty_seconds FROM messages "
            "WHERE state = 'delivered' ORDER BY created_at"
        ).fetchall()
    found: dict[tuple[str, int], list[tuple[float, float, bool]]] = defaultdict(list)
    for probe, key, connected, delivery, uncertainty in rows:
        protocol, _, number = probe.partition("-")
        off = abs(connected + delivery - transit.arrived[key])
        found[protocol, int(number)].append((off, off / DELAYS[int(number)], off <= uncertainty + 1e-3))
    print(
        f"error of the estimated arrival, {SECONDS:g} s, each route in its own mailbox, sent through Graph:"
    )
    print("  read by   held back   messages   median |error|   of the delay   truth inside   polls a message")
    for (protocol, number), errors in sorted(found.items()):
        if not (counted := errors[LEARNING:]):
            continue
        off, share = (statistics.median(error[place] for error in counted) for place in (0, 1))
        inside = statistics.mean(error[2] for error in counted)
        polls = transit.polls[protocol, number] / len(errors)
        print(
            f"  {protocol:6} {DELAYS[number]:10.2f} s {len(counted):10} {1000 * off:13.1f} ms"
            f" {100 * share:13.1f} % {100 * inside:12.1f} % {polls:16.1f}"
        )
    for protocol in ("graph", "pop3"):
        shares = [
            off / max(0.01, 0.05 * DELAYS[number])
            for (by, number), errors in found.items()
            for off, _, _ in errors[LEARNING:]
            if by == protocol
        ]
        print(f"  {protocol} in all: median {statistics.median(shares):.2f} times max(10 ms, 5 %)")


@contextmanager
def _double_in_a_thread(tls: TlsFiles) -> Iterator[GraphDouble]:
    """Serve Graph's double by TLS from another thread, so that its time is not the client's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    opened: list[GraphDouble] = []
    is_open, loop, ended = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with graph_double(SystemClock(), context) as double:
            opened.append(double)
            is_open.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    is_open.wait()
    try:
        yield opened[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


@asynccontextmanager
async def _mailboxes(directory: Path, tls: TlsFiles) -> AsyncIterator[dict[str, Mailbox]]:
    """Yield mailboxes that are empty, by how they are read."""
    clock, user = SystemClock(), f"canary@{DOMAIN}"
    budget, week = LoginBudget(60000.0, clock), 7 * 86400.0
    with ExitStack() as stack:
        graph = stack.enter_context(_double_in_a_thread(tls))
        graph.most_requests = 10**6
        issuer = TokenServer(directory / "tokens", tls)
        stack.callback(issuer.stop)
        dovecot = Dovecot(directory / "dovecot", tls, extra=issuer.dovecot_settings())
        stack.callback(dovecot.stop)
        (directory / "password").write_text("a secret that any client has")
        entry = issuer.entry("canary") | {"client_secret": {"file": str(directory / "password")}}
        generic = TypeAdapter[AnyOAuth2](AnyOAuth2).validate_python(entry)
        tokens = token_sources({"contoso": graph.oauth2(), "dovecot": generic}, clock)
        imap = ServerSettings.model_validate(
            {
                "protocol": "imap",
                "host": "127.0.0.1",
                "port": dovecot.imaps_port,
                "tls": "implicit",
                "tls_ca": str(tls.authority),
            }
        )

        def box(username: str, **login: object) -> MailboxSettings:
            return MailboxSettings.model_construct(address=username, server="in", username=username, **login)

        yield {
            "Graph": GraphMailbox(
                box("canary@contoso.com", oauth2="contoso"),
                graph.settings(tls_ca=str(tls.authority)),
                clock,
                budget,
                week,
                tokens,
            ),
            "IMAP, XOAUTH2": ImapMailbox(box(user, oauth2="dovecot"), imap, clock, budget, week, tokens),
            "IMAP, password": ImapMailbox(box(user, password=SecretStr(PASSWORD)), imap, clock, budget, week),
        }
        for source in tokens.values():
            await source.close()


async def _look(mailbox: Mailbox) -> None:
    async with mailbox.poll() as folders:
        for opened in folders:
            await opened()


async def _looks(directory: Path, tls: TlsFiles) -> None:
    used: dict[tuple[str, str], list[float]] = defaultdict(list)
    async with _mailboxes(directory, tls) as mailboxes:
        for _ in range(ROUNDS):
            for name, mailbox in mailboxes.items():
                await _look(mailbox)
                begun = time.thread_time()
                for _ in range(LOOKS):
                    await _look(mailbox)
                used[name, "kept"].append((time.thread_time() - begun) / LOOKS)
                begun = time.thread_time()
                for _ in range(LOGINS):
                    await mailbox.close()
                    await _look(mailbox)
                used[name, "new"].append((time.thread_time() - begun) / LOGINS)
        for mailbox in mailboxes.values():
            await mailbox.close()
    print("processor time of a look into an empty mailbox by TLS, medians, in ms:")
    print("                     on a session that is open   on a new one, with login")
    for name in mailboxes:
        kept, new = (1000 * statistics.median(used[name, how]) for how in ("kept", "new"))
        print(f"  {name:16} {kept:28.2f} {new:26.2f}")


def main() -> None:
    """Print the errors and the processor times."""
    with workplace() as (directory, tls):
        (directory / "looks").mkdir()
        (directory / "looks").chmod(0o755)
        asyncio.run(_looks(directory / "looks", tls))
        asyncio.run(_latency(directory))
