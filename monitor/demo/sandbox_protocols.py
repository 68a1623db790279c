"""The sandbox's protocols: SMTP submission with STARTTLS and AUTH, and POP3 over implicit TLS.

SMTP is Twisted's own, restricted where it is open by default. POP3 uses Twisted's line receiver instead of
its ``pop3.POP3``, which lists deleted messages, counts them in STAT, and does not stuff a dot at the start
of a 16 KiB block.
"""
# mypy: allow-untyped-calls
# (twisted.mail and twisted.protocols are only partly annotated: nearly every call would be flagged.)

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from typing import Any

from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer
from twisted.internet.ssl import CertificateOptions
from twisted.mail.imap4 import IllegalClientResponse, PLAINCredentials
from twisted.mail.interfaces import IMessageDelivery
from twisted.mail.smtp import COMMAND, ESMTP, Address, LOGINCredentials, SMTPServerError, User, rfc822date
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin
from typing_extensions import override

from monitor.demo.sandbox_mail import MESSAGE_LIMIT, Maildrop, PostOffice, top

HOST = b"sandbox.test"
IDLE_SECONDS = 60
COMMANDS_LIMIT = 1000
"""Maximum SMTP commands per connection, which bounds the queue for a client that never reads."""
PIPELINE_LIMIT = 128 * 1024
"""Maximum octets of pending POP3 commands."""

_SIZE = re.compile(rb"\sSIZE=(\d{1,20})(?:\s|$)", re.IGNORECASE)
_TOO_LARGE = "5.3.4 Message is larger than this server takes"


@dataclass(frozen=True)
class Account:
    """The only account: its address, which is also its user name, and its password."""

    address: str
    password: str = field(repr=False)

    def admits(self, username: bytes, password: bytes) -> bool:
        """Return whether these are the account's own credentials."""
        right_name = hmac.compare_digest(username, self.address.encode())
        return hmac.compare_digest(password, self.password.encode()) and right_name

    def login(
        self, credentials: UsernamePassword, _mind: object, *_interfaces: object
    ) -> defer.Deferred[tuple[Any, None, Any]]:
        """Act as the portal for the AUTH exchange of Twisted's SMTP."""
        if self.admits(credentials.username or b"", credentials.password or b""):
            return defer.succeed((IMessageDelivery, None, lambda: None))
        return defer.fail(UnauthorizedLogin())


class _IncomingMessage:
    """Collects one message's lines for the post office (Twisted's IMessageSMTP)."""

    def __init__(self, office: PostOffice) -> None:
        self._office = office
        self._lines: list[bytes] = []
        self._octets = 0

    def lineReceived(self, line: bytes) -> None:  # noqa: N802 - Twisted's name
        self._octets += len(line) + 2
        if self._octets > MESSAGE_LIMIT:
            raise SMTPServerError(552, _TOO_LARGE.encode())
        self._lines.append(line)

    def eomReceived(self) -> defer.Deferred[None]:  # noqa: N802 - Twisted's name
        self._office.accept(b"".join(line + b"\r\n" for line in self._lines))
        return defer.succeed(None)

    def connectionLost(self) -> None:  # noqa: N802 - Twisted's name
        self._lines.clear()


