"""The ``imap`` kind: whether a mailbox opens, and what its folder contains."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from probes.core.faults import legible
from probes.core.mailbox_check import MailboxCheck, MailboxCheckSettings
from probes.core.reasons import Area
from probes.core.setting_types import FolderName
from probes.core.settings import ImapMailboxName, ImapServerName
from probes.core.verdict import Run, Verdict
from probes.protocols.imap_session import ImapSession
from probes.protocols.tls import expiry_reason


class ImapSettings(MailboxCheckSettings):
    """Settings of an ``imap`` probe: a mailbox to open, or only a server."""

    kind: Literal["imap"]
    mailbox: ImapMailboxName | None = Field(default=None, description="The mailbox to log in to.")
    server: ImapServerName | None = Field(
        default=None,
        description=(
            "The server to check. With its own credentials the probe logs in; without, it stops before login."
        ),
    )
    folder: FolderName = Field(default="INBOX", description="The folder to open read-only.")


class Imap(MailboxCheck):
    """Runs an IMAP dialogue up to EXAMINE; never reads or deletes a message."""

    settings: ImapSettings
    settings_model = ImapSettings
    areas: ClassVar[frozenset[Area]] = frozenset(
        {Area.AGENT, Area.DNS, Area.NETWORK, Area.TLS, Area.DIALOGUE, Area.IMAP}
    )

    async def run(self, run: Run) -> Verdict:
        """Connect, encrypt, learn the capabilities; with credentials log in and open the folder."""
        session = await ImapSession.connect(self.server, run.phases, self.context.clock)
        try:
            values: dict[str, object] = {"greeting": legible(session.greeting)}
            if self.credentials is not None:
                await session.log_in(*self.credentials)
                values |= await self._open(session)
            values["capabilities"] = sorted(session.capabilities)
            await session.log_out()
        finally:
            session.abort()
        expiry = session.certificate_not_after
        return Verdict(
            expiry_reason(expiry, self.context.clock.time(), self.settings.certificate_warning),
            values=values,
            certificate_not_after=expiry,
        )

    async def _open(self, session: ImapSession) -> dict[str, object]:
        """Read the namespaces and the folders, and open the configured folder."""
        values: dict[str, object] = {"namespaces": [legible(prefix) for prefix in await session.namespace()]}
        folders = await session.folders()
        values["special_use"] = {
            attribute.removeprefix("\\").lower(): legible(folder.name)
            for folder in folders
            for attribute in sorted(folder.attributes & _SPECIAL_USE)
        }
        await session.select(self.settings.folder, read_only=True)
        values["messages"] = session.exists
        values["uid_validity"] = session.uid_validity
        return values


_SPECIAL_USE = frozenset({"\\ALL", "\\ARCHIVE", "\\DRAFTS", "\\FLAGGED", "\\JUNK", "\\SENT", "\\TRASH"})
"""The attributes of RFC 6154 section 2, in upper case."""
