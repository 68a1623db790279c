"""An SMTP server that takes messages, and hands on what it took."""

from __future__ import annotations

from collections.abc import Callable

from tests.fakes.scripted_server import Peer

ANSWERS = {
    b"EHLO": b"250-mx.example.test\r\n250 AUTH PLAIN",
    b"AUTH": b"235 2.7.0 ok",
    b"MAIL": b"250 2.1.0 ok",
    b"RCPT": b"250 2.1.5 ok",
    b"QUIT": b"221 2.0.0 bye",
}


class SmtpServer:
    """Gives each message that it accepts to ``deliver``."""

    def __init__(self, deliver: Callable[[bytes], None]) -> None:
        self._deliver = deliver
        self._lines: list[bytes] = []

    def deliver(self) -> None:
        """Deliver the message whose content came last."""
        self._deliver(b"\r\n".join([*self._lines, b""]))

    async def script(self, peer: Peer) -> None:
        """Answer commands on one connection."""
        await peer.send(b"220 mx.example.test ESMTP")
        while True:
            verb = (await peer.expect(b".*"))[:4]
            if verb != b"DATA":
                await peer.send(ANSWERS[verb])
                continue
            await peer.send(b"354 go on")
            self._lines = []
            while (line := await peer.expect(b".*")) != b".":
                self._lines.append(line.removeprefix(b"."))
            self.deliver()
            await peer.send(b"250 2.6.0 queued")
