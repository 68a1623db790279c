"""The watcher's interface to mailboxes of any protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from probes.core.faults import ProbeFault
from probes.core.verdict import PhaseTimer
from probes.delivery.mailboxes.login_budget import Standing

HEADER_LIMIT = 64 * 1024
"""Maximum octets to read of a message's header section."""

CONTENT_SECONDS = 20.0
"""Maximum seconds for reading the rest of a large copy, or one set of copies."""

REFUSALS = 3
"""Number of polls in which a server may refuse a copy before the copy is set aside."""

SECOND_CHANCE = 60.0
"""Minimum seconds before an unreadable copy is tried again."""

IDENTIFYING = (
    *("X-Mailsonde-Token", "Content-Type", "Subject"),
    *("Auto-Submitted", "X-Autoreply", "X-Autorespond", "X-Autoresponse", "Precedence"),
    *("Return-Path", "From", "X-Failed-Recipients"),
)
"""The header fields that identify a copy; see `Folder.identify`.

The last three distinguish bounces from people's mail and cost about 100 octets per message. Without them,
every message with an attachment would have to be read to find out whether it is a report.
"""


def unread(count: int) -> str:
    """Return a `Mailbox.doubt` for ``count`` unreadable copies; empty for none."""
    if count == 1:
        return "a message could not be read"
    return f"{count} messages could not be read" if count else ""


@dataclass(frozen=True, slots=True)
class Content:
    """The octets read of a copy, headers included, and whether they are all of it.

    It has no octets if the copy is gone or could not be read.
    """

    octets: bytes
    is_whole: bool
    is_too_large: bool = False
    """Whether it has more octets than its limit."""


class FolderRole(Enum):
    """What a folder holds; the value is the setting that names the folder."""

    MAIN = "folder"  # where messages arrive
    JUNK = "junk_folder"  # where some of them arrive
    SENT = "sent_folder"  # copies of what the account has sent

    @property
    def noun(self) -> str:
        """Its name in a sentence."""
        return self.value.replace("_", " ")

    @property
    def remedy(self) -> str:
        """What to do if there is no such folder."""
        return f"Correct `{self.value}`, or create the folder."


class Folder(Protocol):
    """One folder in one poll. Methods that query the server raise `probes.core.faults.ProbeFault`."""

    @property
    def name(self) -> str:
        """The folder's name; empty for POP3, which has one folder."""
        ...

    @property
    def role(self) -> FolderRole:
        """What the folder holds."""
        ...

    @property
    def absent_at(self) -> float:
        """Monotonic time: copies that the folder does not show were absent at some moment after this."""
        ...

    @property
    def listed_at(self) -> float:
        """Monotonic time: copies that the folder shows arrived before this."""
        ...

    @property
    def overlooked(self) -> Collection[str]:
        """The ``uids`` that earlier polls should have shown, so that their time of arrival is unknown."""
        ...

    def told(self, uid: str) -> tuple[float, float] | None:
        """Return the monotonic times between which a copy arrived, if the server reported its arrival."""
        ...

    @property
    def uids(self) -> Sequence[str]:
        """The copies, without those set aside; unique for the mailbox's lifetime.

        Those with a time of arrival (see `told`) come first, in that order; then the others, newest first.
        """
        ...

    def identify(self, uids: Sequence[str]) -> AsyncGenerator[Mapping[str, bytes], None]:
        """Yield header sections with at least the fields in `IDENTIFYING`, by uid, a set of copies at a time.

        Copies that are gone, or that the server refuses to show, are left out. A copy with a header section
        over `HEADER_LIMIT` is set aside; the fault raised for it may have ended the session.
        """
        ...

    def contents(
        self, limits: Mapping[str, int], *, whole: bool
    ) -> AsyncGenerator[Mapping[str, Content], None]:
        """Yield the contents of copies by uid, a set of copies at a time.

        Reads about as many octets of each copy as its limit says. If copies need not be ``whole``, those that
        the server refuses to show are left out.
        """
        ...

    @property
    def is_whole(self) -> bool:
        """Whether every copy was shown or set aside, so that any other message is absent."""
        ...

    def set_aside(self, uid: str) -> None:
        """Never show this copy again, because it is not ours or must not be deleted."""
        ...

    async def delete(self, uids: Sequence[str]) -> None:
        """Delete copies; this takes effect once the poll ends without a fault.

        A copy that the server refuses to delete repeatedly is set aside.
        """
        ...


OpenFolder = Callable[[], Awaitable[Folder]]


class Mailbox(Protocol):
    """A mailbox that is polled repeatedly, by one session at a time."""

    polls: float
    """Average number of polls per message."""

    shortest_gap: float
    """Minimum seconds between polls."""

    first_read: int
    """Number of copies that the first poll reads: it must end in time with a second for each command."""

    stays_open: bool
    """Whether the session stays open between polls, so that it needs polls to keep it alive."""

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders where messages arrive; known after the first poll."""
        ...

    @property
    def doubt(self) -> str:
        """What could not be read, where a message may be unnoticed; empty if everything was read."""
        ...

    standing: Standing
    """How the latest polls went, for those who share the server."""

    async def turn(self) -> None:
        """Wait until a poll may take a connection; `admit` must follow."""
        ...

    async def admit(self) -> None:
        """Wait until a poll may log in; `poll` must follow. Neither wait is part of the poll."""
        ...

    def poll(
        self, phases: PhaseTimer | None = None, *, afresh: bool = False, sent: bool = False
    ) -> AbstractAsyncContextManager[Sequence[OpenFolder]]:
        """Poll once; returns the folders that are due now. Finish with each before opening the next.

        ``phases`` times a session that this poll opens. ``afresh`` searches all folders again, without
        relying on the server's reports of changes. ``sent`` also opens the folder of sent copies, as the
        last one, if the protocol shows it.
        Raises `probes.core.faults.ProbeFault`.
        """
        ...

    def excuses(self, fault: ProbeFault) -> bool:
        """Record a fault in the last opened folder; return whether the poll remains valid without it."""
        ...

    async def news(self) -> None:
        """Return once the server reports a change of the mailbox; if it cannot, wait for ever.

        May be cancelled without losing anything. Raises `probes.core.faults.ProbeFault` if the session ends.
        """
        ...

    async def close(self) -> None:
        """End the session."""
        ...
