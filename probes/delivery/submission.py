"""Hands one message over to a server, and records every possible outcome in the ledger."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from probes.core.clock import Clock
from probes.core.credentials import NO_TOKENS, Tokens, credentials_of
from probes.core.descriptors import require_descriptor
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import RESOLVE, MessageState, PhaseTimer, Run
from probes.delivery.message_life import Ledger, LedgerError, Message
from probes.messages.synthetic_message import SyntheticMessage
from probes.protocols import connection_limits
from probes.protocols.connection_limits import Slot
from probes.protocols.smtp_session import smtp_session

RETRY_FACTOR = 2.0
"""Factor from one pause between tries to the next."""

TURNS_OF_THE_LOOP = 3.0
"""Turns of the event loop that a dialogue waits for, for each one that is timed.

The timed one is that from an answer to the run's continuation. The loop takes about as long to notice the
answer. Connecting and TLS take a few more turns.
"""


@dataclass(frozen=True, slots=True)
class Envelope:
    """Sender and recipient in SMTP (RFC 5321 section 2.3.1)."""

    sender: str
    recipient: str


class Acceptance(Protocol):
    """The answer with which a server took a message."""

    @property
    def code(self) -> int:
        """Its reply code (RFC 5321 section 4.2) or HTTP status."""
        ...

    @property
    def enhanced_status_code(self) -> str | None:
        """Its code of RFC 3463, if it has one."""
        ...


class SendingSession(Protocol):
    """A session with a server that takes messages, by any protocol."""

    @property
    def dot_sent_at(self) -> float | None:
        """Monotonic time right before the end of the message was sent.

        If it is ``None`` after a fault, the server does not have the message.
        """
        ...

    async def send(self, sender: str, recipient: str, content: bytes, envelope_id: str) -> Acceptance:
        """Hand a message over; raises `ProbeFault`, which says whether the server refused it."""
        ...

    async def quit(self) -> None:
        """End the session; the result is already known."""
        ...


def sending_session(
    server: ServerSettings, phases: PhaseTimer, clock: Clock, slot: Slot | None, tokens: Tokens
) -> AbstractAsyncContextManager[SendingSession]:
    """Open a session by the server's protocol for the block; it uses ``slot``, or waits for one."""
    if server.protocol == "graph":
        from probes.protocols.graph import graph_submission  # half a second, which only Graph needs

        return graph_submission(server, phases, clock, slot, tokens)
    return smtp_session(server, phases, clock, slot, tokens)


class Handover:
    """The submission of one message to a server, over all tries. Leaving the block closes its connection.

    ``message`` is its record in the ledger, updated at every step. The connection of the first try uses
    ``slot``.
    """

    def __init__(
        self, message: Message, composed: SyntheticMessage, begun: float, envelope_id: str, slot: Slot
    ) -> None:
        self.message = message
        self.composed = composed
        self.envelope_id = envelope_id
        """Identifies the message in delivery reports that do not return it; see `TokenSigner.envelope_id`."""
        self.refused_at: float | None = None
        """Monotonic time of the first temporary refusal."""
        self.session: SendingSession | None = None
        """The session of the latest try."""
        self._begun = begun
        self._slot: Slot | None = slot
        self._held_up = 0.0  # in earlier tries
        self._held_up_before: float | None = None  # what `_held_up` returned when the current try began
        self._connected: float | None = None
        self._connection = AsyncExitStack()

    async def __aenter__(self) -> Handover:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def connect(self, server: ServerSettings, run: Run, clock: Clock, tokens: Tokens) -> SendingSession:
        """Open a session for the next try, replacing the previous one. Raises `ProbeFault`."""
        await self.disconnect()
        self._held_up_before = _held_up(run)
        slot, self._slot = self._slot, None  # only for the first try
        session = sending_session(server, run.phases, clock, slot, tokens)
        self.session = await self._connection.enter_async_context(session)
        return self.session

    async def disconnect(self) -> None:
        """Close the connection."""
        self.session = None
        await self._connection.aclose()

    async def quit(self) -> None:
        """End the session if it is open; the result is already known."""
        if self.session is not None:
            await self.session.quit()
            await self.disconnect()

    def connected_at(self, run: Run) -> float:
        """Return the monotonic time at which the first try connected, after name resolution.

        The delivery latency is measured from here.
        """
        if self._connected is None:
            self._connected = self._begun + run.phases.seconds.get(RESOLVE, 0.0)
        return self._connected

    def held_up(self, run: Run) -> float:
        """Return how many seconds the event loop has held up all tries: about, and rather too many."""
        before = self._held_up_before
        return self._held_up + (0.0 if before is None else _held_up(run) - before)

    async def end_try(self, run: Run) -> None:
        """Close the connection, so that it does not stay open between two tries."""
        self._held_up, self._held_up_before = self.held_up(run), None
        await self.disconnect()

    @property
    def dot_sent_at(self) -> float | None:
        """Monotonic time right before the latest try's final dot was sent, if it was."""
        return self.session.dot_sent_at if self.session is not None else None


