"""Watching a mailbox for our messages: one session at a time, however many messages are awaited.

A message that a poll does not show was not in the mailbox at some moment after the poll
began; a message that it shows was there before the listing came in. The arrival lies between
those two readings of our own monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.delivery.arrivals import Arrivals, Fate, Settled, Sighting, Unexpected, shift_of
from probes.delivery.mailboxes.mailbox import Folder, Mailbox, OpenFolder
from probes.delivery.message_life import AWAITED, LedgerError, Message
from probes.delivery.polling import ArrivalModel

HEADERS_PER_POLL = 500
"""Most header sections that one poll reads; older messages wait for the next poll."""

POLL_TIMEOUT = 60.0
"""Longest poll, in seconds."""

PAUSE_AFTER_DEFECT = 5.0
"""Seconds until watching goes on after a defect of its own."""

CLOSE_GRACE = 2.0
"""Longest time, in seconds, that closing waits for a poll to end."""

LONGEST_GAP = 300.0
"""Longest pause between polls, in seconds, for a message that is long overdue."""

REPORT_GAP = 10.0
"""Shortest pause, in seconds, between polls for nothing but a delivery report."""

NEWS_WORTHWHILE = 0.25
"""Shortest pause, in seconds, in which the server is asked to tell of news."""

_PAUSE_WHERE_NONE_ADVERTISED = 60.0
_PAUSES_AFTER_REFUSED_LOGIN = (10.0, 60.0, 300.0)
_PAUSE_AFTER_WRONG_CREDENTIALS = 300.0  # a wrong password tried often locks the account

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Who is told what watching a mailbox brought to light."""

    def settled(self, settled: Settled) -> None:
        """Take in that a message was found, bounced or given up."""
        ...

    def unexpected_found(self, mailbox: str, reason: Unexpected) -> None:
        """Take in that a message with our token field turned up that nobody awaited."""
        ...


@dataclass(slots=True)
class _Awaited:
    message: Message
    since: float  # monotonic, here: the message is not in the mailbox before this
    deadline: float  # monotonic, here
    settled: asyncio.Future[Settled]
    awaited_at: float  # monotonic: an earlier poll may have seen a copy that it could not count yet


@dataclass(slots=True)
class _Memory:
    """What earlier polls learnt of one folder."""

    complete_at: float = float("-inf")  # when the latest poll that read all there was began
    counted: set[str] = field(default_factory=set)  # uids accounted for, and not yet surely deleted
    sightings: dict[str, Sighting] = field(default_factory=dict)  # of copies that are to be read again

    def keep_only(self, present: set[str]) -> None:
        self.counted &= present
        for uid in self.sightings.keys() - present:
            del self.sightings[uid]


