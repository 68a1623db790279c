"""Identifies the copies found in a mailbox, and records them in the ledger.

A copy counts only if its token verifies. All other contents are read within limits and change nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.verdict import MessageState
from probes.delivery.mailboxes.mailbox import Folder
from probes.delivery.message_life import AWAITED, ArrivalIssue, Ledger, Message
from probes.messages import bounce
from probes.messages.authentication_results import AuthenticationResults
from probes.messages.authentication_results import results as authentication_results
from probes.messages.auto_reply import is_auto_reply
from probes.messages.bounce import DeliveryReport
from probes.messages.content_digest import digest_of
from probes.messages.hops import Hop, hops
from probes.messages.junk import junk_mark
from probes.messages.synthetic_message import subject_token, token_text
from probes.messages.token import TokenSigner

REPORT_OCTETS = bounce.REPORT_LIMIT
"""Maximum octets to read of a delivery report."""

CONTENT_SECONDS = 20.0
"""Maximum seconds to fetch a message's content; if it takes longer, the content is not compared."""

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

    If it is missing from a mailbox, ``doubt`` says which part of that mailbox could not be read.
    """

    message: Message
    hops: tuple[Hop, ...] = ()
    authentication: AuthenticationResults | None = None
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Accounted:
    """What to do with a copy; the message that it settled, if any; and the kind, if it was unexpected."""

    fate: Fate
    settled: Settled | None = None
    unexpected: Unexpected | None = None


_FOREIGN, _PENDING, _OURS = map(Accounted, (Fate.FOREIGN, Fate.PENDING, Fate.OURS))


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

    async def account(
        self, folder: Folder, uid: str, fields: bytes, sighting: Sighting, *, counted: bool
    ) -> Accounted:
        """Identify a copy by its ``fields``, and record it unless it was ``counted`` before.

        Raises `ProbeFault` or `probes.delivery.message_life.LedgerError`, without recording anything.
        """
        text = token_text(fields)
        if text is not None:
            return await self._message(folder, uid, text, fields, sighting, counted=counted)
        if bounce.may_be_report(fields):
            return await self._report(folder, uid)
        if (text := subject_token(fields)) is not None:
            return await self._loop(folder, uid, text, sighting)
        return _FOREIGN

    async def _message(
        self, folder: Folder, uid: str, text: str, fields: bytes, sighting: Sighting, *, counted: bool
    ) -> Accounted:
        token = self._signer.verify(text)
        if token is None:
            return Accounted(Fate.FOREIGN, unexpected=Unexpected.FORGED)
        record = await self._ledger.find(token.run)
        if record is None or record.mailbox != self._mailbox or record.probe != token.probe:
            expired = self._clock.time() - token.created_us / 1e6 > self._retention
            return Accounted(Fate.FOREIGN, unexpected=Unexpected.EXPIRED if expired else Unexpected.UNKNOWN)
        if await self._ledger.is_others(record):
            return _FOREIGN
        if record.state is MessageState.INTENT:  # not recorded as sent yet: the next poll counts it
            return _PENDING
        if record.probe not in self._loops and is_auto_reply(fields):
            return _FOREIGN
        if record.mailbox_uid == uid or counted:  # counted before a crash or a lost session
            return _OURS
        return await self._count(folder, uid, record, sighting)

    async def _loop(self, folder: Folder, uid: str, text: str, sighting: Sighting) -> Accounted:
        """Count the first copy that came back. Others may only quote the token, so they are not deleted."""
        token = self._signer.verify(text)
        record = await self._ledger.find(token.run) if token is not None else None
        if record is None or record.probe not in self._loops or record.mailbox != self._mailbox:
            return _FOREIGN
        if await self._ledger.is_others(record):
            return _FOREIGN
        if record.state is MessageState.INTENT:
            return _PENDING
        if record.mailbox_uid == uid:
            return _OURS
        if record.state not in AWAITED:
            return _FOREIGN
        return await self._count(folder, uid, record, sighting)

    async def _count(self, folder: Folder, uid: str, record: Message, sighting: Sighting) -> Accounted:
        """Record a copy of ``record`` as its arrival, or as a duplicate if it has arrived already."""
        if record.state not in AWAITED:
            return Accounted(Fate.OURS, unexpected=Unexpected.DUPLICATE)
        header_section = await folder.header_section(uid)
        handed_over = record.dot_mono - record.created_mono if record.dot_mono is not None else 0.0
        found = hops(header_section, sent_at=record.created_at + handed_over, arrived_by=self._clock.time())
        authentication = authentication_results(header_section, self._authserv_id)
        issues = []
        if folder.is_junk or junk_mark(header_section):
            issues.append(ArrivalIssue.JUNKED)
        if record.digest is not None and await self._is_altered(folder, uid, record):
            issues.append(ArrivalIssue.ALTERED)
        state, latencies = _measured(record, sighting, shift_of(record, self._clock))
        arrived = await self._ledger.advance(
            record.id, state, **latencies, mailbox_uid=uid, findings=" ".join(issues)
        )
        if arrived is None:
            return Accounted(Fate.OURS, unexpected=Unexpected.DUPLICATE)
        return Accounted(Fate.OURS, Settled(arrived, tuple(found), authentication))

    async def _is_altered(self, folder: Folder, uid: str, record: Message) -> bool:
        """Compare the content with what was sent. If it cannot be fetched in time, it counts as unaltered."""
        try:
            async with asyncio.timeout(CONTENT_SECONDS):
                raw = await folder.whole(uid, 2 * (record.octets or 0) + 64 * 1024)
        except ProbeFault as fault:
            return fault.reason is Reason.RESPONSE_TOO_LARGE
        except TimeoutError:
            _log.warning("message %s was not compared: fetching it took too long", record.id)
            return False
        if raw is None:
            return False  # somebody has deleted it
        if len(raw) > _IN_A_THREAD:
            return await asyncio.to_thread(digest_of, raw) != record.digest
        return digest_of(raw) != record.digest

    async def _report(self, folder: Folder, uid: str) -> Accounted:
        """Match a delivery report to its message, by its token or envelope id."""
        report = bounce.read_report(await folder.beginning(uid, REPORT_OCTETS))
        run = self._run_of(report) if report is not None else None
        record = await self._ledger.find(run) if run is not None else None
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
        bounced = await self._ledger.advance(
            record.id,
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
        lost = None if ours else await self._ledger.advance(message.id, MessageState.LOST)
        if lost is None:  # an earlier, failed poll has already counted it
            lost = await self._ledger.find(message.id)
        found = lost or message
        return Settled(found, doubt=doubt if found.state is MessageState.LOST else "")


def _measured(record: Message, sighting: Sighting, shift: float) -> tuple[MessageState, dict[str, object]]:
    """Return state and latencies of a message that arrived between the two times of ``sighting``."""
    created = record.created_mono + shift
    connected = record.connected_mono + shift if record.connected_mono is not None else created
    dot = record.dot_mono + shift if record.dot_mono is not None else connected
    earliest = max(sighting.earliest, dot)
    latest = max(sighting.latest, earliest)
    middle = (earliest + latest) / 2
    accepted = record.accepted_mono
    # A message is late only if that is proven. An interval that we widened ourselves proves nothing.
    late = record.state is MessageState.LOST or earliest > created + record.deadline_seconds
    return MessageState.LATE if late else MessageState.DELIVERED, {
        "delivery_seconds": middle - connected,
        "uncertainty_seconds": (latest - earliest) / 2,
        "transit_seconds": max(0.0, middle - accepted - shift) if accepted is not None else None,
    }
