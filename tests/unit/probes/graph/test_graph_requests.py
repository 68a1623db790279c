"""Requests to Graph: by verified TLS, and within its limits."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from probes.core.clock import SystemClock
from probes.core.credentials import credentials_of
from probes.core.faults import ProbeFault
from probes.core.verdict import TURN, PhaseTimer
from probes.oauth2.tokens import token_sources
from probes.protocols.graph import GraphSession
from probes.protocols.request_limits import (
    AT_A_TIME,
    MOST_REQUESTS,
    REQUEST_BURST,
    WINDOW,
    RequestLimits,
)
from tests.fakes.certificates import certify, chain_context
from tests.fakes.clock import InstantClock
from tests.fakes.graph.server import graph_double


async def test_graph_is_asked_by_verified_tls(tmp_path: Path) -> None:
    """With the CA that is configured, requests are encrypted; without it, none is made."""
    authority = certify("Test CA")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    context: ssl.SSLContext = chain_context(tmp_path, certify("127.0.0.1", authority, is_ca=False))
    clock = SystemClock()
    async with graph_double(clock, context) as graph:
        tokens = token_sources({"contoso": graph.oauth2()}, clock)
        for ca, is_trusted in ((tmp_path / "ca.pem", True), (None, False)):
            server = graph.settings(**{"tls_ca": str(ca)} if ca else {})
            credentials = credentials_of(server, tokens)
            assert credentials is not None
            session = GraphSession(server, "canary@contoso.com", credentials, PhaseTimer(clock), clock)
            if is_trusted:
                assert (await session.newest("inbox", 0.0, 5, [])).messages == ()
                assert (await session.newest("inbox", 0.0, 5, [])).messages == ()
            else:
                with pytest.raises(ProbeFault, match="certificate_untrusted"):
                    await session.newest("inbox", 0.0, 5, [])
            await session.close()
        assert len(graph.requests) == 2


async def test_requests_stay_within_the_documented_limit() -> None:
    """However often somebody asks, there are at most 10,000 requests in any 10 minutes."""
    clock = InstantClock()
    limits, times = RequestLimits(clock), []
    while clock.now < 1000.0 + 2 * WINDOW:
        async with limits.request(PhaseTimer(clock)):
            times.append(clock.now)
    within = [sum(begin <= time < begin + WINDOW for time in times) for begin in range(1000, 1700, 100)]
    assert max(within) <= MOST_REQUESTS
    assert within[0] > MOST_REQUESTS - REQUEST_BURST


async def test_waiting_for_other_requests_is_no_time_of_graph() -> None:
    """Only four requests are made at a time, and the others count their wait as that for a turn."""
    clock, waiting = SystemClock(), PhaseTimer(SystemClock())
    limits, go_on = RequestLimits(clock), asyncio.Event()

    async def request(phases: PhaseTimer) -> None:
        async with limits.request(phases):
            await go_on.wait()

    others = [PhaseTimer(clock) for _ in range(AT_A_TIME)]
    async with asyncio.TaskGroup() as group:
        for phases in (*others, waiting):
            group.create_task(request(phases))
        await asyncio.sleep(0)  # until all have begun
        assert waiting.current == TURN
        go_on.set()
    assert set(waiting.seconds) == {TURN}
    assert [phases.seconds for phases in others] == [{}] * AT_A_TIME
