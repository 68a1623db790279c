"""Who gets a connection when not all can have one, and what that must not be taken for."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from monitor.runner import Runner
from probes.core.clock import SystemClock
from probes.core.context import Context
from probes.core.faults import ProbeFault
from probes.core.reasons import Outcome, Reason
from probes.core.settings import Site
from probes.core.verdict import TURN, PhaseTimer
from probes.protocols import connection_limits
from probes.protocols.connection_limits import ConnectionLimits, Place, Slot
from probes.protocols.line_transport import LineTransport
from probes.smtp import Smtp, SmtpSettings
from tests.fakes.scripted_server import Peer, Script, dialogue, scripted_server

A, B, C, D = (("a.example", 25), ("b.example", 25), ("c.example", 25), ("d.example", 25))


def phases() -> PhaseTimer:
    return PhaseTimer(SystemClock())


async def in_queue(*waiting: asyncio.Task[Slot]) -> None:
    """Return once each task waits, which takes no time."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> ConnectionLimits:
    """The limits of this process, with four connections in all and two to a server."""
    made = ConnectionLimits(4, dict.fromkeys((A, B, C), 2))
    monkeypatch.setattr(connection_limits, "system", made)
    return made


async def answering(limits: ConnectionLimits, *places: Place) -> None:
    """Let these servers answer once."""
    for place in places:
        (await limits.take(*place, phases())).release(timed_out=False)


async def test_a_server_at_its_limit_holds_up_no_other(limits: ConnectionLimits) -> None:
    """A third connection waits for one of the first two, in phase turn; another server's does not."""
    await answering(limits, A, B)
    first, _ = [await limits.take(*A, phases()) for _ in range(2)]
    timer = phases()
    third = asyncio.create_task(limits.take(*A, timer))
    await in_queue(third)
    other = phases()
    await limits.take(*B, other)
    assert other.seconds == {}
    first.release()
    first.release()  # once is enough
    await third
    assert set(timer.seconds) == {TURN}
    await in_queue(asyncio.create_task(limits.take(*A, phases())))


@pytest.mark.parametrize("is_known", [True, False])
async def test_silent_servers_have_half_of_the_connections(
    limits: ConnectionLimits, *, is_known: bool
) -> None:
    """Beside servers that did not answer, in time or yet, one that did finds a connection at any time."""
    await answering(limits, D)
    if is_known:
        for place in (A, B, C):
            (await limits.take(*place, phases())).release(timed_out=True)
    silent = [await limits.take(*place, phases()) for place in (A, B)]
    waiting = asyncio.create_task(limits.take(*C, phases()))
    await in_queue(waiting)
    await limits.take(*D, phases())
    await in_queue(waiting)
    silent[0].answered()  # it goes on, and counts no more to that half
    await waiting


async def test_who_answered_last_comes_first(limits: ConnectionLimits) -> None:
    """Servers that fail all at once do not keep those waiting that answer, and take turns themselves."""
    limits.configure(8, {})
    holders = [(f"{number}.example", 25) for number in range(8)]
    await answering(limits, *holders, A, B)
    for place in (C, D):
        (await limits.take(*place, phases())).release(timed_out=True)
    slots = [await limits.take(*holder, phases()) for holder in holders]
    came = [D, C, ("new.example", 25), A, B]
    waiting = {place: asyncio.create_task(limits.take(*place, phases())) for place in came}
    await in_queue(*waiting.values())
    order: list[Place] = []
    for slot in slots[: len(came)]:
        slot.release(timed_out=False)
        await asyncio.sleep(0)
        order += [place for place, task in waiting.items() if task.done() and place not in order]
    assert order == [B, A, ("new.example", 25), C, D]


@pytest.mark.parametrize(
    ("held", "place", "told"),
    [
        ((A, A), A, "2 connections to a.example port 25 are open"),
        ((C, D), C, "2 connections to servers that have not answered are open"),
        ((A, A, B, B), C, "4 connections are open"),
    ],
)
async def test_a_wait_ends_as_a_shortage_of_ours(
    limits: ConnectionLimits,
    monkeypatch: pytest.MonkeyPatch,
    held: tuple[Place, ...],
    place: Place,
    told: str,
) -> None:
    """Who gets no turn is told which limit it was, and that it was none of the server's doing."""
    for wait in ("SERVER_WAIT", "TOTAL_WAIT"):
        monkeypatch.setattr(connection_limits, wait, 0.01)
    await answering(limits, A, B)
    slots = [await limits.take(*each, phases()) for each in held]
    with pytest.raises(ProbeFault) as caught:
        await limits.take(*place, phases())
    assert str(caught.value) == f"local_resources: no turn after 0.01 s: {told}"
    for slot in slots:
        slot.release()
    await limits.take(*place, phases())


