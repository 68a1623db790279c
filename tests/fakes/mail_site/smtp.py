"""The fake site's submission server, with STARTTLS and AUTH (RFC 5321, 3207, 4954)."""

from __future__ import annotations

from collections.abc import Callable

from tests.fakes.mail_site.imap import line_from
from tests.fakes.mail_site.store import Site

_END = b"\r\n.\r\n"


class Smtp:
    """One SMTP connection. ``starts_tls`` says that TLS begins after the latest answer."""

    greeting = b"220 mail.example ESMTP\r\n"
    is_over = False

    def __init__(self, site: Site, send: Callable[[bytes], None]) -> None:  # it reports nothing
        self._site = site
        self._recipients: list[str] = []
        self._is_data = False
        self.offers_tls = False
        self.starts_tls = False

    def take(self, buffer: bytearray) -> bytes | None:
        """Remove a line, or a message without its final dot, from ``buffer``, if it is complete."""
        if not self._is_data:
            return line_from(buffer)
        end = buffer.find(_END)
        if end < 0:
            return None
        content = bytes(buffer[: end + 2])
        del buffer[: end + len(_END)]
        return content

    def answer(self, line: bytes) -> bytes:
        """Return the reply to a line or message."""
        if self._is_data:
            return self._accepted(line)
        name, _, rest = line.partition(b" ")
        self._site.seen.commands[name.decode()] += 1
        match name:
            case b"EHLO":
                return b"250-mail.example\r\n%s250 SIZE 100000000\r\n" % (
                    b"250-STARTTLS\r\n" if self.offers_tls else b"250-AUTH PLAIN\r\n"
                )
            case b"STARTTLS":
                self.starts_tls, self.offers_tls = True, False
                return b"220 go ahead\r\n"
            case b"AUTH":
                return b"235 welcome\r\n"
            case b"RCPT":
                self._recipients.append(rest.partition(b"<")[2].partition(b">")[0].decode())
            case b"DATA":
                self._is_data = True
                return b"354 go ahead\r\n"
            case b"QUIT":
                self.is_over = True
                return b"221 bye\r\n"
        return b"250 ok\r\n"

    def _accepted(self, content: bytes) -> bytes:
        self._is_data = False
        raw = content.replace(b"\r\n..", b"\r\n.")
        for recipient in self._recipients:
            self._site.accept(recipient, raw)
        self._recipients = []
        return b"250 queued\r\n"

    def close(self) -> None:
        """Forget the connection."""
