"""The fake site's POP3, with PIPELINING (RFC 1939, 2449)."""

from __future__ import annotations

from collections.abc import Callable

from tests.fakes.mail_site.imap import line_from
from tests.fakes.mail_site.store import Mailbox, Site, header_of, user_of


class Pop3:
    """One POP3 connection."""

    greeting = b"+OK ready\r\n"
    is_over = False

    def __init__(self, site: Site, send: Callable[[bytes], None]) -> None:  # it reports nothing
        self._site = site
        self._mailbox = Mailbox()
        self._snapshot: list[int] = []
        self._marked: list[int] = []

    def take(self, buffer: bytearray) -> bytes | None:
        """Remove a line without its end from ``buffer``, if it is complete."""
        return line_from(buffer)

    def answer(self, line: bytes) -> bytes | None:
        """Return the answer to a line; ``None`` if there is none, ever."""
        words = line.split(b" ")
        self._site.seen.commands[words[0].decode()] += 1
        match words:
            case [b"CAPA"]:
                return b"+OK\r\nSASL PLAIN\r\nTOP\r\nUIDL\r\nPIPELINING\r\n.\r\n"
            case [b"AUTH", _, initial]:
                return self._authenticated(user_of(initial))
            case [b"STAT"]:
                return b"+OK %d 0\r\n" % len(self._snapshot)
            case [b"UIDL"]:
                lines = b"".join(b"%d u%d\r\n" % pair for pair in enumerate(self._snapshot, 1))
                return b"+OK\r\n" + lines + b".\r\n"
            case [b"UIDL", number]:
                return b"+OK %s u%d\r\n" % (number, self._snapshot[int(number) - 1])
            case [b"TOP", number, *_]:
                return _multi(header_of(self._raw(number), b""))
            case [b"RETR", number]:
                return _multi(self._raw(number))
            case [b"DELE", number]:
                self._marked.append(self._snapshot[int(number) - 1])
            case [b"QUIT"]:
                self.is_over = True
                for uid in self._marked:
                    self._mailbox.remove(uid)
        return b"+OK\r\n"

    def _authenticated(self, user: str) -> bytes | None:
        if user.startswith("dead"):
            return None
        if user.startswith("refused"):
            return b"-ERR [SYS/TEMP] try again later\r\n"
        self._mailbox = self._site.mailbox(user)
        self._snapshot = list(self._mailbox.uids)
        return b"+OK\r\n"

    def close(self) -> None:
        """Forget the connection."""

    def _raw(self, number: bytes) -> bytes:
        return self._mailbox.messages[self._snapshot[int(number) - 1]]


def _multi(text: bytes) -> bytes:
    return b"+OK\r\n" + text.replace(b"\r\n.", b"\r\n..") + b".\r\n"