class MailboxWatcher:
    """Polls one mailbox while messages are awaited in it, and settles each in the ledger.

    ``peers`` are the watchers of all mailboxes by name: a delivery report may lie in another
    mailbox than its message.
    """

    def __init__(
        self,
        name: str,
        mailbox: Mailbox,
        arrivals: Arrivals,
        *,
        clock: Clock,
        observer: Observer,
        retention: float,
        peers: Mapping[str, MailboxWatcher] = MappingProxyType({}),
    ) -> None:
        self.name = name
        self.fault: ProbeFault | None = None
        """Why the latest poll failed; ``None`` after a good one."""
        self._mailbox = mailbox
        self._arrivals = arrivals
        self._observer = observer
        self._clock = clock
        self._retention = retention
        self._peers = peers
        self._models: dict[tuple[str, str], ArrivalModel] = {}  # by probe and target
        self._awaited: dict[str, _Awaited] = {}
        self._reports: dict[str, _Awaited] = {}
        self._memories: dict[str, _Memory] = {}
        self._polled_at = float("-inf")  # when the latest poll ended
        self._not_before = float("-inf")  # no poll before this: a fault, or a server's wish
        self._failures = 0
        self._doubts = 0  # polls in a row whose deletions may not hold
        self._wake = asyncio.Event()
        self._misconfigured = asyncio.Event()
        self._polling = asyncio.Lock()
        self._has_news = False
        self._task: asyncio.Task[None] | None = None

    def await_arrival(self, message: Message) -> asyncio.Future[Settled]:
        """Watch for ``message``, which is in an awaited state; the future gives it when it is settled.

        Settled means delivered, late, bounced, or not in the mailbox at a poll after its deadline. A
        lost message is watched on, up to the retention, and turns ``late`` in the ledger if it comes.
        """
        self._misconfigured.clear()  # an earlier poll's folder may be there by now
        awaited = self._entry(message, asyncio.get_running_loop().create_future())
        self._awaited[message.id] = awaited
        self._start()
        return awaited.settled

    async def misconfigured(self) -> None:
        """Return once a poll fails because the configured folder is not there: waiting does not mend that."""
        await self._misconfigured.wait()

    def await_report(self, message: Message, settled: asyncio.Future[Settled]) -> None:
        """Poll now and then for a delivery report about ``message``, until it is ``settled``."""
        self._reports[message.id] = self._entry(message, settled)
        self._start()

    def take_over(self, earlier: MailboxWatcher) -> None:
        """Watch on for what an ``earlier`` watcher of this mailbox, now closed, awaits, by what it learnt."""
        self._awaited |= earlier._awaited
        self._reports |= earlier._reports
        self._models |= earlier._models
        if self._awaited or self._reports:
            self._start()

    def _entry(self, message: Message, settled: asyncio.Future[Settled]) -> _Awaited:
        shift = shift_of(message, self._clock)
        created = message.created_mono + shift
        since = message.dot_mono + shift if message.dot_mono is not None else created
        return _Awaited(message, since, created + message.deadline_seconds, settled, self._clock.monotonic())

    def _start(self) -> None:
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name=f"watcher of {self.name}")

    async def close(self) -> None:
        """Stop watching; open messages stay in the ledger as they are.

        For `CLOSE_GRACE` seconds a poll that is going on may end: what it counted it also deletes.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_GRACE):
                async with self._polling:
                    pass
                if self._undeleted():
                    await self.poll_now()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._mailbox.close()

    async def _watch(self) -> None:
        while self._awaited or self._reports or self._undeleted() or self._mailbox.stays_open:
            self._wake.clear()
            try:
                pause = self._next_poll() - self._clock.monotonic()
                if pause > 0:
                    await self._pause(pause)
                    continue  # a new message may want an earlier poll, and never a later one
                await self.poll_now()
            except Exception:
                # Whoever waits must not take a watcher that died for mail that does not come.
                _log.exception("defect while watching mailbox %s", self.name)
                self.fault = ProbeFault(Reason.INTERNAL, "the log has the traceback")
                await self._clock.sleep(PAUSE_AFTER_DEFECT)

    def _undeleted(self) -> bool:
        """Whether copies that are accounted for may still be in the mailbox."""
        return any(memory.counted for memory in self._memories.values())

    async def _pause(self, seconds: float) -> None:
        """Wait ``seconds``, or until a new message is awaited or the server tells of news."""
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        waking = asyncio.ensure_future(self._wake.wait())
        telling = asyncio.ensure_future(self._news(worthwhile=seconds >= NEWS_WORTHWHILE))
        try:
            await asyncio.wait({sleeping, waking, telling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()
            telling.cancel()
            await asyncio.wait({telling})  # it talks to the server, and nothing else may meanwhile

    async def _news(self, *, worthwhile: bool) -> None:
        if not worthwhile:
            await asyncio.get_running_loop().create_future()
        try:
            await self._mailbox.news()
        except ProbeFault as fault:
            self._back_off(fault)
        self._has_news = True

    def _next_poll(self) -> float:
        """Return when the next poll is due, on the monotonic clock."""
        self._reports = {key: item for key, item in self._reports.items() if not item.settled.done()}
        dues = [self._due(awaited) for awaited in self._awaited.values()]
        dues += [
            latest + min(max(REPORT_GAP, (latest - awaited.since) / 4), LONGEST_GAP)
            for awaited in self._reports.values()
            for latest in (max(self._polled_at, awaited.since),)
        ]
        if self._mailbox.stays_open:
            dues.append(self._polled_at + LONGEST_GAP)
        if self._undeleted():
            dues.append(self._polled_at + self._mailbox.shortest_gap)
        if self._has_news:
            dues.append(self._polled_at + self._mailbox.shortest_gap)
        return max(min(dues, default=float("inf")), self._not_before)

    def _due(self, awaited: _Awaited) -> float:
        latest = max(self._polled_at, awaited.since)
        due = latest + self._model_of(awaited.message).gap(latest - awaited.since)
        if awaited.settled.done():
            return due
        # Whether it is lost shall be told as soon as it can be: by a poll that begins after the deadline.
        return min(due, max(latest + self._mailbox.shortest_gap, awaited.deadline + 0.001))

    def _model_of(self, message: Message) -> ArrivalModel:
        route = message.probe, message.target
        if route not in self._models:
            self._models[route] = ArrivalModel(self._mailbox.polls, self._mailbox.shortest_gap, LONGEST_GAP)
        return self._models[route]

    async def poll_now(self) -> None:
        """Poll once, now; whatever goes wrong is kept as ``fault`` and puts off the next poll."""
        self._has_news = False
        try:
            async with self._polling:
                await self._mailbox.admit()
                async with asyncio.timeout(POLL_TIMEOUT):
                    await self._poll()
            self.fault, self._failures = None, 0
        except ProbeFault as fault:
            self._back_off(fault)
        except LedgerError as error:
            self._back_off(ProbeFault(Reason.LEDGER_UNAVAILABLE, str(error)))
        except TimeoutError:
            self._back_off(ProbeFault(Reason.TIMEOUT, f"the poll took longer than {POLL_TIMEOUT:g} s"))
        except Exception:
            _log.exception("defect while polling mailbox %s", self.name)
            self._back_off(ProbeFault(Reason.INTERNAL, "the log has the traceback"))
        finally:
            self._polled_at = self._clock.monotonic()

    def _back_off(self, fault: ProbeFault) -> None:
        self.fault = fault
        self._failures += 1
        if fault.reason is Reason.IMAP_NO_FOLDER:
            self._misconfigured.set()
        self._not_before = self._clock.monotonic() + (pause := self._pause_after(fault))
        _log.warning("mailbox %s: poll failed: %s; next poll in %g s", self.name, fault, pause)

    def _pause_after(self, fault: ProbeFault) -> float:
        """Return the seconds until the next poll after so many that failed in a row."""
        growing = 2.0 ** min(self._failures, 10)
        if fault.reason is Reason.AUTH_FAILED:
            return _PAUSE_AFTER_WRONG_CREDENTIALS
        if fault.reason is Reason.LOGIN_REFUSED:
            return _PAUSES_AFTER_REFUSED_LOGIN[min(self._failures, len(_PAUSES_AFTER_REFUSED_LOGIN)) - 1]
        if fault.retry_after is not None:
            return fault.retry_after
        if fault.reason in {Reason.POP3_IN_USE, Reason.IMAP_IN_USE}:
            return min(growing / 2, 60.0)  # another session may end at any moment
        return _PAUSE_WHERE_NONE_ADVERTISED if fault.asks_to_wait else min(growing, 60.0)

    async def _poll(self) -> None:
        is_read, afresh = False, self._is_overdue()
        try:
            async with self._mailbox.poll(afresh=afresh) as due:
                is_read = await self._read(due, afresh=afresh)
        except ProbeFault as fault:
            if not is_read:
                raise
            # All was read and recorded. Only whether the deletions hold is in doubt.
            self._doubts += 1
            self._not_before = self._clock.monotonic() + min(2.0 ** min(self._doubts - 1, 10), 60.0)
            _log.warning("mailbox %s: deletions may not hold: %s", self.name, fault)
            return
        if is_read:
            self._doubts = 0
            for memory in self._memories.values():
                memory.counted.clear()  # what they name is surely deleted now

    def _is_overdue(self) -> bool:
        """Whether a poll now may find that a message is lost, for which all is looked through again."""
        now = self._clock.monotonic()
        return any(
            max(awaited.deadline, awaited.awaited_at) < now and not awaited.settled.done()
            for awaited in self._awaited.values()
        )

    async def _read(self, due: Sequence[OpenFolder], *, afresh: bool) -> bool:
        """Read the folders, and give up what is overdue; return whether all could be read."""
        try:
            for open_folder in due:
                await self._read_folder(open_folder)
        except ProbeFault as fault:
            if fault.reason is not Reason.RESPONSE_TOO_LARGE:
                raise
            # Whoever sends us such a thing must not blind us: the next poll goes on without it.
            _log.warning("mailbox %s: a message was not read on: %s", self.name, fault)
            return False
        await self._give_up_overdue(afresh=afresh)
        return True

    async def _read_folder(self, open_folder: OpenFolder) -> None:
        try:
            folder = await open_folder()
            memory = self._memories.setdefault(folder.name, _Memory())
            if await self._examine(folder, memory):
                memory.complete_at = folder.absent_at
        except ProbeFault as fault:
            if not self._mailbox.excuses(fault):
                raise

    async def _examine(self, folder: Folder, memory: _Memory) -> bool:
        """Read the headers of what is new, newest first; return whether nothing new was left unread."""
        memory.keep_only(set(folder.uids))
        unread = list(folder.uids)
        async with contextlib.aclosing(folder.identify(unread[:HEADERS_PER_POLL])) as identified:
            async for uid, fields in identified:
                try:
                    await self._account(folder, memory, uid, fields)
                except ProbeFault as fault:
                    if not folder.refused(uid, fault):
                        raise
        return len(unread) <= HEADERS_PER_POLL and folder.is_whole

    async def _account(self, folder: Folder, memory: _Memory, uid: str, fields: bytes) -> None:
        earliest = float("-inf") if uid in folder.overlooked else memory.complete_at
        sighting = memory.sightings.get(uid) or Sighting(earliest, folder.listed_at)
        found = await self._arrivals.account(folder, uid, fields, sighting, counted=uid in memory.counted)
        if found.settled is not None:
            self._tell(found.settled)
        if found.unexpected is not None:
            self._observer.unexpected_found(self.name, found.unexpected)
        if found.fate is Fate.PENDING:
            memory.sightings[uid] = sighting
        elif found.fate is Fate.FOREIGN:
            folder.set_aside(uid)
        else:
            memory.counted.add(uid)
            await folder.delete(uid)

    async def _give_up_overdue(self, *, afresh: bool) -> None:
        """Call lost what no folder showed in a complete poll, begun ``afresh`` after the deadline."""
        complete_at = min(
            (self._memories.setdefault(name, _Memory()).complete_at for name in self._mailbox.folders),
            default=float("-inf"),
        )
        for awaited in list(self._awaited.values()):
            if self._clock.time() - awaited.message.created_at > self._retention:
                self._awaited.pop(awaited.message.id, None)
                awaited.settled.cancel()
                continue
            is_missed = max(awaited.deadline, awaited.awaited_at) < complete_at
            if afresh and is_missed and not awaited.settled.done():
                self._tell(await self._arrivals.give_up(awaited.message, self._mailbox.doubt))

    def _tell(self, settled: Settled) -> None:
        """Tell the observer and who waits, also where the message is awaited in another mailbox."""
        self._observer.settled(settled)
        self._peers.get(settled.message.mailbox, self).settle(settled)

    def settle(self, settled: Settled) -> None:
        """Tell who waits; keep watching for a message that may yet come."""
        message = settled.message
        awaited = self._awaited.get(message.id)
        if awaited is None:
            return
        self._learn(message)
        awaited.message = message
        if message.state not in AWAITED:
            del self._awaited[message.id]
        if not awaited.settled.done():
            awaited.settled.set_result(settled)

    def _learn(self, message: Message) -> None:
        """Let the route's model know when the message arrived, counted from its final dot."""
        if message.delivery_seconds is None or message.uncertainty_seconds is None:
            return
        connected = message.connected_mono if message.connected_mono is not None else message.created_mono
        dot = message.dot_mono if message.dot_mono is not None else connected
        middle = max(0.0, message.delivery_seconds - (dot - connected))
        earliest = max(0.0, middle - message.uncertainty_seconds)
        self._model_of(message).learn(earliest, middle + message.uncertainty_seconds)