class SandboxSMTP(ESMTP):
    """Submission (RFC 6409): one recipient, one account, and AUTH offered only under TLS (RFC 4954)."""

    transport: Any  # a wrapped TCP transport; its TLS half is in no one interface
    portal: Any  # the account; the library infers None
    timeout = IDLE_SECONDS
    noisy = False

    def __init__(self, account: Account, office: PostOffice, tls: CertificateOptions) -> None:
        super().__init__({b"PLAIN": PLAINCredentials, b"LOGIN": LOGINCredentials}, tls)
        self.host = HOST
        self.portal = account
        self._address = account.address.encode().lower()
        self._office = office
        self._commands = 0
        self._after_starttls = False

    @override
    def greeting(self) -> bytes:
        return HOST + b" ESMTP mailsonde sandbox"

    @override
    def extensions(self) -> dict[bytes, list[bytes] | None]:
        offered: dict[bytes, list[bytes] | None] = super().extensions()
        if not self.startedTLS:
            del offered[b"AUTH"]
        return offered | {b"SIZE": [b"%d" % MESSAGE_LIMIT], b"8BITMIME": None, b"PIPELINING": None}

    @override
    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if self._after_starttls:
            # A partial line sent in plain text must not be completed under TLS.
            self._after_starttls, self._buffer = False, b""

    @override
    def lineReceived(self, line: bytes) -> None:
        if self._after_starttls:
            return  # sent in plain text behind STARTTLS: an injection (RFC 3207, section 4.2)
        if self.mode == COMMAND:
            self._commands += 1
            if self._commands > COMMANDS_LIMIT:
                self.sendCode(421, b"4.7.0 Too many commands")
                self.transport.loseConnection()
                return
        super().lineReceived(line)

    @override
    def lineLengthExceeded(self, line: bytes) -> None:
        # The library would continue, and read the rest of a message as commands.
        self.sendCode(500, b"5.5.6 Line too long")
        self.transport.loseConnection()

    @override
    def timeoutConnection(self) -> None:
        self.transport.abortConnection()

    @override
    def sendCode(self, code: int, message: bytes = b"") -> None:
        super().sendCode(code, b"5.7.8 " + message if code == 535 else message)

    @override
    def ext_STARTTLS(self, rest: bytes) -> None:
        before = self.startedTLS
        super().ext_STARTTLS(rest)
        self._after_starttls = self.startedTLS and not before

    @override
    def ext_AUTH(self, rest: bytes) -> None:
        if not self.startedTLS:
            self.sendCode(538, b"5.7.11 Encryption required for requested authentication mechanism")
        elif not rest:
            self.sendCode(501, b"5.5.4 AUTH needs a mechanism")
        else:
            super().ext_AUTH(rest)

    @override
    def state_AUTH(self, response: bytes | None) -> None:
        try:
            super().state_AUTH(response)
        except IllegalClientResponse:
            self.mode = COMMAND
            self.sendCode(501, b"5.5.2 Malformed response")

    def do_NOOP(self, _rest: bytes) -> None:  # noqa: N802 - Twisted finds commands by such names
        """Answer the one required command that Twisted's server lacks (RFC 5321, section 4.5.1)."""
        self.sendCode(250, b"2.0.0 OK")

    @override
    def do_MAIL(self, rest: bytes) -> None:
        declared = _SIZE.search(rest)
        if declared and int(declared[1]) > MESSAGE_LIMIT:
            self.sendCode(552, _TOO_LARGE.encode())
        else:
            super().do_MAIL(rest)

    @override
    def validateFrom(self, helo: object, origin: Address) -> Address:
        if not self.authenticated:
            raise SMTPServerError(530, "5.7.0 Authentication required")
        return origin

    @override
    def validateTo(self, user: User) -> Any:
        if bytes(user.dest).lower() != self._address:
            raise SMTPServerError(550, "5.1.1 No such mailbox here")
        if self._to:
            raise SMTPServerError(452, "4.5.3 One recipient a message")
        if self._office.full:
            raise SMTPServerError(452, "4.2.2 Mailbox full")
        return lambda: _IncomingMessage(self._office)

    @override
    def receivedHeader(self, helo: object, origin: Address, recipients: object) -> bytes:
        now: bytes = rfc822date()
        return b"Received: by " + HOST + b" with ESMTPSA; " + now


