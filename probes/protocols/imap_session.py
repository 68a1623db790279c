"""An IMAP session: the dialogue around `probes.protocols.imap`, each phase timed (RFC 9051, 2177, 4315)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

from pydantic import SecretStr

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols import imap as imap
from probes.protocols.imap import LINE_LIMIT, MOST_MESSAGES, SEARCH_LIMIT, Folder, Response
from probes.protocols.line_transport import LineTransport
from probes.protocols.pop3 import plain_response
from probes.protocols.tls import client_context

MOST_RESPONSES = 20_000
"""Most responses that a server may send for one command."""

LINES_LIMIT = 4 * 2**20
"""Most octets in lines that a server may send for one command; parsing them takes about a second."""

LITERALS_LIMIT = 32 * 2**20
"""Most octets in literals that a server may send for one command."""

FIELDS_LIMIT = 16 * 1024
"""Most octets that are read of the header fields asked for; a foreign mail may hold huge ones."""

NAME_LIMIT = 4096
"""Longest folder name, in octets, that may come as a literal."""

BATCH = 500
"""Most messages that one FETCH asks for by their uids."""

T = TypeVar("T")


@dataclass(slots=True)
class _Budget:
    """What a server may send: the longest response and literal, and what is left of each in all."""

    line: int = LINE_LIMIT
    literal: int = 0
    responses: int = MOST_RESPONSES
    lines: int = LINES_LIMIT
    literals: int = LITERALS_LIMIT


@dataclass(slots=True)
class _Idle:
    """A running IDLE: whether its ``+`` came, and whether DONE went out."""

    tag: bytes
    ready: bool = False
    done: bool = False


class ImapSession:
    """One connection to an IMAP server, for one command at a time. Every method raises `ProbeFault`.

    A fault or a cancellation in a command closes the connection; only a NO or BAD, and a header
    section beyond its limit, leave it open. `abort` ends it at once.
    """

    def __init__(self, server: ServerSettings, wire: LineTransport, phases: PhaseTimer, clock: Clock) -> None:
        self._server = server
        self._wire = wire
        self._phases = phases
        self._clock = clock
        self._commands = 0
        self._sent_at = float("-inf")
        self._leaving = False
        self._unasked = _Budget()  # for what comes between two commands
        self._idle: _Idle | None = None
        self._idle_usable = True
        self._hearing: asyncio.Task[None] | None = None  # what a cancelled `news` began to read
        self._may_hold_mail = False  # whether what is no sound response may belong to a message
        self._octets = 0  # of the latest response, its literals left out
        self.greeting = b""
        self.capabilities: frozenset[str] = frozenset()
        self.folder: str | None = None
        self.exists = 0
        self.uid_validity = 0
        self.uid_next: int | None = None
        self.changed = False
        """Whether an EXISTS, EXPUNGE or VANISHED came since SELECT, or since the caller last cleared it."""
        self.heard_at = float("-inf")
        """Monotonic reading taken when the latest EXISTS was read."""

    @property
    def certificate_not_after(self) -> float | None:
        """When the server's certificate expires, in unix seconds; ``None`` without TLS."""
        return self._wire.certificate_not_after

    @property
    def has_uidplus(self) -> bool:
        """Whether single messages can be expunged (RFC 4315)."""
        return not self.capabilities.isdisjoint({"UIDPLUS", "IMAP4REV2"})

    async def open(self) -> Self:
        """Greet and encrypt as configured; no login yet."""
        server = self._server
        if server.tls == "implicit":
            await self._encrypt()
        with self._phases.phase("greeting"):
            greeting = await self._read(self._unasked)
            if greeting.tag != b"*" or greeting.kind not in (b"OK", b"BYE"):  # PREAUTH is nobody's login
                raise ProbeFault(Reason.PROTOCOL_ERROR, b"not a greeting: " + greeting.kind)
            self._take_in(greeting)
            self.greeting = greeting.text
        if not self.capabilities:
            await self._learn_capabilities()
        if server.tls == "starttls":
            if "STARTTLS" not in self.capabilities:
                raise ProbeFault(Reason.TLS_NOT_OFFERED, "the capabilities have no STARTTLS")
            await self._command("starttls", b"STARTTLS")
            await self._encrypt()
            await self._learn_capabilities()
        return self

    async def _encrypt(self) -> None:
        name = self._server.tls_server_name or self._server.host
        with self._phases.phase("tls"):
            await self._wire.start_tls(client_context(self._server.tls_ca), name)

    async def _learn_capabilities(self) -> None:
        """Ask CAPABILITY; what was said before TLS or login counts no more (RFC 9051 section 6.2.1)."""
        self.capabilities = frozenset()
        await self._command("capability", b"CAPABILITY")

    async def log_in(self, username: str, password: SecretStr) -> None:
        """Log in by the configured way, or the best one offered, and know the capabilities after it."""
        secret = password.get_secret_value()
        response = plain_response(username, secret)
        self._phases.transcript.redaction.add(secret, response.decode())
        known = self.capabilities
        if self._way() == "login":
            first, *more = imap.login_lines(username, secret)
            public: str | None = "LOGIN"
        else:
            first, more, public = b"AUTHENTICATE PLAIN", [response], None
            if "SASL-IR" in known:  # some servers ask for the response all the same
                public = first.decode()
                first += b" " + response
        await self._command("login", first, more=more, refusal=Reason.AUTH_FAILED, public=public)
        if self.capabilities is known:
            await self._learn_capabilities()

    def _way(self) -> str:
        offered = {
            "plain": "AUTH=PLAIN" in self.capabilities,
            "login": "LOGINDISABLED" not in self.capabilities,
        }
        wanted = self._server.auth
        for way in ("plain", "login") if wanted == "auto" else (wanted,):
            if offered.get(way):
                return way
        found = ", ".join(way for way, there in offered.items() if there) or "none"
        raise ProbeFault(Reason.AUTH_NOT_OFFERED, f"wanted {wanted}; the server offers: {found}")

    async def folders(self) -> list[Folder]:
        """Return all folders, with their special uses where the server tells them (RFC 6154)."""
        words = [b"LIST", b'""', b'"*"']
        if {"SPECIAL-USE", "LIST-EXTENDED"} <= self.capabilities:  # else LIST shows them unasked, or never
            words.append(b"RETURN (SPECIAL-USE)")
        return await self._command("list", *words, read=imap.parse_list, budget=_Budget(literal=NAME_LIMIT))

    async def namespace(self) -> list[str]:
        """Return the prefixes of the personal namespaces (RFC 2342); empty where the server tells none."""
        if not {"NAMESPACE", "IMAP4REV2"} & self.capabilities:
            return []
        budget = _Budget(literal=NAME_LIMIT)
        answers = await self._command("namespace", b"NAMESPACE", read=imap.parse_namespace, budget=budget)
        return [prefix for prefixes in answers for prefix in prefixes]

    async def select(self, folder: str, *, read_only: bool = False) -> None:
        """Open a folder; a NO is `IMAP_NO_FOLDER`, and leaves none open."""
        self.folder, self.exists, self.uid_validity, self.uid_next = None, 0, 0, None
        verb = b"EXAMINE" if read_only else b"SELECT"
        await self._command("select", verb, imap.encode_folder(folder), refusal=Reason.IMAP_NO_FOLDER)
        if not self.uid_validity:
            self.abort()
            raise ProbeFault(Reason.PROTOCOL_ERROR, "no UIDVALIDITY in the answer to " + verb.decode())
        self.folder, self.changed = folder, False

    async def uid_next_of(self, folder: str) -> tuple[int, int]:
        """Return UIDNEXT and UIDVALIDITY of a folder that need not be open; a NO is `IMAP_NO_FOLDER`."""
        answers = await self._command(
            "status",
            b"STATUS",
            imap.encode_folder(folder),
            b"(UIDNEXT UIDVALIDITY)",
            read=imap.parse_status,
            budget=_Budget(literal=NAME_LIMIT),
            refusal=Reason.IMAP_NO_FOLDER,
        )
        if not answers:
            self.abort()
            raise ProbeFault(Reason.PROTOCOL_ERROR, "no STATUS in the answer to STATUS")
        return answers[-1]

    async def noop(self) -> float:
        """Hear what is new; return the monotonic reading taken right before NOOP went out."""
        await self._command("noop", b"NOOP")
        return self._sent_at

    async def uid_search(self, *criteria: bytes) -> list[int]:
        """Return the uids that fit, at most `MOST_MESSAGES`; more close the session."""
        budget = _Budget(line=SEARCH_LIMIT)
        answers = await self._command(
            "search", b"UID SEARCH", *criteria, read=imap.parse_search, budget=budget
        )
        uids = [uid for answer in answers for uid in answer]
        if len(uids) > MOST_MESSAGES:
            raise self._too_large(f"more than {MOST_MESSAGES} messages")
        return uids

    async def fetch_fields(
        self, first: int, names: Sequence[str], most: int = MOST_RESPONSES
    ) -> dict[int, bytes]:
        """Return the named header fields of every message from uid ``first`` on, as `fetch_fields_of` does.

        More than ``most`` messages, at most 20,000, close the session.
        """
        fetched = await self._fetch(b"%d:*" % first, _fields(names), FIELDS_LIMIT)
        found = {uid: fields for uid, fields in fetched.items() if uid >= first}  # the last one comes always
        if len(found) > most:
            raise self._too_large(f"more than {most} messages")
        return found

    async def fetch_fields_of(self, uids: Sequence[int], names: Sequence[str]) -> dict[int, bytes]:
        """Return the named header fields of those of the messages that are there, by uid.

        Each is a header section of at most 16 KiB; what is beyond is cut off.
        """
        found: dict[int, bytes] = {}
        for begin in range(0, len(uids), BATCH):
            batch = uids[begin : begin + BATCH]
            fetched = await self._fetch(imap.uid_set(batch), _fields(names), FIELDS_LIMIT)
            found |= {uid: fetched[uid] for uid in batch if uid in fetched}
        return found

    async def header_section(self, uid: int, *, limit: int) -> bytes | None:
        """Return a message's header section, ``None`` if it is gone; over ``limit`` octets is too large."""
        fetched = await self._fetch(b"%d" % uid, b"BODY.PEEK[HEADER]<0.%d>" % (limit + 1), limit + 1)
        header_section = fetched.get(uid)
        if header_section is not None and len(header_section) > limit:
            raise ProbeFault(Reason.RESPONSE_TOO_LARGE, f"more than {limit} octets")
        return header_section

    async def part_of(self, uid: int, offset: int, octets: int) -> bytes | None:
        """Return at most ``octets`` of a message from ``offset`` on, up to 32 MiB; ``None`` if it is gone."""
        item = b"BODY.PEEK[]<%d.%d>" % (offset, octets)
        return (await self._fetch(b"%d" % uid, item, octets)).get(uid)

    async def _fetch(self, uids: bytes, item: bytes, limit: int) -> dict[int, bytes]:
        self._may_hold_mail = True
        words = (b"UID FETCH", uids, b"(UID " + item + b")")
        budget = _Budget(literal=limit)
        return dict(await self._command("fetch", *words, read=imap.parse_fetch, budget=budget))

    async def delete(self, uid: int) -> bool:
        """Delete one message, and no other that is marked; without UIDPLUS (RFC 4315) it is only marked.

        Return whether it is gone.
        """
        await self._command("store", b"UID STORE %d +FLAGS.SILENT (\\Deleted)" % uid)
        if not self.has_uidplus:
            return False
        await self._command("expunge", b"UID EXPUNGE %d" % uid)
        return True

    async def log_out(self) -> None:
        """End the session in order."""
        self._leaving = True
        await self._command("logout", b"LOGOUT")
        self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        self._wire.abort()

    def start_idle(self) -> bool:
        """Begin IDLE (RFC 2177) where the server has it and none runs; return whether one runs."""
        if self._idle is None and self._idle_usable and "IDLE" in self.capabilities:
            self._unasked = _Budget()
            self._idle = _Idle(self._send(b"IDLE"))
        return self._idle is not None

    async def news(self) -> None:
        """Return once `changed` is set; IDLE asks the server to tell, and the next command ends it.

        Without IDLE only what the server tells unasked is heard. Waits for ever; may be cancelled at
        any moment, and nothing is lost by it.
        """
        while not self.changed:
            if self._hearing is None:
                if not self._wire.unread:
                    self.start_idle()
                await self._wire.readable()
                # A task of its own, because a cancelled read would close the connection.
                self._hearing = asyncio.create_task(self._hear())
                self._hearing.add_done_callback(_retrieve)
            await asyncio.wait([self._hearing])
            heard, self._hearing = self._hearing, None
            heard.result()

    async def _hear(self) -> None:
        """Take in one response outside of a command's answer."""
        with self._closing_on_failure():
            response, idle = await self._read(self._unasked), self._idle
            if response.tag == b"*":
                self._take_in(response)
            elif response.tag == b"+" and idle is not None and not idle.ready:
                idle.ready = True
            elif idle is not None and response.tag == idle.tag:
                self._idle_usable = idle.done and response.kind == b"OK"
                self._idle = None
            else:
                raise ProbeFault(Reason.PROTOCOL_ERROR, b"an answer to no command: " + response.text)

    async def _end_idle(self) -> None:
        """End a running IDLE; before its ``+`` came, DONE would be taken for a command."""
        while self._idle is not None:
            if self._idle.ready and not self._idle.done:
                self._wire.write_line(b"DONE")
                self._idle.done = True
            await self._hear()

    async def _settle(self) -> None:
        """Take in all that was said before the next command, so that an answer is never to an earlier one."""
        if self._hearing is not None:
            hearing, self._hearing = self._hearing, None
            await hearing
        await self._end_idle()
        while self._wire.unread:
            await self._hear()
        self._unasked = _Budget()

    async def _command(
        self,
        phase: str,
        *words: bytes,
        read: Callable[[Response], T | None] = lambda _: None,
        more: Sequence[bytes] = (),
        budget: _Budget | None = None,
        refusal: Reason = Reason.IMAP_NO,
        public: str | None = None,
    ) -> list[T]:
        """Send a command, and return what ``read`` makes of the untagged responses that answer it.

        ``more`` are lines with credentials, each of which waits for a ``+``; ``public`` is what may be
        shown of a command that holds them. The whole may take the server's timeout.
        """
        with self._phases.phase(phase):
            with self._closing_on_failure():
                async with asyncio.timeout(self._server.timeout):
                    await self._settle()
                    tag = self._send(*words, public=public)
                    answers, status = await self._answer(tag, read, list(more), budget or _Budget())
            if status.kind != b"OK":
                raise imap.refusal(status, refusal if status.kind == b"NO" else Reason.IMAP_BAD)
        return answers

    def _send(self, *words: bytes, public: str | None = None) -> bytes:
        self._commands += 1
        tag = f"M{self._commands}"
        self._sent_at = self._clock.monotonic()
        self._wire.write_line(tag.encode(), *words, public=public and f"{tag} {public}")
        return tag.encode()

    async def _answer(
        self, tag: bytes, read: Callable[[Response], T | None], more: list[bytes], budget: _Budget
    ) -> tuple[list[T], Response]:
        answers = []
        while (response := await self._read(budget)).tag != tag:
            if response.tag == b"+" and more:
                self._wire.write_line(more.pop(0), public="")
            elif response.tag != b"*":
                raise ProbeFault(Reason.PROTOCOL_ERROR, b"not the answer to this command: " + response.text)
            elif (answer := read(response)) is not None:
                answers.append(answer)
            else:
                self._take_in(response)
        self._take_in(response)
        return answers, response

    async def _read(self, budget: _Budget) -> Response:
        """Read a response with its literals; the sizes of those are judged before they are read."""
        line = await self._wire.read_line(budget.line, is_mail=self._may_hold_mail)
        length = self._octets = len(line)
        response, texts, literals = self._parsed(line), [line], []
        while not response.is_status and (size := imap.literal_size(line)) is not None:
            budget.literals -= size
            if size > budget.literal or budget.literals < 0:
                said = self._phases.transcript.quoted(self._fit_to_show(response, texts))
                raise self._too_large(f"a literal of {size} octets: {said}")
            texts[-1] = line[: line.rindex(b"{")]
            literals.append(await self._wire.read_exactly(size))
            line = await self._wire.read_line(budget.line - length, is_mail=self._may_hold_mail)
            length += len(line)
            texts.append(line)
        self._octets = length
        shown = self._fit_to_show(response, texts)
        budget.responses -= 1
        budget.lines -= length
        if budget.responses < 0 or budget.lines < 0:
            raise self._too_large(f"responses without end, such as: {self._phases.transcript.quoted(shown)}")
        self._phases.transcript.received(shown)
        return Response.parse(b"\n".join(texts), literals) if literals else response

    def _parsed(self, line: bytes) -> Response:
        try:
            return Response.parse(line)
        except ProbeFault as fault:
            said = "(not shown)" if self._may_hold_mail else self._phases.transcript.quoted(line)
            raise ProbeFault(fault.reason, f"not an IMAP response: {said}") from None

    def _fit_to_show(self, response: Response, texts: Sequence[bytes]) -> bytes:
        """Return the response for the transcript; of what may be mail, no more than its octets."""
        is_ours = not self._may_hold_mail or response.tag == b"M%d" % self._commands
        if response.kind == b"FETCH" or not is_ours:
            return b"* %d octets, not shown" % sum(map(len, texts))
        return b" ".join(texts)

    def _take_in(self, response: Response) -> None:
        """Keep what a response tells of the session; a BYE that nobody asked for ends it."""
        code, argument = response.code
        if response.kind == b"EXISTS":
            if response.number != self.exists:  # else nothing came: a server may repeat itself
                self.exists, self.heard_at, self.changed = response.number, self._clock.monotonic(), True
        elif response.kind == b"EXPUNGE":
            self.exists, self.changed = max(0, self.exists - 1), True
        elif response.kind == b"VANISHED":
            self.changed = True
        elif response.kind == b"BYE" and not self._leaving:
            raise imap.refusal(response, Reason.IMAP_BYE)
        elif code == b"UIDVALIDITY":
            self.uid_validity = imap.number_of(argument)
        elif code == b"UIDNEXT":
            self.uid_next = imap.number_of(argument)
        elif (capabilities := imap.capabilities_of(response)) is not None:
            self.capabilities = capabilities

    def _too_large(self, detail: str) -> ProbeFault:
        self.abort()
        return ProbeFault(Reason.RESPONSE_TOO_LARGE, detail)

    @contextmanager
    def _closing_on_failure(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            self.abort()
            raise ProbeFault(Reason.COMMAND_TIMEOUT, f"no answer after {self._server.timeout:g} s") from error
        except ProbeFault as fault:
            self.abort()
            if self._may_hold_mail and fault.reason is Reason.PROTOCOL_ERROR:
                told = f"no sound response: {self._octets} octets, not shown because they may be mail"
                raise ProbeFault(fault.reason, told) from None
            self._phases.transcript.redaction.fault(fault)  # what comes between commands is in no phase
            raise
        except BaseException:
            self.abort()
            raise


def _fields(names: Sequence[str]) -> bytes:
    return b"BODY.PEEK[HEADER.FIELDS (%s)]<0.%d>" % (" ".join(names).encode("ascii"), FIELDS_LIMIT)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Take a task's fault as seen, for asyncio would log it where no command comes that raises it."""
    if not task.cancelled():
        task.exception()


async def connect(server: ServerSettings, phases: PhaseTimer, clock: Clock) -> ImapSession:
    """Return a session that is greeted and encrypted as ``server`` says, not logged in."""
    wire = await LineTransport.connect(server.host, server.port, phases, server.timeout)
    session = ImapSession(server, wire, phases, clock)
    try:
        return await session.open()
    except BaseException:
        session.abort()
        raise


async def open_session(
    server: ServerSettings, *, username: str, password: SecretStr, phases: PhaseTimer, clock: Clock
) -> ImapSession:
    """Return a session that is logged in; closed again if that fails."""
    session = await connect(server, phases, clock)
    try:
        await session.log_in(username, password)
    except BaseException:
        session.abort()
        raise
    return session
