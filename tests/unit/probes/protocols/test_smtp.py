"""SMTP parsing, without a connection."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probes.core.faults import DETAIL_LIMIT, ProbeFault
from probes.core.reasons import Reason
from probes.protocols import smtp as smtp
from probes.protocols.pop3 import unstuffed
from probes.protocols.smtp import Extensions, Reply


@pytest.mark.parametrize(
    ("lines", "code", "text"),
    [
        ([b"250 ok"], 250, "ok"),
        ([b"250"], 250, ""),
        ([b"250 "], 250, ""),
        ([b"250-mail.example.com", b"250-", b"250 SIZE"], 250, "mail.example.com\n\nSIZE"),
        ([b"250-a", b"250"], 250, "a\n"),
        ([b"354 go\xff on"], 354, "go\\xff on"),
        (["220 grüezi".encode()], 220, "grüezi"),
        ([b"599 \t x \t"], 599, "x"),
    ],
)
def test_a_reply(lines: list[bytes], code: int, text: str) -> None:
    """A reply has one code and lines of text; the code may be alone (RFC 5321 section 4.2)."""
    assert Reply.parse(b"\n".join(lines)) == Reply(code, text)


@pytest.mark.parametrize(
    "lines",
    [
        [b""],
        [b"22 mx ESMTP"],
        [b"2200 x"],
        [b"250\0\0 ok"],
        [b"250\tok"],
        [b"250ok"],
        [b"199 too small"],
        [b"600 too large"],
        ["２２０ x".encode()],
        [b"-12 x"],
        [b"+OK POP3"],
        [b"SSH-2.0-x"],
        [b"250-a", b""],
        [b"250-a", b"ok"],
        [b"250-a", b"550 b"],
        [b"250-a", b"251-b", b"250 c"],
        [b"250 a", b"250 b"],
        [b"250-a"],
        [b"250-a", b"250-b"],
    ],
)
def test_no_reply(lines: list[bytes]) -> None:
    """Anything else, or lines with different codes, is quoted as sent."""
    with pytest.raises(ProbeFault) as caught:
        Reply.parse(b"\n".join(lines))
    assert caught.value.reason is Reason.PROTOCOL_ERROR
    said = b"\n".join(lines).decode().encode("unicode_escape").decode() if lines[0].isascii() else "２２０ x"
    assert caught.value.detail == f"not an SMTP reply: {said}"


@pytest.mark.parametrize(
    ("octets", "rest"),
    [
        (b"250 ok\r\n", b""),
        (b"250\n250 next\n", b"250 next\n"),
        (b"250-a\r\n250-\r\n250 c\r\n250 next", b"250 next"),
        (b"250-a\n550 b\n250 next\n", b"250 next\n"),
        (b"250-a\n550-b\n550 c\n", b"550 c\n"),
        (b"250-a\nwhat?\n250 b\n", b"250 b\n"),
        (b"SSH-2.0-x\r\nmore\n", b"more\n"),
        (b"\r\n250 ok\r\n", b"250 ok\r\n"),
        (b"250 half a li", None),
        (b"250-a\r\n", None),
        (b"250-a\r\n250-b\r\n250 c", None),
        (b"", None),
    ],
)
def test_where_a_reply_ends(octets: bytes, rest: bytes | None) -> None:
    """A reply ends with the first line that does not announce another of its code."""
    match = smtp.WHOLE_REPLY.match(octets)
    assert (octets[match.end() :] if match else None) == rest


@pytest.mark.parametrize(
    ("text", "enhanced"),
    [
        ("5.1.1 no such user", "5.1.1"),
        ("4.7.0", "4.7.0"),
        ("5.1.1\n5.1.1 more", "5.1.1"),
        ("no such user 5.1.1", None),
        ("3.1.1 x", None),
        ("5.1 x", None),
        ("5.1.1234 x", None),
        ("5.1.1.1 x", None),
        ("5.1.1x", None),
        ("5.１.1 x", None),
    ],
)
def test_enhanced_status_code(text: str, enhanced: str | None) -> None:
    """The enhanced status code is at the start of the text (RFC 2034 section 4)."""
    assert Reply(550, text).enhanced_status_code == enhanced


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (421, Reason.SMTP_UNAVAILABLE),
        (450, Reason.SMTP_DEFERRED),
        (599, Reason.SMTP_REJECTED),
        (250, Reason.PROTOCOL_ERROR),
        (354, Reason.PROTOCOL_ERROR),
    ],
)
def test_the_fault_of_a_reply(code: int, reason: Reason) -> None:
    """Temporary and permanent refusals, and 421, have their reasons, and keep code and text."""
    fault = Reply(code, "4.0.0 so it is").fault()
    assert (fault.reason, fault.reply_code, fault.enhanced_status_code) == (reason, code, "4.0.0")
    assert fault.detail == f"{code} 4.0.0 so it is"
    assert Reply(code, "").fault(login=True).reason is reason


@pytest.mark.parametrize("code", [530, 534, 535, 538])
def test_the_replies_that_blame_the_credentials(code: int) -> None:
    """The codes of RFC 4954 section 6 for wrong credentials have that meaning only in answer to a login."""
    assert Reply(code, "no").fault(login=True).reason is Reason.AUTH_FAILED
    assert Reply(code, "no").fault().reason is Reason.SMTP_REJECTED


@pytest.mark.parametrize(
    ("octets", "reply"),
    [
        (b"421 4.3.2 shutting down\r\n", Reply(421, "4.3.2 shutting down")),
        (b"421\n", Reply(421, "")),
        (b"421-a\r\n421 b\r\n250 c\r\n", Reply(421, "a\nb")),
        (b"421 half a li", None),
        (b"421-a\r\n", None),
        (b"421-a\r\n422 b\r\n", None),
        (b"4210 x\r\n", None),
        (b"250 ok\r\n421 x\r\n", None),
        (b"", None),
    ],
)
def test_a_server_that_closes_unasked(octets: bytes, reply: Reply | None) -> None:
    """Only a complete 421 is a reply without a command (RFC 5321 section 3.8)."""
    assert smtp.closing_reply(octets) == reply


def test_extensions() -> None:
    """Keywords count in any case, the first line is not one, and each mechanism counts once."""
    found = smtp.extensions_of(
        "mail.test\nsize 1000\nPIPELINING\n\n  8bitmime \nAUTH PLAIN Login\nAUTH=LOGIN CRAM-MD5"
    )
    assert found.features == {
        "SIZE": "1000",
        "PIPELINING": "",
        "8BITMIME": "",
        "AUTH": "PLAIN LOGIN CRAM-MD5",
    }
    assert found.auth_mechanisms == ("plain", "login", "cram-md5")
    assert found.listed == ("8BITMIME", "AUTH PLAIN LOGIN CRAM-MD5", "PIPELINING", "SIZE 1000")


def test_extensions_of_a_hostile_server() -> None:
    """The listed extensions are short and safe to show."""
    found = smtp.extensions_of("x\nX-\x1b[2J" + "y" * 5000)
    assert found.listed[0].startswith("X-\\x1b[2JYYY")
    assert len(found.listed[0]) == 100


def test_no_extensions() -> None:
    """A single line has the server's name and no extensions, as after HELO."""
    assert smtp.extensions_of("AUTH PLAIN") == Extensions()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\r\n", b"a\r\n.\r\n"),
        (b".\r\n..\r\na.b\r\n", b"..\r\n...\r\na.b\r\n.\r\n"),
        (b"no line end", b"no line end\r\n.\r\n"),
        (b"", b".\r\n"),
    ],
)
def test_stuffing(content: bytes, expected: bytes) -> None:
    """A dot at the start of a line is doubled, and a single dot is the last line (RFC 5321 section 4.5.2)."""
    assert smtp.stuffed(content) == expected


