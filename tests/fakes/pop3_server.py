"""A POP3 server in memory: a snapshot at login, and deletions at QUIT."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.fakes.scripted_server import Peer

CAPABILITIES = b"+OK\r\nSASL PLAIN\r\nTOP\r\nUIDL\r\nAUTH-RESP-CODE\r\n."


@dataclass
class Pop3Server:
    """Serves ``messages``, by unique id."""

    messages: dict[str, bytes] = field(default_factory=dict)

    def add(self, raw: bytes) -> None:
        """Store a message."""
        self.messages[f"u{len(self.messages) + 1}"] = raw

    async def script(self, peer: Peer) -> None:
        """Answer commands on one connection."""
        listed: list[str] = []
        deleted: set[str] = set()
        await peer.send(b"+OK ready")
        while True:
            match (await peer.expect(b".*")).decode().split(" "):
                case ["CAPA"]:
                    await peer.send(CAPABILITIES)
                case ["USER", _]:
                    await peer.send(b"+OK")
                case ["AUTH" | "PASS", *_]:
                    listed = list(self.messages)
                    await peer.send(b"+OK")
                case ["UIDL"]:
                    lines = [f"{number} {uid}".encode() for number, uid in enumerate(listed, 1)]
                    await peer.send(b"+OK", *lines, b".")
                case ["TOP" | "RETR" as verb, number, *_]:
                    raw = self.messages[listed[int(number) - 1]]
                    shown = raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if verb == "TOP" else raw
                    await peer.chunks(b"+OK\r\n" + shown.replace(b"\r\n.", b"\r\n..") + b".\r\n")
                case ["DELE", number]:
                    deleted.add(listed[int(number) - 1])
                    await peer.send(b"+OK")
                case ["QUIT"]:
                    for uid in deleted:
                        self.messages.pop(uid, None)
                    await peer.send(b"+OK bye")
                    return
                case words:
                    raise AssertionError(f"unexpected command {words}")
