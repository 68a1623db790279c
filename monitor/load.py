"""Whether the agent keeps up with its probes, and how many new messages to hold back if it does not.

An agent that sends more than it can follow falls behind without end, and measures only its own backlog. So it
holds back a share of its sends. The share rises while the processor or the ledger is short, and falls when
they have room to spare. A mailbox whose polls wait for logins gets no new messages until they are through.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from enum import StrEnum

from monitor.state import AgentState
from probes.core.clock import Clock
from probes.core.probe import Probe
from probes.delivery.message_probe import MessageProbe

TICK = 1.0
"""Seconds between two looks at the load."""

BLOCKED_SHARE = 0.4
"""Share of the time for which the event loop is blocked when the processor is short."""

LEDGER_WAIT = 1.0
"""Seconds that a change waits for the ledger when the ledger is short."""

LOGIN_WAIT = 10.0
"""Seconds that a poll waits for a login when logins are short."""

LOOKS_SHORT, SHORT_FOR = 3, 3.0
"""Consecutive looks and seconds for which there must be a shortage before sends are held back.

A single stall, however long, is no overload.
"""

RELAXED = 0.5
"""Share of these limits below which fewer sends are held back again."""

CUT_A_SECOND = 0.08
"""Share by which sends are cut in a second of a shortage; up to four times that."""

LARGEST_CUT = 0.5
"""Maximum cut at one look: a loop that is blocked for long looks rarely."""

FALLING = 0.97
"""Share of the previous look's pressure below which it falls: the agent is already working off its backlog.

Runs from before the latest cut keep the pressure up for a while, so a further cut would be too much.
"""

STEP_DOWN = 0.02
"""By how much the share of sends that are held back falls in a second."""

LONGEST_STEP = 5.0
"""Maximum seconds of such a step at one look."""

MOST_HELD_BACK = 0.95
"""Maximum share of sends that are held back: some must go on, to show what is possible."""

LOGINS_SHORT_FOR = 120.0
"""Seconds for which logins still count as short after the last send that was held back because they were."""

OVERLOAD = "overload"
"""The reason of a run that was held back."""

_log = logging.getLogger("mailsonde.load")


class Shortage(StrEnum):
    """What the agent has too little of, with what to do."""

    PROCESSOR = (
        "the processor cannot keep up; use longer intervals or fewer probes, "
        "or spread them over several agents"
    )
    LEDGER = "the ledger is too slow; put it on a faster disk, or use longer intervals or fewer probes"
    LOGINS = (
        "polls wait for logins; raise logins_per_minute, read the mailboxes by IMAP, "
        "or use longer intervals or fewer mailboxes on a server"
    )


class Load:
    """Decides whether a probe may send now, and tells in ``state`` whether the agent is overloaded.

    ``blocked`` returns a number of seconds that grows while the event loop is blocked, and ``ledger_wait``
    how many seconds the ledger's oldest waiting change has waited.
    """

    def __init__(
        self,
        state: AgentState,
        clock: Clock,
        blocked: Callable[[], float],
        ledger_wait: Callable[[], float],
    ) -> None:
        self._state = state
        self._clock = clock
        self._blocked = blocked
        self._ledger_wait = ledger_wait
        self._looked = clock.monotonic(), blocked()
        self._looks_short = 0  # consecutive ones
        self._short_since = self._looked[0]  # when the look before the first of these was
        self._share = 0.0
        self._pressure = 0.0  # at the previous look
        self._credits: dict[str, float] = {}
        self._logins_short_at = float("-inf")
        self._told: set[Shortage] = set()
        self._begun = 0.0
        self._held_back = 0  # runs since the overload began

    async def watch(self) -> None:
        """Look at the load every `TICK` seconds."""
        while True:
            await self._clock.sleep(TICK)
            self.look()

    def look(self) -> None:
        """Adapt the share of sends that are held back to the load since the previous look."""
        now, blocked = self._clock.monotonic(), self._blocked()
        (before, blocked_before), self._looked = self._looked, (now, blocked)
        seconds = max(TICK, now - before)
        pressures = {
            Shortage.PROCESSOR: (blocked - blocked_before) / seconds / BLOCKED_SHARE,
            Shortage.LEDGER: self._ledger_wait() / LEDGER_WAIT,
        }
        short = max(pressures, key=pressures.__getitem__)
        pressure = pressures[short]
        if pressure <= 1.0:
            self._looks_short, self._short_since = 0, now
        else:
            self._looks_short += 1
        is_lasting = self._looks_short >= LOOKS_SHORT and now - self._short_since >= SHORT_FOR
        if is_lasting or (self._share and pressure > 1.0):
            if pressure >= FALLING * self._pressure:
                cut = min(LARGEST_CUT, seconds * CUT_A_SECOND * min(pressure, 4.0))
                self._share = min(MOST_HELD_BACK, self._share + cut * (1.0 - self._share))
            self._tell(short)
        elif pressure < RELAXED:
            self._share = max(0.0, self._share - min(seconds, LONGEST_STEP) * STEP_DOWN)
        self._pressure = pressure
        if pressure < RELAXED and not self._share:
            self._state.overload["machine"] = False
        self._state.overload["logins"] = now <= self._logins_short_at + LOGINS_SHORT_FOR
        if self._state.shortage and not self._share and now > self._logins_short_at + LOGINS_SHORT_FOR:
            self._over()

    def admits(self, probe: Probe) -> bool:
        """Return whether a run of ``probe`` may begin now; a run that may not is counted as skipped.

        Every probe has the same share of its runs held back, evenly over time.
        """
        if not isinstance(probe, MessageProbe):
            return True
        name = probe.settings.name
        if probe.login_wait > LOGIN_WAIT:
            self._logins_short_at = self._clock.monotonic()
            self._tell(Shortage.LOGINS)
        else:
            if not self._share:
                return True
            # Names spread the probes, so that they do not all skip the same round.
            credit = self._credits.get(name, zlib.crc32(name.encode()) / 2**32) + self._share
            self._credits[name] = credit % 1.0
            if credit < 1.0:
                return True
        self._held_back += 1
        self._state.skipped[name][OVERLOAD] += 1
        return False

    def _tell(self, shortage: Shortage) -> None:
        """Tell what is short now; the log says it once for each shortage in an overload."""
        if not self._state.shortage:
            self._begun, self._held_back = self._clock.monotonic(), 0
        self._state.shortage = str(shortage)
        self._state.overload["logins" if shortage is Shortage.LOGINS else "machine"] = True
        if shortage not in self._told:
            self._told.add(shortage)
            _log.warning("the agent is overloaded and holds back new messages: %s", shortage)

    def _over(self) -> None:
        self._state.shortage = ""
        self._state.overload = dict.fromkeys(self._state.overload, False)
        self._told.clear()
        self._credits.clear()
        seconds = self._clock.monotonic() - self._begun
        _log.warning(
            "the agent is no longer overloaded; it held back %d runs in %.0f s", self._held_back, seconds
        )
