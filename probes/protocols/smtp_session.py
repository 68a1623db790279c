"""An SMTP session whose every phase is timed (RFC 5321), on aiosmtplib's protocol.

aiosmtplib reads and bounds the replies; the dialogue is led from here, because a
monitor must know to the instant when each command went out and what was answered.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TypeVar, cast

from aiosmtplib import SMTPResponse, SMTPResponseException, SMTPServerDisconnected
from aiosmtplib.auth import auth_crammd5_verify, auth_login_encode, auth_plain_encode
from aiosmtplib.esmtp import parse_esmtp_extensions
from aiosmtplib.protocol import MAX_RESPONSE_LENGTH, SMTPProtocol

from probes.core.clock import Clock
from probes.core.faults import ProbeFault, fault_of, legible
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols.line_transport import connect_tcp
from probes.protocols.tls import certificate_not_after, client_context, description, opportunistic_context

T = TypeVar("T")

QUIT_TIMEOUT = 5.0
"""Longest wait, in seconds, for the answer to QUIT: by then the result is known."""

COMMAND_LINE = 512
"""Longest command line, in octets, that may carry an initial response (RFC 5321 section 4.5.3.1.4)."""

IN_CLEAR = 64 * 1024
"""Octets in clear that are kept for comparison: more than any sound answer before TLS."""

_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s|$)")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_LEADING_DOT = re.compile(rb"^\.", re.MULTILINE)
_ONE_REPLY = re.compile(rb"(?:\d{3}-[^\n]*\n)*\d{3}(?: [^\n]*)?\r?\n")


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer: reply code (RFC 5321 section 4.2), its text, enhanced status code (RFC 3463)."""

    code: int
    text: str

    @property
    def enhanced_status_code(self) -> str | None:
        """The code such as ``5.1.1`` that begins the text, where the server gives one (RFC 2034)."""
        match = _ENHANCED.match(self.text)
        return match[1] if match else None

    def fault(self, reason: Reason | None = None) -> ProbeFault:
        """Return the fault that this reply means; ``reason`` overrides what the code alone says."""
        return ProbeFault(
            reason or _reason_of(self.code),
            f"{self.code} {self.text}",
            reply_code=self.code,
            enhanced_status_code=self.enhanced_status_code,
        )


def _reason_of(code: int) -> Reason:
    if code == 421:
        return Reason.SMTP_UNAVAILABLE
    if 400 <= code < 500:
        return Reason.SMTP_DEFERRED
    if 500 <= code < 600:
        return Reason.SMTP_REJECTED
    return Reason.PROTOCOL_ERROR


@dataclass(frozen=True, slots=True)
class Extensions:
    """What a server offers in answer to EHLO (RFC 5321 section 4.1.1.1)."""

    features: Mapping[str, str]
    """Parameters by keyword, keywords in upper case."""
    auth_mechanisms: tuple[str, ...]
    """In lower case."""
    listed: tuple[str, ...]
    """Keywords with their parameters, fit to show, sorted."""


@lru_cache(maxsize=64)
def extensions_of(text: str) -> Extensions:
    """Return what the text of an answer to EHLO offers; a server answers the same run after run."""
    parsed, mechanisms = parse_esmtp_extensions(text)
    features = {keyword.upper(): parameters for keyword, parameters in parsed.items()}
    shown = (legible(f"{keyword} {parameters}".strip(), 100) for keyword, parameters in features.items())
    return Extensions(MappingProxyType(features), tuple(mechanisms), tuple(sorted(shown)))


