"""Limits on open connections, to one server and in total. Connections beyond a limit wait for their turn.

The limit for each server keeps one that hangs from using all connections. If many servers hang, a share limits
them together: servers whose latest connection timed out, and servers not tried yet, may use only
`SHARE_OF_SILENT` of the total. So a server that answers can get a connection at any time. Among those that
wait, the server that answered last goes first, then servers not tried yet, then the one whose timeout is
longest ago.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import count
from time import monotonic
from types import MappingProxyType
from weakref import WeakValueDictionary

from probes.core.descriptors import for_probes
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import TURN, PhaseTimer

PER_SERVER = 20
"""Connections to one host and port at a time, unless configured: about what mail servers allow a client."""

MOST = 5000
"""Most connections at a time, unless configured."""

DESCRIPTORS_EACH = 3
"""File descriptors to a connection, at worst: while its host is looked up, it is two sockets."""

SHARE_OF_SILENT = 0.5
"""The share of all connections that servers may have which did not answer in time, or were not asked yet."""

LONGEST_WAIT = 5.0
"""Seconds that a connection waits for its turn: a run of the usual 30 s can still tell what a server does."""

MOST_REMEMBERED = 10_000
"""Most servers whose latest answer is remembered: MX hosts come and go."""

Place = tuple[str, int]
"""A host and port."""


class Slot:
    """The permission to have one connection open, until `release`."""

    def __init__(self, limits: ConnectionLimits, place: Place) -> None:
        self.place = place
        self.is_silent = False
        """Whether it counts to the share of servers that did not answer."""
        self.is_open = False
        """Whether it counts to all connections."""
        self.turns_at: asyncio.Semaphore | None = None
        """Where it counts to those of its server."""
        self._limits = limits

    def answered(self) -> None:
        """Note that the server answers in time, while the connection goes on."""
        self._limits.note_answer(self)

    def release(self, *, timed_out: bool | None = None) -> None:
        """Let the next one in; may be called again.

        ``timed_out`` tells whether the server kept us waiting, and is ``None`` where it was not asked.
        """
        self._limits.release(self, timed_out=timed_out)


class ConnectionLimits:
    """Admits ``most`` connections at a time, and ``per_server`` to a place, or else `PER_SERVER`.

    By default ``most`` is what the file descriptors allow, up to `MOST`.
    """

    def __init__(
        self, most: int | None = None, per_server: Mapping[Place, int] = MappingProxyType({})
    ) -> None:
        self._answered_at: dict[Place, float] = {}  # monotonic; negative if it timed out then
        self._turns_at: WeakValueDictionary[Place, asyncio.Semaphore] = WeakValueDictionary()
        self._waiting: list[_Waiter] = []  # the next one first
        self._numbers = count()
        self._open = self._open_silent = 0
        self.configure(most, per_server)

    def configure(self, most: int | None, per_server: Mapping[Place, int]) -> None:
        """Replace the limits; a server's new one holds as soon as it has no connections."""
        self._most = min(MOST, max(2, for_probes() // DESCRIPTORS_EACH)) if most is None else most
        self._most_silent = max(1, int(self._most * SHARE_OF_SILENT))
        self._per_server = per_server

    async def take(self, host: str, port: int, phases: PhaseTimer) -> Slot:
        """Return when a connection to ``host`` and ``port`` may be opened; a wait is phase ``turn``.

        Raises `ProbeFault` with `LOCAL_RESOURCES` after `LONGEST_WAIT` seconds.
        """
        place = host, port
        most = self._per_server.get(place, PER_SERVER)
        turns_at = self._turns_at.setdefault(place, asyncio.Semaphore(most))
        slot = Slot(self, place)
        try:
            async with asyncio.timeout(LONGEST_WAIT):
                with phases.phase(TURN) if turns_at.locked() else nullcontext():
                    await turns_at.acquire()
                slot.turns_at = turns_at
                await self._admission(slot, phases)
        except TimeoutError as error:
            full = self._fullness() if slot.turns_at else f"{most} connections to {host} port {port} are open"
            slot.release()
            raise ProbeFault(Reason.LOCAL_RESOURCES, f"no turn after {LONGEST_WAIT:g} s: {full}") from error
        except BaseException:
            slot.release()
            raise
        return slot

    async def _admission(self, slot: Slot, phases: PhaseTimer) -> None:
        """Return once ``slot`` is open."""
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
                await admitted
        finally:
            if not slot.is_open:
                self._waiting.remove(waiter)

    def _admit(self) -> None:
        """Let in who comes first, as far as there is room. Silent ones come last, so none is passed over."""
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
        if slot.turns_at is None:
            return
        if timed_out is not None:
            self._note(slot.place, timed_out=timed_out)
        slot.turns_at.release()
        slot.turns_at = None
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
            del self._answered_at[next(iter(self._answered_at))]


_Waiter = tuple[float, int, Slot, "asyncio.Future[None]"]
"""The rank, the order of arrival, and who waits."""

system = ConnectionLimits()
"""The limits of this process."""
