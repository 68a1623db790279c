"""The life of a synthetic message: its states, their order, and its record in the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

from probes.core.verdict import MessageReport, MessageState

_S = MessageState
_ARRIVAL_ENDS = frozenset({_S.DELIVERED, _S.LATE, _S.LOST, _S.BOUNCED})

SUCCESSORS: Mapping[MessageState, frozenset[MessageState]] = MappingProxyType(
    {
        # A crash between reply and record leaves `ambiguous`: arrival never follows `intent` directly.
        _S.INTENT: frozenset({_S.SENT, _S.REJECTED, _S.DEFERRED, _S.AMBIGUOUS}),
        _S.SENT: _ARRIVAL_ENDS,
        _S.AMBIGUOUS: _ARRIVAL_ENDS,
        _S.LOST: frozenset({_S.LATE}),
        _S.DELIVERED: frozenset(),
        _S.LATE: frozenset(),
        _S.BOUNCED: frozenset(),
        _S.REJECTED: frozenset(),
        _S.DEFERRED: frozenset(),
    }
)

IN_FLIGHT = frozenset({_S.INTENT, _S.SENT})
"""States of messages in flight; `ambiguous` is counted separately."""

AWAITED = frozenset({_S.SENT, _S.AMBIGUOUS, _S.LOST})
"""States of messages that may still arrive."""


class ArrivalIssue(StrEnum):
    """What may be wrong with a message that arrived."""

    JUNKED = "junked"
    ALTERED = "altered"


@dataclass(frozen=True, slots=True)
class Message:
    """The ledger's record of one message. Times ``*_at`` are unix seconds, ``*_mono`` monotonic seconds.

    ``boot`` identifies the machine's boot to which the monotonic times belong. ``instance`` is the process of
    mailsonde that is responsible for the message.
    """

    id: str  # the run's id, 32 hex digits
    probe: str
    target: str
    mailbox: str
    state: MessageState
    created_at: float  # the send time that the token signs
    deadline_seconds: float  # see `due_mono`
    instance: str
    boot: str
    created_mono: float
    connected_mono: float | None = None  # delivery is measured from here
    dot_mono: float | None = None  # the final dot was sent: the message cannot arrive before this
    accepted_mono: float | None = None  # the 250 after DATA arrived: transit is measured from here
    greylisted_seconds: float | None = None  # from the first temporary refusal to the 250 after DATA
    octets: int | None = None  # size of the message as sent
    digest: str | None = None  # of subject, body and attachment; see messages.content_digest
    mailbox_uid: str | None = None  # the stored copy that counted as the arrival; see delivery.mailboxes
    findings: str = ""  # each `ArrivalIssue` of the arrival, separated by spaces
    reason: str = ""
    detail: str = ""
    reply_code: int | None = None  # RFC 5321 section 4.2
    enhanced_status_code: str | None = None  # RFC 3463
    submission_seconds: float | None = None
    transit_seconds: float | None = None
    delivery_seconds: float | None = None
    uncertainty_seconds: float | None = None
    trace_looks: int = 0  # how often the tenant was asked where it ended; see `probes.delivery.tracing`
    trace: str = ""  # what the tenant said last
    excused: bool = False  # by maintenance of its probe while it was in flight: its end does not count

    @property
    def due_mono(self) -> float:
        """Monotonic time of the deadline: a message that is not in the mailbox by then is lost.

        It counts from connecting, like the latency: the mail system is not to blame if our own ledger,
        resolver or limits delayed the submission. Nor is it if the event loop held up the dialogue.
        """
        begun = self.connected_mono if self.connected_mono is not None else self.created_mono
        return begun + self.submission_held_up + self.deadline_seconds

    @property
    def submission_held_up(self) -> float:
        """How many seconds of the submission are our own delay; ``submission_seconds`` is without them."""
        if self.accepted_mono is None or self.connected_mono is None or self.submission_seconds is None:
            return 0.0
        return max(0.0, self.accepted_mono - self.connected_mono - self.submission_seconds)

    def report(self) -> MessageReport:
        """Return the message's part of a verdict."""
        return MessageReport(
            id=self.id,
            state=self.state,
            submission_seconds=self.submission_seconds,
            transit_seconds=self.transit_seconds,
            delivery_seconds=self.delivery_seconds,
            uncertainty_seconds=self.uncertainty_seconds,
        )


class LedgerError(Exception):
    """The ledger could not be written or read. Nothing was recorded; the text says why."""


class Ledger(Protocol):
    """The ledger's interface for probes. Every call returns only after its change is durable.

    All methods raise `LedgerError`.
    """

    async def intend(self, message: Message) -> None:
        """Record a new message in state ``intent``."""
        ...

    async def advance(self, message_id: str, state: MessageState, **changes: object) -> Message | None:
        """Move a message to ``state`` and set the fields in ``changes``.

        Returns the changed message. If the message is unknown, or the move is not in `SUCCESSORS`, as for a
        second arrival, nothing changes and the result is ``None``.
        """
        ...

    async def note_trace(self, message_id: str, looks: int, trace: str) -> None:
        """Set ``trace_looks`` and ``trace`` of a message in any state; an unknown one is ignored."""
        ...

    async def find(self, message_id: str) -> Message | None:
        """Return the message with this id, or ``None``."""
        ...

    async def is_others(self, message: Message) -> bool:
        """Return whether another running process is responsible for the message."""
        ...
