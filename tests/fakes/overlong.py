"""SMTP servers that send 100 KB, with markup and terminal escapes, where one line is expected."""

from __future__ import annotations

from tests.fakes.scripted_server import Script, dialogue

HOSTILE = b"<script>alert(1)</script>\x1b[2J"
SHOWN = "<script>alert(1)</script>\\x1b[2J"
"""The same as it is shown, where nothing has to be escaped but for terminals."""

_LINES = b"".join(b"-%s%s\r\n" % (HOSTILE, b"x" * 360) for _ in range(250))

ONE_LINE = dialogue(b"220 " + HOSTILE + b"x" * 100_000)
MANY_LINES = dialogue(b"554" + _LINES.replace(b"\r\n-", b"\r\n554-") + b"554 no")
ONE_ANSWER = dialogue(
    b"220 hello", (rb"EHLO \S+", b"250" + _LINES.replace(b"\r\n-", b"\r\n250-") + b"250 HELP")
)

OVERLONG: dict[str, tuple[Script, str]] = {
    "one line": (ONE_LINE, f"in phase greeting: more than 8192 octets: 220 {SHOWN}xxx"),
    "many lines": (MANY_LINES, f"in phase greeting: more than 32768 octets: 554-{SHOWN}xxx"),
    "one answer": (ONE_ANSWER, f"in phase ehlo: more than 32768 octets: 250-{SHOWN}xxx"),
}
"""Each script, and how the detail of a run in front of it begins."""
