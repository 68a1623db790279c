"""The digest of a message's content: which changes affect it, and which do not."""

from __future__ import annotations

import base64
import binascii
from time import thread_time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from probes.messages.content_digest import digest, digest_of
from probes.messages.synthetic_message import SyntheticMessage, compose
from probes.messages.token import Token, TokenSigner
from tests.unit.probes.messages.test_synthetic_message import encoded_word

SIGNER = TokenSigner(b"key")
TOKEN = SIGNER.sign(Token("trip", "0" * 32, 1_700_000_000_000_000))


def synthetic_message(octets: int = 0) -> SyntheticMessage:
    return compose(
        probe="trip",
        location="here",
        sender="canary@example.com",
        recipient="canary@example.com",
        run="0" * 32,
        token=TOKEN,
        created_at=1_700_000_000.0,
        attachment_octets=octets,
    )


@pytest.mark.parametrize("octets", [0, 1, 100_000])
def test_digest_of_what_was_sent(octets: int) -> None:
    """The digest of the sent message is that of the stored one, with either line end."""
    sent = synthetic_message(octets)
    assert digest_of(sent.content) == sent.digest
    assert digest_of(sent.content.replace(b"\r\n", b"\n")) == sent.digest


def folded(subject: str, line_end: str) -> str:
    return subject.replace(" ", f"{line_end} ")


def transferred(octets: bytes, encoding: str, line_end: str) -> bytes:
    """Return a part's content with CRLF line ends in a transfer encoding."""
    if encoding == "base64":
        octets = base64.encodebytes(octets)
    elif encoding == "quoted-printable":
        octets = binascii.b2a_qp(octets.replace(b"\r\n", b"\n"), istext=True)
    return octets.replace(b"\r\n", b"\n").replace(b"\n", line_end.encode())


def message(
    subject: str,
    text: bytes,
    attachment: bytes = b"",
    *,
    encoding: str = "8bit",
    line_end: str = "\r\n",
    charset: str = "utf-8",
) -> bytes:
    """Return a message as a mail system may store it, with this content in these encodings."""
    fields = f"Content-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: {encoding}\n\n"
    part = fields.replace("\n", line_end).encode() + transferred(text, encoding, line_end)
    head = f"Received: by mx.example.test{line_end}Subject: {subject}{line_end}MIME-Version: 1.0{line_end}"
    if not attachment:
        return head.encode() + part
    between = f"{line_end}--b c{line_end}".encode()
    content_type = 'Content-Type: multipart/mixed;\n boundary="b c"\n\npreamble\n'.replace("\n", line_end)
    fields = "Content-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n"
    attached = fields.replace("\n", line_end).encode() + transferred(attachment, "base64", line_end)
    return (
        (head + content_type).encode() + between + part + between + attached + b"--b c--" + line_end.encode()
    )


WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?="), min_size=1)
SUBJECTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)
ASCII = st.characters(min_codepoint=32, max_codepoint=126)
LINES = st.lists(
    st.text(ASCII | st.sampled_from("é€\t"), max_size=100).filter(lambda s: s[:2] != "--"), max_size=8
)
TEXTS = LINES.map("\r\n".join).map(str.encode)
ATTACHMENTS = st.binary(max_size=400)
ENCODINGS = st.sampled_from(["8bit", "quoted-printable", "base64"])
LINE_ENDS = st.sampled_from(["\r\n", "\n"])


@given(SUBJECTS, TEXTS, ATTACHMENTS, ENCODINGS, LINE_ENDS, st.booleans())
def test_a_digest_survives_the_way(
    subject: str, text: bytes, attachment: bytes, encoding: str, line_end: str, as_words: bool
) -> None:
    """Other transfer encodings, line ends, folds, encoded words and trailing white space change nothing."""
    shown = encoded_word(subject) if as_words else folded(subject, line_end)
    sent = digest(subject, text, attachment)
    assert digest_of(message(shown, text, attachment, encoding=encoding, line_end=line_end)) == sent
    trailing = text.replace(b"\r\n", b" \t\r\n") + b"\r\n \r\n"
    assert digest_of(message(shown, trailing, attachment, encoding=encoding, line_end=line_end)) == sent


@given(SUBJECTS, TEXTS, ATTACHMENTS, ENCODINGS, st.sampled_from(["subject", "text", "attachment"]), st.data())
def test_a_changed_octet_changes_the_digest(
    subject: str, text: bytes, attachment: bytes, encoding: str, where: str, data: st.DataObject
) -> None:
    """Every changed octet of subject, text or attachment changes the digest."""
    said = {"subject": subject.encode(), "text": text, "attachment": attachment}
    assume(said[where])
    place = data.draw(st.integers(0, len(said[where]) - 1))
    old = said[where][place : place + 1]
    new = data.draw(st.sampled_from([b"x", b"y", b"."] if where != "attachment" else [b"\0", b"\r", b"\n"]))
    assume(new != old and (where == "attachment" or old not in b" \t\r\n"))
    changed = said | {where: said[where][:place] + new + said[where][place + 1 :]}
    raw = message(changed["subject"].decode(), changed["text"], changed["attachment"], encoding=encoding)
    assert digest_of(raw) != digest(subject, text, attachment)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", b"c", b""), ("a", b"bc", b"")),
        (("a", b"bc", b""), ("a", b"b", b"c")),
        (("a", b"b", b"c"), ("a", b"c", b"b")),
        (("a b", b"", b""), ("ab", b"", b"")),
        (("a", b"b\r\n c", b""), ("a", b"b\r\nc", b"")),
        (("a", b"b\r\n\r\nc", b""), ("a", b"b\r\nc", b"")),
        (("a", b"", b"b\n"), ("a", b"", b"b")),
        (("a\xa0b", b"", b""), ("a b", b"", b"")),
    ],
)
def test_what_the_digest_tells_apart(one: tuple[str, bytes, bytes], other: tuple[str, bytes, bytes]) -> None:
    """Content moved between subject, text and attachment, and significant white space, count."""
    assert digest(*one) != digest(*other)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("=?utf-8?q?caf=C3=A9_au?= lait", "café au lait"),
        ("=?ISO-8859-1?Q?caf=E9?= =?us-ascii?q?s?=", "cafés"),
        ("=?utf-8?b?Y2Fmw6k=?=\r\n\t=?utf-8*fr?B?IGF1?= lait", "café au lait"),
        ("=?utf-8?b?Y2Fmw6kx?= a =?utf-8?b?Y2Fmw6k?=", "café1 a café"),
        ("=?utf-8?b?Y2Fmww==?= =?utf-8?q?=A9?=", "café"),
        ("é =?utf-8?b?w6k=?= è", "é é è"),
        ("=?utf-8?b?Y?= a", "=?utf-8?b?Y?= a"),
        ("=?utf-8?x?YQ?= =?utf-8?q?a", "=?utf-8?x?YQ?= =?utf-8?q?a"),
    ],
)
def test_encoded_words(written: str, said: str) -> None:
    """Encoded words equal the text itself (RFC 2047); invalid ones stand for themselves."""
    assert digest_of(f"Subject: {written}\r\n\r\n".encode()) == digest(said, b"", b"")


