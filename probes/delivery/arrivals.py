"""Identifies the copies found in a mailbox, and records them in the ledger.

A copy counts only if its token verifies. All other contents are read within limits and change nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Container, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto

from probes.core.clock import Clock
from probes.core.reasons import Reason
from probes.core.verdict import MessageReport, MessageState
from probes.delivery.mailboxes.mailbox import HEADER_LIMIT, Content, Folder, FolderRole
from probes.delivery.message_life import AWAITED, IN_FLIGHT, ArrivalIssue, Ledger, Message
from probes.delivery.own_delays import Cause, OwnDelay, OwnDelays
from probes.messages import bounce
from probes.messages.authentication_results import AuthenticationResults
from probes.messages.authentication_results import results as authentication_results
from probes.messages.auto_reply import is_auto_reply
from probes.messages.bounce import DeliveryReport
from probes.messages.content_digest import digest_of
from probes.messages.exchange_report import ExchangeReport, exchange_report
from probes.messages.hops import Hop, hops
from probes.messages.junk import junk_mark
from probes.messages.synthetic_message import subject_token, token_text
from probes.messages.token import TokenSigner

REPORT_OCTETS = bounce.REPORT_LIMIT
"""Maximum octets to read of a delivery report."""

_IN_TRANSIT = IN_FLIGHT | {MessageState.AMBIGUOUS}
_IN_A_THREAD = 256 * 1024  # octets from which computing a digest would block the event loop too long

_log = logging.getLogger(__name__)


class Unexpected(StrEnum):
    """What a message with our token field may be, other than an awaited arrival."""

    FORGED = "forged"
    UNKNOWN = "unknown"
    DUPLICATE = "duplicate"
    EXPIRED = "expired"


class Fate(Enum):
    """What to do with a copy."""

    FOREIGN = auto()  # never touch it
    PENDING = auto()  # read it again at the next poll
    OURS = auto()  # delete it: it is provably ours and accounted for


@dataclass(frozen=True, slots=True)
class Sighting:
    """When a copy arrived in the mailbox: between these two monotonic times."""

    earliest: float
    latest: float


@dataclass(frozen=True, slots=True)
class Settled:
    """A message with a known outcome and, if it arrived, what its header section says about its route.

    If it is missing from a mailbox, ``doubt`` says which part of that mailbox could not be read. ``delay`` is
    our own delay in the interval of its arrival.
    """

    message: Message
    hops: tuple[Hop, ...] = ()
    authentication: AuthenticationResults | None = None
    doubt: str = ""
    delay: OwnDelay | None = None
    exchange: ExchangeReport | None = None

    @property
    def report(self) -> MessageReport:
        """The message's part of a verdict."""
        return replace(self.message.report(), held_up_seconds=self.delay.seconds if self.delay else 0.0)


@dataclass(frozen=True, slots=True)
class Accounted:
    """What to do with a copy; the message that it settled, if any; and the kind, if it was unexpected.

    ``sent_copy_of`` is the message whose copy in the sent folder it is.
    """

    fate: Fate
    settled: Settled | None = None
    unexpected: Unexpected | None = None
    sent_copy_of: str | None = None


_FOREIGN, _PENDING, _OURS = map(Accounted, (Fate.FOREIGN, Fate.PENDING, Fate.OURS))
_DUPLICATE = Accounted(Fate.OURS, unexpected=Unexpected.DUPLICATE)


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy in a mailbox: its identifying fields, when it arrived, and whether a poll counted it before."""

    uid: str
    fields: bytes
    sighting: Sighting
    is_counted: bool

    @property
    def may_be_report(self) -> bool:
        """Whether it must be read to find out whether it is a delivery report."""
        return token_text(self.fields) is None and bounce.may_be_report(self.fields)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A copy of a message that has not arrived yet, and the result if another copy is recorded first."""

    copy: Copy
    record: Message
    otherwise: Accounted

    @property
    def limit(self) -> int:
        """How many octets to read: more than what was sent means that the content was altered."""
        return HEADER_LIMIT if self.record.digest is None else 2 * (self.record.octets or 0) + 64 * 1024


def shift_of(message: Message, clock: Clock) -> float:
    """Return the difference that converts the message's monotonic times to this boot's clock."""
    if message.boot == clock.boot:
        return 0.0
    age = clock.time() - message.created_at
    return clock.monotonic() - age - message.created_mono


