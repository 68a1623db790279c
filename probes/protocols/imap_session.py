"""An IMAP session: the dialogue around `probes.protocols.imap`, each phase timed (RFC 9051, 2177, 4315)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, TypeVar

from pydantic import SecretStr

from probes.core.clock import Clock
from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.core.settings import ServerSettings
from probes.core.verdict import PhaseTimer
from probes.protocols import imap as imap
from probes.protocols.imap import MOST_MESSAGES, SEARCH_LIMIT, Folder, Response
from probes.protocols.imap_dialogue import MOST_RESPONSES, Budget, ImapDialogue
from probes.protocols.line_transport import LineTransport
from probes.protocols.mail_session import MailSession
from probes.protocols.sasl import Mechanism

FETCHED_FIELDS_LIMIT = 16 * 1024
"""Most octets that are read of the header fields asked for; a foreign mail may hold huge ones."""

NAME_LIMIT = 4096
"""Longest folder name, in octets, that may come as a literal."""

BATCH = 500
"""Most messages that one FETCH asks for by their uids."""

T = TypeVar("T")


@dataclass(slots=True)
class _Idle:
    """A running IDLE: whether its ``+`` came, and whether DONE went out."""

    tag: bytes
    ready: bool = False
    done: bool = False


class ImapSession(MailSession):
    """One connection to an IMAP server, for one command at a time.

    A fault or a cancellation in a command closes the connection; only a NO or BAD, and a header
    section beyond its limit, leave it open.
    """

    own_methods: ClassVar[Mapping[str, bool]] = MappingProxyType({"LOGIN": False})

    def __init__(
        self, server: ServerSettings, transport: LineTransport, phases: PhaseTimer, clock: Clock
    ) -> None:
        super().__init__(server, transport, phases, clock)
        self._dialogue = ImapDialogue(transport, phases.transcript, clock)
        self._leaving = False
        self._unasked = Budget()  # for what comes between two commands
        self._idle: _Idle | None = None
        self._idle_usable = True
        self._hearing: asyncio.Task[None] | None = None  # what a cancelled `news` began to read
        self.greeting = b""
        self.capabilities: frozenset[str] = frozenset()
        self._capabilities_before_login = self.capabilities
        self.folder: str | None = None
        self.exists = 0
        self.uid_validity = 0
        self.uid_next: int | None = None
        self.changed = False
        """Whether an EXISTS, EXPUNGE or VANISHED came since SELECT, or since the caller last cleared it."""
        self.heard_at = float("-inf")
        """Monotonic reading taken when the latest EXISTS was read."""

    @property
    def has_uidplus(self) -> bool:
        """Whether single messages can be expunged (RFC 4315)."""
        return not self.capabilities.isdisjoint({"UIDPLUS", "IMAP4REV2"})

    async def _greet(self) -> None:
        with self._phases.phase("greeting"):
            greeting = await self._dialogue.read(self._unasked)
            if greeting.tag != b"*" or greeting.kind not in (b"OK", b"BYE"):  # PREAUTH is nobody's login
                raise ProbeFault(Reason.PROTOCOL_ERROR, b"not a greeting: " + greeting.kind)
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
        """Log in as `MailSession.log_in` does, and know the capabilities after it (RFC 9051 section 6.2)."""
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
        await self._exchange(
            first, respond=lambda _: next(rest, None), refusal=Reason.AUTH_FAILED, public="LOGIN"
        )

    async def _authenticate(self, mechanism: Mechanism) -> None:
        """Do an exchange by AUTHENTICATE (RFC 9051 section 6.2.2)."""
        command = b"AUTHENTICATE " + mechanism.name.encode()
        words, public, initial = [command], None, mechanism.initial_response()
        if initial is not None and self._offers("SASL-IR"):  # RFC 4959
            words, public = [command, initial], command.decode()
        await self._exchange(
            *words,
            respond=lambda challenge: mechanism.answer(challenge.text),
            refusal=Reason.AUTH_FAILED,
            public=public,
        )

    async def folders(self) -> list[Folder]:
        """Return all folders, with their special uses where the server tells them (RFC 6154)."""
        words = [b"LIST", b'""', b'"*"']
        if {"SPECIAL-USE", "LIST-EXTENDED"} <= self.capabilities:  # else LIST shows them unasked, or never
            words.append(b"RETURN (SPECIAL-USE)")
        return await self._command("list", *words, read=imap.parse_list, budget=Budget(literal=NAME_LIMIT))

    async def namespace(self) -> list[str]:
        """Return the prefixes of the personal namespaces (RFC 2342); empty where the server tells none."""
        if not {"NAMESPACE", "IMAP4REV2"} & self.capabilities:
            return []
        budget = Budget(literal=NAME_LIMIT)
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
            budget=Budget(literal=NAME_LIMIT),
            refusal=Reason.IMAP_NO_FOLDER,
        )
        if not answers:
            self.abort()
            raise ProbeFault(Reason.PROTOCOL_ERROR, "no STATUS in the answer to STATUS")
        return answers[-1]

    async def noop(self) -> float:
        """Hear what is new; return the monotonic reading taken right before NOOP went out."""
        await self._command("noop", b"NOOP")
        return self._dialogue.sent_at

    async def uid_search(self, *criteria: bytes) -> list[int]:
        """Return the uids that fit, at most `MOST_MESSAGES`; more close the session."""
        budget = Budget(line=SEARCH_LIMIT)
        answers = await self._command(
            "search", b"UID SEARCH", *criteria, read=imap.parse_search, budget=budget
        )
        uids = [uid for answer in answers for uid in answer]
        if len(uids) > MOST_MESSAGES:
            raise self._dialogue.too_large(f"more than {MOST_MESSAGES} messages")
        return uids

    async def fetch_fields(
        self, first: int, names: Sequence[str], most: int = MOST_RESPONSES
    ) -> dict[int, bytes]:
        """Return the named header fields of every message from uid ``first`` on, as `fetch_fields_of` does.

        More than ``most`` messages, at most 20,000, close the session.
        """
        fetched = await self._fetch(b"%d:*" % first, _fields(names), FETCHED_FIELDS_LIMIT)
        found = {uid: fields for uid, fields in fetched.items() if uid >= first}  # the last one comes always
        if len(found) > most:
            raise self._dialogue.too_large(f"more than {most} messages")
        return found

    async def fetch_fields_of(self, uids: Sequence[int], names: Sequence[str]) -> dict[int, bytes]:
        """Return the named header fields of those of the messages that are there, by uid.

        Each is a header section of at most 16 KiB; what is beyond is cut off.
        """
        found: dict[int, bytes] = {}
        for begin in range(0, len(uids), BATCH):
            batch = uids[begin : begin + BATCH]
            fetched = await self._fetch(imap.uid_set(batch), _fields(names), FETCHED_FIELDS_LIMIT)
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
        self._dialogue.may_hold_mail = True
        words = (b"UID FETCH", uids, b"(UID " + item + b")")
        budget = Budget(literal=limit)
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

    def start_idle(self) -> bool:
        """Begin IDLE (RFC 2177) where the server has it and none runs; return whether one runs."""
        if self._idle is None and self._idle_usable and "IDLE" in self.capabilities:
            self._unasked = Budget()
            self._idle = _Idle(self._dialogue.send(b"IDLE"))
        return self._idle is not None

    async def news(self) -> None:
        """Return once `changed` is set; IDLE asks the server to tell, and the next command ends it.

        Without IDLE only what the server tells unasked is heard. Waits for ever; may be cancelled at
        any moment, and nothing is lost by it.
        """
        while not self.changed:
            if self._hearing is None:
                if not self._transport.unread:
                    self.start_idle()
                await self._transport.readable()
                # A task of its own, because a cancelled read would close the connection.
                self._hearing = asyncio.create_task(self._hear())
                self._hearing.add_done_callback(_retrieve)
            await asyncio.wait([self._hearing])
            heard, self._hearing = self._hearing, None
            heard.result()

    async def _hear(self) -> None:
        """Take in one response outside of a command's answer."""
        with self._dialogue.closing_on_failure(self._server.timeout):
            response, idle = await self._dialogue.read(self._unasked), self._idle
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
                self._transport.write_line(b"DONE")
                self._idle.done = True
            await self._hear()

    async def _settle(self) -> None:
        """Take in all that was said before the next command, so that an answer is never to an earlier one."""
        if self._hearing is not None:
            hearing, self._hearing = self._hearing, None
            await hearing
        await self._end_idle()
        while self._transport.unread:
            await self._hear()
        self._unasked = Budget()

    async def _command(
        self,
        phase: str,
        *words: bytes,
        read: Callable[[Response], T | None] = lambda _: None,
        budget: Budget | None = None,
        refusal: Reason = Reason.IMAP_NO,
    ) -> list[T]:
        """Send a command in a phase of its own, as `_exchange` does."""
        with self._phases.phase(phase):
            return await self._exchange(*words, read=read, budget=budget, refusal=refusal)

    async def _exchange(
        self,
        *words: bytes,
        read: Callable[[Response], T | None] = lambda _: None,
        respond: Callable[[Response], bytes | None] = lambda _: None,
        budget: Budget | None = None,
        refusal: Reason = Reason.IMAP_NO,
        public: str | None = None,
    ) -> list[T]:
        """Send a command, and return what ``read`` makes of the untagged responses that answer it.

        ``respond`` returns the line with credentials that answers a ``+``, or ``None`` if none is due;
        ``public`` is what may be shown of a command with credentials. Everything together may take the
        server's timeout.
        """
        timeout = self._server.timeout
        with self._dialogue.closing_on_failure(timeout):
            async with asyncio.timeout(timeout):
                await self._settle()
                tag = self._dialogue.send(*words, public=public)
                answers, status = await self._answer(tag, read, respond, budget or Budget())
        if status.kind != b"OK":
            raise imap.refusal(status, refusal if status.kind == b"NO" else Reason.IMAP_BAD)
        return answers

    async def _answer(
        self,
        tag: bytes,
        read: Callable[[Response], T | None],
        respond: Callable[[Response], bytes | None],
        budget: Budget,
    ) -> tuple[list[T], Response]:
        answers = []
        while (response := await self._dialogue.read(budget)).tag != tag:
            if response.tag == b"+" and (line := respond(response)) is not None:
                self._transport.write_line(line, public="")
            elif response.tag != b"*":
                raise ProbeFault(Reason.PROTOCOL_ERROR, b"not the answer to this command: " + response.text)
            elif (answer := read(response)) is not None:
                answers.append(answer)
            else:
                self._take_in(response)
        self._take_in(response)
        return answers, response

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


def _fields(names: Sequence[str]) -> bytes:
    return b"BODY.PEEK[HEADER.FIELDS (%s)]<0.%d>" % (" ".join(names).encode("ascii"), FETCHED_FIELDS_LIMIT)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Take a task's fault as seen, for asyncio would log it where no command comes that raises it."""
    if not task.cancelled():
        task.exception()
