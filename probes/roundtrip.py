"""The ``roundtrip`` kind: sends a message, watches its mailbox, and measures when it arrived."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from probes.core.faults import ProbeFault
from probes.core.probe import Probe
from probes.core.reasons import Area, Reason
from probes.core.setting_types import Duration, EmailAddress, between
from probes.core.settings import ProbeSettings, SendVia, ServerSettings
from probes.core.verdict import LATENCY_ALONE, MX_LOOKUP, MessageReport, MessageState, Run, Verdict
from probes.delivery.arrivals import Settled
from probes.delivery.message_life import AWAITED, ArrivalIssue, LedgerError, Message
from probes.delivery.message_probe import MessageContext, MessageProbe, MessageProbeSettings
from probes.delivery.mx_delivery import MxDelivery, MxDeliverySettings, MxHost
from probes.delivery.own_delays import SIGNIFICANT, OwnDelay
from probes.delivery.submission import Envelope, Handover, Submission
from probes.delivery.tracing import Trace
from probes.delivery.watcher import MailboxWatcher
from probes.messages.synthetic_message import SyntheticMessage, compose
from probes.messages.token import Token
from probes.posture.exchange import build_standing
from probes.protocols import smtp_pace
from probes.protocols.replies import remedy_of_report

POLL_GRACE = 30.0
"""Seconds after a message's deadline for a last poll to show whether it arrived."""

ATTACHMENTS = MappingProxyType({"none": 0, "100KB": 100_000, "1MB": 10**6, "10MB": 10**7, "25MB": 25 * 10**6})
"""Attachment size of each class in octets, before encoding."""

_IN_A_THREAD = 256 * 1024  # octets from which composing would block the event loop too long


