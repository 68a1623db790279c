"""A route's messages on the pages."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest

from monitor.state import DeliveryState
from probes.core.verdict import MessageState
from tests.fakes.message import intent
from tests.fakes.scripted_server import dialogue
from tests.unit.web.conftest import StartAgent, Watched

SOUND = dialogue(b"220 hello", (rb"EHLO \S+", b"250 hello"), (b"QUIT", b"221 bye"))
_NUMBERS = count(1)


def _send_messages(watched: Watched) -> None:
    """Make the conftest's probe one that sends messages, which the test creates itself."""
    watched.agent.runtime.state.deliveries["hq-0", "mail"] = DeliveryState()


async def _intend(watched: Watched, *, seconds_ago: float = 0.0) -> str:
    runtime = watched.agent.runtime
    message = intent(runtime.clock, age=seconds_ago, id=f"{next(_NUMBERS):032x}", probe="hq-0", target="mail")
    await runtime.ledger.intend(message)
    return message.id


async def _end(watched: Watched, *states: MessageState, **changes: object) -> None:
    message = await _intend(watched)
    for state in states:
        assert await watched.agent.runtime.ledger.advance(message, state, **changes)


async def _overview(watched: Watched) -> dict[str, Any]:
    answer = await watched.client.get("/", headers={"accept": "application/json"})
    (probe,) = answer.json()["probes"]
    return dict(probe)


async def test_a_message_that_is_not_handed_over_is_told_as_such(start_agent: StartAgent) -> None:
    """Until the server accepts a message, the pages show it as waiting for that; then as in flight."""
    async with start_agent(SOUND, interval="1h") as watched:
        await watched.result()
        _send_messages(watched)
        message = await _intend(watched, seconds_ago=60.0)
        probe = await _overview(watched)
        assert probe["state"] == "late"
        waits = "Mail is not going out: a message has been waiting for mail to accept it for 6"
        assert probe["sentence"].startswith(waits)
        assert probe["oldest_intent_at"] == probe["oldest_in_flight_at"]
        assert (
            "<dt>Not handed over yet</dt><dd>1, the oldest since"
            in (await watched.client.get("/probes/hq-0")).text
        )
        await watched.agent.runtime.ledger.advance(message, MessageState.SENT)
        probe = await _overview(watched)
        assert probe["sentence"].startswith("Mail is late: a message has been between mail and mailbox")
        assert probe["oldest_intent_at"] is None
        assert "Not handed over yet" not in (await watched.client.get("/probes/hq-0")).text


async def test_lost_mail_shows_however_well_the_last_message_went(start_agent: StartAgent) -> None:
    """Even an ok route shows the share that arrived in a day and a week, also after a restart."""
    measured = {"delivery_seconds": 3.1, "uncertainty_seconds": 0.1}
    for is_restarted in (False, True):
        async with start_agent(SOUND, interval="1h") as watched:
            await watched.result()
            _send_messages(watched)
            if not is_restarted:
                for _ in range(28):
                    await _end(watched, MessageState.SENT, MessageState.DELIVERED, **measured)
                await _end(watched, MessageState.SENT, MessageState.LOST)
            async with asyncio.timeout(120):
                while (probe := await _overview(watched))["last_7d"]["messages"] < 29:
                    pass  # the new agent is still reading the ledger
            page = (await watched.client.get("/")).text
            of_probe = (await watched.client.get("/probes/hq-0")).text
        assert probe["state"] == "ok"
        assert probe["last_7d"] == {"messages": 29, "delivered": 28}
        assert probe["last_24h"] == {
            **probe["last_7d"],
            "p50_seconds": 3.15,
            "p95_seconds": 3.15,
            "p99_seconds": 3.15,
        }
        share = '<b class="short">96.5 % of 29</b> in 24&nbsp;h, 96.5 % of 29 in 7&nbsp;d.'
        assert share in page
        assert "<dt>Delivered in 24 h</dt><dd>96.5 % of 29</dd>" in of_probe
        assert "<dd>50 % within 3.15 s, 95 % within 3.15 s, 99 % within 3.15 s</dd>" in of_probe
        assert 'aria-label="hours by messages delivered: 1 with not all"' in of_probe


async def test_when_a_message_is_overdue_is_shown(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe's page and JSON say from which age on a message is overdue, and that this was learned."""
    async with start_agent(SOUND, interval="1h") as watched:
        await watched.result()
        _send_messages(watched)
        assert "Overdue after" not in (await watched.client.get("/probes/hq-0")).text
        assert (await _overview(watched))["overdue_seconds"] is None
        monkeypatch.setattr(watched.agent.runtime.__class__, "overdue_after", lambda *_: 75.0)
        page = (await watched.client.get("/probes/hq-0")).text
        assert "<dt>Overdue after</dt><dd>75 s <small>learned</small></dd>" in page
        assert (await _overview(watched))["overdue_seconds"] == 75.0


async def test_a_route_without_messages_has_no_share(start_agent: StartAgent) -> None:
    """Without an ended message there is no share to show."""
    async with start_agent(SOUND, interval="1h") as watched:
        await watched.result()
        probe = await _overview(watched)
        assert (probe["last_24h"], probe["last_7d"]) == (None, None)
        _send_messages(watched)
        await _intend(watched)
        assert (await _overview(watched))["last_7d"] == {"messages": 0, "delivered": 0}
        for path in ("/", "/probes/hq-0"):
            assert "Delivered" not in (await watched.client.get(path)).text
