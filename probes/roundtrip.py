"""The ``roundtrip`` kind: send a message, watch its mailbox, say when it arrived and how surely."""

from __future__ import annotations

import asyncio
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from probes.faults import ProbeFault
from probes.letter import compose
from probes.message_life import LedgerError, Message, MessageState
from probes.probe import Probe
from probes.reasons import Area, Reason
from probes.settings import Duration, EmailAddress, MailboxName, ProbeSettings, SmtpServerName, between
from probes.smtp_client import SmtpSession, smtp_session
from probes.token import Token
from probes.tools import Tools
from probes.verdict import MessageReport, Run, Verdict

LOOK_GRACE = 30.0
"""Seconds past a message's deadline in which a look may still tell whether it arrived."""


class RoundtripSettings(ProbeSettings):
    """Settings of a ``roundtrip`` probe. ``deadline`` is the message's: later means lost."""

    kind: Literal["roundtrip"]
    deadline: Annotated[Duration, between(1, 86400)] = Field(
        default=300.0, description="A message that takes longer is lost."
    )
    sender: EmailAddress = Field(alias="from", description="Envelope sender and From address.")
    send_via: SmtpServerName
    to: MailboxName

    runs_overlap: ClassVar[bool] = True

    @property
    def run_limit(self) -> float:
        """The deadline, and some time in which a last look can end."""
        return self.deadline + LOOK_GRACE + 5.0


class Roundtrip(Probe):
    """Sends one signed message a run and follows it into its mailbox."""

    settings: RoundtripSettings
    settings_model = RoundtripSettings
    areas: ClassVar[frozenset[Area]] = frozenset(Area) - {Area.MX}
    sends_messages: ClassVar[bool] = True

    def __init__(self, settings: RoundtripSettings, tools: Tools) -> None:
        super().__init__(settings, tools)
        self._server = tools.site.servers[settings.send_via]
        self._recipient = tools.site.mailboxes[settings.to].address
        self._watcher = tools.watchers[settings.to]
        self._unrecorded: dict[str, MessageState] = {}

    @property
    def target(self) -> str:
        """The configured server that messages are sent through."""
        return self.settings.send_via

    async def run(self, run: Run) -> Verdict:
        """Record the intent, send, and wait until the message has arrived or its deadline has passed."""
        message = await self._intend(run)
        try:
            sent, arrival = await self._send(run, message)
            run.only_waits = True
            limit = (
                self.settings.deadline + LOOK_GRACE - (self.tools.clock.monotonic() - message.created_mono)
            )
            done, _ = await asyncio.wait({arrival}, timeout=max(0.0, limit))
        except LedgerError as error:
            raise ProbeFault(Reason.LEDGER_UNAVAILABLE, str(error)) from error
        if not done:
            return _undecided(sent, self._watcher.fault)
        return _verdict(arrival.result())

    async def _intend(self, run: Run) -> Message:
        """Make the intent durable, so that whatever happens after it is accounted for."""
        clock = self.tools.clock
        message = Message(
            id=run.id,
            probe=self.settings.name,
            target=self.target,
            mailbox=self.settings.to,
            state=MessageState.INTENT,
            created_at=round(clock.time(), 6),
            deadline_seconds=self.settings.deadline,
            instance=self.tools.instance,
            boot=clock.boot,
            created_mono=clock.monotonic(),
        )
        try:
            for message_id, state in list(self._unrecorded.items()):
                await self.tools.ledger.advance(message_id, state, reason=str(Reason.LEDGER_UNAVAILABLE))
                del self._unrecorded[message_id]
            await self.tools.ledger.intend(message)
        except LedgerError as error:
            raise ProbeFault(Reason.LEDGER_UNAVAILABLE, str(error)) from error
        return message

    async def _send(self, run: Run, message: Message) -> tuple[Message, asyncio.Future[Message]]:
        """Submit the message and start watching for it; raises `ProbeFault` when it surely was not sent."""
        clock = self.tools.clock
        session: SmtpSession | None = None
        begun = clock.monotonic()
        try:
            async with smtp_session(self._server, run.phases, clock) as session:
                connected = begun + run.phases.seconds.get("resolve", 0.0)
                await session.mail(self.settings.sender)
                await session.rcpt(self._recipient)
                reply = await session.data(self._letter(message))
                accepted = clock.monotonic()
                sent = await self._record(
                    message.id,
                    MessageState.SENT,
                    connected_mono=connected,
                    dot_mono=session.dot_sent_at,
                    accepted_mono=accepted,
                    submission_seconds=accepted - connected,
                    reply_code=reply.code,
                    enhanced_status_code=reply.enhanced_status_code,
                )
                arrival = self._watcher.await_arrival(sent)
                await session.quit()
                return sent, arrival
        except ProbeFault as fault:
            dot = session.dot_sent_at if session else None
            failed = await self._record(
                message.id,
                _state_after(fault, dot),
                connected_mono=begun + run.phases.seconds.get("resolve", 0.0),
                dot_mono=dot,
                reason=str(fault.reason),
                detail=fault.detail,
                reply_code=fault.reply_code,
                enhanced_status_code=fault.enhanced_status_code,
            )
            if failed.state is not MessageState.AMBIGUOUS:
                raise
            return failed, self._watcher.await_arrival(failed)
        except asyncio.CancelledError:
            await self._record_interruption(message.id, session)
            raise

    def _letter(self, message: Message) -> bytes:
        token = self.tools.signer.sign(Token(message.probe, message.id, round(message.created_at * 1e6)))
        return compose(
            probe=message.probe,
            location=self.tools.site.location,
            sender=self.settings.sender,
            recipient=self._recipient,
            run=message.id,
            token=token,
            created_at=message.created_at,
        )

    async def _record(self, message_id: str, state: MessageState, **changes: object) -> Message:
        """Move the message on in the ledger; what cannot be recorded now is owed before the next intent."""
        try:
            moved = await self.tools.ledger.advance(message_id, state, **changes)
        except LedgerError:
            self._unrecorded[message_id] = state if state is not MessageState.SENT else MessageState.AMBIGUOUS
            raise
        if moved is None:
            raise RuntimeError(f"the ledger refused {state} for message {message_id}")
        return moved

    async def _record_interruption(self, message_id: str, session: SmtpSession | None) -> None:
        """Record where the run's end by force caught the message."""
        dot = session.dot_sent_at if session else None
        state = MessageState.DEFERRED if dot is None else MessageState.AMBIGUOUS
        recording = self.tools.ledger.advance(message_id, state, dot_mono=dot, reason=str(Reason.INTERRUPTED))
        try:
            await asyncio.shield(recording)
        except LedgerError:
            self._unrecorded[message_id] = state


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


