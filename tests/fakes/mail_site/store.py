"""The mailboxes of the fake site, and the log of what its servers saw."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

_MESSAGE_ID = re.compile(rb"^Message-ID: <([^@>]+)", re.MULTILINE | re.IGNORECASE)
_FOREIGN = (
    b"Received: from elsewhere.example by mail.example; Sat, 28 Nov 2026 10:00:00 +0000\r\n"
    b"From: somebody@example.org\r\nSubject: minutes of the meeting\r\n\r\nHello,\r\n" + 20 * b"a line\r\n"
)


@dataclass
class Seen:
    """What the servers saw.

    ``arrived`` has the monotonic time at which each message became visible, by the local part of its
    Message-ID; ``commands`` how often each command came; ``left`` how many messages the mailboxes have, and
    ``foreign`` how many of them are other people's.
    """

    arrived: dict[str, float] = field(default_factory=dict)
    commands: Counter[str] = field(default_factory=Counter)
    left: int = 0
    foreign: int = 0


@lru_cache(maxsize=64)
def header_of(raw: bytes, names: bytes) -> bytes:
    """Return a header section, or only the named fields (lower case, separated by spaces)."""
    section = raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    if not names:
        return section
    wanted, kept, is_wanted = set(names.split()), [], False
    for line in section.splitlines(keepends=True):
        if not line.startswith((b" ", b"\t")):
            is_wanted = line.partition(b":")[0].lower() in wanted
        if is_wanted:
            kept.append(line)
    return b"".join(kept) + b"\r\n"


class Mailbox:
    """One account's messages by ascending uids."""

    def __init__(self) -> None:
        self.uids: list[int] = []
        self.messages: dict[int, bytes] = {}
        self.deleted: set[int] = set()
        self.uid_next = 1
        self.watching: set[Callable[[], None]] = set()
        """Called after each new message."""

    def put(self, raw: bytes) -> None:
        """Add a message, visible from now on."""
        self.messages[self.uid_next] = raw
        self.uids.append(self.uid_next)
        self.uid_next += 1
        for tell in tuple(self.watching):
            tell()

    def remove(self, uid: int) -> int:
        """Remove a message; return the number that it had in the sequence."""
        place = self.place(uid)
        del self.uids[place - 1]
        del self.messages[uid]
        self.deleted.discard(uid)
        return place

    def place(self, uid: int) -> int:
        """Return a message's number in the sequence, from 1."""
        return bisect_left(self.uids, uid) + 1

    def among(self, uids: bytes) -> list[int]:
        """Return the uids of a sequence set that exist, ascending (RFC 9051 section 9)."""
        found: set[int] = set()
        newest = self.uids[-1] if self.uids else 0
        for part in uids.split(b","):
            low, _, high = part.partition(b":")
            end = newest if high == b"*" else int(high or low)
            begin = min(int(low), newest) if high == b"*" else int(low)
            first = bisect_left(self.uids, begin)
            found.update(self.uids[first : bisect_left(self.uids, end + 1)])
        return sorted(found)


class Site:
    """All mailboxes by address; those that do not exist are made when they are named."""

    def __init__(self) -> None:
        self.mailboxes: dict[str, Mailbox] = {}
        self.seen = Seen()
        self.delay = 0.0
        """Median seconds from a message's acceptance until it is visible; log-normal, sigma 0.3."""
        self._chance = Random("delays")  # noqa: S311 # a simulation

    def mailbox(self, address: str) -> Mailbox:
        """Return the mailbox of an address."""
        if address not in self.mailboxes:
            self.mailboxes[address] = Mailbox()
        return self.mailboxes[address]

    def accept(self, address: str, raw: bytes) -> None:
        """Deliver a message, unless its address begins with ``lost``."""
        if address.startswith("lost"):
            return
        if self.delay:
            wait = self.delay * self._chance.lognormvariate(0.0, 0.3)
            asyncio.get_running_loop().call_later(wait, self.deliver, address, raw)
        else:
            self.deliver(address, raw)

    def deliver(self, address: str, raw: bytes) -> None:
        """Make a message visible now."""
        found = _MESSAGE_ID.search(raw)
        assert found is not None, raw
        # Before it is visible: a client that idles may know of it before this process goes on.
        self.seen.arrived.setdefault(found[1].decode(), time.monotonic())
        self.mailbox(address).put(raw)

    def fill(self, address: str, count: int) -> None:
        """Put mail of other people into a mailbox."""
        mailbox = self.mailbox(address)
        for _ in range(count):
            mailbox.put(_FOREIGN)

    def report(self) -> Seen:
        """Return what was seen until now."""
        self.seen.left = sum(len(mailbox.uids) for mailbox in self.mailboxes.values())
        self.seen.foreign = sum(
            raw is _FOREIGN for mailbox in self.mailboxes.values() for raw in mailbox.messages.values()
        )
        return self.seen


def user_of(initial: bytes) -> str:
    """Return the user of SASL PLAIN's response (RFC 4616)."""
    return base64.b64decode(initial).split(b"\0")[1].decode()