class Arrivals:
    """Accounts for the copies in one mailbox.

    ``loops`` has the names of the probes whose messages come back through a forwarder or auto-responder, with
    only the token in the subject. ``authserv_id`` is the host whose Authentication-Results count.
    """

    def __init__(
        self,
        mailbox: str,
        *,
        clock: Clock,
        ledger: Ledger,
        signer: TokenSigner,
        retention: float,
        loops: Container[str] = (),
        authserv_id: str | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._clock = clock
        self._ledger = ledger
        self._signer = signer
        self._retention = retention
        self._loops = loops
        self._authserv_id = authserv_id
        self.awaited: Callable[[str], Message | None] = lambda _: None
        """Returns the record of a message that is awaited in this mailbox, without asking the ledger."""
        self.delays = OwnDelays(clock)
        """Our own delays in reading this mailbox."""

    async def account(
        self, folder: Folder, copies: Sequence[Copy]
    ) -> AsyncGenerator[tuple[str, Accounted], None]:
        """Identify copies by their fields and record them, together; yield the uid and result of each.

        A message with several copies arrived with the one that was there first; if that cannot be told, with
        the first of ``copies``.

        Raises `ProbeFault` or `probes.delivery.message_life.LedgerError`, without recording the rest.
        """
        if folder.role is FolderRole.SENT:
            async for pair in _each({copy.uid: self._sent_copy(copy) for copy in copies}):
                yield pair
            return
        reports = {copy.uid: REPORT_OCTETS for copy in copies if copy.may_be_report}
        others = [copy for copy in copies if copy.uid not in reports]
        arrivals: dict[str, _Arrival] = {}
        later: list[_Arrival] = []
        messages = set[str]()
        identified = await asyncio.gather(*map(self._identified, others))
        for copy, found in sorted(zip(others, identified, strict=True), key=_latest):
            if not isinstance(found, _Arrival):
                yield copy.uid, found
            elif found.record.id in messages:
                later.append(found)
            else:
                messages.add(found.record.id)
                arrivals[copy.uid] = found
        limits = {uid: arrival.limit for uid, arrival in arrivals.items()}
        async for contents in folder.contents(limits, whole=True):
            counting = {
                uid: self._count(arrivals[uid], content, is_junk=folder.role is FolderRole.JUNK)
                for uid, content in contents.items()
            }
            async for pair in _each(counting):
                yield pair
        for arrival in later:
            yield arrival.copy.uid, arrival.otherwise
        async for contents in folder.contents(reports, whole=False):
            async for pair in _each({uid: self._report(content) for uid, content in contents.items()}):
                yield pair

    async def _identified(self, copy: Copy) -> Accounted | _Arrival:
        """Return the message whose arrival a copy is, or the result if the copy needs no counting."""
        text = token_text(copy.fields)
        if text is not None:
            return await self._message(copy, text)
        if (text := subject_token(copy.fields)) is not None:
            return await self._loop(copy, text)
        return _FOREIGN

    async def _message(self, copy: Copy, text: str) -> Accounted | _Arrival:
        token = self._signer.verify(text)
        if token is None:
            return Accounted(Fate.FOREIGN, unexpected=Unexpected.FORGED)
        record = await self._find(token.run)
        if record is None or record.mailbox != self._mailbox or record.probe != token.probe:
            expired = self._clock.time() - token.created_us / 1e6 > self._retention
            return Accounted(Fate.FOREIGN, unexpected=Unexpected.EXPIRED if expired else Unexpected.UNKNOWN)
        if await self._ledger.is_others(record):
            return _FOREIGN
        if record.state is MessageState.INTENT:  # not recorded as sent yet: the next poll counts it
            return _PENDING
        if record.probe not in self._loops and is_auto_reply(copy.fields):
            return _FOREIGN
        if record.mailbox_uid == copy.uid or copy.is_counted:  # counted before a crash or a lost session
            return _OURS
        duplicate = _OURS if record.excused else _DUPLICATE  # servers may deliver again after maintenance
        return _Arrival(copy, record, duplicate) if record.state in AWAITED else duplicate

    async def _sent_copy(self, copy: Copy) -> Accounted:
        """Identify a copy of what an account has sent. Ours stays while its message may still arrive in time.

        It is no arrival. Nothing here is unexpected: other agents may send from the same account.
        """
        text = token_text(copy.fields)
        token = self._signer.verify(text) if text is not None else None
        record = await self._find(token.run) if token is not None else None
        if token is None or record is None or record.probe != token.probe:
            return _FOREIGN
        is_settled = record.state not in _IN_TRANSIT or self._clock.monotonic() > (
            record.due_mono + shift_of(record, self._clock)
        )
        if not is_settled or await self._ledger.is_others(record):
            return _PENDING
        return Accounted(Fate.OURS, sent_copy_of=record.id)

    async def _loop(self, copy: Copy, text: str) -> Accounted | _Arrival:
        """Count the first copy that came back. Others may only quote the token, so they are not deleted."""
        token = self._signer.verify(text)
        record = await self._find(token.run) if token is not None else None
        if record is None or record.probe not in self._loops or record.mailbox != self._mailbox:
            return _FOREIGN
        if await self._ledger.is_others(record):
            return _FOREIGN
        if record.state is MessageState.INTENT:
            return _PENDING
        if record.mailbox_uid == copy.uid:
            return _OURS
        return _Arrival(copy, record, _FOREIGN) if record.state in AWAITED else _FOREIGN

    async def _count(self, arrival: _Arrival, content: Content, *, is_junk: bool) -> Accounted:
        """Record a copy as its message's arrival, unless another copy was quicker."""
        copy, record = arrival.copy, arrival.record
        head, end_of_headers, _ = content.octets.partition(b"\r\n\r\n")
        header_section = head + end_of_headers if content.octets else copy.fields
        # Hosts may stamp a message when its dialogue begins, long before the final dot of a large one.
        wait = record.connected_mono - record.created_mono if record.connected_mono is not None else 0.0
        sent_at, arrived_by = record.created_at + wait, self._clock.time()
        found = hops(header_section, sent_at=sent_at, arrived_by=arrived_by)
        exchange = exchange_report(header_section, longest=max(0.0, arrived_by - sent_at))
        authentication = authentication_results(header_section, self._authserv_id)
        issues = []
        if is_junk or junk_mark(header_section):
            issues.append(ArrivalIssue.JUNKED)
        if record.digest is not None and await _is_altered(arrival, content):
            issues.append(ArrivalIssue.ALTERED)
        interval = _Interval.of(record, copy.sighting, shift_of(record, self._clock))
        latencies = {**interval.latencies(record), "mailbox_uid": copy.uid, "findings": " ".join(issues)}
        arrived = await self._advance(record, interval.state, **latencies)
        if arrived is None:
            return arrival.otherwise
        delay = self._delay_in(interval)
        settled = Settled(arrived, tuple(found), authentication, delay=delay, exchange=exchange)
        return Accounted(Fate.OURS, settled)

    def _delay_in(self, interval: _Interval) -> OwnDelay:
        """Return our own delay in the interval: in the submission and in the polls."""
        polls = self.delays.within(interval.earliest, interval.latest)
        cause = polls.cause if polls.seconds > interval.held_up else Cause.MACHINE
        return OwnDelay(polls.seconds + interval.held_up, cause)

    async def _find(self, message_id: str) -> Message | None:
        if (awaited := self.awaited(message_id)) is not None:
            return awaited  # the ledger itself notices if another copy is recorded first
        with self.delays.waiting(Cause.LEDGER):
            return await self._ledger.find(message_id)

    async def _advance(self, record: Message, state: MessageState, **changes: object) -> Message | None:
        with self.delays.waiting(Cause.LEDGER):
            return await self._ledger.advance(record.id, state, **changes)

    async def _report(self, content: Content) -> Accounted:
        """Match a delivery report to its message, by its token or envelope id."""
        report = bounce.read_report(content.octets[:REPORT_OCTETS])
        run = self._run_of(report) if report is not None else None
        record = await self._find(run) if run is not None else None
        if report is None or record is None or await self._ledger.is_others(record):
            return _FOREIGN
        if record.state is MessageState.INTENT:
            return _PENDING
        if report.action != "failed":
            return _OURS
        return Accounted(Fate.OURS, await self._bounced(record, report))

    def _run_of(self, report: DeliveryReport) -> str | None:
        """Return the run whose message the report is about, if the report proves it."""
        token = self._signer.verify(report.token) if report.token is not None else None
        if token is not None:
            return token.run
        return self._signer.verify_envelope_id(report.envelope_id) if report.envelope_id is not None else None

    async def _bounced(self, record: Message, report: DeliveryReport) -> Settled | None:
        bounced = await self._advance(
            record,
            MessageState.BOUNCED,
            reason=str(report.reason),
            detail=report.diagnostic or f"reported by {report.reporting_mta}",
            enhanced_status_code=report.enhanced_status_code,
        )
        if bounced is None:
            _log.warning("message %s is %s, and bounced: %s", record.id, record.state, report.diagnostic)
            return None
        return Settled(bounced)

    async def give_up(self, message: Message, doubt: str = "") -> Settled:
        """Settle a message that was absent at a poll after its deadline. Raises LedgerError."""
        # If the agent itself was interrupted, nobody knows whether a server ever had the message.
        ours = message.state is MessageState.AMBIGUOUS and message.reason == Reason.INTERRUPTED
        lost = None if ours else await self._advance(message, MessageState.LOST)
        if lost is None:  # an earlier, failed poll has already counted it
            with self.delays.waiting(Cause.LEDGER):
                lost = await self._ledger.find(message.id)
        found = lost or message
        return Settled(found, doubt=doubt if found.state is MessageState.LOST else "")


def _latest(identified: tuple[Copy, object]) -> float:
    return identified[0].sighting.latest


async def _each(
    accounting: Mapping[str, Coroutine[object, object, Accounted]],
) -> AsyncGenerator[tuple[str, Accounted], None]:
    """Yield uids with their results; whatever fails is raised once the others are yielded."""
    failure: BaseException | None = None
    results = await asyncio.gather(*accounting.values(), return_exceptions=True)
    for uid, result in zip(accounting, results, strict=True):
        if isinstance(result, BaseException):
            failure = result
        else:
            yield uid, result
    if failure is not None:
        raise failure


async def _is_altered(arrival: _Arrival, content: Content) -> bool:
    """Compare the content with what was sent. If it could not be read in time, it counts as unaltered."""
    if content.is_too_large:
        return True
    if not content.is_whole:
        _log.warning("message %s was not compared: it could not be read completely", arrival.record.id)
        return False
    if len(content.octets) > _IN_A_THREAD:
        return await asyncio.to_thread(digest_of, content.octets) != arrival.record.digest
    return digest_of(content.octets) != arrival.record.digest


@dataclass(frozen=True, slots=True)
class _Interval:
    """The times between which a message arrived, and the state that follows. Monotonic seconds of this boot.

    ``connected`` is when the latency begins, ``held_up`` how much our own delay may have added to it.
    """

    connected: float
    earliest: float
    latest: float
    held_up: float
    shift: float
    state: MessageState

    @classmethod
    def of(cls, record: Message, sighting: Sighting, shift: float) -> _Interval:
        """Return the interval of a message that was seen to arrive between the two times of ``sighting``."""
        created = record.created_mono + shift
        connected = record.connected_mono + shift if record.connected_mono is not None else created
        dot = max(connected, record.dot_mono + shift) if record.dot_mono is not None else connected
        earliest = max(sighting.earliest, dot)
        latest = max(sighting.latest, earliest)
        # A message is late only if that is proven. An interval that we widened ourselves proves nothing.
        late = record.state is MessageState.LOST or earliest > record.due_mono + shift
        state = MessageState.LATE if late else MessageState.DELIVERED
        held_up = min(record.submission_held_up, dot - connected)
        return cls(connected, earliest, latest, held_up, shift, state)

    def latencies(self, record: Message) -> dict[str, object]:
        """Return the fields of the record. A submission without our own delay would have been shorter."""
        middle, accepted = (self.earliest + self.latest) / 2, record.accepted_mono
        return {
            "delivery_seconds": middle - self.held_up / 2 - self.connected,
            "uncertainty_seconds": (self.latest - self.earliest + self.held_up) / 2,
            "transit_seconds": max(0.0, middle - accepted - self.shift) if accepted is not None else None,
        }
