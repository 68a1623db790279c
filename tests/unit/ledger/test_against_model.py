from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from monitor.ledger.store import SqlLedger, open_ledger
from probes.core.verdict import MessageState
from probes.delivery.message_life import IN_FLIGHT, SUCCESSORS, LedgerError, Message
from tests.unit.ledger.conftest import StandingClock, entered

S = MessageState
STATES = st.sampled_from(MessageState)


@dataclass
class Kept:
    """The model's record of a message: the message, and when it entered its state."""

    message: Message
    changed_at: float


class LedgerAgainstModel(RuleBasedStateMachine):
    """The ledger behaves like a dictionary for any order of calls, restarts and purges."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.runner = asyncio.Runner()
        self.clock = StandingClock()
        self.kept: dict[str, Kept] = {}
        self.entered: Counter[tuple[str, str, MessageState]] = Counter()
        self.instances = 0
        self.numbers = 0

    @initialize()
    def open(self) -> None:
        self.instances += 1
        self.instance = f"agent-{self.instances}"
        self.stack = AsyncExitStack()
        opening = open_ledger(f"sqlite://{self.directory}/ledger.db", self.clock, self.instance, "fra1")
        self.ledger: SqlLedger = self.runner.run(self.stack.enter_async_context(opening))

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.runner.run(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.directory)

    @rule(target=ids, probe=st.sampled_from(["hq", "branch"]), mx=st.sampled_from(["a", "b"]))
    def intend(self, probe: str, mx: str) -> str:
        self.numbers += 1
        message = Message(
            id=f"{self.numbers:032x}",
            probe=probe,
            target=mx,
            mailbox="canary",
            state=S.INTENT,
            created_at=self.clock.now,
            deadline_seconds=60.0,
            instance=self.instance,
            boot="boot",
            created_mono=self.clock.now,
        )
        self.runner.run(self.ledger.intend(message))
        self.kept[message.id] = Kept(message, self.clock.now)
        self.entered[probe, mx, S.INTENT] += 1
        return message.id

    @rule(message_id=ids)
    def intend_again(self, message_id: str) -> None:
        if message_id in self.kept:
            try:
                self.runner.run(self.ledger.intend(replace(self.kept[message_id].message, state=S.INTENT)))
            except LedgerError:
                return
            raise AssertionError("a second message was recorded under the same id")

    @rule(moves=st.lists(st.tuples(ids, STATES, st.floats(0, 1e6)), min_size=1, max_size=6))
    def advance(self, moves: list[tuple[str, MessageState, float]]) -> None:
        """Several moves at once share a transaction, and take effect in the order of the calls."""

        async def together() -> list[Message | None]:
            calls = [self.ledger.advance(key, state, delivery_seconds=taken) for key, state, taken in moves]
            return await asyncio.gather(*calls)

        assert self.runner.run(together()) == [self.model_advance(*move) for move in moves]

    def model_advance(self, message_id: str, state: MessageState, taken: float) -> Message | None:
        kept = self.kept.get(message_id)
        if kept is None or state not in SUCCESSORS[kept.message.state]:
            return None
        kept.message = replace(kept.message, state=state, delivery_seconds=taken)
        kept.changed_at = self.clock.now
        self.entered[kept.message.probe, kept.message.target, state] += 1
        return kept.message

    @rule(adopting=st.booleans())
    def reopen(self, adopting: bool) -> None:
        self.runner.run(self.stack.aclose())
        self.open()
        if not adopting:
            return
        adopted = []
        for kept in self.kept.values():
            message = kept.message
            if not SUCCESSORS[message.state] or message.instance == self.instance:
                continue
            kept.message = replace(message, instance=self.instance)
            if message.state is S.INTENT:
                kept.message = replace(kept.message, state=S.AMBIGUOUS, reason="interrupted")
                kept.changed_at = self.clock.now
                self.entered[message.probe, message.target, S.AMBIGUOUS] += 1
            adopted.append(kept.message)
        found = self.runner.run(self.ledger.adopt())
        assert sorted(found, key=lambda m: m.id) == sorted(adopted, key=lambda m: m.id)

    @rule(seconds=st.sampled_from([1.0, 45.0, 600.0]), age=st.sampled_from([0.5, 30.0, 300.0]))
    def forget(self, seconds: float, age: float) -> None:
        self.clock.now += seconds
        before = self.clock.now - age
        gone = [
            key
            for key, kept in self.kept.items()
            if kept.message.state not in IN_FLIGHT
            and kept.changed_at < before
            and kept.message.created_at + 60.0 < before
        ]
        assert self.runner.run(self.ledger.forget(before)) == len(gone)
        for key in gone:
            del self.kept[key]

    @invariant()
    def same_as_model(self) -> None:
        if not self.instances:
            return
        assert self.runner.run(self.ledger.discrepancies()) == []
        assert entered(self.ledger.counters) == {key: n for key, n in self.entered.items() if n}
        messages = [kept.message for kept in self.kept.values()]
        for probe, target, _ in self.entered:
            under_way = [
                m.created_at
                for m in messages
                if (m.probe, m.target) == (probe, target) and m.state in IN_FLIGHT
            ]
            assert self.ledger.counters.flight(probe, target).messages == len(under_way)
            assert self.ledger.counters.flight(probe, target).oldest_at == min(under_way, default=0.0)
        still_open = [m for m in messages if SUCCESSORS[m.state]]
        assert self.runner.run(self.ledger.open_messages()) == still_open
        for message in messages:
            assert self.runner.run(self.ledger.find(message.id)) == message


TestLedgerAgainstModel = LedgerAgainstModel.TestCase
TestLedgerAgainstModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
