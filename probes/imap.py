"""The ``imap`` kind: whether a mailbox opens, and what its folder contains."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import ClassVar, Literal, TypeVar

from pydantic import Field

from probes.core.faults import ProbeFault, legible
from probes.core.mailbox_check import MailboxCheck, MailboxCheckSettings
from probes.core.reasons import Area, Reason
from probes.core.setting_types import FolderName
from probes.core.settings import ImapMailboxName, ImapServerName
from probes.core.verdict import Run, Verdict
from probes.protocols.imap import Folder
from probes.protocols.imap_session import ImapSession
from probes.protocols.tls import expiry_warning

T = TypeVar("T")


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
        """Connect, encrypt, and read the capabilities; with credentials, log in and open the folder."""
        credentials = self.credentials
        secret = await credentials.secret(run.phases) if credentials is not None else None
        session = await ImapSession.connect(self.server, run.phases, self.context.clock)
        try:
            values: dict[str, object] = {"greeting": legible(session.greeting)}
            if credentials is not None and secret is not None:
                await session.log_in(credentials.username, secret)
                values |= await self._open(session)
            values["capabilities"] = sorted(session.capabilities)
            await session.log_out()
        finally:
            session.abort()
        expiry = session.certificate_expiry
        reason, detail = expiry_warning(expiry, self.context.clock.time(), self.settings.certificate_warning)
        return Verdict(reason, detail, values=values, certificate_not_after=expiry and expiry.not_after)

    async def _open(self, session: ImapSession) -> dict[str, object]:
        """Open the configured folder, and read the namespaces and the names of the other folders."""
        values: dict[str, object] = {"namespaces": None, "special_use": None}
        try:
            await session.select(self.settings.folder, read_only=True)
        except ProbeFault as fault:
            if fault.reason is Reason.IMAP_NO_FOLDER:
                fault.detail = legible(f"the probe's folder {fault.detail}")
            raise
        values["messages"] = session.exists
        values["uid_validity"] = session.uid_validity
        prefixes = await _told(session, session.namespace)
        folders = await _told(session, session.folders)
        if prefixes is not None:
            values["namespaces"] = [legible(prefix) for prefix in prefixes]
        if folders is not None:
            values["special_use"] = _special_use(folders)
        return values


async def _told(session: ImapSession, ask: Callable[[], Awaitable[list[T]]]) -> list[T] | None:
    """Return the server's list; ``None`` if it refuses, or if the list is too large or invalid."""
    if not session.is_open:
        return None
    try:
        return await ask()
    except ProbeFault as fault:
        if session.is_open or fault.reason in _UNREADABLE:
            return None
        raise


def _special_use(folders: Iterable[Folder]) -> dict[str, str]:
    """Return the folders for special uses (RFC 6154), by use."""
    return {
        attribute.removeprefix("\\").lower(): legible(folder.name)
        for folder in folders
        for attribute in sorted(folder.attributes & _SPECIAL_USE)
    }


_SPECIAL_USE = frozenset({"\\ALL", "\\ARCHIVE", "\\DRAFTS", "\\FLAGGED", "\\JUNK", "\\SENT", "\\TRASH"})
"""The attributes of RFC 6154 section 2, in upper case."""

_UNREADABLE = frozenset({Reason.PROTOCOL_ERROR, Reason.LINE_TOO_LONG, Reason.RESPONSE_TOO_LARGE})
"""Faults that a listing can cause, which say nothing about the folder that was opened."""
