"""What the mailboxes of all protocols have in common: an account on a server, and side folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Generic, Protocol, TypeVar

from probes.core.clock import Clock
from probes.core.credentials import NO_TOKENS, Resource, Tokens, mailbox_credentials
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import MailboxSettings, ServerSettings
from probes.core.verdict import PhaseTimer
from probes.delivery.mailboxes.login_budget import LoginBudget, Standing
from probes.delivery.mailboxes.mailbox import FolderRole, unread
from probes.delivery.mailboxes.side_folder import SideFolder
from probes.protocols.mail_session import MailSession


class View(Protocol):
    """What is known about a folder."""

    @property
    def unread(self) -> int:
        """Number of copies that could not be read."""
        ...


M = TypeVar("M", bound=MailSession)
S = TypeVar("S")
V = TypeVar("V", bound=View)


class Account(Generic[S]):
    """An account on a server, and the session with it, if one is open between polls."""

    usual_polls: ClassVar[float]
    """Average number of polls per message, unless the mailbox has ``polls_per_message``."""

    resource: ClassVar[Resource] = "mail"

    def __init__(
        self,
        settings: MailboxSettings,
        server: ServerSettings,
        clock: Clock,
        budget: LoginBudget,
        tokens: Tokens = NO_TOKENS,
    ) -> None:
        self.polls = settings.polls_per_message or self.usual_polls
        self.standing = Standing()
        self._settings = settings
        self._server = server
        self._clock = clock
        self._budget = budget
        self._credentials = mailbox_credentials(settings, tokens, self.resource)
        self._session: S | None = None

    async def turn(self) -> None:
        """Wait for one of the server's connections, if this mailbox needs one and may hold it for long."""
        if self._session is None:
            await self._budget.turn(self.standing)

    async def admit(self) -> None:
        """Wait for a login within the server's budget, if a login is needed."""
        if self._session is None:
            await self._budget.take(self.standing)

    async def _log_in(self, kind: type[M], phases: PhaseTimer) -> M:
        """Return a session that is logged in; raises `ProbeFault`."""
        password = await self._credentials.secret(phases)
        with self._budget.logging_in():
            return await kind.open(
                self._server,
                username=self._settings.username,
                password=password,
                phases=phases,
                clock=self._clock,
                resumes=True,
                patience=self.standing.patience,
            )


class FolderAccount(Account[S], Generic[S, V]):
    """An account with several folders, of which a poll reads the main one, and sometimes a side folder.

    ``retention`` is the maximum age of our copies in seconds, by the server's time of arrival.
    """

    usual_junk: ClassVar[str | None] = None
    usual_sent: ClassVar[str | None] = None

    def __init__(
        self,
        settings: MailboxSettings,
        server: ServerSettings,
        clock: Clock,
        budget: LoginBudget,
        retention: float,
        tokens: Tokens = NO_TOKENS,
    ) -> None:
        super().__init__(settings, server, clock, budget, tokens)
        self._retention = retention
        self._views: dict[str, V] = {}
        self._junk = SideFolder(FolderRole.JUNK, settings.junk_folder or self.usual_junk)
        self._sent = SideFolder(FolderRole.SENT, settings.sent_folder or self.usual_sent)
        self._side: SideFolder | None = None  # the one that is open

    @property
    def folders(self) -> tuple[str, ...]:
        """The folder, and the junk folder if there is one that can be read."""
        junk, main = self._junk, self._settings.folder
        return (main,) if junk.name is None or junk.trouble else (main, junk.name)

    @property
    def doubt(self) -> str:
        """What could not be read (see `mailbox.Mailbox`)."""
        views: Mapping[str, V] = self._views
        unreadable = sum(view.unread for name, view in views.items() if name != self._sent.name)
        return "; ".join(filter(None, [self._junk.trouble, unread(unreadable)]))

    def excuses(self, fault: ProbeFault) -> bool:
        """Accept a fault that affects only a side folder; throttling affects the whole mailbox."""
        side = self._side
        if side is None or fault.reason is Reason.THROTTLED:
            return False
        self._side = None
        trouble = f"the {side.role.noun} could not be read: {fault}"
        side.do_without(trouble, self._settings.address, self._clock, fault.remedy)
        return True
