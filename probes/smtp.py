"""The ``smtp`` kind: whether a server accepts connections, TLS, credentials and recipients."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from probes.core.context import Context
from probes.core.faults import ProbeFault, legible
from probes.core.probe import Probe
from probes.core.reasons import Area, Reason
from probes.core.setting_types import Duration, EmailAddress, Line
from probes.core.settings import ProbeSettings, SmtpServerName
from probes.core.verdict import Run, Verdict
from probes.protocols import smtp_pace
from probes.protocols.smtp_session import SmtpSession, smtp_session
from probes.protocols.tls import expiry_warning


class SmtpSettings(ProbeSettings):
    """Settings of an ``smtp`` probe."""

    kind: Literal["smtp"]
    server: SmtpServerName = Field(description="The server to check.")
    mail_from: EmailAddress | None = Field(
        default=None,
        description=(
            "Envelope sender to test without sending a message. The time of its answer is Exchange's early "
            "warning of back pressure."
        ),
    )
    rcpt_to: EmailAddress | None = Field(
        default=None, description=("Recipient to test without sending a message.")
    )
    expect_features: tuple[Line, ...] = Field(
        default=(),
        description=("EHLO keywords that the server must offer, such as PIPELINING or `AUTH PLAIN`."),
    )
    certificate_warning: Duration = Field(default=14 * 86400.0, description="Warn this long before expiry.")

    @field_validator("expect_features")
    @classmethod
    def _have_keywords(cls, features: tuple[str, ...]) -> tuple[str, ...]:
        if not all(feature.split() for feature in features):
            raise ValueError("is blank; write an EHLO keyword, such as PIPELINING")
        return features

    @model_validator(mode="after")
    def _recipient_needs_sender(self) -> Self:
        if self.rcpt_to is not None and self.mail_from is None:
            raise ValueError("rcpt_to without mail_from; RCPT TO needs a MAIL FROM before it")
        return self


class Smtp(Probe):
    """Runs an SMTP dialogue as far as the settings say; never sends a message."""

    settings: SmtpSettings
    settings_model = SmtpSettings
    areas: ClassVar[frozenset[Area]] = frozenset(
        {Area.AGENT, Area.DNS, Area.NETWORK, Area.TLS, Area.DIALOGUE, Area.SMTP}
    )

    def __init__(self, settings: SmtpSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._server = context.site.servers[settings.server]

    @property
    def target(self) -> str:
        """The configured server's name."""
        return self.settings.server

    async def run(self, run: Run) -> Verdict:
        """Connect, greet, encrypt, log in; then test the sender and recipient if they are set."""
        async with smtp_session(
            self._server, run.phases, self.context.clock, tokens=self.context.tokens
        ) as session:
            self._require_features(session)
            if self.settings.mail_from is not None:
                await session.mail(self.settings.mail_from)
            if self.settings.rcpt_to is not None:
                await session.rcpt(self.settings.rcpt_to)
            await session.quit()
            expiry = session.certificate_expiry
            reason, detail = expiry_warning(
                expiry, self.context.clock.time(), self.settings.certificate_warning
            )
            return Verdict(
                reason,
                detail,
                values={
                    "greeting": legible(session.greeting.text),
                    "features": list(session.extensions.listed),
                    **smtp_pace.delays(run.phases.seconds),
                },
                certificate_not_after=expiry and expiry.not_after,
            )

    def _require_features(self, session: SmtpSession) -> None:
        """Raise if a keyword of ``expect_features``, or one of its parameters, is not offered."""
        missing = []
        for feature in self.settings.expect_features:
            keyword, *parameters = feature.upper().split()
            offered = session.extensions.features.get(keyword)
            if offered is None or not set(parameters) <= set(offered.upper().split()):
                missing.append(feature)
        if missing:
            raise ProbeFault(Reason.FEATURE_MISSING, f"EHLO does not offer: {', '.join(missing)}")
