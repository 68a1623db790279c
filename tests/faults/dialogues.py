"""A correct dialogue for each protocol, state by state, so that a fault can be injected in any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tests.fakes.scripted_server import Peer, Script, dialogue
from tests.faults.misdeeds import Misdeed


@dataclass(frozen=True)
class Dialogue:
    """The client's command in each state, in order, and the correct answer; the first has no command."""

    greeting: bytes
    states: Mapping[str, tuple[bytes, bytes]]

    @property
    def names(self) -> tuple[str, ...]:
        """The states, from the greeting."""
        return ("greeting", *self.states)

    @property
    def sound(self) -> Script:
        """The script of a server that is correct in every state."""
        return dialogue(self.greeting, *self.states.values())

    def answer(self, state: str) -> bytes:
        """Return the correct answer in ``state``."""
        return self.greeting if state == "greeting" else self.states[state][1]

    def committing(self, misdeed: Misdeed, state: str) -> Script:
        """Return the script of a server that does ``misdeed`` in ``state``, and is correct otherwise."""

        async def script(peer: Peer) -> None:
            for name in self.names:
                if name != "greeting":
                    await peer.expect(self.states[name][0])
                if name == state:
                    await misdeed(peer)
                else:
                    await peer.send(self.answer(name))

        return script


SMTP = Dialogue(
    b"220 mx.example.test ESMTP",
    MappingProxyType(
        {
            "ehlo": (rb"EHLO .*", b"250-mx.example.test\r\n250-PIPELINING\r\n250 AUTH PLAIN"),
            "auth": (rb"AUTH PLAIN .*", b"235 2.7.0 ok"),
            "mail": (rb"MAIL FROM:.*", b"250 2.1.0 ok"),
            "rcpt": (rb"RCPT TO:.*", b"250 2.1.5 ok"),
            "quit": (rb"QUIT", b"221 2.0.0 bye"),
        }
    ),
)
POP3 = Dialogue(
    b"+OK ready",
    MappingProxyType(
        {
            "capa": (rb"CAPA", b"+OK\r\nSASL PLAIN\r\nTOP\r\nUIDL\r\nAUTH-RESP-CODE\r\n."),
            "login": (rb"AUTH PLAIN .*", b"+OK"),
            "stat": (rb"STAT", b"+OK 1 320"),
            "uidl": (rb"UIDL", b"+OK\r\n1 a\r\n."),
            "quit": (rb"QUIT", b"+OK bye"),
        }
    ),
)
IMAP = Dialogue(
    b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready",
    MappingProxyType(
        {
            "login": (rb"M1 AUTHENTICATE PLAIN .*", b"M1 OK [CAPABILITY IMAP4rev1 NAMESPACE] in"),
            "select": (
                rb"M2 EXAMINE .*",
                b"* 3 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [UIDNEXT 9] x\r\nM2 OK",
            ),
            "namespace": (rb"M3 NAMESPACE", b'* NAMESPACE (("" "/")) NIL NIL\r\nM3 OK'),
            "list": (rb"M4 LIST .*", b'* LIST () "/" INBOX\r\nM4 OK'),
            "logout": (rb"M5 LOGOUT", b"* BYE bye\r\nM5 OK"),
        }
    ),
)
DIALOGUES: Mapping[str, Dialogue] = MappingProxyType({"smtp": SMTP, "pop3": POP3, "imap": IMAP})
