"""Watching a mailbox for our messages: one session at a time, however many messages are awaited.

A look is one POP3 session. A message that a look does not show was not in the mailbox at
some moment after that look's login went out; a message that it shows was there before the
listing came in. The arrival lies between those two readings of our own monotonic clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from probes.clock import Clock
from probes.faults import ProbeFault
from probes.letter import token_text
from probes.message_life import AWAITED, Ledger, LedgerError, Message, MessageState
from probes.pop3_client import Pop3Session, open_session
from probes.reasons import Reason
from probes.settings import MailboxSettings, ServerSettings
from probes.token import TokenSigner
from probes.verdict import PhaseTimer

HEADER_LIMIT = 64 * 1024
"""Most octets of a message's header section that are read."""

HEADERS_PER_LOOK = 500
"""Most header sections that one look reads; older messages wait for the next look."""

LOOK_TIMEOUT = 60.0
"""Longest look, in seconds."""

LONGEST_GAP = 300.0
"""Longest pause between looks, in seconds, for a message that is long overdue."""

_LOOK_DID_NOT_HAPPEN = frozenset({Reason.POP3_IN_USE, Reason.POP3_LOGIN_DELAY, Reason.POP3_SYS_TEMP})
_PAUSE_WHERE_NONE_ADVERTISED = 60.0
_PAUSE_AFTER_REFUSED_LOGIN = 300.0  # a wrong password tried often locks the account

_log = logging.getLogger(__name__)


class Unexpected(StrEnum):
    """What a message with our token field can be, other than an awaited arrival."""

    FORGED = "forged"
    UNKNOWN = "unknown"
    DUPLICATE = "duplicate"
    EXPIRED = "expired"


class Observer(Protocol):
    """Who is told what watching a mailbox brought to light."""

    def settled(self, message: Message) -> None:
        """Take in that a message was found (``delivered``, ``late``) or given up (``lost``)."""
        ...

    def unexpected_found(self, mailbox: str, reason: Unexpected) -> None:
        """Take in that a message with our token field turned up that nobody awaited."""
        ...


def gap_at(age: float, poll_interval: float) -> float:
    """Return the seconds from the look at a message's ``age`` to the next one.

    Fresh messages are looked for at gaps that grow with their age, then every
    ``poll_interval`` seconds, and once that is less than a tenth of the age, at a tenth:
    the uncertainty stays near 5 % of a long delay while the logins grow only with its logarithm.
    """
    return min(max(0.05, min(age / 2, poll_interval), age / 10), LONGEST_GAP)


@dataclass(slots=True)
class _Awaited:
    message: Message
    since: float  # monotonic, here: the message is not in the mailbox before this
    deadline: float  # monotonic, here
    settled: asyncio.Future[Message]


@dataclass(frozen=True, slots=True)
class _Sighting:
    """When a copy came into the mailbox: between these two monotonic readings."""

    earliest: float
    latest: float


@dataclass(slots=True)
class _Memory:
    """What earlier looks learnt of the copies now in the mailbox, by their unique ids."""

    foreign: set[str] = field(default_factory=set)  # left alone: not ours, or not ours to delete
    counted: set[str] = field(default_factory=set)  # ours and accounted for; to be deleted
    sightings: dict[str, _Sighting] = field(default_factory=dict)

    def keep_only(self, present: set[str]) -> None:
        self.foreign &= present
        self.counted &= present
        for uid in self.sightings.keys() - present:
            del self.sightings[uid]


