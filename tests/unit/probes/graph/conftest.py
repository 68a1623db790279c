"""A round trip through Graph's double, there and back, on a real ledger."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from monitor.ledger.store import SqlLedger, open_ledger
from monitor.runner import Result, Runner
from probes.core.settings import MailboxSettings, Site
from probes.core.verdict import MessageState
from probes.delivery.arrivals import Arrivals, Settled, Unexpected
from probes.delivery.mailboxes.graph import GraphMailbox
from probes.delivery.mailboxes.login_budget import LoginBudget
from probes.delivery.message_life import Message
from probes.delivery.message_probe import MessageContext
from probes.delivery.tracing import Trace
from probes.delivery.watcher import MailboxWatcher
from probes.messages.token import TokenSigner
from probes.oauth2.tokens import token_sources
from probes.roundtrip import Roundtrip, RoundtripSettings
from tests.fakes.clock import InstantClock
from tests.fakes.graph.server import GraphDouble, graph_double
from tests.unit.probes.conftest import WatchedLedger

ADDRESS = "canary@contoso.com"


@dataclass
class Found:
    """Collects the watcher's results."""

    messages: list[Message] = field(default_factory=list)
    counts: list[Unexpected] = field(default_factory=list)
    traces: list[tuple[str, str]] = field(default_factory=list)

    def settled(self, settled: Settled) -> None:
        self.messages.append(settled.message)

    def traced(self, message: Message, trace: Trace) -> None:
        self.traces.append((message.id, trace.told))

    def unexpected_found(self, mailbox: str, reason: Unexpected) -> None:
        del mailbox
        self.counts.append(reason)

    def poll_throttled(self, mailbox: str, now: float) -> None:
        """Receive it; the mailbox's own fault is what is checked."""


@dataclass
class Bench:
    """A probe that sends through Graph and reads through it."""

    clock: InstantClock
    graph: GraphDouble
    ledger: SqlLedger
    sent: WatchedLedger
    probe: Roundtrip
    watcher: MailboxWatcher
    mailbox: GraphMailbox
    found: Found

    async def run(self) -> Result:
        return await Runner(self.clock, "here").run(self.probe)

    async def state(self) -> MessageState:
        """Return the state of the only message."""
        assert await self.ledger.discrepancies() == []
        (message,) = self.sent.seen.values()
        found = await self.ledger.find(message.id)
        assert found is not None
        return found.state

    async def polled(self) -> None:
        """Let a poll that is going on end, with its deletions."""
        async with self.watcher._polling:
            pass


OpenBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenBench:
    """Return a function that opens a bench; its keywords are settings of the probe or the mailbox."""
    # A clock that jumps looks like a machine that stood still.
    monkeypatch.setattr("monitor.runner.HELD_UP_SHARE", math.inf)

    @asynccontextmanager
    async def opened(
        deadline: str = "30s",
        mailbox: dict[str, object] | None = None,
        *,
        saves_sent: bool = False,
        **probe: object,
    ) -> AsyncIterator[Bench]:
        clock = InstantClock()
        async with AsyncExitStack() as stack:
            graph = await stack.enter_async_context(graph_double(clock))
            graph.saves_sent = saves_sent
            ledger = await stack.enter_async_context(
                open_ledger(f"sqlite://{tmp_path}/l.db", clock, "me", "fra1")
            )
            tokens = token_sources({"contoso": graph.oauth2()}, clock)
            entry = {"address": ADDRESS, "server": "graph", "username": ADDRESS, "oauth2": "contoso"}
            settings = MailboxSettings.model_validate({**entry, **(mailbox or {})})
            server = graph.settings(saves_sent_copies=saves_sent)
            site = Site("here", {"graph": server}, {"canary": settings})
            found, signer, watched = Found(), TokenSigner(b"key"), WatchedLedger(ledger)
            box = GraphMailbox(settings, server, clock, LoginBudget(6000.0, clock), 86400.0, tokens)
            arrivals = Arrivals("canary", clock=clock, ledger=watched, signer=signer, retention=86400.0)
            watcher = MailboxWatcher(
                "canary",
                box,
                arrivals,
                clock=clock,
                observer=found,
                retention=86400.0,
                keeps_sent=saves_sent,
            )
            stack.push_async_callback(watcher.close)
            wanted = {
                "name": "trip",
                "kind": "roundtrip",
                "interval": "60s",
                "deadline": deadline,
                "from": ADDRESS,
                "send_via": "graph",
                "to": "canary",
                **probe,
            }
            context = MessageContext(clock, site, watched, signer, {"canary": watcher}, "me", tokens=tokens)
            trip = Roundtrip(RoundtripSettings.model_validate(wanted), context)
            yield Bench(clock, graph, ledger, watched, trip, watcher, box, found)
            for source in tokens.values():
                await source.close()

    return opened
