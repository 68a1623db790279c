"""The fake site's IMAP: what a watched mailbox needs, with UIDPLUS and IDLE (RFC 9051)."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.fakes.mail_site.store import Mailbox, Site, header_of, user_of

CAPABILITIES = b"IMAP4rev1 AUTH=PLAIN SASL-IR UIDPLUS IDLE"
_ITEM = re.compile(rb"BODY\.PEEK(\[(?:HEADER(?:\.FIELDS \(([^)]*)\))?)?\])<(\d+)\.(\d+)>")


class Imap:
    """One IMAP connection."""

    greeting = b"* OK [CAPABILITY " + CAPABILITIES + b"] ready\r\n"
    is_over = False

    def __init__(self, site: Site, send: Callable[[bytes], None]) -> None:
        self._site = site
        self._send = send
        self._mailbox = Mailbox()
        self._told = 0
        self._idle = b""

    def take(self, buffer: bytearray) -> bytes | None:
        """Remove a line without its end from ``buffer``, if it is complete."""
        return line_from(buffer)

    def answer(self, line: bytes) -> bytes | None:
        """Return the answer to a line; ``None`` if there is none, ever."""
        if line == b"DONE":
            tag, self._idle = self._idle, b""
            return self._news() + tag + b" OK done\r\n"
        tag, *words = line.split(b" ")
        name = b" ".join(words[: 2 if words[0] == b"UID" else 1]).decode()
        self._site.seen.commands[name] += 1
        if name == "IDLE":
            self._idle = tag
            return b"+ idling\r\n" + self._news()
        if name == "AUTHENTICATE":
            return self._authenticated(tag, user_of(words[2]))
        self.is_over = name == "LOGOUT"
        return self._untagged(name, words) + self._news() + tag + b" OK done\r\n"

    def _authenticated(self, tag: bytes, user: str) -> bytes | None:
        if user.startswith("dead"):
            return None
        if user.startswith("refused"):
            return tag + b" NO [UNAVAILABLE] try again later\r\n"
        self._mailbox = self._site.mailbox(user)
        self._told = len(self._mailbox.uids)
        self._mailbox.watching.add(self._tell)
        return tag + b" OK [CAPABILITY " + CAPABILITIES + b"] done\r\n"

    def _tell(self) -> None:
        if self._idle:
            self._send(self._news())

    def close(self) -> None:
        """Forget the connection."""
        self._mailbox.watching.discard(self._tell)

    def _news(self) -> bytes:
        """Return the EXISTS that is due, in IDLE and with the answer to any command, as most servers do."""
        if self._told == len(self._mailbox.uids):
            return b""
        self._told = len(self._mailbox.uids)
        return b"* %d EXISTS\r\n" % self._told

    def _untagged(self, name: str, words: list[bytes]) -> bytes:
        mailbox = self._mailbox
        match name:
            case "CAPABILITY":
                return b"* CAPABILITY " + CAPABILITIES + b"\r\n"
            case "LIST":
                return b'* LIST () "/" INBOX\r\n'
            case "SELECT":
                self._told = len(mailbox.uids)
                told = b"* %d EXISTS\r\n* OK [UIDVALIDITY 1] x\r\n" % self._told
                return told + b"* OK [UIDNEXT %d] x\r\n" % mailbox.uid_next
            case "UID SEARCH":
                return b"* SEARCH " + b" ".join(b"%d" % uid for uid in mailbox.uids) + b"\r\n"
            case "UID FETCH":
                return self._fetched(words[2], b" ".join(words[3:]))
            case "UID STORE":
                mailbox.deleted.update(mailbox.among(words[2]))
            case "UID EXPUNGE":
                return self._expunged(words[2])
        return b""

    def _fetched(self, uids: bytes, items: bytes) -> bytes:
        item = _ITEM.search(items)
        if item is None:
            raise ValueError(items)
        begin, end = int(item[3]), int(item[3]) + int(item[4])
        names = item[2] or b""
        lines = []
        for uid in self._mailbox.among(uids):
            raw = self._mailbox.messages[uid]
            text = (header_of(raw, names.lower()) if b"HEADER" in item[1] else raw)[begin:end]
            place = self._mailbox.place(uid)
            lines.append(b"* %d FETCH (UID %d BODY%s<%d> " % (place, uid, item[1], begin))
            lines.append(b"{%d}\r\n" % len(text) + text + b")\r\n")
        return b"".join(lines)

    def _expunged(self, uids: bytes) -> bytes:
        lines = []
        for uid in self._mailbox.among(uids):
            if uid in self._mailbox.deleted:
                lines.append(b"* %d EXPUNGE\r\n" % self._mailbox.remove(uid))
                self._told -= 1
        return b"".join(lines)


def line_from(buffer: bytearray) -> bytes | None:
    """Remove a line without its CRLF from ``buffer``, if it is complete."""
    end = buffer.find(b"\r\n")
    if end < 0:
        return None
    line = bytes(buffer[:end])
    del buffer[: end + 2]
    return line
