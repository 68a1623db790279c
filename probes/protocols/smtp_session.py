"""An SMTP session: the dialogue around `probes.protocols.smtp`, each phase timed (RFC 5321)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from probes.core.clock import Clock
from probes.core.credentials import NO_TOKENS, Tokens, credentials_of
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols import smtp as smtp
from probes.protocols.connection_limits import Slot
from probes.protocols.line_transport import LineTransport
from probes.protocols.mail_session import MailSession
from probes.protocols.sasl import Mechanism
from probes.protocols.smtp import Extensions, Reply

QUIT_TIMEOUT = 5.0
"""Maximum seconds to wait for the reply to QUIT, which does not change the result."""

CONTENT_CHUNK = 64 * 1024
"""Maximum octets of a message to write before waiting for the network to take them."""

_UNKNOWN_COMMAND = frozenset({500, 502})
_UNKNOWN_PARAMETERS = frozenset({501, 504, 555})  # RFC 5321 section 4.1.1.11, and older usage


class SmtpSession(MailSession):
    """One connection to an SMTP server, made by `smtp_session`."""

    login_phase = "auth"
    service = "smtp"

    def __init__(
        self, server: ServerSettings, transport: LineTransport, phases: PhaseTimer, clock: Clock
    ) -> None:
        super().__init__(server, transport, phases, clock)
        self.greeting = Reply(0, "")
        self.extensions = Extensions()
        self.dot_sent_at: float | None = None
        """Monotonic time right before the final dot was sent, together with the end of the message."""

    async def _greet(self) -> None:
        with self._phases.phase("greeting"):
            self.greeting = await self._reply()
            if self.greeting.code != 220:
                raise self.greeting.fault()
        await self._learn_capabilities()

    async def _learn_capabilities(self) -> None:
        """Send EHLO, or HELO if the server does not know EHLO (RFC 5321 section 3.2)."""
        name = self._server.ehlo_name or _address_literal(self._transport.local_address)
        with self._phases.phase("ehlo"):
            reply = await self.command("EHLO", name)
            has_extensions = reply.code not in _UNKNOWN_COMMAND
            if not has_extensions:
                reply = await self.command("HELO", name)
            if reply.code != 250:
                raise reply.fault()
        self.extensions = smtp.extensions_of(reply.text) if has_extensions else Extensions()

    def _offers(self, capability: str) -> bool:
        return capability in self.extensions.features

    async def _ask_for_tls(self) -> None:
        with self._phases.phase("starttls"):
            self._require_turn(Reason.TLS_INJECTION)
            reply = await self.command("STARTTLS")
            if reply.code != 220:
                raise reply.fault()

    def _login_methods(self) -> Collection[str]:
        return [name.upper() for name in self.extensions.auth_mechanisms]

    async def _authenticate(self, mechanism: Mechanism) -> None:
        """Do the exchange by AUTH (RFC 4954)."""
        command, initial = f"AUTH {mechanism.name}", mechanism.initial_response()
        if initial is not None and len(command) + len(initial) + 3 <= smtp.COMMAND_LINE:
            reply = await self.command(command, initial.decode(), public=command)
        else:
            reply = await self.command(command)
        while reply.code == 334:
            reply = await self.command(mechanism.answer(reply.text.encode()).decode(), public="")
        if reply.code != 235:
            raise reply.fault(login=True)

    async def command(self, *words: str, public: str | None = None, seconds: float | None = None) -> Reply:
        """Send one command and return the reply, with any code, within the server's timeout.

        If the command has credentials, the transcript shows only its beginning ``public``, which may be
        empty. ``seconds`` shortens the timeout.
        """
        self._require_turn()
        self._transport.write_line(" ".join(words).encode("ascii"), public=public)
        return await self._reply(seconds)

    async def _reply(self, seconds: float | None = None) -> Reply:
        said = await self._transport.read_answer(
            smtp.WHOLE_REPLY, line_limit=smtp.REPLY_LINE_LIMIT, limit=smtp.REPLY_LIMIT, seconds=seconds
        )
        if not said:
            raise ProbeFault(
                Reason.PROTOCOL_ERROR, f"not an SMTP reply: {self._phases.transcript.shown(said)}"
            )
        return Reply.parse(said)

    def _require_turn(self, reason: Reason = Reason.PROTOCOL_ERROR) -> None:
        """Raise if a reply is already there, because it would be taken for the next command's reply."""
        if not (unread := self._transport.unread):
            return
        said = self._phases.transcript.quoted(unread.rstrip(b"\r\n"))
        if closing := smtp.closing_reply(unread):
            raise closing.fault()
        raise ProbeFault(reason, f"a reply before its command: {said}")

    async def mail(self, sender: str, size: int | None = None, envelope_id: str | None = None) -> Reply:
        """Send the envelope sender; raises unless the server accepts it.

        If the server offers SIZE (RFC 1870), ``size``, the message's octets, is declared, so that a message
        that is too large can be refused now. If it offers DSN (RFC 3461 section 4.4), ``envelope_id``, at
        most 100 characters of xtext, is declared for delivery reports. If the server then rejects the
        parameters that it offered, the command is repeated without them.
        """
        sends, parameters = f"MAIL FROM:<{sender}>", []
        if size is not None and self._offers("SIZE"):
            parameters.append(f"SIZE={size}")
        if envelope_id is not None and self._offers("DSN"):
            parameters.append(f"ENVID={envelope_id}")
        with self._phases.phase("mail"):
            reply = await self.command(sends, *parameters)
            if parameters and reply.code in _UNKNOWN_PARAMETERS:
                reply = await self.command(sends)
            return _accepted(reply)

    async def rcpt(self, recipient: str) -> Reply:
        """Send the recipient; raises unless the server accepts it."""
        with self._phases.phase("rcpt"):
            return _accepted(await self.command(f"RCPT TO:<{recipient}>"))

    async def data(self, content: bytes) -> Reply:
        """Send the message ``content`` (lines end in CRLF) and return the reply to its final dot.

        ``dot_sent_at`` is set right before the dot. If it is ``None`` after a fault, the server does not have
        the message. Otherwise only a reply can show whether it does.
        """
        with self._phases.phase("data"):
            reply = await self.command("DATA")
            if reply.code != 354:
                raise reply.fault()
            stuffed = smtp.stuffed(content)
            last = max(0, len(stuffed) - 1) // CONTENT_CHUNK * CONTENT_CHUNK
            for begin in range(0, last, CONTENT_CHUNK):
                self._require_turn()
                await self._transport.write_octets(stuffed[begin : begin + CONTENT_CHUNK])
            self._require_turn()
            self._phases.transcript.note(f"the message: {len(content):,} octets, and the final dot")
            self.dot_sent_at = self._clock.monotonic()
            await self._transport.write_octets(stuffed[last:])
            return _accepted(await self._reply())

    async def send(self, sender: str, recipient: str, content: bytes, envelope_id: str) -> Reply:
        """Send envelope and message, as `mail`, `rcpt` and `data` do; return the reply to the final dot."""
        await self.mail(sender, len(content), envelope_id)
        await self.rcpt(recipient)
        return await self.data(content)

    async def quit(self) -> None:
        """Send QUIT; if the server does not answer, the result stays the same.

        Raises if a reply is already there, because that casts doubt on the earlier ones, unless the server
        has accepted a message: it stays accepted.
        """
        with self._phases.phase("quit"):
            if self.dot_sent_at is None:
                self._require_turn()
            try:
                await self.command("QUIT", seconds=min(QUIT_TIMEOUT, self._server.timeout))
            except ProbeFault:
                return


@asynccontextmanager
async def smtp_session(
    server: ServerSettings,
    phases: PhaseTimer,
    clock: Clock,
    slot: Slot | None = None,
    tokens: Tokens = NO_TOKENS,
) -> AsyncIterator[SmtpSession]:
    """Open a session as configured for the block, logged in if the server has credentials.

    It uses ``slot``, or waits for one. ``tokens`` has the source of the server's tokens, if it needs one.
    """
    credentials = credentials_of(server, tokens)
    secret = await credentials.secret(phases) if credentials is not None else None
    session = await SmtpSession.connect(server, phases, clock, slot)
    try:
        if credentials is not None and secret is not None:
            await session.log_in(credentials.username, secret)
        yield session
    finally:
        session.abort()


def _accepted(reply: Reply) -> Reply:
    if not reply.is_positive:
        raise reply.fault()
    return reply


def _address_literal(address: str | None) -> str:
    """Return this end's address as a literal for EHLO without a host name (RFC 5321 section 4.1.4)."""
    address = address or "127.0.0.1"
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"
