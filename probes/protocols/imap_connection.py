"""An IMAP connection: greeting, login, commands with their answers, and IDLE (RFC 9051, 2177)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, TypeVar

from pydantic import SecretStr

from probes.core.clock import Clock
from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols import imap as imap
from probes.protocols import replies
from probes.protocols.imap import Response
from probes.protocols.imap_arrivals import ToldArrivals
from probes.protocols.imap_dialogue import Budget, ImapDialogue
from probes.protocols.line_transport import LineTransport
from probes.protocols.mail_session import MailSession
from probes.protocols.sasl import Mechanism

FAREWELL_TIMEOUT = 2.0
"""Maximum seconds to wait for the answer to LOGOUT."""

T = TypeVar("T")


_REFUSALS = {b"NO": Reason.IMAP_NO, b"BAD": Reason.IMAP_BAD}
_ENDS = frozenset({Reason.COMMAND_TIMEOUT, Reason.CONNECTION_LOST, Reason.IMAP_BYE})


@dataclass(slots=True)
class _Idle:
    """A running IDLE: whether its ``+`` has arrived, and whether DONE has been sent."""

    tag: bytes
    ready: bool = False
    done: bool = False


class ImapConnection(MailSession):
    """One connection to an IMAP server, for one command at a time.

    A fault or a cancellation during a command closes the connection; only NO and BAD leave it open.
    """

    service = "imap"
    own_methods: ClassVar[Mapping[str, bool]] = MappingProxyType({"LOGIN": False})

    def __init__(
        self, server: ServerSettings, transport: LineTransport, phases: PhaseTimer, clock: Clock
    ) -> None:
        super().__init__(server, transport, phases, clock)
        self._dialogue = ImapDialogue(transport, phases.transcript, clock)
        self._leaving = False
        self._unasked = Budget()  # for responses between two commands
        self._idle: _Idle | None = None
        self._idle_usable = True
        self._complaint = ""  # the latest untagged NO or BAD (RFC 9051 section 7.1) of this command
        self._hearing: asyncio.Task[None] | None = None  # a read that a cancelled `news` began
        self.greeting = b""
        self.capabilities: frozenset[str] = frozenset()
        self._capabilities_before_login = self.capabilities
        self.folder: str | None = None
        self.exists = 0
        self.uid_validity: int | None = None
        """UIDVALIDITY of the open folder; ``None`` if the server sent none (RFC 3501 section 6.3.1)."""
        self.uid_next: int | None = None
        self.changed = False
        """Whether an EXISTS, EXPUNGE or VANISHED came since SELECT, or since the caller last cleared it.

        What answers our own EXPUNGE is no change: each message would cost another poll.
        """
        self.heard_at = float("-inf")
        """Monotonic time at which the latest EXISTS was read."""
        self.arrivals = ToldArrivals()
        self.looks_along = False
        """Whether a NOOP follows each command on messages, because there are many of them."""

    async def _greet(self) -> None:
        with self._phases.phase("greeting"):
            greeting = await self._dialogue.read(self._unasked, self._transport.limit_of_waits())
            if greeting.tag == b"*" and greeting.kind in (b"NO", b"BAD"):  # not valid, but seen
                raise imap.refusal(greeting, _REFUSALS[greeting.kind])
            if greeting.tag != b"*" or greeting.kind not in (b"OK", b"BYE"):  # PREAUTH is not our login
                said = b" ".join([greeting.kind, greeting.text])
                raise ProbeFault(Reason.PROTOCOL_ERROR, b"not a greeting: " + said)
            self._take_in(greeting)
            self.greeting = greeting.text
        if not self.capabilities:
            await self._learn_capabilities()

    def _offers(self, capability: str) -> bool:
        return capability in self.capabilities

    async def _ask_for_tls(self) -> None:
        await self._command("starttls", b"STARTTLS")

    async def _learn_capabilities(self) -> None:
        self.capabilities = frozenset()
        await self._command("capability", b"CAPABILITY")

    async def log_in(self, username: str, password: SecretStr) -> None:
        """Log in as `MailSession.log_in` does, and learn the new capabilities (RFC 9051 section 6.2)."""
        await super().log_in(username, password)
        if self.capabilities is self._capabilities_before_login:
            await self._learn_capabilities()

    def _login_methods(self) -> set[str]:
        methods = {name.removeprefix("AUTH=") for name in self.capabilities if name.startswith("AUTH=")}
        return methods if self._offers("LOGINDISABLED") else methods | {"LOGIN"}

    async def _log_in_by(self, method: str, username: str, password: str) -> None:
        self._capabilities_before_login = self.capabilities
        if method != "LOGIN" or self._offers("LOGINDISABLED"):
            await super()._log_in_by(method, username, password)
            return
        first, *literals = imap.login_lines(username, password)
        rest = iter(literals)
        await self._log_in_with(first, respond=lambda _: next(rest, None), public="LOGIN")

    async def _authenticate(self, mechanism: Mechanism) -> None:
        """Do the exchange by AUTHENTICATE (RFC 9051 section 6.2.2)."""
        command = b"AUTHENTICATE " + mechanism.name.encode()
        words, public, initial = [command], None, mechanism.initial_response()
        if initial is not None and self._offers("SASL-IR"):  # RFC 4959
            words, public = [command, initial], command.decode()
        await self._log_in_with(
            *words, respond=lambda challenge: mechanism.answer(challenge.text), public=public
        )

    async def _log_in_with(
        self, *words: bytes, respond: Callable[[Response], bytes | None], public: str | None
    ) -> None:
        """Send a login command. A refusal with a code blames the credentials only if its code does."""
        _, status = await self._exchange(*words, respond=respond, public=public)
        is_coded = status.code[0] not in (b"", b"CAPABILITY")
        _require_ok(status, self._unexplained_refusal(is_coded=is_coded))

    async def log_out(self) -> None:
        """Log out; whatever the server answers, the result stays the same."""
        self._leaving = True
        try:
            async with asyncio.timeout(FAREWELL_TIMEOUT):
                await self._command("logout", b"LOGOUT")
        except TimeoutError:
            self._phases.transcript.note(f"no answer to LOGOUT after {FAREWELL_TIMEOUT:g} s")
        except ProbeFault as fault:
            self._phases.transcript.note(f"no sound answer to LOGOUT: {fault}")
        finally:
            self.abort()

    def start_idle(self) -> bool:
        """Begin IDLE (RFC 2177) if the server has it and none is running; return whether one is running."""
        if self._idle is None and self._idle_usable and "IDLE" in self.capabilities:
            self._unasked = Budget()
            self._idle = _Idle(self._dialogue.send(b"IDLE"))
        return self._idle is not None

    async def news(self) -> None:
        """Return once `changed` is set. IDLE makes the server report changes until the next command.

        Without IDLE, only changes that the server reports by itself are noticed. This waits for ever and may
        be cancelled at any time without losing anything.
        """
        while not self.changed:
            if self._hearing is None:
                if not self._transport.unread:
                    self.start_idle()
                await self._transport.readable()
                # A separate task, because a cancelled read would close the connection.
                self._hearing = asyncio.create_task(self._hear(self._transport.limit_of_waits()))
                self._hearing.add_done_callback(_retrieve)
            await asyncio.wait([self._hearing])
            heard, self._hearing = self._hearing, None
            heard.result()

    async def _hear(self, until: float) -> None:
        """Handle one response outside a command's answer, ``until`` as in `LineTransport.read_line`."""
        with self._dialogue.closing_on_failure:
            response, idle = await self._dialogue.read(self._unasked, until), self._idle
            if response.tag == b"*":
                self._take_in(response)
            elif response.tag == b"+" and idle is not None and not idle.ready:
                idle.ready = True
            elif idle is not None and response.tag == idle.tag:
                self._idle_usable = idle.done and response.kind == b"OK"
                self._idle = None
            else:
                raise ProbeFault(Reason.PROTOCOL_ERROR, b"an answer to no command: " + response.text)

    async def _end_idle(self, until: float) -> None:
        """End a running IDLE, but only after its ``+``: before, the server would read DONE as a command."""
        while self._idle is not None:
            if self._idle.ready and not self._idle.done:
                self._transport.write_line(b"DONE")
                self._idle.done = True
            await self._hear(until)

    async def _settle(self, until: float) -> None:
        """Handle all responses that arrived before the next command, so that none is taken for its answer."""
        if self._hearing is not None:
            hearing, self._hearing = self._hearing, None
            await hearing
        await self._end_idle(until)
        while self._transport.unread:
            await self._hear(until)
        self._unasked = Budget()

    async def _command(
        self,
        phase: str,
        *words: bytes,
        read: Callable[[Response], T | None] = lambda _: None,
        budget: Budget | None = None,
        refusal: Reason = Reason.IMAP_NO,
        looks: bool = False,
    ) -> list[T]:
        """Send a command as `_exchange` does, in its own phase. A NO has its code's reason or ``refusal``.

        If it ``looks`` and there are many messages or arrivals, a NOOP follows in the same exchange, so that
        the command does not delay the discovery of other arrivals (RFC 9051 section 5.5).
        """
        looks = looks and (self.looks_along or self.arrivals.is_busy(self._clock.monotonic()))
        with self._phases.phase(phase):
            answers, status = await self._exchange(*words, read=read, budget=budget, looks=looks)
            _require_ok(status, refusal)
        return answers

    async def _exchange(
        self,
        *words: bytes,
        read: Callable[[Response], T | None] = lambda _: None,
        respond: Callable[[Response], bytes | None] = lambda _: None,
        budget: Budget | None = None,
        public: str | None = None,
        looks: bool = False,
    ) -> tuple[list[T], Response]:
        """Send a command; return the results of ``read`` for its untagged responses, and the tagged response.

        ``respond`` returns the line with credentials that answers a ``+``, or ``None`` if none is due.
        ``public`` is the part of a command with credentials that may be shown. The server's timeout applies
        to the whole exchange.
        """
        until, self._complaint = self._transport.limit_of_waits(), ""
        try:
            with self._dialogue.closing_on_failure:
                await self._settle(until)
                tags = [self._dialogue.send(*words, public=public)]
                if looks:
                    tags.append(self._dialogue.send(b"NOOP"))
                sent_at = self._dialogue.sent_at
                answers, statuses = await self._answer(tags, read, respond, budget or Budget(), until)
                if looks and statuses[tags[1]].kind == b"OK":
                    self.arrivals.looked(sent_at)
                return answers, statuses[tags[0]]
        except ProbeFault as fault:
            if self._complaint and fault.reason in _ENDS:
                raise _explained(fault, self._complaint) from None
            raise

    async def _answer(
        self,
        tags: Sequence[bytes],
        read: Callable[[Response], T | None],
        respond: Callable[[Response], bytes | None],
        budget: Budget,
        until: float,
    ) -> tuple[list[T], dict[bytes, Response]]:
        """Read until each command is answered, in any order; return the answers, and the statuses by tag."""
        answers, statuses = [], dict[bytes, Response]()
        while len(statuses) < len(tags):
            response = await self._dialogue.read(budget, until)
            if response.tag in tags and response.tag not in statuses:
                self._take_in(response)
                statuses[response.tag] = response
            elif response.tag == b"+" and (line := respond(response)) is not None:
                self._transport.write_line(line, public="")
            elif response.tag != b"*":
                raise ProbeFault(Reason.PROTOCOL_ERROR, b"not the answer to this command: " + response.text)
            elif (answer := read(response)) is not None:
                answers.append(answer)
            else:
                self._take_in(response)
        return answers, statuses

    def _take_in(self, response: Response) -> None:
        """Update the session's state from a response; a BYE without LOGOUT ends the session."""
        code, argument = response.code
        if response.tag == b"*" and response.kind in _REFUSALS and not self._dialogue.may_hold_mail:
            self._complaint = legible(b" ".join([response.kind, response.text]))
        if response.kind == b"EXISTS":
            if response.number != self.exists:  # servers may repeat it without any change
                self.heard_at, self.changed = self._clock.monotonic(), True
                self.arrivals.told(response.number - self.exists, self.heard_at)
                self.exists = response.number
        elif self._expunged(response) is not None or response.kind == b"VANISHED":
            self.changed = True
        elif response.kind == b"BYE" and not self._leaving:
            raise imap.refusal(response, Reason.IMAP_BYE)
        elif code == b"UIDVALIDITY":
            self._take_in_validity(imap.identifier_of(argument))
        elif code == b"UIDNEXT":
            self.uid_next = imap.identifier_of(argument)
        elif (capabilities := imap.capabilities_of(response)) is not None:
            self.capabilities = capabilities

    def _expunged(self, response: Response) -> int | None:
        """Count a message that is gone, and return the place that it had; ``None`` for other responses."""
        if response.kind != b"EXPUNGE":
            return None
        self.arrivals.expunged(response.number, self.exists)
        self.exists = max(0, self.exists - 1)
        return response.number

    def _take_in_validity(self, validity: int | None) -> None:
        """Keep UIDVALIDITY; if it changes for the open folder, end the session (RFC 9051 section 2.3.1.1).

        The uids sent before may then belong to other messages.
        """
        if self.folder is not None and validity != self.uid_validity:
            told = f"UIDVALIDITY changed from {self.uid_validity} to {validity}"
            raise ProbeFault(Reason.IMAP_UIDS_CHANGED, told)
        self.uid_validity = validity


def _require_ok(status: Response, refusal: Reason) -> None:
    if status.kind != b"OK":
        raise imap.refusal(status, refusal if status.kind == b"NO" else Reason.IMAP_BAD)


def _explained(fault: ProbeFault, complaint: str) -> ProbeFault:
    """Return the end of a session with the untagged NO or BAD before it, which may tell the reason."""
    found = replies.diagnose("imap", "", complaint, fault.reason)
    return ProbeFault(
        found.reason,
        f"{fault.detail}; before that it said: {complaint}",
        retry_after=fault.retry_after or found.retry_after,
        remedy=found.remedy,
    )


def _retrieve(task: asyncio.Task[None]) -> None:
    """Retrieve a task's exception; otherwise asyncio logs it if no later command raises it."""
    if not task.cancelled():
        task.exception()
