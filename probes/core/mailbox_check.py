"""The common part of probes of mailbox servers: they open a mailbox, or only check a server."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from probes.core.context import Context
from probes.core.credentials import credentials_of
from probes.core.probe import Probe
from probes.core.setting_types import Duration
from probes.core.settings import ProbeSettings


class MailboxCheckSettings(ProbeSettings):
    """Settings of a probe that opens a mailbox and reads nothing; each kind narrows the two references."""

    mailbox: str | None = None
    server: str | None = None
    certificate_warning: Duration = Field(default=14 * 86400.0, description="Warn this long before expiry.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.mailbox is None) == (self.server is None):
            raise ValueError("name either a mailbox or a server, and not both")
        return self


class MailboxCheck(Probe):
    """A probe with a server and, if configured, credentials."""

    settings: MailboxCheckSettings

    def __init__(self, settings: MailboxCheckSettings, context: Context) -> None:
        super().__init__(settings, context)
        site = context.site
        mailbox = site.mailboxes[settings.mailbox] if settings.mailbox is not None else None
        self._name = mailbox.server if mailbox is not None else str(settings.server)
        self.server = site.servers[self._name]
        self.credentials = credentials_of(mailbox or self.server, context.tokens)

    @property
    def target(self) -> str:
        """The configured server's name."""
        return self._name
