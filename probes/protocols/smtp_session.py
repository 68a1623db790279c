"""An SMTP session: the dialogue around `probes.protocols.smtp`, each phase timed (RFC 5321)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols import smtp as smtp
from probes.protocols.line_transport import LineTransport
from probes.protocols.mail_session import MailSession
from probes.protocols.sasl import Mechanism
from probes.protocols.smtp import Extensions, Reply

QUIT_TIMEOUT = 5.0
"""Longest wait, in seconds, for the answer to QUIT: by then the result is known."""

CONTENT_CHUNK = 64 * 1024
"""Most octets of a message that are written before the network has to take them."""

_UNKNOWN_COMMAND = frozenset({500, 502})
_UNKNOWN_PARAMETERS = frozenset({501, 504, 555})  # RFC 5321 section 4.1.1.11, and what came before it
_REFUSED_CREDENTIALS = frozenset({530, 534, 535, 538})


class SmtpSession(MailSession):
    """One connection to an SMTP server, as far as its phases went; made by `smtp_session`."""

    login_phase = "auth"

    def __init__(
        self, server: ServerSettings, transport: LineTransport, phases: PhaseTimer, clock: Clock
    ) -> None:
        super().__init__(server, transport, phases, clock)
        self.greeting = Reply(0, "")
        self.extensions = Extensions()
        self.dot_sent_at: float | None = None
        """Monotonic reading right before the final dot went out, with what came last before it."""

    async def _greet(self) -> None:
        with self._phases.phase("greeting"):
            self.greeting = await self._reply()
            if self.greeting.code != 220:
                raise self.greeting.fault()
        await self._learn_capabilities()

    async def _learn_capabilities(self) -> None:
        """Say EHLO, or HELO to a server that does not know EHLO (RFC 5321 section 3.2)."""
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
        """Do an exchange by AUTH (RFC 4954)."""
        command, initial = f"AUTH {mechanism.name}", mechanism.initial_response()
        if initial is not None and len(command) + len(initial) + 3 <= smtp.COMMAND_LINE:
            reply = await self.command(command, initial.decode(), public=command)
        else:
            reply = await self.command(command)
        while reply.code == 334:
            reply = await self.command(mechanism.answer(reply.text.encode()).decode(), public="")
        if reply.code != 235:
            raise reply.fault(Reason.AUTH_FAILED if reply.code in _REFUSED_CREDENTIALS else None)

    async def command(self, *words: str, public: str | None = None, seconds: float | None = None) -> Reply:
        """Send one command line and return the reply, whatever its code, within the server's timeout.

        Of a line with credentials the transcript shows only its beginning ``public``, which may be empty.
        ``seconds`` shortens the timeout.
        """
        self._require_turn()
        self._transport.write_line(" ".join(words).encode("ascii"), public=public)
        return await self._reply(seconds)

    async def _reply(self, seconds: float | None = None) -> Reply:
        said = await self._transport.read_answer(
            smtp.WHOLE_REPLY, line_limit=smtp.REPLY_LINE_LIMIT, limit=smtp.REPLY_LIMIT, seconds=seconds
        )
        return Reply.parse(said)

    def _require_turn(self, reason: Reason = Reason.PROTOCOL_ERROR) -> None:
        """Raise if a reply waits already: taken for the next command's, it would confirm what it does not."""
        if not (unread := self._transport.unread):
            return
        said = self._phases.transcript.quoted(unread.rstrip(b"\r\n"))
        if closing := smtp.closing_reply(unread):
            raise closing.fault()
        raise ProbeFault(reason, f"a reply before its command: {said}")

    async def mail(self, sender: str, size: int | None = None, envelope_id: str | None = None) -> Reply:
        """Name the envelope sender; raises unless the server accepts it.

        ``size``, the message's octets, is declared where the server offers SIZE (RFC 1870): what is too
        large can be refused here already. ``envelope_id``, at most 100 characters of xtext, is given where
        the server offers DSN (RFC 3461 section 4.4), for its delivery reports to name. A server that does
        not know the parameters that it offers is asked again without them.
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
        """Name the recipient; raises unless the server accepts it."""
        with self._phases.phase("rcpt"):
            return _accepted(await self.command(f"RCPT TO:<{recipient}>"))

    async def data(self, content: bytes) -> Reply:
        """Send the message ``content`` (lines end in CRLF) and return the reply to its final dot.

        ``dot_sent_at`` is set right before the dot: a fault that leaves it ``None`` means that the server
        does not have the message; after it only a reply tells.
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

    async def quit(self) -> None:
        """End the session politely; a server that does not answer changes no result.

        A reply that waits before it raises, for it makes the ones before it doubtful, unless the server
        accepted a message: that stays accepted.
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
    server: ServerSettings, phases: PhaseTimer, clock: Clock
) -> AsyncIterator[SmtpSession]:
    """Open a session as the server is configured; however the block ends, it is closed.

    It is logged in where the server has credentials.
    """
    session = await SmtpSession.connect(server, phases, clock)
    try:
        if server.username is not None and server.password is not None:
            await session.log_in(server.username, server.password)
        yield session
    finally:
        session.abort()


def _accepted(reply: Reply) -> Reply:
    if not reply.is_positive:
        raise reply.fault()
    return reply


def _address_literal(address: str | None) -> str:
    """Return this end's address as an address literal (RFC 5321 section 4.1.4), for want of a host name."""
    address = address or "127.0.0.1"
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"
