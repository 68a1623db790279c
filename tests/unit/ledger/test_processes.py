from __future__ import annotations

import asyncio
import multiprocessing
import signal
import sqlite3
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from monitor.ledger.store import open_ledger
from probes.core.clock import SystemClock
from probes.core.verdict import MessageState
from probes.delivery.message_life import LedgerError, Message
from tests.unit.ledger.conftest import NewMessage, OpenLedger, StandingClock, entered

S = MessageState
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["tests.unit.ledger.test_processes"])
ENDS = (S.DELIVERED, S.LOST, S.BOUNCED)


def send_for_ever(path: str, pipe: Connection) -> None:
    """Intend and advance with 20 senders, and report each acknowledged change through the pipe."""
    asyncio.run(_send_for_ever(path, pipe))


async def _send_for_ever(path: str, pipe: Connection) -> None:
    clock = SystemClock()
    instance = f"sender-{uuid4().hex}"
    async with open_ledger(f"sqlite://{path}", clock, instance, "fra1") as ledger:

        async def sender(end: MessageState) -> None:
            while True:
                message = Message(
                    id=uuid4().hex,
                    probe="hq",
                    target=f"target-{end}",
                    mailbox="canary",
                    state=S.INTENT,
                    created_at=clock.time(),
                    deadline_seconds=60.0,
                    instance=instance,
                    boot=clock.boot,
                    created_mono=clock.monotonic(),
                )
                await ledger.intend(message)
                pipe.send((message.id, S.INTENT))
                for state in (S.SENT, end):
                    await ledger.advance(message.id, state)
                    pipe.send((message.id, state))

        await asyncio.gather(*(sender(ENDS[n % len(ENDS)]) for n in range(20)))


def acknowledged(pipe: Connection) -> list[tuple[str, MessageState]]:
    """Read what the child reported before it died."""
    told = []
    try:
        while True:
            told.append(pipe.recv())
    except (EOFError, OSError):
        return told


def kill_a_sender(path: Path, changes: int) -> list[tuple[str, MessageState]]:
    """Kill a child with SIGKILL after it has reported so many changes; return all its reports."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    child = SPAWN.Process(target=send_for_ever, args=(str(path), sender))
    child.start()
    sender.close()
    try:
        told = [receiver.recv() for _ in range(changes)]
    finally:
        child.kill()
        child.join()
    told += acknowledged(receiver)
    receiver.close()
    assert child.exitcode == -signal.SIGKILL
    return told


async def test_nothing_acknowledged_is_lost_by_a_kill(path: Path, opened: OpenLedger) -> None:
    """After each of 20 kills, all acknowledged changes exist, counts add up, and no intent is open."""
    known: dict[str, MessageState] = {}
    random = Random(20)  # noqa: S311 # moments of a kill, no secret
    for _ in range(20):
        told = await asyncio.to_thread(kill_a_sender, path, random.randint(1, 200))
        known.update(told)
        async with opened() as ledger:
            assert await ledger.discrepancies() == []
            adopted = await ledger.adopt()
            assert await ledger.discrepancies() == []
            left = await ledger.open_messages()
            assert {message.id for message in adopted} <= {message.id for message in left}
            assert {message.instance for message in left} <= {"agent-1"}
            assert S.INTENT not in {message.state for message in left}
            assert all(m.reason == "interrupted" for m in left if m.state is S.AMBIGUOUS)
            for message_id in dict(told):
                message = await ledger.find(message_id)
                assert message is not None
                assert message.state is known[message_id] or message.state in followers(known[message_id])
            counts = entered(ledger.counters)
    assert len(known) > 100
    assert sum(n for (_, _, state), n in counts.items() if state is S.INTENT) >= len(known)


def followers(state: MessageState) -> frozenset[MessageState]:
    """Return the states that the child or an adoption may have reached without a report."""
    return {
        S.INTENT: frozenset({S.SENT, S.AMBIGUOUS}),
        S.SENT: frozenset(ENDS),
    }.get(state, frozenset())


async def test_living_processes_keep_their_messages(opened: OpenLedger, new_message: NewMessage) -> None:
    """The agent adopts the messages of ended processes, but not those of a running check."""
    async with opened("gone") as gone:
        await gone.intend(orphan := new_message(instance="gone"))
        await gone.intend(sent := new_message(instance="gone"))
        await gone.advance(sent.id, S.SENT)
        await gone.intend(ended := new_message(instance="gone"))
        await gone.advance(ended.id, S.REJECTED)
    async with opened("check-1") as check, opened("agent-1") as agent:
        await check.intend(waiting := new_message(instance="check-1"))
        adopted = {message.id: message for message in await agent.adopt()}
        assert adopted.keys() == {orphan.id, sent.id}
        assert {message.instance for message in adopted.values()} == {"agent-1"}
        assert (adopted[orphan.id].state, adopted[orphan.id].reason) == (S.AMBIGUOUS, "interrupted")
        assert adopted[sent.id].state is S.SENT
        assert await agent.find(waiting.id) == waiting
        assert [message.id for message in await agent.open_messages()] == [orphan.id, sent.id, waiting.id]
        assert await agent.adopt() == []
        assert await agent.discrepancies() == []


async def test_one_agent_at_a_time(opened: OpenLedger) -> None:
    """While an agent runs, a second agent is refused and a check is not. After closing, one can start."""
    async with opened("first") as first, opened("check-1"):
        first.lock_for_agent()
        async with opened("second") as second:
            with pytest.raises(LedgerError, match=r"another agent \(process \d+\) uses it; stop that one"):
                second.lock_for_agent()
    async with opened("second") as second:
        second.lock_for_agent()


async def test_a_symbolic_link_does_not_get_round_the_one_agent(
    path: Path, opened: OpenLedger, clock: StandingClock
) -> None:
    """A ledger with two names is one ledger, both for its locks and for its content."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    async with opened("first") as first, open_ledger(f"sqlite://{link}", clock, "second", "fra1") as second:
        first.lock_for_agent()
        with pytest.raises(LedgerError, match="another agent"):
            second.lock_for_agent()
        assert second.token_key == first.token_key
    assert not link.with_name("link.db.locks").exists()


async def test_an_instance_is_one_process(opened: OpenLedger) -> None:
    """A second process cannot use the same instance name."""
    async with opened("twin"):
        with pytest.raises(LedgerError, match="another process runs as instance twin"):
            async with opened("twin"):
                pass
    async with opened("twin"):
        pass
    with pytest.raises(ValueError, match="cannot name an instance"):
        async with opened("../up"):
            pass


async def test_a_locked_ledger_recovers(
    path: Path, opened: OpenLedger, new_message: NewMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process locks the file, callers get errors; afterwards everything works again."""
    monkeypatch.setattr("monitor.ledger.sqlite.BUSY_SECONDS", 0.05)
    async with opened() as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match=r"another process kept it locked.*nothing was recorded"):
            await ledger.intend(message := new_message())
        assert await ledger.open_messages() == []
        other.execute("ROLLBACK")
        other.close()
        await ledger.intend(message)
        assert await ledger.discrepancies() == []
