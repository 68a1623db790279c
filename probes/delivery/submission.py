"""Handing one message over to a server, with every way that it can end in the ledger."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from probes.core.clock import Clock
from probes.core.descriptors import require_descriptor
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import RESOLVE, MessageState, Run
from probes.delivery.message_life import Ledger, LedgerError, Message
from probes.messages.synthetic_message import SyntheticMessage
from probes.protocols.smtp_session import SmtpSession, smtp_session

RETRY_FACTOR = 2.0
"""How much longer each pause between tries is than the one before it."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """Sender and recipient as SMTP names them (RFC 5321 section 2.3.1)."""

    sender: str
    recipient: str


class Handover:
    """One message on its way to a server, over all tries; leaving the block closes its connection.

    ``message`` is the ledger's record of it, brought up to date with every step.
    """

    def __init__(self, message: Message, composed: SyntheticMessage, begun: float, envelope_id: str) -> None:
        self.message = message
        self.composed = composed
        self.envelope_id = envelope_id
        """What a delivery report names that does not return the message; see `TokenSigner.envelope_id`."""
        self.refused_at: float | None = None
        """Monotonic reading of the first refusal for now."""
        self.session: SmtpSession | None = None
        """Of the latest try."""
        self._begun = begun
        self._connected: float | None = None
        self._connection = AsyncExitStack()

    async def __aenter__(self) -> Handover:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def connect(self, server: ServerSettings, run: Run, clock: Clock) -> SmtpSession:
        """Open a session for the next try, in place of the one before it. Raises `ProbeFault`."""
        await self.disconnect()
        session = smtp_session(server, run.phases, clock)
        self.session = await self._connection.enter_async_context(session)
        return self.session

    async def disconnect(self) -> None:
        """Close the connection, so that no server keeps one open between two tries."""
        self.session = None
        await self._connection.aclose()

    async def quit(self) -> None:
        """End the session politely, where one is open: its result is known by now."""
        if self.session is not None:
            await self.session.quit()
            await self.disconnect()

    def connected_at(self, run: Run) -> float:
        """Return when the first try connected, a monotonic reading: what people wait for begins there.

        Name resolution before it does not count.
        """
        if self._connected is None:
            self._connected = self._begun + run.phases.seconds.get(RESOLVE, 0.0)
        return self._connected

    @property
    def dot_sent_at(self) -> float | None:
        """Monotonic reading right before the latest try's final dot went out, if it did."""
        return self.session.dot_sent_at if self.session is not None else None


class Submission:
    """Hands messages over to one server, and records what became of each.

    ``retry`` is the first pause in seconds before a message that was refused for now is tried
    again; ``None`` means that it is not.
    """

    def __init__(
        self,
        server: ServerSettings,
        envelope: Envelope,
        *,
        clock: Clock,
        ledger: Ledger,
        retry: float | None = None,
    ) -> None:
        self._server = server
        self._envelope = envelope
        self._clock = clock
        self._ledger = ledger
        self._retry = retry
        self._unrecorded: dict[str, MessageState] = {}

    async def intend(self, message: Message) -> None:
        """Make the intent durable, so that whatever happens after it is accounted for.

        Raises LedgerError, and `ProbeFault` with `LOCAL_RESOURCES` while a message that was sent might
        not be watched.
        """
        require_descriptor(for_sending=True)
        for message_id, state in list(self._unrecorded.items()):
            await self._ledger.advance(message_id, state, reason=str(Reason.LEDGER_UNAVAILABLE))
            self._unrecorded.pop(message_id, None)  # another run may have been quicker
        await self._ledger.intend(message)

    async def send(self, run: Run, handover: Handover) -> None:
        """Hand the message over; its record is then ``sent`` or ``ambiguous``, and its session still open.

        Raises `ProbeFault` when it surely was not handed over, and LedgerError. When the run is ended
        by force, the record says what may have gone out.
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
                if pause is None or pause >= left or not _is_refused_for_now(fault, handover):
                    await self._failed(run, handover, fault)
                    return
                handover.connected_at(run)
                handover.refused_at = handover.refused_at or failed_at
            else:
                return
            await handover.disconnect()
            with run.waiting(), run.phases.phase("retry"):
                await self._clock.sleep(pause)
            pause *= RETRY_FACTOR

    async def _try(self, run: Run, handover: Handover) -> None:
        session = await handover.connect(self._server, run, self._clock)
        await session.mail(self._envelope.sender, len(handover.composed.content), handover.envelope_id)
        await session.rcpt(self._envelope.recipient)
        reply = await session.data(handover.composed.content)
        accepted = self._clock.monotonic()
        connected, refused_at = handover.connected_at(run), handover.refused_at
        await self._record(
            handover,
            MessageState.SENT,
            connected_mono=connected,
            dot_mono=session.dot_sent_at,
            accepted_mono=accepted,
            submission_seconds=accepted - connected,
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
        """Move the message on in the ledger; what cannot be recorded now is owed before the next intent."""
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
        """Record where the run's end by force caught the message."""
        message_id, dot = handover.message.id, handover.dot_sent_at
        if handover.message.state is not MessageState.INTENT:
            return
        state = MessageState.DEFERRED if dot is None else MessageState.AMBIGUOUS
        recording = self._ledger.advance(message_id, state, dot_mono=dot, reason=str(Reason.INTERRUPTED))
        try:
            # Nothing is recorded where the run was ended while it recorded `sent`: that holds.
            recorded = await asyncio.shield(recording) or await self._ledger.find(message_id)
        except LedgerError:
            self._unrecorded[message_id] = state
        else:
            handover.message = recorded or handover.message


def _is_refused_for_now(fault: ProbeFault, handover: Handover) -> bool:
    """Whether the server asked to try again later before it was given the content."""
    code = fault.reply_code
    return code is not None and 400 <= code < 500 and handover.dot_sent_at is None


def _state_after(fault: ProbeFault, dot_sent_at: float | None) -> MessageState:
    """Return the state of a message whose submission failed with ``fault``.

    Before the final dot nothing was handed over, and a mail server would keep trying: that is
    ``deferred`` (``rejected`` after a 5xx). After the dot only a reply tells (RFC 5321 section 4.2.5).
    """
    if fault.reply_code is not None and 500 <= fault.reply_code < 600:
        return MessageState.REJECTED
    if dot_sent_at is None or (fault.reply_code is not None and 400 <= fault.reply_code < 500):
        return MessageState.DEFERRED
    return MessageState.AMBIGUOUS
