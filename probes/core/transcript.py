"""The dialogue between a run and its servers, safe to show: no credentials, no mail, bounded."""

from __future__ import annotations

from collections import deque

from probes.core.clock import Clock
from probes.core.faults import legible
from probes.core.redaction import WITHHELD, Redaction

FIRST = 80
"""Number of entries to keep from the beginning of a dialogue."""

LAST = 40
"""Number of entries to keep from the end of a longer dialogue."""

LINE = 200
"""Maximum length of a line, in characters."""

REPLY = 4096
"""Maximum characters to keep of one entry, such as a long answer to EHLO."""

CUT = "…"
"""Marks where an answer is cut."""

LATEST = 4
"""Number of entries to keep of a dialogue that is not shown."""

_BEYOND = 32  # characters to search beyond the cut, so that a secret across it is found

_Entry = tuple[float, str, str | bytes, bool, bool]
"""Seconds, speaker, line as kept, whether it is cut, and whether it may contain credentials."""


class Transcript:
    """Keeps the lines of a dialogue, each with the seconds since the run began.

    A server's text is shown with control characters escaped, lines cut to `LINE` characters, and secrets
    removed by ``redaction``, but only by `lines`: a dialogue costs its run little.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun = clock.monotonic()
        self._first: list[_Entry] = []
        self._last: deque[_Entry] = deque(maxlen=LAST)
        self._room = FIRST
        self._left_out = 0
        self.redaction = Redaction()

    def sent(self, line: bytes, public: str | None = None) -> None:
        """Keep a command; if it has credentials, keep only its beginning ``public``, which may be empty."""
        self._keep("C", _kept(line) if public is None else f"{public} {WITHHELD}".lstrip())

    def received(self, reply: str | bytes, *, cut: bool = False) -> None:
        """Keep a server's answer: one line, or several with line feeds between them.

        ``cut`` says that this is only the beginning of the answer. Anything beyond `REPLY` is always cut.
        """
        self._keep("S", _kept(reply), cut, self.redaction.has_secrets)

    def quoted(self, reply: str | bytes, *, cut: bool = False) -> str:
        """Keep an answer as `received` does, and return its text as shown, for the detail of a fault."""
        shown = self.shown(reply, cut=cut)
        self.received(reply, cut=cut)
        return shown

    def shown(self, reply: str | bytes, *, cut: bool = False) -> str:
        """Return an answer's text as shown; for an empty answer, what the server said before it."""
        if reply.strip():
            return self._told(_text(_kept(reply)), cut, may_be_secret=True)
        replies = [kept for _, who, kept, *_ in (*self._first, *self._last) if who == "S" and kept.strip()]
        said_before = self._told(_text(replies[-1]), cut=False, may_be_secret=True) if replies else "nothing"
        return f"an empty line, after {said_before}"

    def note(self, text: str) -> None:
        """Keep a remark about an event without a line: a connection, a handshake, a message's content."""
        self._keep("#", text)

    def keep_latest_only(self) -> None:
        """Forget the dialogue, and from now on keep only the end of it, as faults need it.

        For a session that stays open: nobody is shown its dialogue.
        """
        self._left_out += len(self._first) + len(self._last)
        self._first, self._room, self._last = [], 0, deque(maxlen=LATEST)

    def _keep(self, who: str, kept: str | bytes, cut: bool = False, may_be_secret: bool = False) -> None:
        entry = self._clock.monotonic() - self._begun, who, kept, cut, may_be_secret
        if len(self._first) < self._room:
            self._first.append(entry)
            return
        self._left_out += len(self._last) == self._last.maxlen
        self._last.append(entry)

    def lines(self) -> list[str]:
        """Return the lines: seconds, ``C`` (client), ``S`` (server) or ``#`` (a remark), and the text."""
        entries = (*self._first, *self._last)
        texts = [_text(kept) for _, _, kept, _, _ in entries]
        has_secret = self.redaction.applies_to(
            text for text, entry in zip(texts, entries, strict=True) if entry[-1]
        )
        shown: list[str] = []
        for number, (text, (seconds, who, _, cut, may_be_secret)) in enumerate(
            zip(texts, entries, strict=True)
        ):
            if number == len(self._first) and self._left_out:
                shown.append(f"… {self._left_out} left out …")
            begin = f"{seconds:8.3f} {who}: "
            told = self._told(text, cut, may_be_secret=may_be_secret and has_secret)
            if len(told) <= LINE and told.isprintable():  # nearly all
                shown.append(begin + told)
            else:
                shown += [begin + legible(line.removesuffix("\r"), LINE) for line in told.split("\n")]
        return shown

    def _told(self, text: str, cut: bool, *, may_be_secret: bool) -> str:
        """Return a text as shown; ``text`` is what was kept, including the part to search beyond the cut."""
        shown = self.redaction.text(text) if may_be_secret else text
        is_cut = len(shown) > REPLY or (cut and shown == text)
        return shown[:REPLY] + CUT if is_cut else shown


def _kept(line: str | bytes) -> str | bytes:
    return line[: REPLY + _BEYOND]


def _text(kept: str | bytes) -> str:
    return kept.decode("utf-8", "backslashreplace") if isinstance(kept, bytes) else kept