@given(st.lists(st.sampled_from([b".", b"..", b".a", b"", b"a.", b"\r.", b"text"])))
def test_stuffing_is_undone_by_the_receiver(lines: list[bytes]) -> None:
    """A receiver restores any message, and no line before the last ends it."""
    sent = smtp.stuffed(b"".join(line + b"\r\n" for line in lines)).split(b"\r\n")
    assert [unstuffed(line) for line in sent[:-1]] == [*lines, None]
    assert sent[-1] == b""


@given(st.lists(st.binary(max_size=100) | st.from_regex(rb"\A[2-5][0-9]{2}[- ]?.{0,60}\Z"), max_size=20))
@example([b"250-x", b"250-\xff\x00"])
def test_no_input_is_a_defect(lines: list[bytes]) -> None:
    """Any input is a reply or a fault with a bounded, printable text."""
    with suppress(ProbeFault):
        reply = Reply.parse(b"\n".join(lines))
        assert 200 <= reply.code <= 599
        smtp.extensions_of(reply.text)
        assert reply.fault().detail.isprintable()
        return
    with pytest.raises(ProbeFault) as caught:
        Reply.parse(b"\n".join(lines))
    assert caught.value.reason is Reason.PROTOCOL_ERROR
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) <= DETAIL_LIMIT


@given(st.lists(st.sampled_from([b"250-a", b"250 b", b"251-c", b"42", b"", b"\xff"]), max_size=8))
def test_every_line_belongs_to_one_reply(lines: list[bytes]) -> None:
    """Of many lines at once, each is in one reply or fault, and the rest is unfinished."""
    octets = b"".join(line + b"\r\n" for line in lines)
    taken = 0
    while match := smtp.WHOLE_REPLY.match(octets):
        taken += match[0].count(b"\n")
        octets = octets[match.end() :]
    assert all(line.startswith(b"25") and line[3:4] == b"-" for line in lines[taken:])
    assert taken >= len(lines) - octets.count(b"\n")
