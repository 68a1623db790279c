"""The sandbox's mail: transit times, the mailbox, and a POP3 session's view of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random

MESSAGE_LIMIT = 1024 * 1024
"""Maximum size of a message, in octets."""
MAILBOX_MESSAGES = 1000
"""Maximum number of messages in the mailbox and in transit."""
MAILBOX_OCTETS = 32 * 1024 * 1024
"""Maximum total octets in the mailbox and in transit."""

_STEP = 0.08
_SPELL_CHANCE = 1 / 60
_SPELL_MESSAGES = (3, 8)


class Transit:
    """Decides the fate of each message: lost, or delivered after a delay that varies like a real queue's.

    Delays, in seconds, drift slowly between ``shortest`` and ``longest``. Sometimes a few messages in a row
    take between ``longest`` and ``slowest``. ``loss`` is the probability, 0 to 1, that a message is
    accepted and never delivered. The same random numbers give the same sequence.
    """

    def __init__(
        self,
        chance: Random,
        *,
        loss: float = 0.04,
        shortest: float = 0.05,
        longest: float = 3.0,
        slowest: float = 8.0,
    ) -> None:
        if not 0.0 <= loss <= 1.0:
            raise ValueError(f"loss {loss} is not a probability between 0 and 1")
        if not 0.0 <= shortest <= longest <= slowest:
            raise ValueError(f"delays {shortest}, {longest}, {slowest} do not rise from 0 or more")
        self._chance = chance
        self._loss = loss
        self._shortest, self._longest, self._slowest = shortest, longest, slowest
        self._position = chance.random()
        self._spell = 0

    def next_delay(self) -> float | None:
        """Return the seconds until the next message is visible, or None if it is lost."""
        delay = self._wander()
        return None if self._chance.random() < self._loss else delay

    def _wander(self) -> float:
        if self._spell:
            self._spell -= 1
            return self._chance.uniform(self._longest, self._slowest)
        if self._chance.random() < _SPELL_CHANCE:
            self._spell = self._chance.randint(*_SPELL_MESSAGES)
        # Reflected at both ends, so that the walk does not stick there.
        position = abs(self._position + self._chance.gauss(0.0, _STEP))
        self._position = min(1.0, 1.0 - abs(1.0 - position) if position > 1.0 else position)
        # Squared, so that quick deliveries are more common than slow ones.
        return self._shortest + (self._longest - self._shortest) * self._position**2


class PostOffice:
    """Accepts messages, holds each for its transit time and puts it into the mailbox.

    ``call_later(seconds, function)`` runs the function after that time.
    """

    def __init__(self, transit: Transit, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self._transit = transit
        self._call_later = call_later
        self._uids = count(1)
        self._held_messages = 0
        self._held_octets = 0
        self.mailbox: dict[bytes, bytes] = {}
        """The arrived messages by unique-id, oldest first."""

    @property
    def full(self) -> bool:
        """Whether new messages must be refused until some are deleted."""
        return self._held_messages >= MAILBOX_MESSAGES or self._held_octets >= MAILBOX_OCTETS

    def accept(self, message: bytes) -> None:
        """Accept a message, and lose it if so decided."""
        delay = self._transit.next_delay()
        if delay is None:
            return
        uid = b"%08d" % next(self._uids)
        self._held_messages += 1
        self._held_octets += len(message)

        def arrive() -> None:
            self.mailbox[uid] = message

        self._call_later(delay, arrive)

    def delete(self, uid: bytes) -> None:
        """Remove an arrived message, unless another session already has."""
        message = self.mailbox.pop(uid, None)
        if message is not None:
            self._held_messages -= 1
            self._held_octets -= len(message)


class Maildrop:
    """One POP3 session's view: the messages at login, and its deletion marks (RFC 1939, sections 3 to 6)."""

    def __init__(self, office: PostOffice) -> None:
        self._office = office
        self._messages = list(office.mailbox.items())
        self._marked: set[int] = set()

    def listed(self) -> list[tuple[int, bytes, bytes]]:
        """Return number, unique-id and content of each message that is not marked as deleted."""
        return [
            (number, uid, message)
            for number, (uid, message) in enumerate(self._messages, start=1)
            if number not in self._marked
        ]

    def message(self, number: int) -> tuple[int, bytes, bytes]:
        """Return number, unique-id and content of one message; LookupError if it is not listed."""
        if not 1 <= number <= len(self._messages) or number in self._marked:
            raise LookupError(f"no message {number}")
        return number, *self._messages[number - 1]

    def mark(self, number: int) -> None:
        """Mark a message as deleted; LookupError if it is not listed."""
        self.message(number)
        self._marked.add(number)

    def unmark_all(self) -> None:
        """Remove all deletion marks of this session."""
        self._marked.clear()

    def commit(self) -> None:
        """Delete the marked messages: the UPDATE state, which only QUIT enters."""
        for number in self._marked:
            self._office.delete(self._messages[number - 1][0])


def top(message: bytes, lines: int) -> bytes:
    """Return the header, the blank line and the first ``lines`` lines of the body (RFC 1939, section 7)."""
    header, blank, body = message.partition(b"\r\n\r\n")
    if not blank:
        return message
    kept = body.removesuffix(b"\r\n").split(b"\r\n", lines)[:lines] if body else []
    return header + blank + b"".join(line + b"\r\n" for line in kept)
