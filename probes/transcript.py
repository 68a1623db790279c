"""What a run and its servers said to each other, fit to show: no credentials, no mail, bounded."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from probes.clock import Clock
from probes.faults import legible, withholding

FIRST = 80
"""Entries that are kept from the beginning of a dialogue."""

LAST = 40
"""Entries that are kept from its end, where it is longer."""

LINE = 200
"""Longest line shown, in characters."""

REPLY = 4096
"""Most characters of one entry that are kept, such as the many lines of an answer to EHLO."""

WITHHELD = "(withheld)"

CUT = "…"
"""Stands where an answer is cut."""

_BEYOND = 32  # characters looked at beyond what is kept, so that a secret that the cut divides is found

_LOGIN = re.compile(
    r"(?:M\d+ )?(?:AUTH(?:ENTICATE)? (?:PLAIN|LOGIN|CRAM-MD5)|AUTH|USER|PASS|APOP|LOGIN)(?= |$)"
)


class Transcript:
    """Keeps the lines of a dialogue, each with the seconds since the run began.

    What a server sent is shown with its control characters escaped and cut to `LINE` characters.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun = clock.monotonic()
        self._first: list[tuple[float, str, str]] = []
        self._last: deque[tuple[float, str, str]] = deque(maxlen=LAST)
        self._left_out = 0
        self._secrets: tuple[str, ...] = ()
        self._logging_in = False

    def sent(self, line: bytes) -> None:
        """Keep a command; while logging in, no more of it than its keyword."""
        if not self._logging_in:
            self._keep("C", self._without_secrets(line))
            return
        keyword = _LOGIN.match(shown := line.decode("ascii", "replace"))
        if keyword is None:
            self._keep("C", WITHHELD)
        else:
            self._keep("C", shown if keyword[0] == shown else f"{keyword[0]} {WITHHELD}")

    def received(self, reply: str | bytes, *, cut: bool = False) -> str:
        """Keep what a server answered, one line or several between line feeds; return what is kept of it.

        ``cut`` marks what is no more than the beginning of an answer, as one beyond `REPLY` is in any case.
        A fault that tells what was said quotes what this returns, for it has no credentials.
        """
        kept = self._without_secrets(reply, cut=cut)
        self._keep("S", kept)
        return kept

    def note(self, text: str) -> None:
        """Keep a remark on what is no line: a connection, a handshake, a message's content."""
        self._keep("#", text)

    @contextmanager
    def withholding(self, *secrets: str) -> Iterator[None]:
        """Log in inside: ``secrets`` are kept out of every later entry, and out of a fault's text."""
        self._secrets += tuple(secret[:8] for secret in secrets if secret)
        self._logging_in = True
        try:
            with withholding(*secrets):
                yield
        finally:
            self._logging_in = False

    def _without_secrets(self, line: str | bytes, *, cut: bool = False) -> str:
        seen = line[: REPLY + _BEYOND]
        shown = seen.decode("utf-8", "backslashreplace") if isinstance(seen, bytes) else seen
        if self._secrets and any(secret in shown for secret in self._secrets):
            return WITHHELD
        return shown[:REPLY] + CUT if cut or len(shown) > REPLY else shown

    def _keep(self, who: str, text: str) -> None:
        entry = self._clock.monotonic() - self._begun, who, text
        if len(self._first) < FIRST:
            self._first.append(entry)
            return
        self._left_out += len(self._last) == LAST
        self._last.append(entry)

    def lines(self) -> list[str]:
        """Return the lines: seconds, ``C`` (client), ``S`` (server) or ``#`` (a remark), and the text."""
        shown = [_shown(*entry) for entry in self._first]
        if self._left_out:
            shown.append(f"… {self._left_out} left out …")
        shown += [_shown(*entry) for entry in self._last]
        return "\n".join(shown).split("\n") if shown else []


def _shown(seconds: float, who: str, text: str) -> str:
    """Return an entry's lines; most are harmless as a whole, and every run pays for this."""
    begin = f"{seconds:8.3f} {who}: "
    if len(text) <= LINE and text.replace("\n", "").isprintable():
        return begin + text.replace("\n", "\n" + begin)
    return "\n".join(begin + legible(line.removesuffix("\r"), LINE) for line in text.split("\n"))
