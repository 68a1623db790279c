"""What watching asks of a mailbox, whichever protocol opens it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from probes.core.faults import ProbeFault

HEADER_LIMIT = 64 * 1024
"""Most octets of a message's header section that are read."""

REFUSALS = 3
"""Polls in which a server may refuse to deal with a copy before it is set aside."""

IDENTIFYING = (
    *("X-Mailsonde-Token", "Content-Type", "Subject"),
    *("Auto-Submitted", "X-Autoreply", "X-Autorespond", "X-Autoresponse", "Precedence"),
    *("Return-Path", "From", "X-Failed-Recipients"),
)
"""The header fields that tell what a copy may be to us; see `Folder.identify`.

The last three tell a bounce from people's mail, for about 100 octets a message. Without them, every message
with an attachment would have to be read to find out whether it is a report.
"""


def unread(count: int) -> str:
    """Return the doubt that copies leave which could not be read, so many of them."""
    if count == 1:
        return "a message could not be read"
    return f"{count} messages could not be read" if count else ""


class Folder(Protocol):
    """One folder as one poll shows it. Methods that ask the server raise `probes.core.faults.ProbeFault`."""

    @property
    def name(self) -> str:
        """The folder's name; empty for POP3, which has one folder."""
        ...

    @property
    def is_junk(self) -> bool:
        """Whether this is where the server puts what it takes for junk."""
        ...

    @property
    def absent_at(self) -> float:
        """Monotonic reading: what the folder does not show was not there at some moment after this."""
        ...

    @property
    def listed_at(self) -> float:
        """Monotonic reading: what the folder shows was there before this."""
        ...

    @property
    def overlooked(self) -> Collection[str]:
        """Those of ``uids`` that earlier polls ought to have shown: nobody knows when they came."""
        ...

    @property
    def uids(self) -> Sequence[str]:
        """Newest first, without what was set aside; unique over the mailbox's life."""
        ...

    def identify(self, uids: Sequence[str]) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield uids with a header section that has at least the fields in `IDENTIFYING`.

        A copy that is gone is left out, and so is one that the server refuses to show. One whose header
        section is beyond `HEADER_LIMIT` is set aside; the fault that says so may have ended the session.
        """
        ...

    async def header_section(self, uid: str) -> bytes:
        """Return the whole header section of a copy that was identified in this poll."""
        ...

    async def beginning(self, uid: str, octets: int) -> bytes:
        """Return about the first ``octets`` of a copy, headers included, or what there is of them."""
        ...

    async def whole(self, uid: str, limit: int) -> bytes | None:
        """Return a whole copy, ``None`` if it is gone; over ``limit`` octets is `RESPONSE_TOO_LARGE`."""
        ...

    def refused(self, uid: str, fault: ProbeFault) -> bool:
        """Take in a fault in dealing with one copy; return whether it costs that copy only.

        Where it does not, the session is over. A copy that is refused again and again is set aside.
        """
        ...

    @property
    def is_whole(self) -> bool:
        """Whether every copy was shown or set aside, so that what was not seen is not there."""
        ...

    def set_aside(self, uid: str) -> None:
        """Never show this copy again: it is not ours, or not ours to delete."""
        ...

    async def delete(self, uid: str) -> None:
        """Delete a copy; that holds once the poll has ended without a fault."""
        ...


OpenFolder = Callable[[], Awaitable[Folder]]


class Mailbox(Protocol):
    """A mailbox that is polled again and again, by one session at a time."""

    polls: float
    """Polls to be spent on a message, on average."""

    shortest_gap: float
    """Shortest pause between polls, in seconds."""

    stays_open: bool
    """Whether the session lives on between polls, and so wants polls that keep it alive."""

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that are read; known after the first poll."""
        ...

    @property
    def doubt(self) -> str:
        """What could not be read, so that a message may lie there unseen; empty where all was read."""
        ...

    async def admit(self) -> None:
        """Return when a poll may begin; its wait is no part of the poll."""
        ...

    def poll(self, *, afresh: bool = False) -> AbstractAsyncContextManager[Sequence[OpenFolder]]:
        """Poll once: the folders that are due now, each to be opened and done with before the next.

        ``afresh`` looks through all folders again, without relying on what the server said is new.
        Raises `probes.core.faults.ProbeFault`.
        """
        ...

    def excuses(self, fault: ProbeFault) -> bool:
        """Take in a fault in the folder that was opened last; return whether the poll holds without it."""
        ...

    async def news(self) -> None:
        """Return once the server says that the mailbox changed; wait for ever where it cannot say that.

        Cancelling it costs nothing. Raises `probes.core.faults.ProbeFault` when the session ended.
        """
        ...

    async def close(self) -> None:
        """End the session."""
        ...
