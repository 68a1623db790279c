"""Limits on open connections, to one server and in total. Connections beyond a limit wait for their turn.

The limit for each server keeps one that hangs from using all connections. If many servers hang, a share
limits them together: servers whose latest connection timed out, and servers not tried yet, may use only
`SHARE_OF_SILENT` of the total. So a server that answers can get a connection at any time. Among those that
wait, the server that answered last goes first, then servers not tried yet, then the one whose timeout is
longest ago.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from types import MappingProxyType

from probes.core.descriptors import for_probes
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import TURN, PhaseTimer

PER_SERVER = 20
"""Default limit for one host and port: about what mail servers allow a client."""

MOST = 5000
"""Upper bound of the default limit in total."""

DESCRIPTORS_EACH = 3
"""File descriptors to allow for each connection: looking up its host takes two sockets."""

SHARE_OF_SILENT = 0.5
"""Share of all connections for servers that did not answer in time or were not tried yet."""

SERVER_WAIT = 20.0
"""Maximum wait for one of a server's own connections, in seconds: many probes of it may start together."""

TOTAL_WAIT = 5.0
"""Maximum wait for one of all connections, in seconds. After it, a run of the usual 30 s has enough time."""

MOST_REMEMBERED = 10_000
"""Maximum number of servers whose latest connection is remembered, because MX hosts come and go."""

Place = tuple[str, int]
"""A host and port."""


class Slot:
    """Permission to have one connection open, until `release`."""

    def __init__(self, limits: ConnectionLimits, place: Place) -> None:
        self.place = place
        self.is_silent = False
        """Whether it counts towards the share of servers that did not answer."""
        self.is_open = False
        """Whether it counts towards the limit in total."""
        self.has_turn = False
        """Whether it counts towards the limit of its server."""
        self._limits = limits

    def answered(self) -> None:
        """Record that the server answers in time, while the connection stays open."""
        self._limits.note_answer(self)

    def release(self, *, timed_out: bool | None = None) -> None:
        """Give the slot to the next connection; calling it again does nothing.

        ``timed_out`` says whether the connection timed out; ``None`` if there was none.
        """
        self._limits.release(self, timed_out=timed_out)


@dataclass(slots=True)
class _Turns:
    """The turns of one server: how many are taken, and who waits for one, first come, first served."""

    taken: int = 0
    waiting: deque[tuple[Slot, asyncio.Future[None]]] = field(default_factory=deque)


