"""What is read from the header section and the content of an arrived message."""

from __future__ import annotations

import base64
import quopri
from email.header import Header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import marks
from probes.header_section import first_value_of, split, values_of
from probes.letter import Letter, compose
from probes.token import Token, TokenSigner

SIGNER = TokenSigner(b"key")
TOKEN = SIGNER.sign(Token("trip", "0" * 32, 1_700_000_000_000_000))
TEXT = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs")), max_size=200)


def letter(octets: int = 0) -> Letter:
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


def test_values_are_unfolded_and_topmost_first() -> None:
    """A field may be folded anywhere and written in any case; what stands in the body is no field."""
    raw = b"A: one\r\n two\r\nb: x\r\na:\n\tthree\nA : no\r\n\r\nA: body\r\n"
    assert values_of(raw, "A") == ["one two", "three"]
    assert first_value_of(raw, "missing") == ""


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_header_section_ends_at_the_first_blank_line(line_end: bytes) -> None:
    """A message is split at its first blank line, with either line end, and may have no header at all."""
    assert split(b"A: b" + line_end * 2 + b"c" + line_end * 2 + b"d") == (b"A: b", b"c" + line_end * 2 + b"d")
    assert split(line_end + b"body") == (b"", b"body")
    assert split(b"A: b") == (b"A: b", b"")


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        ("X-Spam-Flag: YES", "x-spam-flag"),
        ("X-Spam-Flag: NO", None),
        ("X-Spam-Status: Yes, score=8.1 required=5.0\r\n\ttests=BAYES_99", "x-spam-status"),
        ("X-Spam-Status: No, score=-1.9", None),
        ("X-Spam: Yes", "x-spam"),
        ("X-Rspamd-Action: add header", "x-rspamd-action"),
        ("X-Rspamd-Action: no action", None),
        ("X-MS-Exchange-Organization-SCL: 5", "x-ms-exchange-organization-scl"),
        ("X-MS-Exchange-Organization-SCL: 9", "x-ms-exchange-organization-scl"),
        ("X-MS-Exchange-Organization-SCL: 1", None),
        ("X-MS-Exchange-Organization-SCL: -1", None),
        ("X-Forefront-Antispam-Report: CIP:192.0.2.1;CTRY:;SCL:6;SFV:NSPM;", "x-forefront-antispam-report"),
        ("X-Forefront-Antispam-Report: CIP:192.0.2.1;SCL:1;SFV:NSPM;CAT:NONE;", None),
        ("X-Forefront-Antispam-Report: SCL:-1;SFV:SPM;CAT:SPM;", "x-forefront-antispam-report"),
        ("X-Forefront-Antispam-Report: SCL:1;CAT:HPHISH;DIR:INB", "x-forefront-antispam-report"),
        ("Subject: X-Spam-Flag: YES", None),
    ],
)
def test_junk_marks(line: str, mark: str | None) -> None:
    """What filters write of a message is read as they mean it."""
    assert marks.junk_mark(f"Received: by x\r\n{line}\r\nSubject: y\r\n\r\n".encode()) == mark


@pytest.mark.parametrize(
    ("line", "is_reply"),
    [
        ("Auto-Submitted: auto-replied", True),
        ("Auto-Submitted: Auto-Replied (vacation)", True),
        ("Auto-Submitted: auto-generated", False),
        ("Auto-Submitted: no", False),
        ("X-Autoreply: yes", True),
        ("X-Autoreply: no", False),
        ("Precedence: auto_reply", True),
        ("Precedence: bulk", False),
        ("X-Auto-Response-Suppress: All", False),
    ],
)
def test_auto_replies(line: str, is_reply: bool) -> None:
    """An auto-responder's message is told from one that is only made by a machine, as ours are."""
    assert marks.is_auto_reply(f"Subject: Re: x\r\n{line}\r\n\r\n".encode()) is is_reply


@pytest.mark.parametrize(
    "subject",
    [
        f"mailsonde test message {TOKEN}",
        f"Re: Fwd: [EXTERNAL] mailsonde test message\r\n {TOKEN} (was: x)",
        f"Re: mailsonde test message {TOKEN[:40]}\r\n {TOKEN[40:]}",
        Header(f"Antw: Prüfung {TOKEN}", "utf-8", maxlinelen=60).encode(linesep="\r\n"),
    ],
)
def test_token_survives_in_the_subject(subject: str) -> None:
    """Whatever a gateway or a person puts around a token in the subject, or folds into it, it is found."""
    found = marks.subject_token(f"X: y\r\nSubject: {subject}\r\n\r\nbody\r\n".encode())
    assert found == TOKEN
    assert SIGNER.verify(found) is not None


