"""Handing one message over to a server, with every way that it can end in the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import MessageState, Run
from probes.delivery.arrivals import Settled
from probes.delivery.message_life import LedgerError, Message
from probes.delivery.tools import Tools
from probes.messages.synthetic_message import SyntheticMessage
from probes.protocols.smtp_session import SmtpSession, smtp_session

RETRY_FACTOR = 2.0
"""How much longer each pause between tries is than the one before it."""


Followed = tuple[Message, asyncio.Future[Settled]]
Follow = Callable[[Message], asyncio.Future[Settled]]


@dataclass(frozen=True, slots=True)
class Envelope:
    """Sender and recipient as SMTP names them (RFC 5321 section 2.3.1)."""

    sender: str
    recipient: str


class Submission:
    """Hands messages over to one server, and records what became of each.

    ``retry`` is the first pause in seconds before a message that was refused for now is tried
    again; ``None`` means that it is not.
    """

    def __init__(
        self, server: ServerSettings, envelope: Envelope, tools: Tools, retry: float | None = None
    ) -> None:
        self._server = server
        self._envelope = envelope
        self._tools = tools
        self._retry = retry
        self._unrecorded: dict[str, MessageState] = {}

    async def intend(self, message: Message) -> None:
        """Make the intent durable, so that whatever happens after it is accounted for. Raises LedgerError."""
        for message_id, state in list(self._unrecorded.items()):
            await self._tools.ledger.advance(message_id, state, reason=str(Reason.LEDGER_UNAVAILABLE))
            self._unrecorded.pop(message_id, None)  # another run may have been quicker
        await self._tools.ledger.intend(message)

    async def send(self, run: Run, message: Message, composed: SyntheticMessage, follow: Follow) -> Followed:
        """Hand the message over; return it as ``sent`` or ``ambiguous``, with what ``follow`` gave for it.

        ``follow`` is called at once, before the session is ended politely. Raises `ProbeFault` when it
        surely was not handed over, and LedgerError.
        """
        progress, pause = _Progress(self._tools.clock.monotonic()), self._retry
        while True:
            progress.session = None
            try:
                return await self._try(run, message, composed, progress, follow)
            except ProbeFault as fault:
                failed = self._tools.clock.monotonic()
                left = message.created_mono + message.deadline_seconds - failed
                if pause is None or pause >= left or not _is_refused_for_now(fault, progress):
                    failed_message = await self._failed(run, message, fault, progress)
                    return failed_message, follow(failed_message)
                progress.connected_at(run)
                progress.refused_at = progress.refused_at or failed
            except asyncio.CancelledError:
                await self._interrupted(message.id, progress, follow)
                raise
            await self._wait(run, message.id, pause, follow)
            pause *= RETRY_FACTOR

    async def _try(
        self,
        run: Run,
        message: Message,
        composed: SyntheticMessage,
        progress: _Progress,
        follow: Follow,
    ) -> Followed:
        clock = self._tools.clock
        async with smtp_session(self._server, run.phases, clock) as session:
            progress.session = session
            await session.mail(self._envelope.sender)
            await session.rcpt(self._envelope.recipient)
            reply = await session.data(composed.content)
            accepted = clock.monotonic()
            connected, refused_at = progress.connected_at(run), progress.refused_at
            sent = await self._record(
                message.id,
                MessageState.SENT,
                connected_mono=connected,
                dot_mono=session.dot_sent_at,
                accepted_mono=accepted,
                submission_seconds=accepted - connected,
                greylisted_seconds=accepted - refused_at if refused_at is not None else None,
                reply_code=reply.code,
                enhanced_status_code=reply.enhanced_status_code,
            )
            progress.is_recorded = True
            run.can_stop = True
            followed = follow(sent)
            await session.quit()
            return sent, followed

    async def _failed(self, run: Run, message: Message, fault: ProbeFault, progress: _Progress) -> Message:
        failed = await self._record(
            message.id,
            _state_after(fault, progress.dot_sent_at),
            connected_mono=progress.connected_at(run),
            dot_mono=progress.dot_sent_at,
            reason=str(fault.reason),
            detail=fault.detail,
            reply_code=fault.reply_code,
            enhanced_status_code=fault.enhanced_status_code,
        )
        if failed.state is not MessageState.AMBIGUOUS:
            raise fault
        return failed

    async def _wait(self, run: Run, message_id: str, seconds: float, follow: Follow) -> None:
        """Wait before the next try; the agent may end the run meanwhile."""
        run.can_stop = True
        try:
            with run.phases.phase("retry"):
                await self._tools.clock.sleep(seconds)
        except asyncio.CancelledError:
            await self._interrupted(message_id, _Progress(0.0), follow)
            raise
        run.can_stop = False

    async def _record(self, message_id: str, state: MessageState, **changes: object) -> Message:
        """Move the message on in the ledger; what cannot be recorded now is owed before the next intent."""
        try:
            moved = await self._tools.ledger.advance(message_id, state, **changes)
        except LedgerError:
            self._unrecorded[message_id] = state if state is not MessageState.SENT else MessageState.AMBIGUOUS
            raise
        if moved is None:
            raise RuntimeError(f"the ledger refused {state} for message {message_id}")
        return moved

    async def _interrupted(self, message_id: str, progress: _Progress, follow: Follow) -> None:
        """Record where the run's end by force caught the message, and watch for what may have gone out."""
        if progress.is_recorded:
            return
        dot = progress.dot_sent_at
        state = MessageState.DEFERRED if dot is None else MessageState.AMBIGUOUS
        recording = self._tools.ledger.advance(
            message_id, state, dot_mono=dot, reason=str(Reason.INTERRUPTED)
        )
        try:
            recorded = await asyncio.shield(recording)
        except LedgerError:
            self._unrecorded[message_id] = state
            return
        if recorded is not None and state is MessageState.AMBIGUOUS:
            follow(recorded)


@dataclass(slots=True)
class _Progress:
    """How far handing over came, over all tries; times are monotonic."""

    begun: float
    connected: float | None = None  # at the first try: what people wait for begins there
    refused_at: float | None = None
    session: SmtpSession | None = None  # of the latest try
    is_recorded: bool = False  # as sent

    def connected_at(self, run: Run) -> float:
        """Return when the first try connected; name resolution before it does not count."""
        if self.connected is None:
            self.connected = self.begun + run.phases.seconds.get("resolve", 0.0)
        return self.connected

    @property
    def dot_sent_at(self) -> float | None:
        return self.session.dot_sent_at if self.session is not None else None


def _is_refused_for_now(fault: ProbeFault, progress: _Progress) -> bool:
    """Whether the server asked to try again later before it was given the content."""
    code = fault.reply_code
    return code is not None and 400 <= code < 500 and progress.dot_sent_at is None


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
