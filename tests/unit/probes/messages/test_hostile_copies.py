"""Reading a stored message ends with a result, in time, whatever it contains."""

from __future__ import annotations

from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.messages.auto_reply import is_auto_reply
from probes.messages.content_digest import digest_of
from probes.messages.junk import junk_mark
from probes.messages.synthetic_message import subject_token

MIXED = b"Subject: s\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"


@given(st.binary(max_size=2000))
def test_nothing_that_arrives_raises(raw: bytes) -> None:
    """Any octets in a mailbox can be read without an error."""
    for prefix in (b"", b"Content-Type: multipart/mixed; boundary=x\n\n--x\n", b"Subject: =?utf-8?b?"):
        junk_mark(prefix + raw)
        is_auto_reply(prefix + raw)
        subject_token(prefix + raw)
        digest_of(prefix + raw)


@pytest.mark.parametrize(
    "piece", ["=?", "=?a?q?", "=?a?q? ", "=?a?b?=?= ", "mailsonde1:", "\r\n ", "(", ";", "\\"]
)
def test_no_header_section_takes_long(piece: str) -> None:
    """The worst possible header section is read quickly."""
    started = thread_time()
    for name in ("Subject", "Auto-Submitted", "X-Spam-Status", "X-Forefront-Antispam-Report", "Content-Type"):
        hostile = f"{name}: {piece * (64_000 // len(piece))}\r\n\r\n".encode()
        (
            junk_mark(hostile),
            is_auto_reply(hostile),
            subject_token(hostile),
            digest_of(hostile),
        )
    assert thread_time() - started < 2


FIELDS = st.sampled_from(
    [
        "Subject: =?unicode_escape?q?\\d=41?= =?idna?b?eG4tLQ?= =?utf-8?q?=ff?=",
        "Subject: =?punycode?q?\u00e4?= =?=?=",
        "Content-Type: multipart/mixed; boundary=b",
        "Content-Type: text/plain; charset=iso-8859-1",
        "Content-Transfer-Encoding: base64",
        "Content-Transfer-Encoding: quoted-printable",
        "Auto-Submitted: ((auto-replied",
        "X-Forefront-Antispam-Report: SCL:;SCL;::;SFV",
        "X-MS-Exchange-Organization-SCL: \u00b2",
        "",
        "--b",
        "--b--",
        "QUJ",
        "=4",
    ]
)


@given(
    st.binary(max_size=300)
    | st.lists(FIELDS | st.text(max_size=20), max_size=15).map("\r\n".join).map(str.encode)
)
def test_no_octets_raise(raw: bytes) -> None:
    """Any message gives a known mark, a token and a digest, or nothing."""
    mark = junk_mark(raw)
    assert mark is None or f"{mark}:".encode() in raw.lower()
    assert is_auto_reply(raw) in {True, False}
    assert subject_token(raw) is None
    assert subject_token(b"Subject: " + raw) is None
    for text in (raw, b"Subject: " + raw, MIXED + b"--b\r\n" + raw):
        found = digest_of(text)
        assert found is None or len(found) == 32