async def test_who_gives_up_waiting_leaves_its_turn_to_others(limits: ConnectionLimits) -> None:
    """A run that ends while it waits, or in the very moment of its turn, takes no connection with it."""
    await answering(limits, A, B, C)
    slots = [await limits.take(*place, phases()) for place in (B, B, C, C)]
    for in_its_turn in (False, True):
        waiting = asyncio.create_task(limits.take(*A, phases()))
        await in_queue(waiting)
        if in_its_turn:
            slots.pop().release()
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(60):
        slots.append(await limits.take(*A, phases()))
    await in_queue(asyncio.create_task(limits.take(*A, phases())))


async def test_a_new_limit_holds_while_connections_stay_open(limits: ConnectionLimits) -> None:
    """A reload changes a limit at once, also for connections that already wait."""
    await answering(limits, A)
    slots = [await limits.take(*A, phases()) for _ in range(2)]
    waiting = asyncio.create_task(limits.take(*A, phases()))
    await in_queue(waiting)
    limits.configure(8, {A: 4})
    async with asyncio.timeout(60):
        slots += [await waiting, await limits.take(*A, phases())]
    limits.configure(8, {A: 3})
    slots.pop().release()
    waiting = asyncio.create_task(limits.take(*A, phases()))
    await in_queue(waiting)
    slots.pop().release()
    async with asyncio.timeout(60):
        await waiting


async def close(peer: Peer) -> None:
    await peer.close()


async def silence(_: Peer) -> None:
    pass


async def plainly(wire: LineTransport) -> None:
    await wire.read_line(100)


async def encrypted(wire: LineTransport) -> None:
    await wire.start_tls(ssl.create_default_context(), "localhost")


SHORT, LONG = 0.05, 20.0


@pytest.mark.parametrize(
    ("script", "use", "patience", "run_limit"),
    [
        (dialogue(b"220 here"), plainly, LONG, LONG),
        (close, plainly, LONG, LONG),
        (dialogue(b"in clear"), encrypted, LONG, LONG),
        (silence, plainly, SHORT, LONG),
        (silence, plainly, LONG, SHORT),
        (silence, encrypted, SHORT, LONG),
        (silence, encrypted, LONG, SHORT),
    ],
    ids=["answers", "closes", "in clear", "silent", "silent in a run", "no TLS", "no TLS in a run"],
)
async def test_however_a_connection_ends_the_next_can_follow(
    limits: ConnectionLimits,
    script: Script,
    use: Callable[[LineTransport], Awaitable[None]],
    patience: float,
    run_limit: float,
) -> None:
    """Its slot is free again, and only a server that kept us waiting counts as silent."""
    async with scripted_server(script) as server:
        for _ in range(5):  # more than may be open
            wire = await LineTransport.connect("127.0.0.1", server.port, phases(), patience)
            with suppress(ProbeFault, TimeoutError):
                async with asyncio.timeout(run_limit):
                    await use(wire)
            wire.abort()
        slot = await limits.take("127.0.0.1", server.port, phases())
        assert slot.is_silent is (SHORT in {patience, run_limit})


async def test_a_refused_connection_leaves_nothing(limits: ConnectionLimits) -> None:
    """A server that refuses answers in time, and its slots are free again."""
    async with scripted_server(silence) as server:
        pass
    for _ in range(5):
        with pytest.raises(ProbeFault):
            await LineTransport.connect("127.0.0.1", server.port, phases(), 5)
    assert not (await limits.take("127.0.0.1", server.port, phases())).is_silent


@pytest.fixture
async def crowded(limits: ConnectionLimits) -> AsyncIterator[Smtp]:
    """A probe of a silent server, to which as many connections are open as may be."""
    async with scripted_server(silence) as server:
        limits.configure(4, {("127.0.0.1", server.port): 1})
        settings = SmtpSettings.model_validate(
            {"name": "a", "kind": "smtp", "server": "mail", "deadline": "400ms"}
        )
        site = Site("here", {"mail": server.settings("smtp")}, {})
        held = await limits.take("127.0.0.1", server.port, phases())
        asyncio.get_running_loop().call_later(0.3, held.release)
        yield Smtp(settings, Context(SystemClock(), site))


async def test_time_spent_waiting_is_not_the_servers(crowded: Smtp) -> None:
    """A server that got too little of the run's time, because it came late to its turn, is not judged."""
    result = await Runner(SystemClock(), "here").run(crowded)
    assert result.verdict.reason is Reason.LOCAL_RESOURCES
    assert result.verdict.outcome is Outcome.UNKNOWN


async def test_a_run_that_gets_no_turn_is_unknown(crowded: Smtp) -> None:
    """A run that ends before its turn says nothing of the server."""
    result = await Runner(SystemClock(), "here").run(crowded, limit=0.1)
    assert result.verdict.reason is Reason.LOCAL_RESOURCES
    assert result.verdict.detail == "in phase turn: not done after 0.1 s"
