"""An IMAP session: the commands on folders and messages for watching a mailbox (RFC 9051, 4315)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason
from probes.protocols import imap as imap
from probes.protocols.imap import MOST_MESSAGES, SEARCH_LIMIT, Folder, FolderStatus, Response
from probes.protocols.imap_connection import ImapConnection
from probes.protocols.imap_dialogue import MOST_RESPONSES, Budget

FETCHED_FIELDS_LIMIT = 16 * 1024
"""Maximum octets to read of the requested header fields, which may be huge in foreign mail."""

NAME_LIMIT = 4096
"""Maximum octets of a folder name in a literal."""

MOST_FOLDERS = 50_000
"""Maximum number of folders that a server may list."""

LISTING_LIMIT = 8 * 2**20
"""Maximum octets of lines in a list of folders."""

BATCH = 500
"""Maximum number of uids in one FETCH."""

T = TypeVar("T")


class ImapSession(ImapConnection):
    """Reads and deletes the messages of one folder at a time.

    A NO, a BAD, or a header section over the limit leaves the session open.
    """

    @property
    def has_uidplus(self) -> bool:
        """Whether single messages can be expunged (RFC 4315)."""
        return not self.capabilities.isdisjoint({"UIDPLUS", "IMAP4REV2"})

    @property
    def is_open(self) -> bool:
        """Whether the session can continue; after a fault, whether that affected only its command."""
        return self._transport.is_open

    async def folders(self) -> list[Folder]:
        """Return the folders, with their special uses if the server reports them (RFC 6154).

        Malformed entries are left out.
        """
        words = [b"LIST", b'""', b'"*"']
        if {"SPECIAL-USE", "LIST-EXTENDED"} <= self.capabilities:  # otherwise in LIST by default, or never
            words.append(b"RETURN (SPECIAL-USE)")
        budget = Budget(literal=NAME_LIMIT, responses=MOST_FOLDERS, lines=LISTING_LIMIT)
        return await self._command("list", *words, read=_if_sound(imap.parse_list), budget=budget)

    async def namespace(self) -> list[str]:
        """Return the prefixes of the personal namespaces (RFC 2342); empty if the server reports none."""
        if not {"NAMESPACE", "IMAP4REV2"} & self.capabilities:
            return []
        budget, read = Budget(literal=NAME_LIMIT), _if_sound(imap.parse_namespace)
        answers = await self._command("namespace", b"NAMESPACE", read=read, budget=budget)
        return [prefix for prefixes in answers for prefix in prefixes]

    async def select(self, folder: str, *, read_only: bool = False) -> None:
        """Open a folder. A NO is `IMAP_NO_FOLDER` with the folder's name, and no folder is open then."""
        self.folder, self.exists, self.uid_validity, self.uid_next = None, 0, None, None
        verb = b"EXAMINE" if read_only else b"SELECT"
        with _named(folder):
            await self._command("select", verb, imap.encode_folder(folder), refusal=Reason.IMAP_NO_FOLDER)
        self.folder, self.changed = folder, False
        self.arrivals.begin(self._dialogue.sent_at)

    async def status_of(self, folder: str) -> FolderStatus:
        """Return the STATUS of a folder, open or not; a NO is `IMAP_NO_FOLDER`.

        An answer without UIDNEXT is a `PROTOCOL_ERROR` that leaves the session open.
        """
        with _named(folder):
            answers = await self._command(
                "status",
                b"STATUS",
                imap.encode_folder(folder),
                b"(MESSAGES UIDNEXT UIDVALIDITY)",
                read=imap.parse_status,
                budget=Budget(literal=NAME_LIMIT),
                refusal=Reason.IMAP_NO_FOLDER,
            )
        if not answers or answers[-1].uid_next is None:
            raise ProbeFault(Reason.PROTOCOL_ERROR, "no UIDNEXT in the answer to STATUS")
        return answers[-1]

    async def noop(self) -> float:
        """Learn of any changes; return the monotonic time right before NOOP was sent."""
        await self._command("noop", b"NOOP")
        self.arrivals.looked(self._dialogue.sent_at)
        return self._dialogue.sent_at

    async def uid_search(self, *criteria: bytes) -> list[int]:
        """Return the matching uids. More than `MOST_MESSAGES` close the session."""
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
        """Return the named header fields of all messages from uid ``first``, as `fetch_fields_of` does.

        More than ``most`` messages (at most 20,000) close the session.
        """
        fetched = await self._fetch(b"%d:*" % first, _fields(names), FETCHED_FIELDS_LIMIT)
        found = {uid: fields for uid, fields in fetched.items() if uid >= first}  # has the last message too
        if len(found) > most:
            raise self._dialogue.too_large(f"more than {most} messages")
        return found

    async def fetch_fields_of(self, uids: Sequence[int], names: Sequence[str]) -> dict[int, bytes]:
        """Return the named header fields of the messages that exist, by uid.

        Each result is a header section, cut to 16 KiB.
        """
        found: dict[int, bytes] = {}
        for begin in range(0, len(uids), BATCH):
            batch = uids[begin : begin + BATCH]
            fetched = await self._fetch(imap.uid_set(batch), _fields(names), FETCHED_FIELDS_LIMIT)
            found |= {uid: fetched[uid] for uid in batch if uid in fetched}
        return found

    async def header_section(self, uid: int, *, limit: int) -> bytes | None:
        """Return a message's header section, or ``None`` if the message is gone.

        More than ``limit`` octets are `RESPONSE_TOO_LARGE`.
        """
        fetched = await self._fetch(b"%d" % uid, b"BODY.PEEK[HEADER]<0.%d>" % (limit + 1), limit + 1)
        header_section = fetched.get(uid)
        if header_section is not None and len(header_section) > limit:
            raise ProbeFault(Reason.RESPONSE_TOO_LARGE, f"more than {limit} octets")
        return header_section

    async def beginnings(self, uids: Sequence[int], octets: int) -> dict[int, bytes]:
        """Return at most the first ``octets`` of those of the messages that exist, by uid."""
        return await self._fetch(imap.uid_set(uids), b"BODY.PEEK[]<0.%d>" % octets, octets)

    async def part_of(self, uid: int, offset: int, octets: int) -> bytes | None:
        """Return at most ``octets`` (up to 32 MiB) of a message from ``offset``; ``None`` if it is gone."""
        item = b"BODY.PEEK[]<%d.%d>" % (offset, octets)
        return (await self._fetch(b"%d" % uid, item, octets)).get(uid)

    async def _fetch(self, uids: bytes, item: bytes, limit: int) -> dict[int, bytes]:
        self._dialogue.may_hold_mail = True
        words = (b"UID FETCH", uids, b"(UID " + item + b")")
        budget = Budget(literal=limit)
        return dict(await self._command("fetch", *words, read=imap.parse_fetch, budget=budget, looks=True))

    async def delete(self, uids: Collection[int]) -> bool:
        """Delete these messages, and no others with the flag \\Deleted. Return whether they are gone.

        Without UIDPLUS (RFC 4315), the messages only get the flag.
        """
        numbers = imap.uid_set(uids)
        await self._command("store", b"UID STORE", numbers, b"+FLAGS.SILENT (\\Deleted)", looks=True)
        if not self.has_uidplus:
            return False
        await self._command("expunge", b"UID EXPUNGE", numbers, read=self._expunged, looks=True)
        return True


def _if_sound(parse: Callable[[Response], T | None]) -> Callable[[Response], T | None]:
    """Return ``parse`` for answers with many parts: it skips a malformed part and keeps the others."""

    def parsed(response: Response) -> T | None:
        try:
            return parse(response)
        except ProbeFault:
            return None

    return parsed


@contextmanager
def _named(folder: str) -> Iterator[None]:
    """Add the folder's name to the fault if it cannot be opened."""
    try:
        yield
    except ProbeFault as fault:
        if fault.reason is Reason.IMAP_NO_FOLDER:
            fault.detail = legible(f'"{folder}": {fault.detail}')
        raise


def _fields(names: Sequence[str]) -> bytes:
    return b"BODY.PEEK[HEADER.FIELDS (%s)]<0.%d>" % (" ".join(names).encode("ascii"), FETCHED_FIELDS_LIMIT)
