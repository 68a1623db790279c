"""The ``pop3`` kind: whether a mailbox can be opened, and what it holds."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, SecretStr, model_validator

from probes.faults import legible
from probes.pop3_client import connect
from probes.probe import Probe
from probes.reasons import Area
from probes.settings import Duration, Pop3MailboxName, Pop3ServerName, ProbeSettings
from probes.tls import expiry_reason
from probes.tools import Tools
from probes.verdict import Run, Verdict


class Pop3Settings(ProbeSettings):
    """Settings of a ``pop3`` probe: a mailbox to open, or a server alone."""

    kind: Literal["pop3"]
    mailbox: Pop3MailboxName | None = Field(default=None, description="The mailbox to log in to.")
    server: Pop3ServerName | None = Field(
        default=None,
        description="A server, to log in with its own credentials, or without to stop before login.",
    )
    certificate_warning: Duration = Field(default=14 * 86400.0, description="Warn this long before expiry.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.mailbox is None) == (self.server is None):
            raise ValueError("name either a mailbox or a server, and not both")
        return self


class Pop3(Probe):
    """Goes through a POP3 dialogue up to STAT, and reads or deletes no message."""

    settings: Pop3Settings
    settings_model = Pop3Settings
    areas: ClassVar[frozenset[Area]] = frozenset(
        {Area.AGENT, Area.DNS, Area.NETWORK, Area.TLS, Area.DIALOGUE, Area.POP3}
    )

    def __init__(self, settings: Pop3Settings, tools: Tools) -> None:
        super().__init__(settings, tools)
        self._credentials: tuple[str, SecretStr] | None = None
        if settings.mailbox is not None:
            mailbox = tools.site.mailboxes[settings.mailbox]
            self._name = mailbox.server
            self._credentials = (mailbox.username, mailbox.password)
        else:
            self._name = str(settings.server)
        self._server = tools.site.servers[self._name]
        if settings.server is not None and self._server.username and self._server.password:
            self._credentials = (self._server.username, self._server.password)

    @property
    def target(self) -> str:
        """The configured server's name."""
        return self._name

    async def run(self, run: Run) -> Verdict:
        """Connect, encrypt, learn the capabilities; with credentials log in and count."""
        session = await connect(self._server, run.phases, self.tools.clock)
        try:
            values: dict[str, object] = {
                "greeting": legible(session.greeting),
                "capabilities": session.capabilities.listed(),
            }
            if self._credentials is not None:
                await session.log_in(*self._credentials)
                values["messages"], values["octets"] = await session.stat()
            await session.quit()
        finally:
            session.abort()
        expiry = session.certificate_not_after
        return Verdict(
            expiry_reason(expiry, self.tools.clock.time(), self.settings.certificate_warning),
            values=values,
            certificate_not_after=expiry,
        )
