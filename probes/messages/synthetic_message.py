"""Composes the synthetic message (RFC 5322), and finds our token in the header section of a stored one."""

from __future__ import annotations

import base64
import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime

from probes.messages.content_digest import digest
from probes.messages.mime import decoded_subject
from probes.messages.token import HEADER, token_in

_TOKEN_FIELD = re.compile(
    rb"^%s[ \t]*:[ \t]*((?:[^\r\n]|\r?\n[ \t]){1,2000})" % HEADER.encode(), re.IGNORECASE | re.MULTILINE
)
_FOLD = re.compile(r"\r?\n[ \t]+|\s+")

_SPACE = re.compile(r"[ \t\r\n]+")

_SUBJECT = "mailsonde test message"
_BODY = """\
This is a test message of mailsonde, which measures how long mail takes to
arrive here. Probe "{probe}" at "{location}" sent it; nobody needs to
read or answer it, and mailsonde deletes it once it has seen it.

If such messages pile up in a mailbox, tell the people who run your mail:
the agent that should collect them may have stopped.

{token}
"""


@dataclass(frozen=True, slots=True)
class SyntheticMessage:
    """A composed message: its octets with CRLF line ends, and the digest of its content."""

    content: bytes
    digest: str


def compose(
    *,
    probe: str,
    location: str,
    sender: str,
    recipient: str,
    run: str,
    token: str,
    created_at: float,
    attachment_octets: int = 0,
    invites_reply: bool = False,
) -> SyntheticMessage:
    """Return the message. ``created_at`` is in unix seconds.

    The token is in a field of its own, in the subject and in the body. ``Auto-Submitted`` (RFC 3834) and
    Exchange's ``X-Auto-Response-Suppress`` prevent automatic replies, unless the message
    ``invites_reply``. An attachment of random octets gives it the required size.
    """
    quiet = ["Auto-Submitted: auto-generated", "X-Auto-Response-Suppress: All"]
    fields = [
        f"Date: {format_datetime(datetime.fromtimestamp(created_at, UTC))}",
        f"Message-ID: <{run}@{sender.rpartition('@')[2]}>",
        f"From: mailsonde <{sender}>",
        f"To: <{recipient}>",
        # Folded by hand: a library would turn the long token into encoded words.
        f"Subject: {_SUBJECT}\r\n {token}",
        *([] if invites_reply else quiet),
        f"{HEADER}: {token}",
        "MIME-Version: 1.0",
    ]
    body = _BODY.format(probe=probe, location=location, token=token).replace("\n", "\r\n")
    # Random, so that gateways cannot compress it; seeded, so that it is reproducible.
    attachment = random.Random(run).randbytes(attachment_octets)  # noqa: S311 # not for security
    text_fields = ["Content-Type: text/plain; charset=us-ascii", "Content-Transfer-Encoding: 7bit"]
    head = "\r\n".join(fields) + "\r\n"
    text = "\r\n".join(text_fields) + "\r\n\r\n" + body
    content = (head + (_with_attachment(text, attachment, run) if attachment else text)).encode("ascii")
    return SyntheticMessage(content, digest(f"{_SUBJECT} {token}", body.encode("ascii"), attachment))


def _with_attachment(text: str, attachment: bytes, boundary: str) -> str:
    """Return a text part and an attachment as multipart/mixed (RFC 2046 section 5.1.3)."""
    lines = [
        f'Content-Type: multipart/mixed; boundary="{boundary}"',
        "",
        f"--{boundary}",
        text,
        f"--{boundary}",
        "Content-Type: application/octet-stream",
        'Content-Disposition: attachment; filename="mailsonde.bin"',
        "Content-Transfer-Encoding: base64",
        "",
        base64.encodebytes(attachment).decode("ascii").replace("\n", "\r\n") + f"--{boundary}--",
        "",
    ]
    return "\r\n".join(lines)


def token_text(header_section: bytes) -> str | None:
    """Return the unfolded value of the token field in a header section; ``None`` if there is no such field.

    The body does not count: a person's reply quotes subject and body, and is not ours.
    """
    header_section = re.split(rb"\r?\n\r?\n", header_section, maxsplit=1)[0]
    match = _TOKEN_FIELD.search(header_section)
    return _FOLD.sub("", match[1].decode("ascii", "replace")) if match else None


def subject_token(header_section: bytes) -> str | None:
    """Return the text of a token anywhere in the subject; ``None`` if there is none."""
    subject = decoded_subject(header_section)
    # A gateway that refolds the subject may insert white space into the token, which has none.
    return token_in(subject) or token_in(_SPACE.sub("", subject))