class MailboxWatcher:
    """Looks into one mailbox while messages are awaited in it, and settles each in the ledger."""

    def __init__(
        self,
        name: str,
        mailbox: MailboxSettings,
        server: ServerSettings,
        *,
        clock: Clock,
        ledger: Ledger,
        signer: TokenSigner,
        observer: Observer,
        instance: str,
        retention: float,
    ) -> None:
        self.name = name
        self.fault: ProbeFault | None = None
        """Why the latest look failed; ``None`` after a good one."""
        self._mailbox = mailbox
        self._server = server
        self._clock = clock
        self._ledger = ledger
        self._signer = signer
        self._observer = observer
        self._instance = instance
        self._retention = retention
        self._awaited: dict[str, _Awaited] = {}
        self._memory = _Memory()
        self._complete_at = float("-inf")  # login time of the latest look that read all there was
        self._looked_at = float("-inf")  # when the latest look ended
        self._not_before = float("-inf")  # no look before this: the poll interval, or a server's wish
        self._failures = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def await_arrival(self, message: Message) -> asyncio.Future[Message]:
        """Watch for ``message``, which is in an awaited state; the future gives it when it is settled.

        Settled means delivered, late, or not in the mailbox at a look after its deadline. A lost
        message is watched on, up to the retention, and turns ``late`` in the ledger if it comes.
        """
        shift = self._shift(message)
        created = message.created_mono + shift
        since = message.dot_mono + shift if message.dot_mono is not None else created
        settled = asyncio.get_running_loop().create_future()
        self._awaited[message.id] = _Awaited(message, since, created + message.deadline_seconds, settled)
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name=f"watcher of {self.name}")
        return settled

    async def close(self) -> None:
        """Stop watching; open messages stay in the ledger as they are."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _shift(self, message: Message) -> float:
        """Return what turns the message's monotonic readings into this boot's."""
        if message.boot == self._clock.boot:
            return 0.0
        age = self._clock.time() - message.created_at
        return self._clock.monotonic() - age - message.created_mono

    async def _watch(self) -> None:
        while self._awaited:
            self._wake.clear()
            pause = self._next_look() - self._clock.monotonic()
            if pause > 0:
                await self._pause(pause)
                continue  # a new message may want an earlier look, and never a later one
            await self._look_guarded()

    async def _pause(self, seconds: float) -> None:
        """Wait ``seconds``, or until a new message is awaited."""
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()

    def _next_look(self) -> float:
        """Return when the next look is due, on the monotonic clock."""
        poll = self._mailbox.poll_interval
        due = min(
            latest + gap_at(latest - awaited.since, poll)
            for awaited in self._awaited.values()
            for latest in (max(self._looked_at, awaited.since),)
        )
        return max(due, self._not_before)

    async def _look_guarded(self) -> None:
        """Look once; whatever goes wrong is kept as ``fault`` and puts off the next look."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                await self._look()
            self.fault, self._failures = None, 0
        except ProbeFault as fault:
            self._back_off(fault)
        except LedgerError as error:
            self._back_off(ProbeFault(Reason.LEDGER_UNAVAILABLE, str(error)))
        except TimeoutError:
            self._back_off(ProbeFault(Reason.TIMEOUT, f"the look took longer than {LOOK_TIMEOUT:g} s"))
        except Exception:
            _log.exception("defect while looking into mailbox %s", self.name)
            self._back_off(ProbeFault(Reason.INTERNAL, "the log has the traceback"))
        finally:
            self._looked_at = self._clock.monotonic()

    def _back_off(self, fault: ProbeFault) -> None:
        self.fault = fault
        self._failures += 1
        if fault.reason is Reason.AUTH_FAILED:
            pause = _PAUSE_AFTER_REFUSED_LOGIN
        elif fault.reason in _LOOK_DID_NOT_HAPPEN:
            pause = fault.retry_after or _PAUSE_WHERE_NONE_ADVERTISED
        else:
            pause = min(self._mailbox.poll_interval * 2 ** min(self._failures, 10), 60.0)
        self._not_before = self._clock.monotonic() + pause
        _log.warning("mailbox %s: look failed: %s; next look in %g s", self.name, fault, pause)

    async def _look(self) -> None:
        session = await open_session(
            self._server,
            username=self._mailbox.username,
            password=self._mailbox.password,
            phases=PhaseTimer(self._clock),
            clock=self._clock,
        )
        try:
            listing = await session.uidl()
            listed_at = self._clock.monotonic()
            if await self._examine(session, listing, listed_at):
                self._complete_at = session.login_sent_at
                await self._give_up_overdue()
            await session.quit()
        finally:
            session.abort()

    async def _examine(self, session: Pop3Session, listing: Mapping[int, str], listed_at: float) -> bool:
        """Read the headers of what is new, newest first; return whether nothing new was left unread."""
        self._memory.keep_only(set(listing.values()))
        unread = [
            number for number in sorted(listing, reverse=True) if listing[number] not in self._memory.foreign
        ]
        for number in unread[:HEADERS_PER_LOOK]:
            uid = listing[number]
            sighting = self._memory.sightings.get(uid) or _Sighting(self._complete_at, listed_at)
            if uid in self._memory.counted or await self._is_accounted_for(session, number, uid, sighting):
                self._memory.counted.add(uid)
                await session.dele(number)
        return len(unread) <= HEADERS_PER_LOOK

    async def _is_accounted_for(
        self, session: Pop3Session, number: int, uid: str, sighting: _Sighting
    ) -> bool:
        """Read one header section; return whether the copy is provably ours and durably accounted for."""
        try:
            text = token_text(await session.top(number, limit=HEADER_LIMIT))
        except ProbeFault as fault:
            if fault.reason is Reason.RESPONSE_TOO_LARGE:  # no message of ours has such a header section
                self._memory.foreign.add(uid)
            raise
        record = await self._record_of(text) if text is not None else None
        if record is None:
            self._memory.foreign.add(uid)
            return False
        if record.state is MessageState.INTENT:  # not yet recorded as sent: the next look counts it
            self._memory.sightings[uid] = sighting
            return False
        if record.mailbox_uid != uid:  # else it was counted before a crash or a failed QUIT
            await self._count(record, uid, sighting)
        return True

    async def _record_of(self, text: str) -> Message | None:
        """Return the message that a token field proves, if this process answers for it."""
        token = self._signer.verify(text)
        if token is None:
            self._observer.unexpected_found(self.name, Unexpected.FORGED)
            return None
        record = await self._ledger.find(token.run)
        if record is None or record.mailbox != self.name or record.probe != token.probe:
            expired = self._clock.time() - token.created_us / 1e6 > self._retention
            self._observer.unexpected_found(self.name, Unexpected.EXPIRED if expired else Unexpected.UNKNOWN)
            return None
        return record if record.instance == self._instance else None

    async def _count(self, record: Message, uid: str, sighting: _Sighting) -> None:
        """Record a copy of ``record`` as its arrival, or as a duplicate if it has arrived already."""
        shift = self._shift(record)
        created = record.created_mono + shift
        connected = record.connected_mono + shift if record.connected_mono is not None else created
        dot = record.dot_mono + shift if record.dot_mono is not None else connected
        earliest = max(sighting.earliest, dot)
        latest = max(sighting.latest, earliest)
        middle = (earliest + latest) / 2
        accepted = record.accepted_mono
        transit = max(0.0, middle - accepted - shift) if accepted is not None else None
        # Only what provably came late is late: an interval that we widened ourselves proves nothing.
        late = record.state is MessageState.LOST or earliest > created + record.deadline_seconds
        arrived = await self._ledger.advance(
            record.id,
            MessageState.LATE if late else MessageState.DELIVERED,
            mailbox_uid=uid,
            delivery_seconds=middle - connected,
            uncertainty_seconds=(latest - earliest) / 2,
            transit_seconds=transit,
        )
        if arrived is None:
            self._observer.unexpected_found(self.name, Unexpected.DUPLICATE)
            return
        self._settle(arrived)

    async def _give_up_overdue(self) -> None:
        """Call lost what the latest complete look did not show although its login was after the deadline."""
        for awaited in list(self._awaited.values()):
            message = awaited.message
            if self._clock.time() - message.created_at > self._retention:
                self._awaited.pop(message.id, None)
            elif awaited.deadline < self._complete_at and not awaited.settled.done():
                # Where our own end left it open, nobody can say that a server ever had the message.
                ours = message.state is MessageState.AMBIGUOUS and message.reason == Reason.INTERRUPTED
                lost = None if ours else await self._ledger.advance(message.id, MessageState.LOST)
                self._settle(lost or message)

    def _settle(self, message: Message) -> None:
        """Tell who waits; keep watching for a message that may yet come."""
        self._observer.settled(message)
        awaited = self._awaited.get(message.id)
        if awaited is None:
            return
        awaited.message = message
        if message.state not in AWAITED:
            del self._awaited[message.id]
        if not awaited.settled.done():
            awaited.settled.set_result(message)
