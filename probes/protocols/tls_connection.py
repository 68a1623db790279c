"""The client's side of TLS: OpenSSL, and a connection that carries its records."""

from __future__ import annotations

import asyncio
import ssl

RECORD = 16 * 1024
"""Maximum octets of plain text in a TLS record (RFC 8446 section 5.1)."""


class TlsConnection:
    """The client's side of TLS (RFC 8446), whose records go out by ``transport``.

    Event loops have one of their own, for any use. This one has only what a client of mail servers needs: it
    costs a probe less processor time, and no buffer of 256 KiB for each connection.
    """

    def __init__(self, context: ssl.SSLContext, server_name: str, transport: asyncio.Transport) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.openssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self.is_established = False
        """Whether the handshake is done."""
        self._transport = transport
        self._unsent = bytearray()

    def received(self, octets: bytes) -> None:
        """Take in what the network delivered, for `handshake` or `decrypt`."""
        self._incoming.write(octets)

    def handshake(self) -> bool:
        """Continue the handshake with what has arrived; return whether it is done. Raises ssl.SSLError.

        The client's last record goes out together with what it sends next, or by `send_records`.
        """
        try:
            self.openssl.do_handshake()
        except ssl.SSLError as error:
            self.send_records()  # it may be an alert
            if isinstance(error, ssl.SSLWantReadError):
                return False
            raise
        self.is_established = True
        return True

    def decrypt(self, buffer: bytearray) -> bool:
        """Add what has arrived to ``buffer``; return whether the server has ended TLS.

        Raises ssl.SSLError.
        """
        try:
            while self._incoming.pending:  # a read with nothing to read costs as much as one of a record
                octets = self.openssl.read(RECORD)
                if not octets:
                    return True
                buffer += octets
        except ssl.SSLWantReadError:  # a part of a record, or a message of TLS itself
            pass
        finally:
            self.send_records()
        if self._unsent:
            self.encrypt(b"")
        return False

    def encrypt(self, octets: bytes) -> None:
        """Send ``octets``. If the server renegotiates (TLS 1.2), they follow its part of the handshake."""
        self._unsent += octets
        try:
            while self._unsent:
                del self._unsent[: self.openssl.write(self._unsent)]
        except ssl.SSLWantReadError:
            return
        finally:
            self.send_records()

    def send_records(self) -> None:
        """Send the records that are due."""
        if self._outgoing.pending and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())