class _Dialogue(SMTPProtocol):
    """aiosmtplib's protocol, which also keeps the beginning of what comes in clear, or is too long."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.in_clear = bytearray()
        self.is_recording = True
        self._too_long = b""

    def data_received(self, data: bytes) -> None:
        if self.is_recording and len(self.in_clear) < IN_CLEAR:
            self.in_clear += data[:IN_CLEAR]
        if len(self._buffer) + len(data) > MAX_RESPONSE_LENGTH and not self._too_long:
            self._too_long = bytes(self._buffer) + data  # aiosmtplib drops it
        super().data_received(data)

    @property
    def unread(self) -> bytes:
        """What came behind the last reply in the same breath, or a reply that cannot be read."""
        return self._too_long or bytes(self._buffer)


class SmtpSession:
    """One connection to an SMTP server, as far as its phases went.

    Every method raises `ProbeFault`. Made by `smtp_session`, which also ends it.
    """

    def __init__(self, server: ServerSettings, phases: PhaseTimer, clock: Clock, dialogue: _Dialogue) -> None:
        self._server = server
        self._phases = phases
        self._clock = clock
        self._dialogue = dialogue
        self._loop = asyncio.get_running_loop()
        self._expired = False
        self.greeting = Reply(0, "")
        self.extensions = Extensions(MappingProxyType({}), (), ())
        self.certificate_not_after: float | None = None
        self.dot_sent_at: float | None = None
        """Monotonic reading right before the message and its final dot went out."""

    async def open(self) -> None:
        """Greet the server, encrypt as configured, and log in where there are credentials."""
        server = self._server
        if server.tls == "implicit":
            await self._encrypt(said_in_clear=b"")
        with self._phases.phase("greeting"):
            self.greeting = await self._reply(self._dialogue.read_response())
            if self.greeting.code != 220:
                raise self.greeting.fault()
        await self._ehlo()
        offered = "STARTTLS" in self.extensions.features
        if server.tls == "starttls" or (server.tls == "opportunistic" and offered):
            await self._start_tls()
            await self._ehlo()
        if server.username is not None and server.password is not None:
            await self._authenticate(server.username, server.password.get_secret_value())

    @property
    def _tls_name(self) -> str:
        return self._server.tls_server_name or self._server.host

    async def _answered(self, work: Awaitable[T], when_slow: Reason = Reason.COMMAND_TIMEOUT) -> T:
        """Return what ``work`` gives, within the server's timeout and with its errors translated.

        aiosmtplib's own timeouts are not used: Python 3.11's `asyncio.wait_for` loses a
        cancellation that comes together with the reply, and with it a run's deadline. One timer a
        wait is cheaper than `asyncio.timeout`, and a session that is late is closed in any case.
        """
        expiry = self._loop.call_later(self._server.timeout, self._expire)
        try:
            result = await work
        except Exception as error:
            fault = self._too_slow(when_slow) if self._expired else _fault_of(error)
            if fault is None:
                raise
            raise fault from error
        finally:
            expiry.cancel()
        if self._expired:  # uvloop's handshake ends without an error on a connection closed from here
            raise self._too_slow(when_slow)
        return result

    def _too_slow(self, reason: Reason) -> ProbeFault:
        return ProbeFault(reason, f"no answer after {self._server.timeout:g} s")

    def _expire(self) -> None:
        """Give up waiting: the closed connection ends whatever waits for it."""
        self._expired = True
        self.close()

    async def _reply(self, work: Awaitable[SMTPResponse]) -> Reply:
        transcript = self._phases.transcript
        try:
            code, text = await self._answered(work)
        except SMTPResponseException as error:
            said = transcript.quoted(self._dialogue.unread.rstrip(b"\r\n"))
            if error.message == "Response too long":
                raise ProbeFault(Reason.LINE_TOO_LONG, f"longer than any sound reply: {said}") from None
            raise ProbeFault(Reason.PROTOCOL_ERROR, f"not an SMTP reply: {said}") from None
        if not 200 <= code <= 599:
            said = transcript.quoted(_as_sent(code, text))
            raise ProbeFault(Reason.PROTOCOL_ERROR, f"not an SMTP reply: {said}")
        transcript.received(_as_sent(code, text))
        return Reply(code, text)

    async def command(self, *words: str, public: str | None = None) -> Reply:
        """Send one command line and return the answer, whatever its code.

        Of a line with credentials the transcript shows only its beginning ``public``, which may be empty.
        """
        self._require_turn()
        line = " ".join(words).encode("ascii")
        if _CONTROL.search(line):
            raise ValueError("a command line cannot hold control characters")
        self._phases.transcript.sent(line, public)
        return await self._reply(self._said(line + b"\r\n"))

    async def _said(self, octets: bytes) -> SMTPResponse:
        """Send ``octets`` and return the response; one dialogue is led by one task, so nothing is locked."""
        self._dialogue.write(octets)
        return await self._dialogue.read_response()

    def _require_turn(self) -> None:
        """Raise if a reply waits already: taken for the next command's, it would confirm what it does not."""
        if unread := self._dialogue.unread:
            said = self._phases.transcript.quoted(unread.rstrip(b"\r\n"))
            raise ProbeFault(Reason.PROTOCOL_ERROR, f"a reply before its command: {said}")

    async def _ehlo(self) -> None:
        with self._phases.phase("ehlo"):
            reply = await self.command(
                "EHLO", self._server.ehlo_name or _address_literal(self._dialogue.transport)
            )
            if reply.code != 250:
                raise reply.fault()
        self.extensions = extensions_of(reply.text)

    async def _start_tls(self) -> None:
        """Upgrade the connection (RFC 3207); bytes in clear behind the 220 are an attack: they end it."""
        if "STARTTLS" not in self.extensions.features:
            raise ProbeFault(Reason.TLS_NOT_OFFERED, "the answer to EHLO has no STARTTLS")
        with self._phases.phase("starttls"):
            if self._dialogue.unread:
                raise ProbeFault(Reason.TLS_INJECTION, self._dialogue.unread)
            self._dialogue.in_clear.clear()
            reply = await self.command("STARTTLS")
            if reply.code != 220:
                raise reply.fault()
            if not _ONE_REPLY.fullmatch(said := bytes(self._dialogue.in_clear)):
                raise ProbeFault(Reason.TLS_INJECTION, said)
        await self._encrypt(said)

    async def _encrypt(self, said_in_clear: bytes) -> None:
        """Do the TLS handshake; what the server says in clear beyond ``said_in_clear`` is an attack."""
        with self._phases.phase("tls"):
            transport = await self._answered(self._upgraded(), Reason.TLS_HANDSHAKE)
            if self._dialogue.in_clear != said_in_clear:
                raise ProbeFault(Reason.TLS_INJECTION, bytes(self._dialogue.in_clear))
            self._dialogue.transport = transport
            self._dialogue.is_recording = False
        encrypted = transport.get_extra_info("ssl_object")
        self._phases.transcript.note(description(encrypted))
        self.certificate_not_after = certificate_not_after(encrypted)

    async def _upgraded(self) -> asyncio.BaseTransport:
        if self._dialogue.transport is None:
            raise ConnectionResetError("the connection closed before the TLS handshake")
        transport = await asyncio.get_running_loop().start_tls(
            cast("asyncio.Transport", self._dialogue.transport),  # uvloop's are no subclass of it
            self._dialogue,
            opportunistic_context()
            if self._server.tls == "opportunistic"
            else client_context(self._server.tls_ca),
            server_hostname=self._tls_name,
        )
        if transport is None:
            raise ConnectionResetError("the connection closed during the TLS handshake")
        return transport

    async def _authenticate(self, username: str, password: str) -> None:
        """Log in by the configured mechanism, or the best one offered (RFC 4954)."""
        initial = auth_plain_encode(username, password).decode()
        encoded = auth_login_encode(username, password)[1].decode()
        self._phases.transcript.redaction.add(password, initial, encoded)
        with self._phases.phase("auth"):
            mechanism = self._mechanism()
            if mechanism == "plain":
                reply = await self._plain(initial)
            elif mechanism == "login":
                reply = await self._login(username, password)
            else:
                reply = await self._cram_md5(username, password)
            if reply.code != 235:
                raise reply.fault(Reason.AUTH_FAILED if reply.code in {334, 530, 534, 535, 538} else None)

    async def _plain(self, initial: str) -> Reply:
        if len("AUTH PLAIN ") + len(initial) + 2 <= COMMAND_LINE:
            return await self.command("AUTH", "PLAIN", initial, public="AUTH PLAIN")
        reply = await self.command("AUTH", "PLAIN")
        return await self.command(initial, public="") if reply.code == 334 else reply

    async def _login(self, username: str, password: str) -> Reply:
        reply = await self.command("AUTH", "LOGIN")
        for word in auth_login_encode(username, password):
            if reply.code != 334:
                break
            reply = await self.command(word.decode(), public="")
        return reply

    async def _cram_md5(self, username: str, password: str) -> Reply:
        reply = await self.command("AUTH", "CRAM-MD5")
        if reply.code != 334:
            return reply
        _require_base64(reply)
        response = auth_crammd5_verify(username, password, reply.text).decode()
        digest = base64.b64decode(response).decode().rpartition(" ")[2]
        self._phases.transcript.redaction.add(password, response, digest)
        return await self.command(response, public="")

    def _mechanism(self) -> str:
        """Choose the mechanism; in clear, one that does not show the password comes first."""
        wanted = self._server.auth
        order = (
            ("cram-md5", "plain", "login") if self._server.tls == "none" else ("plain", "login", "cram-md5")
        )
        for mechanism in order if wanted == "auto" else (wanted,):
            if mechanism in self.extensions.auth_mechanisms:
                return mechanism
        offered = ", ".join(self.extensions.auth_mechanisms) or "none"
        raise ProbeFault(Reason.AUTH_NOT_OFFERED, f"wanted {wanted}; the server offers: {offered}")

    async def mail(self, sender: str) -> Reply:
        """Name the envelope sender; raises unless the server accepts it."""
        with self._phases.phase("mail"):
            return _accepted(await self.command(f"MAIL FROM:<{sender}>"))

    async def rcpt(self, recipient: str) -> Reply:
        """Name the recipient; raises unless the server accepts it."""
        with self._phases.phase("rcpt"):
            return _accepted(await self.command(f"RCPT TO:<{recipient}>"))

    async def data(self, content: bytes) -> Reply:
        """Send the message ``content`` (lines end in CRLF) and return the reply to its final dot.

        ``dot_sent_at`` is set once the content goes out: a fault before leaves it ``None``, and
        a fault after it that is no reply leaves open whether the server has the message.
        """
        with self._phases.phase("data"):
            reply = await self.command("DATA")
            if reply.code != 354:
                raise reply.fault()
            self._require_turn()
            stuffed = _LEADING_DOT.sub(b"..", content) + b".\r\n"
            self._phases.transcript.note(f"the message: {len(content):,} octets, and the final dot")
            self.dot_sent_at = self._clock.monotonic()
            return _accepted(await self._reply(self._said(stuffed)))

    async def quit(self) -> None:
        """End the session politely; a server that does not answer changes no result."""
        with self._phases.phase("quit"):
            try:
                async with asyncio.timeout(QUIT_TIMEOUT):
                    await self.command("QUIT")
            except (ProbeFault, TimeoutError):
                return

    def close(self) -> None:
        """Close the connection at once."""
        transport = self._dialogue.transport
        if transport is not None:
            cast("asyncio.Transport", transport).abort()


