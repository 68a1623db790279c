"""A POP3 session: the dialogue around `probes.protocols.pop3`, each phase timed (RFC 1939)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, TypeVar
from weakref import WeakValueDictionary

from pydantic import SecretStr

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import TURN, PhaseTimer
from probes.protocols import pop3 as pop3
from probes.protocols.line_transport import LineTransport
from probes.protocols.mail_session import MailSession
from probes.protocols.pop3 import MOST_MESSAGES, POP3_LINE_LIMIT, Capabilities
from probes.protocols.sasl import Mechanism

INITIAL_RESPONSE_LINE = 255
"""Maximum octets of an AUTH line with an initial response (RFC 5034 section 4)."""

READ_PAST = 64 * 1024 * 1024
"""Maximum octets to read of an answer of which only the beginning is needed; more close the session."""

CAPABILITY_LINES = 200
"""Maximum number of lines in the answer to CAPA."""


T = TypeVar("T")

_REFUSALS = frozenset({Reason.POP3_ERROR, Reason.POP3_SYS_TEMP, Reason.POP3_SYS_PERM, Reason.POP3_IN_USE})
_TURNS: WeakValueDictionary[tuple[str, int, str], asyncio.Lock] = WeakValueDictionary()
"""Held by the session that has a mailbox open, by host, port and username."""


class Pop3Session(MailSession):
    """One connection to a POP3 server. If `abort` ends it, its deletions do not take effect."""

    starttls = "STLS"
    service = "pop"
    own_methods: ClassVar[Mapping[str, bool]] = MappingProxyType({"USER": False, "APOP": True})

    def __init__(
        self, server: ServerSettings, transport: LineTransport, phases: PhaseTimer, clock: Clock
    ) -> None:
        super().__init__(server, transport, phases, clock)
        self.greeting = b""
        self.gave_up = False
        """Whether the connection was closed because an answer exceeded its limit."""
        self._may_hold_mail = False  # whether unexpected octets may belong to a message
        self.capabilities = Capabilities({})
        self.unreadable_ids = 0
        self._has_deleted = False
        self._reading = asyncio.Lock()  # its waiters come in the order of their commands
        self._awaiting = 0  # commands on their way, or whose answers are not read yet
        self._broken = False
        self._turn: asyncio.Lock | None = None
        self.login_sent_at = float("-inf")
        """Monotonic time right before the login's last line was sent. The server takes its snapshot of the
        mailbox after it, so a message that the session does not show was absent at some later moment."""

    async def _greet(self) -> None:
        with self._phases.phase("greeting"):
            self.greeting = pop3.status(await self._answer(), Reason.POP3_ERROR)
        await self._learn_capabilities()

    def _offers(self, capability: str) -> bool:
        return self.capabilities.has(capability)

    async def _ask_for_tls(self) -> None:
        with self._phases.phase("starttls"):
            if self._transport.unread:
                raise ProbeFault(Reason.TLS_INJECTION, self._transport.unread)
            await self._command(b"STLS")

    async def _learn_capabilities(self) -> None:
        with self._phases.phase("capa"):
            self._send(b"CAPA")
            answer = await self._answer()
            if answer.startswith(b"-ERR"):
                self.capabilities = Capabilities({})  # an older server without CAPA
                return
            pop3.status(answer)
            lines = []
            async for line in self._lines(CAPABILITY_LINES):
                self._phases.transcript.received(line)
                lines.append(line)
            self.capabilities = Capabilities.parse(lines)

    def _login_methods(self) -> set[str]:
        methods = set(self.capabilities.sasl_mechanisms)
        if self.capabilities.has("USER") or not methods:  # a server that names no method must support it
            methods.add("USER")
        if pop3.timestamp_of(self.greeting) is not None:
            methods.add("APOP")
        return methods

    async def log_in(self, username: str, password: SecretStr) -> None:
        """Log in as `MailSession.log_in` does, once no other session of this process has the mailbox open.

        Many servers allow one session at a time (RFC 1939 section 4), so a probe and a watcher of the same
        mailbox would lock each other out.
        """
        account = self._server.host, self._server.port, username
        turn = _TURNS.setdefault(account, asyncio.Lock())
        if turn.locked():
            with self._phases.phase(TURN):
                await turn.acquire()
        else:
            await turn.acquire()
        self._turn = turn
        await super().log_in(username, password)

    async def _log_in_by(self, method: str, username: str, password: str) -> None:
        try:
            if method == "APOP":
                await self._apop(username, password)
            elif method == "USER":
                self._send(b"USER", username.encode(), public="USER")
                self._require_login(await self._answer())
                self._require_login(await self._login_line(b"PASS", password.encode(), public="PASS"))
            else:
                await super()._log_in_by(method, username, password)
        except ProbeFault as fault:
            if fault.reason is Reason.POP3_LOGIN_DELAY and fault.retry_after is None:
                fault.retry_after = self.capabilities.login_delay
            raise

    async def _apop(self, username: str, password: str) -> None:
        digest = pop3.apop_digest(pop3.timestamp_of(self.greeting) or b"", password)
        self._phases.transcript.redaction.add(password, digest.decode())
        self._require_login(await self._login_line(b"APOP", username.encode(), digest, public="APOP"))

    def _require_login(self, answer: bytes) -> None:
        """Raise if the login was refused. With AUTH-RESP-CODE, only `[AUTH]` blames the credentials."""
        coded = self.capabilities.has("AUTH-RESP-CODE")  # RFC 3206 section 4
        pop3.status(answer, self._unexplained_refusal(is_coded=coded))

    async def _authenticate(self, mechanism: Mechanism) -> None:
        """Do the exchange by AUTH (RFC 5034)."""
        command = b"AUTH " + mechanism.name.encode()
        initial = mechanism.initial_response()
        if initial is not None and len(command) + len(initial) + 3 <= INITIAL_RESPONSE_LINE:
            answer = await self._login_line(command, initial, public=command.decode())
        else:
            answer = await self._login_line(command, public=None)
        while answer == b"+" or answer.startswith(b"+ "):
            answer = await self._login_line(mechanism.answer(answer[2:]), public="")
        self._require_login(answer)

    async def _login_line(self, *words: bytes, public: str | None) -> bytes:
        self.login_sent_at = self._clock.monotonic()
        self._send(*words, public=public)
        return await self._answer()

    def _send(self, *words: bytes, public: str | None = None) -> None:
        """Send a line. If a reply is already there, end the session: it would be taken for this line's."""
        if unread := self._transport.unread:
            shown = f"{len(unread)} octets or more, not shown"
            if not self._may_hold_mail:
                shown = self._phases.transcript.quoted(unread.rstrip(b"\r\n"))
            raise ProbeFault(Reason.PROTOCOL_ERROR, f"a reply before its command: {shown}")
        self._transport.write_line(*words, public=public)

    async def _command(self, *words: bytes) -> bytes:
        self._send(*words)
        return pop3.status(await self._answer())

    async def _in_turn(self, phase: str, command: bytes, read: Callable[[], Awaitable[T]]) -> T:
        """Send a command about a message; return what ``read`` makes of what follows its status line.

        Several tasks may call this at the same time. If the server offers PIPELINING (RFC 2449 section 6.6),
        their commands go out at once. The answers come in the same order.
        """
        is_pipelined = self.is_pipelining
        try:
            if is_pipelined:
                self._send_behind(command)
            async with self._reading:
                self._require_unbroken()
                if not is_pipelined:
                    self._send(command)
                with self._phases.phase(phase):
                    pop3.status(await self._answer())
                    return await read()
        except ProbeFault as fault:
            if fault.reason not in _REFUSALS:
                self._break()
            raise
        except BaseException:
            self._break()
            raise
        finally:
            if is_pipelined:
                self._awaiting -= 1

    def _send_behind(self, command: bytes) -> None:
        """Send a command while others may still await their answers."""
        self._awaiting += 1
        if self._awaiting == 1:
            self._send(command)
        else:
            self._transport.write_line(command)

    def _require_unbroken(self) -> None:
        if self._broken:
            raise ProbeFault(Reason.CONNECTION_LOST, "the session ended before the answer")

    def _break(self) -> None:
        """Close the connection: what it still holds must not be taken for another command's answer."""
        self._broken = True
        self._transport.abort()

    async def _answer(self) -> bytes:
        """Return the status line of a command. Anything after it may be mail, which is not kept."""
        line = await self._transport.read_line(POP3_LINE_LIMIT, is_mail=self._may_hold_mail)
        if self._may_hold_mail and not line.startswith((b"+OK", b"-ERR")):
            raise ProbeFault(
                Reason.PROTOCOL_ERROR, f"not a POP3 reply: {len(line)} octets or more, not shown"
            )
        self._phases.transcript.received(line)
        if not line:
            said = self._phases.transcript.shown(line)
            raise ProbeFault(Reason.PROTOCOL_ERROR, f"not a POP3 reply: {said}")
        return line

    async def _lines(self, most: int) -> AsyncIterator[bytes]:
        """Yield a multi-line response without mail; more than ``most`` lines close the session."""
        count = 0
        while (line := pop3.unstuffed(await self._transport.read_line(POP3_LINE_LIMIT))) is not None:
            count += 1
            if count > most:
                said = self._phases.transcript.quoted(line, cut=True)
                raise self._too_large(f"more than {most} lines, such as: {said}")
            yield line

    async def _content(self, limit: int, keep: int | None = None) -> bytes:
        """Return mail, or its first ``keep`` octets; more than ``limit`` octets close the session."""
        text, length = bytearray(), 0
        self._may_hold_mail = True
        try:
            while (line := pop3.unstuffed(await self._transport.read_line(limit, is_mail=True))) is not None:
                length += len(line) + 2
                if length > limit:
                    raise self._too_large(f"more than {limit} octets")
                if keep is None or len(text) < keep:
                    text += line + b"\r\n"
        except ProbeFault as fault:
            if fault.reason is Reason.LINE_TOO_LONG:  # in mail this is not the server's fault
                raise self._too_large(f"a line of more than {limit} octets") from fault
            raise
        return bytes(text[:keep])

    def _too_large(self, detail: str) -> ProbeFault:
        self.gave_up = True
        self.abort()
        return ProbeFault(Reason.RESPONSE_TOO_LARGE, detail)

    async def stat(self) -> tuple[int, int | None]:
        """Return the number of messages in the mailbox, and their octets if the server reports them."""
        with self._phases.phase("stat"):
            return pop3.parse_stat(await self._command(b"STAT"))

    async def uidl(self) -> dict[int, str]:
        """Return the unique id of each message by its number; messages may share an id.

        ``unreadable_ids`` is then the number of unreadable lines. If all lines are unreadable, raises
        `ProbeFault`, so that such an answer does not look like an empty mailbox.
        """
        with self._phases.phase("uidl"):
            await self._command(b"UIDL")
            lines = [line async for line in self._lines(MOST_MESSAGES)]
        listing = dict(pair for pair in map(pop3.parse_unique_id, lines) if pair is not None)
        if lines and not listing:
            raise ProbeFault(Reason.PROTOCOL_ERROR, b"not a line of UIDL: " + lines[0][:100])
        self.unreadable_ids = len(lines) - len(listing)
        return listing

    async def unique_id(self, number: int) -> str | None:
        """Return the unique id of one message; ``None`` if the answer is unreadable."""
        with self._phases.phase("uidl"):
            listed = pop3.parse_unique_id(await self._command(b"UIDL %d" % number))
        return listed[1] if listed is not None and listed[0] == number else None

    @property
    def is_pipelining(self) -> bool:
        """Whether commands about messages go out before the answers to earlier ones."""
        return self.capabilities.has("PIPELINING")

    @property
    def is_over(self) -> bool:
        """Whether a fault closed the connection."""
        return self._broken or self.gave_up

    async def verify(self, number: int, unique_id: str) -> None:
        """Check that no answer was lost or added, by the unique id of a listed message.

        All earlier commands must have ended. Raises `ProbeFault` and closes the connection if not.
        """
        try:
            self._require_unbroken()
            with self._phases.phase("uidl"):
                self._send(b"UIDL %d" % number)
                answer = await self._answer()
        except BaseException:
            self._break()
            raise
        if not answer.startswith(b"+OK ") or pop3.parse_unique_id(answer[4:]) != (number, unique_id):
            self._break()
            raise ProbeFault(Reason.PROTOCOL_ERROR, "the answers do not match the pipelined commands")

    async def top(self, number: int, *, limit: int) -> bytes:
        """Return a message's header section; more than ``limit`` octets close the session.

        If CAPA has no TOP, the server must send the whole message, and the body is skipped.
        """
        if self.capabilities.words and not self.capabilities.has("TOP"):
            return await self._header_of_whole(number, limit)
        try:
            return await self._in_turn("top", b"TOP %d 0" % number, lambda: self._content(limit))
        except ProbeFault as fault:
            if fault.reason is not Reason.POP3_ERROR:
                raise
        return await self._header_of_whole(number, limit)  # TOP is optional, RFC 1939 section 7

    async def _header_of_whole(self, number: int, limit: int) -> bytes:
        text = await self._beginning(b"RETR %d" % number, keep=limit)
        header_section, blank_line, _ = text.partition(b"\r\n\r\n")
        if not blank_line and len(text) >= limit:
            raise self._too_large(f"a header section of more than {limit} octets")
        return header_section + blank_line

    async def beginning(self, number: int, *, octets: int) -> bytes:
        """Return about the first ``octets`` of a message; the server may send more."""
        if self.capabilities.words and not self.capabilities.has("TOP"):
            return await self._beginning(b"RETR %d" % number, keep=octets)
        # RFC 5322 section 2.1.1 recommends lines of 78 octets. If they are longer, the excess is skipped.
        return await self._beginning(b"TOP %d %d" % (number, octets // 78), keep=octets)

    async def _beginning(self, command: bytes, keep: int) -> bytes:
        return await self._in_turn("top", command, lambda: self._content(READ_PAST, keep))

    async def retr(self, number: int, *, limit: int) -> bytes:
        """Return a complete message; more than ``limit`` octets close the session."""
        return await self._in_turn("retr", b"RETR %d" % number, lambda: self._content(limit))

    async def dele(self, number: int) -> None:
        """Mark a message as deleted; it is gone only after `quit` has returned."""
        await self._in_turn("dele", b"DELE %d" % number, _nothing)
        self._has_deleted = True

    async def quit(self) -> None:
        """End the session; deletions take effect once this returns (RFC 1939 section 6).

        If QUIT fails, raises `ProbeFault` only if that leaves deletions in doubt.
        """
        try:
            with self._phases.phase("quit"):
                await self._command(b"QUIT")
        except ProbeFault as fault:
            if self._has_deleted:
                raise
            self._phases.transcript.note(str(fault))
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the connection at once, and let the next session of this account log in."""
        super().abort()
        if self._turn is not None:
            self._turn.release()
            self._turn = None


async def _nothing() -> None:
    """Nothing follows the status line."""
