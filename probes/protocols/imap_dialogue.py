"""The lines of an IMAP connection: tagged commands, and bounded responses with their literals."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.transcript import Transcript
from probes.protocols import imap
from probes.protocols.imap import RESPONSE_LIMIT, Response
from probes.protocols.line_transport import LineTransport

MOST_RESPONSES = 20_000
"""Maximum number of responses to one command."""

LINES_LIMIT = 4 * 2**20
"""Maximum octets of lines in the answer to one command; parsing them takes about a second."""

LITERALS_LIMIT = 32 * 2**20
"""Maximum octets of literals in the answer to one command."""


@dataclass(slots=True)
class Budget:
    """Limits on a server's responses: for a single response or literal, and what remains for all."""

    line: int = RESPONSE_LIMIT
    literal: int = 0
    responses: int = MOST_RESPONSES
    lines: int = LINES_LIMIT
    literals: int = LITERALS_LIMIT


class _ClosingOnFailure(AbstractContextManager[None]):
    """Closes the connection on any exception in the block. What may be mail is kept out of its fault."""

    __slots__ = ("_dialogue",)

    def __init__(self, dialogue: ImapDialogue) -> None:
        self._dialogue = dialogue

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None:
            self._dialogue.failed(error)


class ImapDialogue:
    """Sends commands and reads responses. Everything except mail and secrets is put in the transcript."""

    def __init__(self, transport: LineTransport, transcript: Transcript, clock: Clock) -> None:
        self._transport = transport
        self._transcript = transcript
        self._clock = clock
        self._commands = 0
        self._octets = 0  # of the latest response, without its literals
        self.may_hold_mail = False
        """Whether octets that are not a valid response may belong to a message."""
        self.sent_at = float("-inf")
        """Monotonic time right before the latest command was sent."""
        self.closing_on_failure = _ClosingOnFailure(self)

    def send(self, *words: bytes, public: str | None = None) -> bytes:
        """Send a command and return its tag; ``public`` is the part of a secret command that may be shown."""
        self._commands += 1
        tag = f"M{self._commands}"
        self.sent_at = self._clock.monotonic()
        self._transport.write_line(tag.encode(), *words, public=public and f"{tag} {public}")
        return tag.encode()

    async def read(self, budget: Budget, until: float) -> Response:
        """Read a response with its literals. Their sizes are checked before they are read.

        ``until`` limits all waits together, as in `LineTransport.read_line`.
        """
        line = await self._transport.read_line(budget.line, is_mail=self.may_hold_mail, until=until)
        length = self._octets = len(line)
        response, texts, literals = self._parsed(line), [line], []
        while not response.is_status and (size := imap.literal_size(line)) is not None:
            budget.literals -= size
            if size > budget.literal or budget.literals < 0:
                said = self._transcript.quoted(self._fit_to_show(response, texts))
                raise self.too_large(f"a literal of {size} octets: {said}")
            texts[-1] = line[: line.rindex(b"{")]
            literals.append(await self._transport.read_exactly(size, until=until))
            room = budget.line - length
            line = await self._transport.read_line(room, is_mail=self.may_hold_mail, until=until)
            length += len(line)
            texts.append(line)
        self._octets = length
        shown = self._fit_to_show(response, texts)
        budget.responses -= 1
        budget.lines -= length
        if budget.responses < 0 or budget.lines < 0:
            raise self.too_large(f"responses without end, such as: {self._transcript.quoted(shown)}")
        self._transcript.received(shown)
        return Response.parse(b"\n".join(texts), literals) if literals else response

    def _parsed(self, line: bytes) -> Response:
        try:
            return Response.parse(line)
        except ProbeFault as fault:
            said = "(not shown)" if self.may_hold_mail else self._transcript.quoted(line)
            raise ProbeFault(fault.reason, f"not an IMAP response: {said}") from None

    def _fit_to_show(self, response: Response, texts: Sequence[bytes]) -> bytes:
        """Return the response for the transcript; if it may contain mail, only the number of octets."""
        is_ours = not self.may_hold_mail or response.tag == b"M%d" % self._commands
        if response.kind == b"FETCH" or not is_ours:
            return b"* %d octets, not shown" % sum(map(len, texts))
        return b" ".join(texts)

    def too_large(self, detail: str) -> ProbeFault:
        """Close the connection, and return the fault for an answer that exceeds a limit."""
        self._transport.abort()
        return ProbeFault(Reason.RESPONSE_TOO_LARGE, detail)

    def failed(self, error: BaseException) -> None:
        """Close the connection; if the error may show mail, raise a fault that does not."""
        self._transport.abort()
        if not isinstance(error, ProbeFault):
            return
        if self.may_hold_mail and error.reason is Reason.PROTOCOL_ERROR:
            told = f"no sound response: {self._octets} octets, not shown because they may be mail"
            raise ProbeFault(error.reason, told) from None
        self._transcript.redaction.fault(error)  # outside a command there is no phase to redact it