def test_token_in_body_is_no_subject() -> None:
    """A message whose body quotes a token has none in its subject."""
    assert marks.subject_token(f"Subject: hello\r\n\r\nSubject: {TOKEN}\r\n".encode()) is None


@pytest.mark.parametrize("octets", [0, 1, 100_000])
def test_digest_of_what_was_sent(octets: int) -> None:
    """The digest that is kept of a letter is that of the letter as it is stored, with either line end."""
    sent = letter(octets)
    assert marks.digest_of(sent.content) == sent.digest
    assert marks.digest_of(sent.content.replace(b"\r\n", b"\n")) == sent.digest


def encoded(subject: str, body: str, attachment: bytes, how: str) -> bytes:
    """Return a message that says the same in another encoding."""
    text = body.encode()
    if how == "base64":
        text = base64.encodebytes(text)
    elif how == "quoted-printable":
        text = quopri.encodestring(text, quotetabs=True)
    part = b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: %s\n\n" % how.encode() + text
    head = f"Subject: {subject}\n".encode()
    if not attachment:
        return head + part
    other = b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(attachment)
    boundary = b'Content-Type: multipart/mixed;\n\tboundary="=_b 1"\n\npreamble\n'
    return head + boundary + b"--=_b 1\n" + part + b"\n--=_b 1\n" + other + b"--=_b 1--\nepilogue\n"


@given(TEXT, TEXT, st.binary(max_size=100), st.sampled_from(["8bit", "base64", "quoted-printable"]))
def test_digest_survives_another_encoding(subject: str, body: str, attachment: bytes, how: str) -> None:
    """Other transfer encodings and line ends, which mail systems choose by right, change no digest."""
    raw = encoded(subject, body, attachment, how)
    assert marks.digest_of(raw) == marks.digest(subject, body.encode(), attachment)
    assert marks.digest_of(raw.replace(b"\n", b"\r\n")) == marks.digest_of(raw)


@given(TEXT, TEXT, st.binary(min_size=1, max_size=50), st.sampled_from(["subject", "body", "attachment"]))
def test_any_change_shows(subject: str, body: str, attachment: bytes, where: str) -> None:
    """A letter more in the subject or the text, or an octet more in the attachment, is another digest."""
    changed = {"subject": subject, "body": body} | {
        where: {"subject": subject, "body": body}.get(where, "") + "x"
    }
    grown = attachment + b"x" if where == "attachment" else attachment
    before = marks.digest(subject, body.encode(), attachment)
    assert marks.digest(changed["subject"], changed["body"].encode(), grown) != before


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: text/html\r\n\r\n<p>",
        b"Content-Type: multipart/mixed\r\n\r\n--x\r\n\r\ntext\r\n--x--\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\none\r\n--x--\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + b"--x\r\n\r\none\r\n" * 3 + b"--x--\r\n",
        b"Content-Type: multipart/alternative; boundary=x\r\n\r\n--x\r\n\r\na\r\n--x\r\n\r\nb\r\n--x--\r\n",
    ],
    ids=["html", "no boundary", "one part", "three parts", "alternative"],
)
def test_another_structure_has_no_digest(raw: bytes) -> None:
    """A message that is built otherwise than any of ours has no digest, and so counts as altered."""
    assert marks.digest_of(raw) is None


@given(st.binary(max_size=2000))
def test_nothing_that_arrives_raises(raw: bytes) -> None:
    """Whatever octets a mailbox holds, reading them ends in an answer."""
    for prefix in (b"", b"Content-Type: multipart/mixed; boundary=x\n\n--x\n", b"Subject: =?utf-8?b?"):
        marks.junk_mark(prefix + raw)
        marks.is_auto_reply(prefix + raw)
        marks.subject_token(prefix + raw)
        marks.digest_of(prefix + raw)


@pytest.mark.parametrize("filler", [b" ", b"\n", b"(", b"--x\n", b"=?utf-8?q?", b"; a=", b"a \n"])
def test_cost_grows_with_the_length_alone(filler: bytes) -> None:
    """Two megabytes of the worst filler are read in no time worth measuring: nothing is quadratic."""
    raw = b"Content-Type: multipart/mixed; boundary=x\nSubject: " + filler * (2_000_000 // len(filler))
    marks.digest_of(raw)
    marks.digest_of(b"Content-Type: multipart/mixed; boundary=x\n\n" + raw)
    marks.digest_of(b"Subject: x\n\n" + raw)
    marks.subject_token(raw)
    marks.junk_mark(raw)