def test_a_digest_is_short_and_lasting() -> None:
    """A digest is 32 hex digits and equal in all versions, because stored ones are compared later."""
    assert (
        digest("a  b", b"c \r\nd\r\n\r\n", b"\0e")
        == digest(" a b ", b"c\nd", b"\0e")
        == "87ce3464c12466271379a47e0a542612"
    )


def test_charsets() -> None:
    """A text that is stored in another charset has the same digest."""
    sent = digest("x", "é\r\n".encode(), b"")
    assert digest_of(message("x", "é".encode("latin-1"), charset='"ISO-8859-1"')) == sent
    assert digest_of(message("x", "é".encode(), charset="UTF-8", encoding="base64")) == sent
    assert digest_of(message("x", b"e", charset="unheard-of")) == digest("x", b"e", b"")


PART = b"\r\n--b\r\nContent-Type: text/plain\r\n\r\nx"
ATTACHED = b"\r\n--b\r\nContent-Type: application/octet-stream\r\n\r\ny"
END = b"\r\n--b--\r\n"
MIXED = b"Subject: s\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: text/html\r\n\r\n<p>",
        b"Content-Type: multipart/mixed\r\n\r\n--x\r\n\r\ntext\r\n--x--\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\none\r\n--x--\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + b"--x\r\n\r\none\r\n" * 3 + b"--x--\r\n",
        b"Content-Type: multipart/alternative; boundary=x\r\n\r\n--x\r\n\r\na\r\n--x\r\n\r\nb\r\n--x--\r\n",
        MIXED + PART + END,
        MIXED + ATTACHED + PART + END,
        MIXED + PART + ATTACHED + ATTACHED + END,
        MIXED + PART + PART.replace(b"text/plain", b"multipart/mixed; boundary=c") + END,
        MIXED + PART.replace(b"text/plain", b"text/html") + ATTACHED + END,
        MIXED.replace(b"mixed", b"alternative") + PART + ATTACHED + END,
        MIXED.replace(b"boundary=b", b"") + PART + ATTACHED + END,
        MIXED,
        b"Subject: s\r\nContent-Type: text/html\r\n\r\nx",
        b"Subject: s\r\nContent-Type: application/pkcs7-mime\r\n\r\nx",
        b"X: " + b"x" * 300_000 + b"\r\n" + MIXED + PART + ATTACHED + END,
        MIXED + PART.replace(b"text", b"X: " + b"x" * 300_000 + b"\r\nA: text") + ATTACHED + END,
        b"a\n" * 200_000,
    ],
)
def test_another_structure(raw: bytes) -> None:
    """Anything but one text, or one text and one attachment, has no digest."""
    assert digest_of(MIXED + PART + ATTACHED + END) == digest("s", b"x", b"y")
    assert digest_of(raw) is None


def test_an_attachment_that_is_no_base64() -> None:
    """An attachment with broken encoding counts as altered, and is not an error."""
    broken = ATTACHED.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAAA!")
    assert digest_of(MIXED + PART + broken + END) != digest("s", b"x", b"")


def test_a_large_message_is_quick() -> None:
    """A message of 25 MB is compared in about a second; measured here: 0.3 s."""
    attachment = bytes(range(256)) * 71_000
    raw = message("s", b"text\r\n", attachment)
    assert len(raw) > 24_000_000
    started = thread_time()
    found = digest_of(raw)
    assert thread_time() - started < 3
    assert found == digest("s", b"text", attachment)


@pytest.mark.parametrize("encoding", ["8bit", "quoted-printable", "base64"])
@pytest.mark.parametrize(
    "piece",
    [
        b" ",
        b" \t",
        b"\r",
        b"\n",
        b" \n",
        b" x",
        b"=",
        b"=\n",
        b"A",
        b"\n--b",
        b"\n--b\n",
        b"(",
        b"=?utf-8?q?",
        b"; a=",
    ],
)
def test_no_repetition_takes_long(piece: bytes, encoding: str) -> None:
    """The time for the worst possible text is proportional to its length."""
    fields = f"Content-Type: text/plain\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode()
    hostile = fields + piece * (4_000_000 // len(piece)) + b"x"
    started = thread_time()
    digest_of(b"Subject: s\r\n" + hostile)
    digest_of(MIXED + b"\r\n--b\r\n" + hostile + ATTACHED + END)
    assert thread_time() - started < 3