def report(message: Message) -> MessageReport:
    """Return what a verdict shows of a message."""
    return MessageReport(
        id=message.id,
        state=message.state,
        submission_seconds=message.submission_seconds,
        transit_seconds=message.transit_seconds,
        delivery_seconds=message.delivery_seconds,
        uncertainty_seconds=message.uncertainty_seconds,
    )


def _verdict(message: Message) -> Verdict:
    """Return the verdict for a settled message."""
    values = {"reply_code": message.reply_code, "enhanced_status_code": message.enhanced_status_code}
    match message.state:
        case MessageState.DELIVERED:
            return Verdict(Reason.NONE, values=values, message=report(message))
        case MessageState.AMBIGUOUS:
            reason, detail = Reason.MESSAGE_AMBIGUOUS, message.detail
        case _:
            confirmed = message.accepted_mono is not None
            reason = Reason.MESSAGE_LOST if confirmed else Reason.MESSAGE_AMBIGUOUS
            detail = f"not in the mailbox {message.deadline_seconds:g} s after it was sent"
    return Verdict(reason, detail, values=values, message=report(message))


def _undecided(message: Message, fault: ProbeFault | None) -> Verdict:
    """Return the verdict when no look could tell whether the message arrived: the message stays in flight."""
    if fault is None:
        return Verdict(Reason.TIMEOUT, "no look into the mailbox ended in time", message=report(message))
    return Verdict(fault.reason, f"mailbox cannot be read: {fault.detail}", message=report(message))