class RoundtripSettings(MessageProbeSettings):
    """Settings of a ``roundtrip`` probe."""

    kind: Literal["roundtrip"]
    send_via: SendVia = Field(
        description=(
            "The server to submit to, or `mx` for every MX host of the recipient's domain, each a target "
            "of its own."
        )
    )
    recipient: EmailAddress | None = Field(
        default=None, description="The recipient of the message. Default: the address of the mailbox `to`."
    )
    arrives_as: Literal["message", "forward", "reply"] = Field(
        default="message",
        description=(
            "`forward` or `reply`: the recipient is an external forwarder or auto-responder, and only the "
            "token in the subject comes back."
        ),
    )
    attachment: Literal["none", "100KB", "1MB", "10MB", "25MB"] = "none"
    retry: Annotated[Duration, between(1, 3600)] | None = Field(
        default=None,
        description=(
            "Pause before the first retry of a message that the server refused temporarily (4xx). It "
            "doubles with each retry, until the deadline. Default: 60s with `send_via: mx`, otherwise no "
            "retry."
        ),
    )
    mx: MxDeliverySettings | None = Field(
        default=None,
        description="How to send to MX hosts with `send_via: mx`. Default: the defaults of its keys.",
    )

    runs_overlap: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _retry_where_greylisted(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("send_via") == "mx" and "retry" not in data:
            return {**data, "retry": "60s"}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.send_via != "mx" and "mx" in self.model_fields_set:
            raise ValueError("mx applies only with send_via: mx; remove it")
        if self.arrives_as != "message" and self.recipient is None:
            raise ValueError(
                f"arrives_as: {self.arrives_as} needs a recipient: "
                "the external address that sends the message back to the mailbox"
            )
        return self

    def account_with_copies(self, servers: Mapping[str, ServerSettings]) -> str | None:
        """Return the account that the server logs in, or that Graph sends from, if it keeps copies."""
        server = servers.get(self.send_via)  # none for "mx"
        if server is None or not server.saves_sent_copies:
            return None
        return server.username or (self.sender if server.protocol == "graph" else None)

    @property
    def run_limit(self) -> float:
        """The deadline plus some time for the last poll."""
        return self.deadline + POLL_GRACE + 5.0

    @property
    def is_loop(self) -> bool:
        """Whether messages come back from elsewhere, with only the token in the subject."""
        return self.arrives_as != "message"


class Roundtrip(MessageProbe):
    """Sends one signed message per run through one server, and follows it to its mailbox."""

    settings: RoundtripSettings
    settings_model = RoundtripSettings
    areas: ClassVar[frozenset[Area]] = frozenset(Area) - {Area.MX}

    @classmethod
    def made_for(cls, settings: ProbeSettings, context: MessageContext) -> MessageProbe:
        """Return the probe; for ``send_via: mx``, the one that finds the hosts."""
        assert isinstance(settings, RoundtripSettings)  # noqa: S101 # the registry pairs kind and settings
        kind = MxRoundtrip if settings.send_via == "mx" else cls
        return kind(settings, context)

    def __init__(
        self, settings: RoundtripSettings, context: MessageContext, host: MxHost | None = None
    ) -> None:
        super().__init__(settings, context)
        mailbox = context.site.mailboxes[settings.to]
        self._target = settings.send_via if host is None else host.name
        server = context.site.servers[settings.send_via] if host is None else host.server
        self._envelope = Envelope(settings.sender, settings.recipient or mailbox.address)
        self._submission = Submission(
            server,
            self._envelope,
            clock=context.clock,
            ledger=context.ledger,
            retry=settings.retry,
            tokens=context.tokens,
        )
        self._watcher = context.watchers[settings.to]
        self._tracer = self._tracer or context.tracers.get(server.oauth2 or "")

    @property
    def target(self) -> str:
        """The configured server or MX host that accepts the messages."""
        return self._target

    async def run(self, run: Run) -> Verdict:
        """Record the intent, send the message, and wait until it arrives or its deadline passes."""
        if (fault := self._watcher.current.fault_for_long((self.settings.name, self.target))) is not None:
            told = "nothing is sent while several messages wait in the mailbox, which cannot be read"
            return Verdict(fault.reason, f"{told}: {fault.detail}", remedy=fault.remedy)
        ends_at = self.context.clock.monotonic() + self.settings.deadline + POLL_GRACE
        slot = await self._submission.turn(run)
        trace = Trace()
        try:
            created_at = round(self.context.clock.time(), 6)
            composed = await self._compose(run, created_at)
            message = self._message(run, created_at, composed)
            await self._submission.intend(message)
            begun, envelope_id = self.context.clock.monotonic(), self.context.signer.envelope_id(run.id)
            async with Handover(message, composed, begun, envelope_id, slot) as handover:
                settled = await self._settled(run, handover, ends_at, trace)
        except LedgerError as error:
            raise ProbeFault(Reason.LEDGER_UNAVAILABLE, str(error)) from error
        finally:
            slot.release()
        if settled is None:
            now = self.context.clock.monotonic()
            return trace.added_to(_undecided(handover.message, self._watcher.current, now))
        run.phases.transcript.note(_as_remark(settled.message))
        return trace.added_to(_verdict(settled, smtp_pace.delays(run.phases.seconds)))

    async def _settled(self, run: Run, handover: Handover, ends_at: float, trace: Trace) -> Settled | None:
        """Send the message and watch for it; return ``None`` if the outcome is not known in time."""
        try:
            await self._submission.send(run, handover)
        except asyncio.CancelledError:
            if handover.message.state in AWAITED:  # it may have gone out
                self.follow(handover.message)
            raise
        arrival = self.follow(handover.message, trace)
        with run.waiting():
            await handover.quit()
            limit = ends_at - self.context.clock.monotonic()
            hopeless = asyncio.ensure_future(self._watcher.misconfigured())
            waits: set[asyncio.Future[Any]] = {arrival, hopeless}
            try:
                await asyncio.wait(waits, timeout=max(0.0, limit), return_when=asyncio.FIRST_COMPLETED)
            finally:
                hopeless.cancel()
        return arrival.result() if arrival.done() else None

    def _message(self, run: Run, created_at: float, composed: SyntheticMessage) -> Message:
        clock = self.context.clock
        return Message(
            id=run.id,
            probe=self.settings.name,
            target=self.target,
            mailbox=self.mailbox,
            state=MessageState.INTENT,
            created_at=created_at,
            deadline_seconds=self.settings.deadline,
            instance=self.context.instance,
            boot=clock.boot,
            created_mono=clock.monotonic(),
            octets=len(composed.content),
            digest=None if self.settings.is_loop else composed.digest,
        )

    async def _compose(self, run: Run, created_at: float) -> SyntheticMessage:
        token = self.context.signer.sign(Token(self.settings.name, run.id, round(created_at * 1e6)))
        octets = ATTACHMENTS[self.settings.attachment]

        def composed() -> SyntheticMessage:
            return compose(
                probe=self.settings.name,
                location=self.context.site.location,
                sender=self._envelope.sender,
                recipient=self._envelope.recipient,
                run=run.id,
                token=token,
                created_at=created_at,
                attachment_octets=octets,
                invites_reply=self.settings.arrives_as == "reply",
            )

        return await asyncio.to_thread(composed) if octets > _IN_A_THREAD else composed()


class MxRoundtrip(MessageProbe):
    """Finds the MX hosts of the recipient's domain, each of which is a sub-probe with its own route."""

    settings: RoundtripSettings
    settings_model = RoundtripSettings
    areas: ClassVar[frozenset[Area]] = frozenset({Area.AGENT, Area.DNS, Area.NETWORK, Area.MX})

    def __init__(self, settings: RoundtripSettings, context: MessageContext) -> None:
        super().__init__(settings, context)
        recipient = settings.recipient or context.site.mailboxes[settings.to].address
        self._delivery = MxDelivery(recipient.rpartition("@")[2], settings.mx or MxDeliverySettings())
        self._routes: dict[MxHost, Roundtrip] = {}

    @property
    def target(self) -> str:
        """The recipient's domain."""
        return self._delivery.domain

    @property
    def sends_messages(self) -> bool:
        """Only the routes to its hosts do."""
        return False

    @property
    def sub_probes(self) -> Sequence[Probe]:
        """One route per host from the latest run."""
        return tuple(self._routes.values())

    def take_over(self, earlier: Probe) -> None:
        """Begin with the hosts that ``earlier`` found for the same domain, so that their routes stay."""
        if isinstance(earlier, MxRoundtrip) and earlier.target == self.target:
            hosts = earlier._routes
            self._routes = {host: Roundtrip(self.settings, self.context, host) for host in hosts}

    async def run(self, run: Run) -> Verdict:
        """Query DNS; a known host keeps its route."""
        with run.phases.phase(MX_LOOKUP):
            hosts, unreached = await self._delivery.hosts()
        self._routes = {
            host: self._routes.get(host) or Roundtrip(self.settings, self.context, host) for host in hosts
        }
        values: dict[str, object] = {
            "hosts": [host.name for host in hosts],
            "hosts_without_address": unreached,
        }
        if unreached:
            return Verdict(Reason.MX_TARGET_PARTLY_UNRESOLVED, ", ".join(unreached), values=values)
        return Verdict(Reason.NONE, values=values)


def _as_remark(message: Message) -> str:
    """Return a settled message's outcome as the last line of its run's transcript."""
    if message.delivery_seconds is None or message.uncertainty_seconds is None:
        return f"{message.state}: not seen in mailbox {message.mailbox}"
    measured = f"{message.delivery_seconds:.3f} s ± {message.uncertainty_seconds:.3f} s"
    return f"{message.state}: in mailbox {message.mailbox} {measured} after connecting"


def _verdict(settled: Settled, delays: Mapping[str, object]) -> Verdict:
    """Return the verdict for a settled message; ``delays`` are those of `smtp_pace`."""
    message, delay = settled.message, settled.delay
    reason, detail = _end(message)
    if settled.doubt:
        detail += f"; {settled.doubt}"
    if reason in LATENCY_ALONE and delay is not None and _hides_the_latency(settled.report, delay):
        reason, detail = Reason.LOCAL_RESOURCES, f"the latency is not known: {delay}"
    values: dict[str, object] = {
        "reply_code": message.reply_code,
        "enhanced_status_code": message.enhanced_status_code,
        **delays,
    }
    if message.greylisted_seconds is not None:
        values["greylisted_seconds"] = round(message.greylisted_seconds, 6)
    if message.delivery_seconds is not None:
        values["arrival_issues"] = message.findings.split()
        values["hops"] = [hop.as_object() for hop in settled.hops]
        if settled.exchange is not None:
            builds = {host: build_standing(build) for host, build in settled.exchange.builds.items()}
            values["exchange"] = settled.exchange.as_object() | {"builds": builds}
        authentication = settled.authentication
        values["authentication_results"] = authentication.as_object() if authentication is not None else None
    remedy = ""
    if message.state is MessageState.BOUNCED:
        remedy = remedy_of_report(reason, message.enhanced_status_code or "", message.detail)
    return Verdict(reason, detail, values=values, message=settled.report, remedy=remedy)


def _hides_the_latency(report: MessageReport, delay: OwnDelay) -> bool:
    """Whether the latency is not known precisely enough to count, and our own delay is why."""
    if report.is_measured or report.uncertainty_seconds is None:
        return False
    return delay.seconds > SIGNIFICANT * 2 * report.uncertainty_seconds


def _end(message: Message) -> tuple[Reason, str]:
    """Return the reason and detail for a message's outcome."""
    issues = message.findings.split()
    if message.state is MessageState.BOUNCED:
        return Reason[message.reason.upper()], message.detail
    if message.state is MessageState.AMBIGUOUS:
        return Reason.MESSAGE_AMBIGUOUS, message.detail
    if message.state is not MessageState.DELIVERED:
        confirmed = message.accepted_mono is not None
        reason = Reason.MESSAGE_LOST if confirmed else Reason.MESSAGE_AMBIGUOUS
        return reason, f"not in the mailbox {message.deadline_seconds:g} s after it was sent"
    if ArrivalIssue.JUNKED in issues:
        return Reason.MESSAGE_JUNKED, ""
    if ArrivalIssue.ALTERED in issues:
        return Reason.MESSAGE_ALTERED, ""
    if message.greylisted_seconds is not None:
        return Reason.GREYLISTED, f"accepted {message.greylisted_seconds:.0f} s after it was first refused"
    return Reason.NONE, ""


def _undecided(message: Message, watcher: MailboxWatcher, now: float) -> Verdict:
    """Return the verdict if no poll could show whether the message arrived: it stays in flight."""
    fault, delay = watcher.fault, watcher.delay(message.due_mono, now)
    if fault is None and now < message.due_mono:
        late = "this machine was late to send the message, whose deadline is not over"
        return Verdict(Reason.LOCAL_RESOURCES, late, message=message.report())
    if fault is None and delay.seconds > SIGNIFICANT * (now - message.due_mono):
        hidden = f"no poll of the mailbox ended in time: {delay}"
        return Verdict(Reason.LOCAL_RESOURCES, hidden, message=message.report())
    if fault is None:
        return Verdict(Reason.TIMEOUT, "no poll of the mailbox ended in time", message=message.report())
    unread = f"mailbox cannot be read: {fault.detail}"
    return Verdict(fault.reason, unread, message=message.report(), remedy=fault.remedy)
