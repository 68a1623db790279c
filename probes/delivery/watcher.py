"""Watches a mailbox for our messages, with one session at a time for any number of messages.

If a poll does not show a message, it was absent at some moment after the poll began. If a poll shows it, it
arrived before the listing did. So the arrival is between these two times on our own monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Protocol

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.trouble_log import TroubleLog
from probes.core.verdict import TURN, PhaseTimer
from probes.delivery.arrivals import Arrivals, Copy, Fate, Settled, Unexpected
from probes.delivery.awaited import LONGEST_GAP, AwaitedMessages, Route
from probes.delivery.back_off import pause_after
from probes.delivery.folder_memory import FolderMemory
from probes.delivery.mailboxes.mailbox import Folder, FolderRole, Mailbox, OpenFolder
from probes.delivery.message_life import LedgerError, Message
from probes.delivery.own_delays import Cause, OwnDelay
from probes.delivery.reading_pace import ReadingPace
from probes.delivery.sent_copies import SentCopies
from probes.delivery.succession import Succession

POLL_TIMEOUT = 60.0
"""Time limit for a poll, in seconds."""

PAUSE_AFTER_DEFECT = 5.0
"""Seconds before watching continues after a defect of ours."""

CLOSE_GRACE = 2.0
"""Maximum seconds that closing waits for a poll to end."""

GIVEN_UP_AT_ONCE = 500
"""Maximum number of messages that one transaction of the ledger gives up."""

NEWS_WORTHWHILE = 0.25
"""Minimum seconds of a pause in which to ask the server to report changes."""

_OUR_FAULTS = MappingProxyType(
    {Reason.LOCAL_RESOURCES: Cause.RESOURCES, Reason.LEDGER_UNAVAILABLE: Cause.LEDGER}
)
"""Faults that keep us from looking into the mailbox, without any fault of the mail system."""

_NO_FOLDER = frozenset({Reason.IMAP_NO_FOLDER, Reason.GRAPH_NOT_FOUND})

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Receives the results of watching a mailbox."""

    def settled(self, settled: Settled) -> None:
        """Record that a message was found, bounced or given up."""
        ...

    def unexpected_found(self, mailbox: str, reason: Unexpected) -> None:
        """Record that an unexpected message with our token field was found."""
        ...

    def poll_throttled(self, mailbox: str, now: float) -> None:
        """Record that the server refused a poll because it limits this client."""
        ...


