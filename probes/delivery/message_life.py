"""The life of a synthetic message: its states, which may follow which, and the record that is kept."""

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
"""States of a message that is under way; `ambiguous` is counted apart."""

AWAITED = frozenset({_S.SENT, _S.AMBIGUOUS, _S.LOST})
"""States whose message may still turn up in its mailbox."""


class ArrivalIssue(StrEnum):
    """What can be wrong with a message that arrived."""

    JUNKED = "junked"
    ALTERED = "altered"


@dataclass(frozen=True, slots=True)
class Message:
    """The ledger's record of one message. Instants ``*_at`` are unix seconds, ``*_mono`` monotonic seconds.

    ``boot`` tells in which boot of the machine the monotonic readings were taken, and
    ``instance`` which process of mailsonde answers for the message.
    """

    id: str  # the run's id, 32 hex digits
    probe: str
    target: str
    mailbox: str
    state: MessageState
    created_at: float  # the send time that the token signs
    deadline_seconds: float  # from created_at; not in the mailbox by then means lost
    instance: str
    boot: str
    created_mono: float
    connected_mono: float | None = None  # delivery is measured from here
    dot_mono: float | None = None  # the final dot went out: not in the mailbox before this
    accepted_mono: float | None = None  # the 250 after DATA came in: transit is measured from here
    greylisted_seconds: float | None = None  # from the first refusal for now to the 250 after DATA
    octets: int | None = None  # size of the message as it was sent
    digest: str | None = None  # of subject, body and attachment; see messages.content_digest
    mailbox_uid: str | None = None  # the stored copy that counted as the arrival; see delivery.mailboxes
    findings: str = ""  # each `ArrivalIssue` of the arrival, with spaces between
    reason: str = ""
    detail: str = ""
    reply_code: int | None = None  # RFC 5321 section 4.2
    enhanced_status_code: str | None = None  # RFC 3463
    submission_seconds: float | None = None
    transit_seconds: float | None = None
    delivery_seconds: float | None = None
    uncertainty_seconds: float | None = None

    def report(self) -> MessageReport:
        """Return what a verdict shows of the message."""
        return MessageReport(
            id=self.id,
            state=self.state,
            submission_seconds=self.submission_seconds,
            transit_seconds=self.transit_seconds,
            delivery_seconds=self.delivery_seconds,
            uncertainty_seconds=self.uncertainty_seconds,
        )


class LedgerError(Exception):
    """The ledger could not record or read; nothing was recorded, and the text says why."""


class Ledger(Protocol):
    """What probes ask of the ledger. Every call returns only after its change is durable.

    All raise `LedgerError`.
    """

    async def intend(self, message: Message) -> None:
        """Record a new message in state ``intent``."""
        ...

    async def advance(self, message_id: str, state: MessageState, **changes: object) -> Message | None:
        """Move a message to ``state`` and set the fields in ``changes``.

        Returns the message as it now is, or ``None`` with nothing changed when the move is
        not in `SUCCESSORS` or the message is not known: a second arrival is such a case.
        """
        ...

    async def find(self, message_id: str) -> Message | None:
        """Return the message with this id, or ``None``."""
        ...

    async def is_others(self, message: Message) -> bool:
        """Return whether another process that still lives answers for the message."""
        ...