class Submission:
    """Hands messages over to one server, and records the outcome of each.

    ``retry`` is the first pause in seconds after a temporary refusal; ``None`` means no further try.
    """

    def __init__(
        self,
        server: ServerSettings,
        envelope: Envelope,
        *,
        clock: Clock,
        ledger: Ledger,
        retry: float | None = None,
        tokens: Tokens = NO_TOKENS,
    ) -> None:
        self._server = server
        self._envelope = envelope
        self._clock = clock
        self._ledger = ledger
        self._retry = retry
        self._tokens = tokens
        self._credentials = credentials_of(server, tokens)
        self._unrecorded: dict[str, MessageState] = {}

    async def turn(self, run: Run) -> Slot:
        """Wait for a token, if one is needed, and the slot of the first connection; return the slot.

        That is before the message exists. Raises `ProbeFault`.
        """
        with run.waiting():
            if self._credentials is not None:
                await self._credentials.secret(run.phases)
            return await connection_limits.system.take(self._server.host, self._server.port, run.phases)

    async def intend(self, message: Message) -> None:
        """Make the intent durable, so that the message is accounted for whatever happens later.

        Raises LedgerError, and `ProbeFault` with `LOCAL_RESOURCES` if there are too few resources to watch
        for the message after sending it.
        """
        require_descriptor(for_sending=True)
        for message_id, state in list(self._unrecorded.items()):
            await self._ledger.advance(message_id, state, reason=str(Reason.LEDGER_UNAVAILABLE))
            self._unrecorded.pop(message_id, None)  # another run may have done this already
        await self._ledger.intend(message)

    async def send(self, run: Run, handover: Handover) -> None:
        """Hand the message over. Afterwards its state is ``sent`` or ``ambiguous``, and the session is open.

        Raises `ProbeFault` if it was definitely not handed over, and LedgerError. If the run is cancelled,
        the record says whether the message may have been sent.
        """
        try:
            await self._send(run, handover)
        except asyncio.CancelledError:
            await self._interrupted(handover)
            raise

    async def _send(self, run: Run, handover: Handover) -> None:
        message, pause = handover.message, self._retry
        while True:
            try:
                await self._try(run, handover)
            except ProbeFault as fault:
                failed_at = self._clock.monotonic()
                left = message.created_mono + message.deadline_seconds - failed_at
                if pause is not None:
                    pause = max(pause, fault.retry_after or 0.0)
                if pause is None or pause >= left or not _is_refused_for_now(fault, handover):
                    await self._failed(run, handover, fault)
                    return
                handover.connected_at(run)
                handover.refused_at = handover.refused_at or failed_at
            else:
                return
            await handover.end_try(run)
            with run.waiting(), run.phases.phase("retry"):
                await self._clock.sleep(pause)
            pause *= RETRY_FACTOR

    async def _try(self, run: Run, handover: Handover) -> None:
        session = await handover.connect(self._server, run, self._clock, self._tokens)
        sender, recipient = self._envelope.sender, self._envelope.recipient
        reply = await session.send(sender, recipient, handover.composed.content, handover.envelope_id)
        accepted = self._clock.monotonic()
        connected, refused_at = handover.connected_at(run), handover.refused_at
        await self._record(
            handover,
            MessageState.SENT,
            connected_mono=connected,
            dot_mono=session.dot_sent_at,
            accepted_mono=accepted,
            submission_seconds=max(0.0, accepted - connected - handover.held_up(run)),
            greylisted_seconds=accepted - refused_at if refused_at is not None else None,
            reply_code=reply.code,
            enhanced_status_code=reply.enhanced_status_code,
        )

    async def _failed(self, run: Run, handover: Handover, fault: ProbeFault) -> None:
        await self._record(
            handover,
            _state_after(fault, handover.dot_sent_at),
            connected_mono=handover.connected_at(run),
            dot_mono=handover.dot_sent_at,
            reason=str(fault.reason),
            detail=fault.detail,
            reply_code=fault.reply_code,
            enhanced_status_code=fault.enhanced_status_code,
        )
        await handover.disconnect()
        if handover.message.state is not MessageState.AMBIGUOUS:
            raise fault

    async def _record(self, handover: Handover, state: MessageState, **changes: object) -> None:
        """Move the message to ``state``. A change that cannot be recorded is made before the next intent."""
        message_id = handover.message.id
        try:
            moved = await self._ledger.advance(message_id, state, **changes)
        except LedgerError:
            self._unrecorded[message_id] = state if state is not MessageState.SENT else MessageState.AMBIGUOUS
            raise
        if moved is None:
            raise RuntimeError(f"the ledger refused {state} for message {message_id}")
        handover.message = moved

    async def _interrupted(self, handover: Handover) -> None:
        """Record the message's state when the run is cancelled."""
        message_id, dot = handover.message.id, handover.dot_sent_at
        if handover.message.state is not MessageState.INTENT:
            return
        state = MessageState.DEFERRED if dot is None else MessageState.AMBIGUOUS
        recording = self._ledger.advance(message_id, state, dot_mono=dot, reason=str(Reason.INTERRUPTED))
        try:
            # If the run was cancelled while recording `sent`, that remains valid.
            recorded = await asyncio.shield(recording) or await self._ledger.find(message_id)
        except LedgerError:
            self._unrecorded[message_id] = state
        else:
            handover.message = recorded or handover.message


def _held_up(run: Run) -> float:
    return run.blocked() + TURNS_OF_THE_LOOP * run.phases.held_up


def _is_refused_for_now(fault: ProbeFault, handover: Handover) -> bool:
    """Whether the server asked us to try again later, before it received the content."""
    return fault.refusal == "temporary" and handover.dot_sent_at is None


def _state_after(fault: ProbeFault, dot_sent_at: float | None) -> MessageState:
    """Return the state of a message whose submission failed with ``fault``.

    Before the final dot, nothing was handed over, and a mail server would try again: ``deferred``, or
    ``rejected`` after a 5xx. After the dot, only a reply decides (RFC 5321 section 4.2.5).
    """
    if fault.refusal == "permanent":
        return MessageState.REJECTED
    if dot_sent_at is None or fault.refusal == "temporary":
        return MessageState.DEFERRED
    return MessageState.AMBIGUOUS