class MailboxWatcher:
    """Polls one mailbox while messages are awaited in it, and settles each in the ledger.

    ``peers`` are the watchers of all mailboxes by name, because a delivery report may arrive in a different
    mailbox from its message. ``keeps_sent``: a mail system copies what is sent into this mailbox.
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
        keeps_sent: bool = False,
    ) -> None:
        self.name = name
        self.fault: ProbeFault | None = None
        """Why the latest poll failed; ``None`` if it succeeded."""
        self._mailbox = mailbox
        self._arrivals = arrivals
        self._observer = observer
        self._clock = clock
        self.peers = peers
        self._awaited = AwaitedMessages(
            clock, polls=mailbox.polls, shortest_gap=mailbox.shortest_gap, retention=retention
        )
        arrivals.awaited = self._known
        self._sent_copies = SentCopies(clock, are_kept=keeps_sent)
        self._memories: dict[str, FolderMemory] = {}
        self._pace = ReadingPace(mailbox.first_read)
        self._polled_at = float("-inf")  # when the latest poll ended
        self._planned_at = float("-inf")  # since when it has been known that the next poll is due when it is
        self._blind: tuple[Cause, float] | None = None  # our own fault in the latest poll, and its begin
        self._not_before = float("-inf")  # no poll before this, after a fault or at the server's request
        self._failures = 0
        self._trouble = TroubleLog(_log, f"mailbox {name}", clock)
        self._deletions = TroubleLog(_log, f"mailbox {name}", clock)
        self._misconfigured = asyncio.Event()
        self._resume = asyncio.Event()  # ends a pause
        self._is_woken = False  # whether there is a new message to watch for
        self._polling = asyncio.Lock()
        self._has_news = self._is_closed = False
        self._task: asyncio.Task[None] | None = None
        self._succession = Succession(self)

    @property
    def current(self) -> MailboxWatcher:
        """The watcher of this mailbox since the latest reload; a run may outlast the one it began with."""
        return self._succession.latest

    def await_arrival(self, message: Message) -> asyncio.Future[Settled]:
        """Watch for ``message``, which is ``sent`` or ``ambiguous``; the future gets the outcome.

        The outcome is delivered, late, bounced, or lost: not in the mailbox at a poll after the deadline. The
        watcher keeps looking for a lost message until the retention ends, and records it as ``late`` if it
        arrives.
        """
        if self.current is not self:
            return self.current.await_arrival(message)
        self._misconfigured.clear()  # the folder that was missing may exist by now
        settled = self._awaited.add(message)
        self._start()
        return settled

    def watch_on(self, message: Message) -> None:
        """Keep looking for ``message``, which an earlier process found lost."""
        self._awaited.add_lost(message)
        self._start()

    def fault_for_long(self, route: Route) -> ProbeFault | None:
        """Return why the mailbox cannot be read, if many messages of a route wait for it to be read.

        No more should be sent then, or memory, ledger and mailbox would fill for as long as it is dead.
        """
        return self.fault if self._awaited.has_many_overdue(route) else None

    async def misconfigured(self) -> None:
        """Return once a poll fails because a configured folder does not exist, so waiting is pointless."""
        await self._misconfigured.wait()

    def await_report(self, message: Message, settled: asyncio.Future[Settled]) -> None:
        """Poll occasionally for a delivery report about ``message``, until it is ``settled``."""
        if self.current is not self:
            self.current.await_report(message, settled)
            return
        self._awaited.add_report(message, settled)
        self._start()

    def await_sent_copy(self, message: Message, settled: asyncio.Future[Settled]) -> None:
        """Remove the copy of ``message`` from the sent folder once it is ``settled``, if there is a copy."""
        settled.add_done_callback(lambda _: self.current._expect_sent_copy(message.id))

    def _expect_sent_copy(self, message_id: str) -> None:
        if self._sent_copies.expect(message_id):
            self._start()

    def take_over(self, earlier: MailboxWatcher) -> None:
        """Take over messages and learnt latencies from an ``earlier`` watcher of this mailbox, now closed.

        From now on, whatever is awaited on ``earlier`` is awaited here.
        """
        self._succession = earlier._succession
        self._succession.latest = self
        self._misconfigured = earlier._misconfigured  # runs in progress wait for it
        self._misconfigured.clear()
        self._mailbox.standing.take_over(earlier._mailbox.standing)
        self._pace, self._trouble = earlier._pace, earlier._trouble
        self._awaited.take_over(earlier._awaited)
        self._sent_copies.take_over(earlier._sent_copies)
        if self._awaited or self._sent_copies.are_expected:
            self._start()

    def delay(self, begin: float, end: float) -> OwnDelay:
        """Return our own delay in polling between two monotonic times."""
        return self._arrivals.delays.within(begin, end)

    @property
    def login_wait(self) -> float:
        """How many seconds a poll has been waiting for a login within the server's budget.

        0 if the mailbox could not be read before: then the server is in trouble, and the budget is not short.
        """
        return self._arrivals.delays.waited(Cause.LOGINS)

    def _known(self, message_id: str) -> Message | None:
        """Return the record of an awaited message, unless a poll that failed may have changed it."""
        return self._awaited.record(message_id) if self.fault is None else None

    def _start(self) -> None:
        if not self._is_woken:
            self._planned_at = self._clock.monotonic()
        self._is_woken = True
        self._resume.set()
        if not self._is_closed and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._watch(), name=f"watcher of {self.name}")

    async def close(self) -> None:
        """Stop watching; open messages stay in the ledger as they are.

        A poll in progress has `CLOSE_GRACE` seconds to finish, so that it deletes the messages it counted.
        """
        self._is_closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_GRACE):
                async with self._polling:
                    pass
                if self._undeleted() or self._sent_copies.are_expected:
                    await self.poll_now()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._mailbox.close()

    async def _watch(self) -> None:
        while self._has_work() or self._mailbox.stays_open:
            self._is_woken = False
            self._resume.clear()
            try:
                due, now = self._next_poll(), self._clock.monotonic()
                if due > now:
                    await self._pause(due - now)
                    if self._clock.monotonic() >= due:
                        self._planned_at = max(self._planned_at, due)
                    continue  # a new message may need an earlier poll
                self._arrivals.delays.add(Cause.MACHINE, max(due, self._planned_at), now)
                await self.poll_now()
            except Exception:
                # A dead watcher must not look like missing mail.
                _log.exception("defect while watching mailbox %s", self.name)
                self.fault = ProbeFault(Reason.INTERNAL, "the log has the traceback")
                await self._clock.sleep(PAUSE_AFTER_DEFECT)

    def _has_work(self) -> bool:
        return bool(self._awaited) or self._undeleted() or self._sent_copies.are_expected

    def _undeleted(self) -> bool:
        """Whether the mailbox may still have copies that are accounted for."""
        return any(memory.counted for memory in self._memories.values())

    async def _pause(self, seconds: float) -> None:
        """Wait ``seconds``, or until there is a new message to watch for or the server reports a change."""
        waits = [asyncio.create_task(self._clock.sleep(seconds))]
        if seconds >= NEWS_WORTHWHILE:
            waits.append(asyncio.create_task(self._news()))
        for wait in waits:
            wait.add_done_callback(lambda _: self._resume.set())
        try:
            await self._resume.wait()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)  # nothing else may use the session before `_news` ends

    async def _news(self) -> None:
        try:
            await self._mailbox.news()
        except ProbeFault as fault:
            self._back_off(fault)
        self._has_news, self._planned_at = True, self._clock.monotonic()

    def _next_poll(self) -> float:
        """Return when the next poll is due, on the monotonic clock."""
        dues = [self._awaited.next_poll(), self._sent_copies.next_poll()]
        if self._mailbox.stays_open:
            dues.append(self._polled_at + LONGEST_GAP)
        if self._undeleted():
            dues.append(self._polled_at + self._mailbox.shortest_gap)
        if self._has_news:
            dues.append(self._polled_at + self._mailbox.shortest_gap)
        return max(min(dues), self._not_before)

    async def poll_now(self) -> None:
        """Poll once, now. Any failure is kept as ``fault`` and delays the next poll."""
        self._has_news, afresh, phases = False, False, PhaseTimer(self._clock)
        begun = self._clock.monotonic()
        if self._blind is not None:
            cause, since = self._blind
            self._arrivals.delays.add_all(cause, since, begun)
            self._blind = None
        try:
            async with self._polling:
                with self._waiting(Cause.CONNECTIONS):
                    await self._mailbox.turn()
                with self._waiting(Cause.LOGINS):
                    await self._mailbox.admit()
                afresh = self._awaited.is_overdue()
                async with asyncio.timeout(POLL_TIMEOUT):
                    await self._poll(phases, afresh=afresh)
            self.fault, self._failures = None, 0
            self._trouble.works()
        except ProbeFault as fault:
            self._back_off(fault)
        except LedgerError as error:
            self._back_off(ProbeFault(Reason.LEDGER_UNAVAILABLE, str(error)))
        except TimeoutError:
            self._pace.cut()
            reason = Reason.LOCAL_RESOURCES if phases.current == TURN else Reason.TIMEOUT
            self._back_off(ProbeFault(reason, f"the poll took longer than {POLL_TIMEOUT:g} s"))
        except Exception:
            _log.exception("defect while polling mailbox %s", self.name)
            self._back_off(ProbeFault(Reason.INTERNAL, "the log has the traceback"))
        finally:
            self._polled_at = self._planned_at = self._clock.monotonic()
            if self.fault is not None and self.fault.reason in _OUR_FAULTS:
                self._blind = _OUR_FAULTS[self.fault.reason], begun
            self._awaited.polled(searched=afresh)

    def _waiting(self, cause: Cause) -> AbstractContextManager[None]:
        """Record the duration of the block as our own delay, unless the latest poll failed.

        Then others come first because the server is in trouble, so this delay is not ours.
        """
        is_in_trouble = self.fault is not None and self.fault.reason not in _OUR_FAULTS
        return nullcontext() if is_in_trouble else self._arrivals.delays.waiting(cause)

    def _back_off(self, fault: ProbeFault) -> None:
        self.fault = fault
        self._failures += 1
        if fault.reason in _NO_FOLDER and self._failures > 1:  # a server may say so once and be wrong
            self._misconfigured.set()
        if fault.reason is Reason.THROTTLED:
            self._observer.poll_throttled(self.name, self._clock.time())
        self._not_before = self._clock.monotonic() + (pause := pause_after(fault, self._failures))
        self._trouble.failed(fault.reason, f"poll failed: {fault}; next poll in {pause:g} s")

    async def _poll(self, phases: PhaseTimer, *, afresh: bool) -> None:
        is_read, begun = False, self._clock.monotonic()
        try:
            async with self._mailbox.poll(phases, afresh=afresh, sent=self._sent_copies.begin_poll()) as due:
                waited = phases.seconds.get(TURN, 0.0)
                self._arrivals.delays.add(Cause.CONNECTIONS, begun, self._clock.monotonic(), waited)
                is_read = await self._read(due, afresh=afresh)
        except ProbeFault as fault:
            if not is_read:
                raise
            # Everything was read and recorded, but the deletions may have failed.
            self._deletions.failed(fault.reason, f"deletions may not hold: {fault}")
            self._not_before = self._clock.monotonic() + min(2.0 ** min(self._deletions.failures, 7) / 2, 60)
            return
        if is_read:
            self._deletions.works()
            for memory in self._memories.values():
                memory.counted.clear()  # the deletions have taken effect
            self._sent_copies.end_poll()

    async def _read(self, due: Sequence[OpenFolder], *, afresh: bool) -> bool:
        """Read the folders, and give up overdue messages; return whether everything could be read."""
        for open_folder in due:
            if not await self._read_folder(open_folder):
                return False
        if afresh:
            await self._give_up_overdue()
        return True

    async def _read_folder(self, open_folder: OpenFolder) -> bool:
        """Read one folder; return ``False`` if a message ended the session."""
        try:
            folder = await open_folder()
            memory = self._memories.setdefault(folder.name, FolderMemory())
        except ProbeFault as fault:
            if not self._mailbox.excuses(fault):
                raise
            return True
        try:
            if await self._examine(folder, memory):
                memory.complete_at = folder.absent_at
                if folder.role is FolderRole.SENT:
                    self._sent_copies.read()
        except ProbeFault as fault:
            if self._mailbox.excuses(fault):
                return True
            if fault.reason is not Reason.RESPONSE_TOO_LARGE:
                raise
            # One oversized message must not stop the watching: the next poll skips it.
            _log.warning("mailbox %s: a message was not read on: %s", self.name, fault)
            return False
        return True

    async def _examine(self, folder: Folder, memory: FolderMemory) -> bool:
        """Read the headers of new messages; return whether all of them were read."""
        memory.see(folder)
        begun, before = self._clock.monotonic(), folder.listed_at - folder.absent_at
        unread, ours = list(folder.uids), list[str]()
        now_read = unread[: self._pace.most]
        async with contextlib.aclosing(folder.identify(now_read)) as identified:
            async for fields in identified:
                ours += await self._account(folder, memory, fields)
        await folder.delete(ours)
        self._pace.learn(len(now_read), self._clock.monotonic() - begun, before)
        return len(unread) == len(now_read) and folder.is_whole

    async def _account(
        self, folder: Folder, memory: FolderMemory, identified: Mapping[str, bytes]
    ) -> list[str]:
        """Account for a set of copies; return those to delete."""
        copies = [
            Copy(uid, fields, memory.sightings[uid], uid in memory.counted)
            for uid, fields in identified.items()
        ]
        ours = []
        async with contextlib.aclosing(self._arrivals.account(folder, copies)) as accounted:
            async for uid, found in accounted:
                if found.settled is not None:
                    self._tell(found.settled)
                if found.unexpected is not None:
                    self._observer.unexpected_found(self.name, found.unexpected)
                if found.fate is Fate.PENDING:
                    continue
                if found.sent_copy_of is not None:
                    self._sent_copies.remove(found.sent_copy_of)
                del memory.sightings[uid]
                if found.fate is Fate.FOREIGN:
                    folder.set_aside(uid)
                else:
                    memory.counted.add(uid)
                    ours.append(uid)
        return ours

    async def _give_up_overdue(self) -> None:
        """Give up messages that a complete poll, begun after their deadline, did not show."""
        complete_at = min(
            (self._memories.setdefault(name, FolderMemory()).complete_at for name in self._mailbox.folders),
            default=float("-inf"),
        )
        overdue, doubt = self._awaited.overdue(complete_at), self._mailbox.doubt
        for begin in range(0, len(overdue), GIVEN_UP_AT_ONCE):
            batch = overdue[begin : begin + GIVEN_UP_AT_ONCE]
            for settled in await asyncio.gather(*(self._arrivals.give_up(each, doubt) for each in batch)):
                self._tell(settled)

    def _tell(self, settled: Settled) -> None:
        """Tell the observer and the watcher of the message's own mailbox."""
        self._observer.settled(settled)
        self.peers.get(settled.message.mailbox, self).settle(settled)

    def settle(self, settled: Settled) -> None:
        """Resolve the message's future; keep watching if the message may still arrive."""
        self._awaited.settle(settled)
