"""The text of a synthetic message (RFC 5322), and finding our token in the headers of a stored one."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime

from probes.token import HEADER

_TOKEN_FIELD = re.compile(
    rb"^%s:[ \t]*((?:[^\r\n]|\r?\n[ \t]){1,2000})" % HEADER.encode(), re.IGNORECASE | re.MULTILINE
)
_FOLD = re.compile(r"\r?\n[ \t]+|\s+")

_BODY = """\
This is a test message of mailsonde, which measures how long mail takes to
arrive here. Probe "{probe}" at "{location}" sent it; nobody needs to
read or answer it, and mailsonde deletes it once it has seen it.

If such messages pile up in a mailbox, tell the people who run your mail:
the agent that should collect them may have stopped.

{token}
"""


def compose(
    *, probe: str, location: str, sender: str, recipient: str, run: str, token: str, created_at: float
) -> bytes:
    """Return the message as bytes with CRLF line ends. ``created_at`` is in unix seconds.

    The token stands in a field of its own, in the subject and in the body. ``Auto-Submitted``
    (RFC 3834) and Exchange's ``X-Auto-Response-Suppress`` keep auto-responders quiet.
    """
    date = format_datetime(datetime.fromtimestamp(created_at, UTC))
    fields = [
        f"Date: {date}",
        f"Message-ID: <{run}@{sender.rpartition('@')[2]}>",
        f"From: mailsonde <{sender}>",
        f"To: <{recipient}>",
        # Folded by hand: a library would turn the long token into encoded words.
        f"Subject: mailsonde test message\r\n {token}",
        "Auto-Submitted: auto-generated",
        "X-Auto-Response-Suppress: All",
        f"{HEADER}: {token}",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=us-ascii",
        "Content-Transfer-Encoding: 7bit",
    ]
    body = _BODY.format(probe=probe, location=location, token=token).replace("\n", "\r\n")
    return ("\r\n".join(fields) + "\r\n\r\n" + body).encode("ascii")


def token_text(header_section: bytes) -> str | None:
    """Return what the token field of a header section holds, unfolded; ``None`` where there is no such field.

    Only a field counts, never the body: a person's reply quotes subject and body, and is not ours.
    """
    header_section = re.split(rb"\r?\n\r?\n", header_section, maxsplit=1)[0]
    match = _TOKEN_FIELD.search(header_section)
    return _FOLD.sub("", match[1].decode("ascii", "replace")) if match else None
