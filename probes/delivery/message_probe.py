"""The basis of all kinds that send messages: context, settings, and watching for the messages."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from probes.core.context import Context
from probes.core.probe import Probe
from probes.core.setting_types import Duration, EmailAddress, between
from probes.core.settings import (
    AlertSettings,
    CommonAlertSettings,
    MailboxName,
    ProbeSettings,
    ServerSettings,
)
from probes.delivery.accounts import Accounts
from probes.delivery.arrivals import Settled
from probes.delivery.message_life import Ledger, Message
from probes.delivery.service_level import SloSettings
from probes.delivery.tracing import MessageTracer, Trace
from probes.delivery.watcher import MailboxWatcher
from probes.messages.token import TokenSigner

OVERDUE_FACTOR = 3.0
"""A message is overdue after so many times the longest usual latency of its route."""

OVERDUE_SHORTEST = 60.0
"""Shortest learned threshold in seconds, but at least 5 % and at most 20 % of the deadline."""


@dataclass(frozen=True, slots=True)
class MessageContext(Context):
    """The context of a probe that sends messages: also the ledger, the signer, and the watchers by mailbox.

    ``tracers`` are by entry of ``oauth2``, for those that may read message traces. ``instance`` is this
    process's name in the ledger, and marks the messages that it is responsible for. ``accounts`` has the
    mailboxes of ``site``.
    """

    ledger: Ledger
    signer: TokenSigner
    watchers: Mapping[str, MailboxWatcher]
    instance: str
    tracers: Mapping[str, MessageTracer] = field(default_factory=dict, kw_only=True)
    accounts: Accounts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "accounts", Accounts(self.site.mailboxes))  # as frozen dataclasses do


class DeliveryAlertSettings(AlertSettings):
    """When the alerts of a route fire. Times must be within its deadline, when a message counts as lost."""

    overdue: Annotated[Duration, between(1, 86400)] | None = Field(
        default=None,
        description=(
            "How old the oldest message in flight may be before its alert fires. Default: learned from the "
            "route's latencies; until then, the common threshold."
        ),
    )
    slow: Annotated[Duration, between(0.01, 3600)] | None = Field(
        default=None,
        description=(
            "Limit for the 95th percentile of delivery times, up to 1h. Default: the common threshold."
        ),
    )


class MessageProbeSettings(ProbeSettings):
    """Settings of every kind that sends messages. ``deadline`` is for the message: later, it is lost."""

    deadline: Annotated[Duration, between(1, 86400)] = Field(
        default=300.0, description="A message that takes longer is lost."
    )
    sender: EmailAddress = Field(
        alias="from",
        description=(
            "Envelope sender and From address. If a mailbox has this address, mailsonde looks for delivery "
            "reports there."
        ),
    )
    to: MailboxName = Field(description="The mailbox where the message arrives.")
    alerts: DeliveryAlertSettings = Field(
        default=DeliveryAlertSettings(),
        description="Thresholds of this route's alerts, which override the common ones.",
    )
    slo: SloSettings | None = Field(
        default=None,
        description="The share of messages that must arrive, and in what time; adds burn-rate alerts.",
    )

    @field_validator("alerts")
    @classmethod
    def _within_the_deadline(cls, alerts: DeliveryAlertSettings, info: ValidationInfo) -> Any:
        deadline = info.data.get("deadline", math.inf)
        for name, seconds in (("overdue", alerts.overdue), ("slow", alerts.slow)):
            if seconds is not None and seconds >= deadline:
                raise ValueError(
                    f"{name} ({seconds:g}s) would never be reached: a message counts as lost at its deadline "
                    f"({deadline:g}s); shorten {name} or lengthen deadline"
                )
        return alerts

    def account_with_copies(self, servers: Mapping[str, ServerSettings]) -> str | None:  # noqa: ARG002 # as overridden
        """Return the account that gets a copy of each message into its sent folder, if one does."""
        return None

    def thresholds(self, common: CommonAlertSettings) -> dict[str, float]:
        """Return also after what time messages are overdue, as long as none is learned, and slow."""
        return {
            **super().thresholds(common),
            "overdue": self.alerts.overdue or common.overdue_share_of_deadline * self.deadline,
            "slow": self.alerts.slow or common.slow_share_of_deadline * self.deadline,
        }

    def overdue_after(self, usual: float | None) -> float | None:
        """Return the age, in seconds, from which on a message in flight is overdue; ``None`` if not known.

        The setting decides, or else ``usual``, the longest usual latency of the route in seconds.
        """
        if self.alerts.overdue is not None or usual is None:
            return self.alerts.overdue
        shortest = min(max(OVERDUE_SHORTEST, 0.05 * self.deadline), 0.2 * self.deadline)
        return min(max(OVERDUE_FACTOR * usual, shortest), 0.5 * self.deadline)

    @property
    def is_loop(self) -> bool:
        """Whether messages come back from elsewhere, with only the token in the subject."""
        return False


class MessageProbe(Probe):
    """A probe whose messages, or those of its sub-probes, arrive in a mailbox."""

    settings: MessageProbeSettings
    settings_model: ClassVar[type[MessageProbeSettings]]
    context: MessageContext

    def __init__(self, settings: MessageProbeSettings, context: MessageContext) -> None:
        super().__init__(settings, context)
        mailbox = context.site.mailboxes[settings.to]
        self._tracer = context.tracers.get(mailbox.oauth2 or "")  # the receiving tenant knows best

    @classmethod
    def made_for(cls, settings: ProbeSettings, context: MessageContext) -> MessageProbe:
        """Return the probe for ``settings``, which are of this kind's model."""
        assert isinstance(settings, cls.settings_model)  # noqa: S101 # the registry pairs kind and settings
        return cls(settings, context)

    @property
    def sends_messages(self) -> bool:
        """Whether its own runs send messages, not only those of its sub-probes."""
        return True

    @property
    def mailbox(self) -> str:
        """The mailbox where the messages arrive."""
        return self.settings.to

    @property
    def objective(self) -> SloSettings | None:
        """The service level objective of each of its routes, if configured."""
        return self.settings.slo

    @property
    def login_wait(self) -> float:
        """How many seconds a poll of the mailbox has been waiting for a login within the server's budget."""
        return self.context.watchers[self.mailbox].current.login_wait

    def follow(self, message: Message, trace: Trace | None = None) -> asyncio.Future[Settled]:
        """Watch for a message, a delivery report about it, and its sent copy; the future gets the outcome.

        ``trace`` gets what the tenant says about the message if it is overdue.
        """
        watchers, accounts = self.context.watchers, self.context.accounts
        arrival = watchers[self.mailbox].await_arrival(message)
        for name in accounts.at(self.settings.sender):
            if name != self.mailbox:
                watchers[name].await_report(message, arrival)
        account = self.settings.account_with_copies(self.context.site.servers)
        for name in accounts.of(account) if account is not None else ():
            watchers[name].await_sent_copy(message, arrival)
        if self._tracer is not None:
            overdue = self.settings.thresholds(self.context.site.alerts)["overdue"]
            trace = trace or Trace(message.trace, looks=message.trace_looks)
            self._tracer.follow(message, overdue, arrival, trace)
        return arrival

    def trace_lost(self, messages: Sequence[Message]) -> None:
        """Ask the tenant about messages of this probe that an earlier process found lost."""
        if self._tracer is not None:
            self._tracer.follow_lost(messages)
