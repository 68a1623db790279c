"""An IMAP server in memory that can misbehave at any moment."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fakes.scripted_server import Peer


@dataclass
class StoredFolder:
    r"""A folder: its messages by uid, and those with the flag ``\Deleted``."""

    uid_validity: int | None = 7
    messages: dict[int, bytes] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    uid_next: int = 1
    claimed_uid_next: int | None = None

    def add(self, raw: bytes) -> int:
        """Store a message and return its uid."""
        uid, self.uid_next = self.uid_next, self.uid_next + 1
        self.messages[uid] = raw
        return uid


@dataclass
class ImapServer:
    """Serves ``folders``; ``before`` is called with the words of each command before the answer.

    If it raises, the server sends the exception's text and ends the connection. What it returns replaces the
    tagged OK. New messages are announced in the answer to any command, unless the server is ``quiet``.
    ``listing`` replaces the answer to LIST. ``unasked`` lines go out with the next answer, before its tagged
    line, or after it if ``is_late``.
    """

    folders: dict[str, StoredFolder] = field(
        default_factory=lambda: {"INBOX": StoredFolder(), "Junk": StoredFolder()}
    )
    capabilities: str = "IMAP4rev1 AUTH=PLAIN SASL-IR UIDPLUS SPECIAL-USE"
    before: Callable[[list[str]], str | None] = lambda words: None
    listing: list[bytes] | None = None
    commands: list[str] = field(default_factory=list)
    unasked: list[bytes] = field(default_factory=list)
    is_late: bool = False
    quiet: bool = False

    async def script(self, peer: Peer) -> None:
        """Answer commands on one connection."""
        folder: StoredFolder | None = None
        told = 0
        await peer.send(b"* OK ready")
        while True:
            tag, *words = (await peer.expect(b".*")).decode().split(" ")
            self.commands.append(" ".join(words))
            try:
                refusal = self.before(words)
            except ConnectionError as ending:
                await peer.send(*map(str.encode, ending.args))
                return await peer.close()
            if refusal is not None:
                await peer.send(f"{tag} {refusal}".encode())
                continue
            if words[0] in {"SELECT", "EXAMINE"}:
                folder = self.folders[words[1].strip('"')]
                told = len(folder.messages)
            lines = self._answer(words, folder)
            if folder is not None and words[1:2] == ["EXPUNGE"]:
                told -= len(lines)  # what came meanwhile is still to be told of
            if folder is not None and len(folder.messages) != told and not self.quiet:
                told = len(folder.messages)
                lines.append(b"* %d EXISTS\r\n" % told)
            unasked, self.unasked = [line + b"\r\n" for line in self.unasked], []
            tagged = [f"{tag} OK done\r\n".encode()]
            ending = [*tagged, *unasked] if self.is_late else [*unasked, *tagged]
            await peer.chunks(b"".join([*lines, *ending]))
            if words[0] == "LOGOUT":
                return None

    def _answer(self, words: list[str], folder: StoredFolder | None) -> list[bytes]:
        match words:
            case ["CAPABILITY"]:
                return [f"* CAPABILITY {self.capabilities}\r\n".encode()]
            case ["LIST", *_]:
                if self.listing is not None:
                    return [line + b"\r\n" for line in self.listing]
                marks = {"Junk": "\\Junk"}
                return [f'* LIST ({marks.get(name, "")}) "/" {name}\r\n'.encode() for name in self.folders]
            case ["STATUS", name, *_]:
                status = self.folders[name.strip('"')]
                items = (
                    f"MESSAGES {len(status.messages)} UIDNEXT {status.claimed_uid_next or status.uid_next}"
                )
                if status.uid_validity is not None:
                    items += f" UIDVALIDITY {status.uid_validity}"
                return [f"* STATUS {name} ({items})\r\n".encode()]
            case ["LOGOUT"]:
                return [b"* BYE\r\n"]
        return [] if folder is None else self._in_folder(words, folder)

    def _in_folder(self, words: list[str], folder: StoredFolder) -> list[bytes]:
        match words:
            case ["SELECT", _]:
                next_uid = folder.claimed_uid_next or folder.uid_next
                lines = [f"* {len(folder.messages)} EXISTS\r\n", f"* OK [UIDNEXT {next_uid}] x\r\n"]
                if folder.uid_validity is not None:
                    lines.append(f"* OK [UIDVALIDITY {folder.uid_validity}] x\r\n")
                return [line.encode() for line in lines]
            case ["UID", "SEARCH", *criteria]:
                hidden = folder.deleted if "UNDELETED" in criteria else set()
                found = " ".join(str(uid) for uid in folder.messages if uid not in hidden)
                return [f"* SEARCH {found}\r\n".encode()]
            case ["UID", "FETCH", uids, *item]:
                return [
                    self._fetched(position, uid, raw, " ".join(item))
                    for position, (uid, raw) in enumerate(folder.messages.items(), 1)
                    if is_in(uid, uids, folder)
                ]
            case ["UID", "STORE", uids, *_]:
                folder.deleted |= {uid for uid in folder.messages if is_in(uid, uids, folder)}
            case ["UID", "EXPUNGE", uids]:
                lines = []
                for uid in [
                    uid for uid in folder.deleted & folder.messages.keys() if is_in(uid, uids, folder)
                ]:
                    lines.append(b"* %d EXPUNGE\r\n" % (list(folder.messages).index(uid) + 1))
                    del folder.messages[uid]
                return lines
        return []

    @staticmethod
    def _fetched(position: int, uid: int, raw: bytes, item: str) -> bytes:
        section = re.search(r"(BODY)\.PEEK(\[.*\])<(\d+)\.(\d+)>", item)
        assert section is not None, item
        text = raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if "HEADER" in item else raw
        begin, length = int(section[3]), int(section[4])
        text = text[begin : begin + length]
        head = f"* {position} FETCH (UID {uid} BODY{section[2]}<{begin}> {{{len(text)}}}\r\n"
        return head.encode() + text + b")\r\n"


def is_in(uid: int, uids: str, folder: StoredFolder) -> bool:
    """Return whether a sequence set has this uid (RFC 9051 section 9)."""
    for part in uids.split(","):
        low, _, high = part.partition(":")
        if high == "*" and (uid >= int(low) or uid == max(folder.messages, default=0)):
            return True  # RFC 9051 section 9: n:* always includes the last message
        if high != "*" and int(low) <= uid <= int(high or low):
            return True
    return False