@asynccontextmanager
async def smtp_session(
    server: ServerSettings, phases: PhaseTimer, clock: Clock
) -> AsyncIterator[SmtpSession]:
    """Open a session as the server is configured; however the block ends, it is closed."""
    dialogue = await connect_tcp(_Dialogue, server.host, server.port, phases, server.timeout)
    session = SmtpSession(server, phases, clock, dialogue)
    try:
        await session.open()
        yield session
    finally:
        session.close()


def _as_sent(code: int, text: str) -> str:
    """Return a reply as its lines were sent (RFC 5321 section 4.2.1)."""
    begin, line_feed, last = text.rpartition("\n")
    return (
        f"{code}-{begin.replace(line_feed, f'{line_feed}{code}-')}\n{code} {last}"
        if line_feed
        else f"{code} {text}"
    )


def _accepted(reply: Reply) -> Reply:
    if reply.code // 100 != 2:
        raise reply.fault()
    return reply


def _require_base64(reply: Reply) -> None:
    try:
        base64.b64decode(reply.text, validate=True)
    except ValueError:
        raise ProbeFault(Reason.PROTOCOL_ERROR, f"not a CRAM-MD5 challenge: {legible(reply.text)}") from None


def _address_literal(transport: asyncio.BaseTransport | None) -> str:
    """Return this end's address as an address literal (RFC 5321 section 4.1.4), for want of a host name."""
    name = transport.get_extra_info("sockname") if transport is not None else None
    address = str(name[0]) if name else "127.0.0.1"
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _fault_of(error: Exception) -> ProbeFault | None:
    """Return the fault that an error of aiosmtplib, a socket or TLS stands for, if it stands for one."""
    if isinstance(error, SMTPServerDisconnected):
        return ProbeFault(Reason.CONNECTION_LOST, str(error.__cause__ or error))
    return fault_of(error)