class SandboxPOP3(LineReceiver, TimeoutMixin):
    """POP3 (RFC 1939, CAPA of RFC 2449) over implicit TLS: a snapshot at login, deletions at QUIT."""

    MAX_LENGTH = 255
    transport: Any  # a wrapped TCP transport; its TLS half is in no one interface

    _CAPABILITIES = (
        b"USER",
        b"TOP",
        b"UIDL",
        b"RESP-CODES",
        b"AUTH-RESP-CODE",
        b"PIPELINING",
        b"EXPIRE NEVER",
    )

    def __init__(self, account: Account, office: PostOffice, tls: CertificateOptions) -> None:
        self._account = account
        self._office = office
        self._tls = tls
        self._username: bytes | None = None
        self._maildrop: Maildrop | None = None

    @override
    def connectionMade(self) -> None:
        self.transport.startTLS(self._tls)
        self.transport.registerProducer(self, True)
        self.setTimeout(IDLE_SECONDS)
        self._ok(b"mailsonde sandbox")

    @override
    def connectionLost(self, reason: object = None) -> None:
        self.setTimeout(None)

    @override
    def timeoutConnection(self) -> None:
        self.transport.abortConnection()

    @override
    def pauseProducing(self) -> None:
        # Answer no commands while the client does not read. The library would also stop reading, which could
        # stall a TLS handshake.
        self.paused = True

    @override
    def resumeProducing(self) -> None:
        self.paused = False
        self.dataReceived(b"")

    @override
    def stopProducing(self) -> None:
        self.paused = True

    @override
    def dataReceived(self, data: bytes) -> None:
        if len(self._buffer) + len(data) > PIPELINE_LIMIT:
            self.transport.abortConnection()
        else:
            super().dataReceived(data)

    @override
    def lineReceived(self, line: bytes) -> None:
        self.resetTimeout()
        verb, _, rest = line.partition(b" ")
        match verb.upper(), rest:
            case b"CAPA", b"":
                self._ok_lines(b"".join(name + b"\r\n" for name in self._CAPABILITIES))
            case b"QUIT", b"":
                self._quit()
            case command, _ if self._maildrop is None:
                self._authorize(command, rest)
            case command, _:
                self._transact(command, rest, self._maildrop)

    def _authorize(self, command: bytes, text: bytes) -> None:
        match command:
            case b"USER" if text:
                self._username = text
                self._ok(b"Send PASS")
            case b"PASS" if self._username is not None:
                username, self._username = self._username, None
                if self._account.admits(username, text):
                    self._maildrop = Maildrop(self._office)
                    self._ok(b"Logged in")
                else:
                    self._err(b"[AUTH] Authentication failed")
            case _:
                self._err(b"Log in first, with USER and then PASS")

    def _transact(self, command: bytes, rest: bytes, maildrop: Maildrop) -> None:
        arguments = rest.split()
        if not all(len(argument) <= 9 and argument.isdigit() for argument in arguments):
            self._err(b"Not a message number")
            return
        try:
            self._answer(command, [int(argument) for argument in arguments], maildrop)
        except LookupError:
            self._err(b"No such message")

    def _answer(self, command: bytes, numbers: list[int], maildrop: Maildrop) -> None:
        match command, numbers:
            case b"STAT", []:
                sizes = [len(message) for _, _, message in maildrop.listed()]
                self._ok(b"%d %d" % (len(sizes), sum(sizes)))
            case b"LIST", []:
                listed = maildrop.listed()
                self._ok_lines(b"".join(b"%d %d\r\n" % (n, len(message)) for n, _, message in listed))
            case b"LIST", [number]:
                self._ok(b"%d %d" % (number, len(maildrop.message(number)[2])))
            case b"UIDL", []:
                self._ok_lines(b"".join(b"%d %s\r\n" % (n, uid) for n, uid, _ in maildrop.listed()))
            case b"UIDL", [number]:
                self._ok(b"%d %s" % (number, maildrop.message(number)[1]))
            case b"RETR", [number]:
                self._ok_lines(maildrop.message(number)[2])
            case b"TOP", [number, lines]:
                self._ok_lines(top(maildrop.message(number)[2], lines))
            case b"DELE", [number]:
                maildrop.mark(number)
                self._ok(b"Marked")
            case b"RSET", []:
                maildrop.unmark_all()
                self._ok()
            case b"NOOP", []:
                self._ok()
            case _:
                self._err(b"Unknown command, or wrong arguments")

    def _quit(self) -> None:
        if self._maildrop is not None:
            self._maildrop.commit()
        self._ok(b"Bye")
        self.transport.unregisterProducer()  # TLS closes only without a producer
        self.transport.loseConnection()

    def _ok(self, text: bytes = b"") -> None:
        self.sendLine(b"+OK " + text)

    def _err(self, text: bytes) -> None:
        self.sendLine(b"-ERR " + text)

    def _ok_lines(self, content: bytes) -> None:
        """Send a multi-line response; ``content`` is empty or ends with CRLF."""
        stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")
        self.transport.write(b"+OK" + stuffed + b".\r\n")