class ConnectionLimits:
    """Allows ``most`` connections at a time in total, and ``per_server`` or else `PER_SERVER` to a place.

    The default of ``most`` is what the file descriptors allow, up to `MOST`.
    """

    def __init__(
        self, most: int | None = None, per_server: Mapping[Place, int] = MappingProxyType({})
    ) -> None:
        # Monotonic, negative if it timed out then. A dict would search for its first entry.
        self._answered_at: OrderedDict[Place, float] = OrderedDict()
        self._turns_at: dict[Place, _Turns] = {}  # of servers with a turn taken
        self._waiting: list[_Waiter] = []  # the next one first
        self._numbers = count()
        self._open = self._open_silent = 0
        self.configure(most, per_server)

    def configure(self, most: int | None, per_server: Mapping[Place, int]) -> None:
        """Replace the limits, and open what may be open now. Connections beyond a lower limit stay open."""
        self._most = min(MOST, max(2, for_probes() // DESCRIPTORS_EACH)) if most is None else most
        self._most_silent = max(1, int(self._most * SHARE_OF_SILENT))
        self._per_server = per_server
        for place in tuple(self._turns_at):
            self._give_turns(place)
        self._admit()

    async def take(self, host: str, port: int, phases: PhaseTimer) -> Slot:
        """Return once a connection to ``host`` and ``port`` may be opened. Waiting is phase ``turn``.

        Raises `ProbeFault` with `LOCAL_RESOURCES` after `SERVER_WAIT` or `TOTAL_WAIT` seconds.
        """
        place = host, port
        slot = Slot(self, place)
        try:
            await self._turn(slot, phases)
            await self._admission(slot, phases)
        except TimeoutError as error:
            if not slot.has_turn:
                taken = self._turns_at[place].taken
                told = f"{SERVER_WAIT:g} s: {taken} connections to {host} port {port} are open"
            else:
                told = f"{TOTAL_WAIT:g} s: {self._fullness()}"
            slot.release()
            raise ProbeFault(Reason.LOCAL_RESOURCES, f"no turn after {told}") from error
        except BaseException:
            slot.release()
            raise
        return slot

    async def _turn(self, slot: Slot, phases: PhaseTimer) -> None:
        """Return once ``slot`` has one of its server's turns; `TimeoutError` after `SERVER_WAIT` seconds."""
        turns = self._turns_at.setdefault(slot.place, _Turns())
        given = asyncio.get_running_loop().create_future()
        waiter = slot, given
        turns.waiting.append(waiter)
        self._give_turns(slot.place)
        if given.done():
            return
        try:
            with phases.phase(TURN):
                async with asyncio.timeout(SERVER_WAIT):
                    await given
        finally:
            if not slot.has_turn:
                turns.waiting.remove(waiter)

    def _give_turns(self, place: Place) -> None:
        """Give turns to those that wait for ``place``, as far as its limit allows."""
        turns = self._turns_at[place]
        while turns.waiting and turns.taken < self._per_server.get(place, PER_SERVER):
            slot, given = turns.waiting.popleft()
            slot.has_turn = True
            turns.taken += 1
            if not given.done():
                given.set_result(None)
        if not turns.taken:
            del self._turns_at[place]

    async def _admission(self, slot: Slot, phases: PhaseTimer) -> None:
        """Return once ``slot`` is open; `TimeoutError` after `TOTAL_WAIT` seconds."""
        admitted = asyncio.get_running_loop().create_future()
        rank = -self._answered_at.get(slot.place, 0.0)
        slot.is_silent = rank >= 0.0
        waiter = rank, next(self._numbers), slot, admitted
        insort(self._waiting, waiter)
        self._admit()
        if admitted.done():
            return
        try:
            with phases.phase(TURN):
                async with asyncio.timeout(TOTAL_WAIT):
                    await admitted
        finally:
            if not slot.is_open:
                self._waiting.remove(waiter)

    def _admit(self) -> None:
        """Open the first waiting slots, as far as the limits allow. Silent servers are at the end."""
        while self._waiting and self._open < self._most:
            _, _, slot, admitted = self._waiting[0]
            if slot.is_silent and self._open_silent >= self._most_silent:
                return
            del self._waiting[0]
            slot.is_open = True
            self._open += 1
            self._open_silent += slot.is_silent
            if not admitted.done():
                admitted.set_result(None)

    def _fullness(self) -> str:
        if self._open >= self._most:
            return f"{self._most} connections are open"
        return f"{self._most_silent} connections to servers that have not answered are open"

    def release(self, slot: Slot, *, timed_out: bool | None) -> None:
        """Do as `Slot.release` says."""
        if not slot.has_turn:
            return
        if timed_out is not None:
            self._note(slot.place, timed_out=timed_out)
        slot.has_turn = False
        self._turns_at[slot.place].taken -= 1
        self._give_turns(slot.place)
        if slot.is_open:
            self._open -= 1
            self._open_silent -= slot.is_silent
            self._admit()

    def note_answer(self, slot: Slot) -> None:
        """Do as `Slot.answered` says."""
        self._note(slot.place, timed_out=False)
        if slot.is_open and slot.is_silent:
            self._open_silent -= 1
            self._admit()
        slot.is_silent = False

    def _note(self, place: Place, *, timed_out: bool) -> None:
        self._answered_at.pop(place, None)
        self._answered_at[place] = -monotonic() if timed_out else monotonic()
        if len(self._answered_at) > MOST_REMEMBERED:
            self._answered_at.popitem(last=False)


_Waiter = tuple[float, int, Slot, "asyncio.Future[None]"]
"""Rank, order of arrival, slot, and what it waits for."""

system = ConnectionLimits()
"""The limits of this process."""
