"""The ``pop3`` kind: whether a mailbox opens, and what it contains."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from probes.core.faults import ProbeFault, legible
from probes.core.mailbox_check import MailboxCheck, MailboxCheckSettings
from probes.core.reasons import Area, Reason
from probes.core.settings import Pop3MailboxName, Pop3ServerName
from probes.core.verdict import Run, Verdict
from probes.protocols.pop3_session import Pop3Session
from probes.protocols.tls import expiry_warning

MOST_LISTED = 1000
"""Maximum number of messages for which a run requests UIDL: beyond this, the list would dominate the run."""


class Pop3Settings(MailboxCheckSettings):
    """Settings of a ``pop3`` probe: a mailbox to open, or only a server."""

    kind: Literal["pop3"]
    mailbox: Pop3MailboxName | None = Field(default=None, description="The mailbox to log in to.")
    server: Pop3ServerName | None = Field(
        default=None,
        description=(
            "The server to check. With its own credentials the probe logs in; without, it stops before login."
        ),
    )


class Pop3(MailboxCheck):
    """Runs a POP3 dialogue up to STAT; never reads or deletes a message."""

    settings: Pop3Settings
    settings_model = Pop3Settings
    areas: ClassVar[frozenset[Area]] = frozenset(
        {Area.AGENT, Area.DNS, Area.NETWORK, Area.TLS, Area.DIALOGUE, Area.POP3}
    )

    async def run(self, run: Run) -> Verdict:
        """Connect, encrypt, and read the capabilities; with credentials, log in and count the messages."""
        credentials = self.credentials
        secret = await credentials.secret(run.phases) if credentials is not None else None
        session = await Pop3Session.connect(self.server, run.phases, self.context.clock)
        try:
            values: dict[str, object] = {
                "greeting": legible(session.greeting),
                "capabilities": session.capabilities.listed(),
            }
            if credentials is not None and secret is not None:
                await session.log_in(credentials.username, secret)
                values["messages"], values["octets"] = count, _ = await session.stat()
                if count <= MOST_LISTED:
                    values["unreadable_ids"] = await _unreadable_ids(session)
            await session.quit()
        finally:
            session.abort()
        expiry = session.certificate_expiry
        reason, detail = expiry_warning(expiry, self.context.clock.time(), self.settings.certificate_warning)
        return Verdict(reason, detail, values=values, certificate_not_after=expiry and expiry.not_after)


async def _unreadable_ids(session: Pop3Session) -> int | None:
    """Return how many messages have unreadable unique ids; ``None`` without UIDL, which is optional."""
    try:
        await session.uidl()
    except ProbeFault as fault:
        if fault.reason is not Reason.POP3_ERROR:
            raise
        return None
    return session.unreadable_ids
