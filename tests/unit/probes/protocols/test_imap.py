"""IMAP parsing, without a connection."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.protocols import imap as imap
from probes.protocols.imap import Folder, FolderStatus, Response
from probes.protocols.replies import LONGEST_PAUSE


def response(text: bytes, *literals: bytes) -> Response:
    return Response.parse(text, literals)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"* 23 EXISTS", Response(b"*", b"EXISTS", b"", 23)),
        (b"* search 2 84", Response(b"*", b"SEARCH", b"2 84")),
        (b"* SEARCH", Response(b"*", b"SEARCH", b"")),
        (b"+ idling", Response(b"+", b"", b"idling")),
        (b"+", Response(b"+", b"", b"")),
        (b"M7 ok done", Response(b"M7", b"OK", b"done")),
    ],
)
def test_a_response(line: bytes, expected: Response) -> None:
    """A response has a tag, a kind in upper case, an optional number before it, and a text."""
    assert response(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"*",
        b"* ",
        b"* 5",
        b"+OK ready",
        b"220 mail.test ESMTP",
        b"M1 EXISTS",
        b"\x16\x03\x01",
        b"M\xff OK",
    ],
)
def test_no_response(line: bytes) -> None:
    """Anything else is a protocol error."""
    with pytest.raises(ProbeFault) as caught:
        response(line)
    assert caught.value.reason is Reason.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"M1 NO [AUTHENTICATIONFAILED] wrong", Reason.AUTH_FAILED),
        (b"M1 NO [AUTHORIZATIONFAILED] not you", Reason.AUTH_FAILED),
        (b"M1 NO [EXPIRED] too old", Reason.AUTH_FAILED),
        (b"M1 NO [unavailable] no database", Reason.IMAP_UNAVAILABLE),
        (b"M1 NO [CONTACTADMIN] broken", Reason.IMAP_UNAVAILABLE),
        (b"M1 NO [SERVERBUG] oops", Reason.IMAP_UNAVAILABLE),
        (b"M1 NO [INUSE] locked", Reason.IMAP_IN_USE),
        (b"M1 NO [LIMIT] Maximum number of connections", Reason.IMAP_IN_USE),
        (b"M1 NO [X-OTHER a b] unheard of", Reason.IMAP_NO),
        (b"M1 NO [unclosed", Reason.IMAP_NO),
        (b"M1 NO text and then [INUSE]", Reason.IMAP_NO),
        (b"M1 NO", Reason.IMAP_NO),
        (b"M1 NO [ALERT] Too many simultaneous connections. (Failure)", Reason.THROTTLED),
        (b"* BYE Maximum connection limit reached", Reason.THROTTLED),
        (b"M1 NO [AUTHENTICATIONFAILED] Too many connections", Reason.AUTH_FAILED),
        (b"M1 NO Too many failed logins", Reason.IMAP_NO),
    ],
)
def test_what_a_refusal_means(line: bytes, reason: Reason) -> None:
    """A response code (RFC 5530) at the start decides, or else a text about throttling."""
    assert imap.refusal(response(line), Reason.IMAP_NO).reason is reason


def test_throttling() -> None:
    """Exchange's throttling, which has no response code, asks for a pause of at most an hour."""
    throttled = b"M1 BAD Request is throttled. Suggested Backoff Time: %d milliseconds"
    fault = imap.refusal(response(throttled % 299910), Reason.IMAP_BAD)
    assert fault.reason is Reason.THROTTLED
    assert fault.retry_after == pytest.approx(299.91)
    assert imap.refusal(response(throttled % 999999999), Reason.IMAP_BAD).retry_after == LONGEST_PAUSE


@pytest.mark.parametrize(
    ("line", "capabilities"),
    [
        (b"* CAPABILITY IMAP4rev1 Auth=Plain idle", {"IMAP4REV1", "AUTH=PLAIN", "IDLE"}),
        (b"M1 OK [CAPABILITY IMAP4rev1 UIDPLUS] in", {"IMAP4REV1", "UIDPLUS"}),
        (b"* OK [ALERT] CAPABILITY IDLE", None),
        (b"* FLAGS (CAPABILITY)", None),
    ],
)
def test_capabilities(line: bytes, capabilities: set[str] | None) -> None:
    """Capabilities are read from a response or a response code, in any case."""
    assert imap.capabilities_of(response(line)) == capabilities


@pytest.mark.parametrize(
    ("line", "size"),
    [
        (b"* 1 FETCH (BODY[] {310}", 310),
        (b"* 1 FETCH (BODY[] {0}", 0),
        (b"* LIST () {5} {7}", 7),
        (b"* 1 FETCH (BODY[] {4294967295}", 4294967295),
        (b"* 1 FETCH (BODY[] {99999999999999999999}", 2**63),
        (b"* 1 FETCH (BODY[] {" + b"9" * 6000 + b"}", 2**63),
        (b"* 1 FETCH (FLAGS (a}))", None),
        (b"* LIST () NIL a}", None),
        (b"* 1 FETCH (BODY[] {3} ", None),
    ],
)
def test_a_literals_size(line: bytes, size: int | None) -> None:
    """A literal's size is known before it is read, however large it is."""
    assert imap.literal_size(line) == size


@pytest.mark.parametrize("end", [b"{5+}", b"~{5}", b"{-5}", b"{}", b"{ 5}", b"{\xb2}"])
def test_literals_that_no_server_sends(end: bytes) -> None:
    """Non-synchronizing and binary literals, and invalid sizes, are protocol errors."""
    with pytest.raises(ProbeFault) as caught:
        imap.literal_size(b"* 1 FETCH (BODY[] " + end)
    assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_values() -> None:
    """Atoms, quoted strings, literals, NIL and nested lists are parsed."""
    text = b'* X (a "b \\"c\\\\" (NIL () "NIL")) \n body[header.fields ("To" b)]<0> nil $x[ \\Seen'
    assert imap.parse_values(response(text, b"lit\n)")) == [
        [b"a", b'b "c\\', [None, [], b"NIL"]],
        b"lit\n)",
        b'body[header.fields ("To" b)]<0>',
        None,
        b"$x[",
        b"\\Seen",
    ]


@pytest.mark.parametrize("text", [b"(", b")", b"(a))", b'"open', b'"a\\"', b"a \x01", b"(" * 8000])
def test_no_values(text: bytes) -> None:
    """Malformed values are refused at any depth."""
    with pytest.raises(ProbeFault) as caught:
        imap.parse_values(response(b"* X " + text))
    assert caught.value.reason is Reason.PROTOCOL_ERROR


def test_deep_lists() -> None:
    """Lists of the maximum depth are parsed without exhausting the stack."""
    assert len(imap.parse_values(response(b"* X " + b"(" * 4000 + b")" * 4000))) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"* 1 FETCH (UID 7 BODY[HEADER]<0> \n)", (7, b"a\0b")),
        (b"* 1 FETCH (BODY[HEADER.FIELDS (SUBJECT)] \n FLAGS (\\Seen a) uid 7)", (7, b"a\0b")),
        (b'* 1 FETCH (UID 7 BODY[] "")', (7, b"")),
        (b"* 1 FETCH (UID 7 BODY[] NIL)", None),
        (b"* 1 FETCH (UID 7 FLAGS (\\Seen))", None),
        (b"* 1 FETCH (FLAGS ())", None),
        (b"* 1 FETCH (BODY[] \n)", None),
        (b"* 1 EXISTS", None),
    ],
)
def test_fetch(line: bytes, expected: tuple[int, bytes] | None) -> None:
    """A FETCH gives uid and text, in any order; unrequested flags are not an answer."""
    assert imap.parse_fetch(response(line, b"a\0b") if b"\n" in line else response(line)) == expected


def test_search() -> None:
    """SEARCH gives its numbers, or none; a MODSEQ after them is ignored."""
    assert imap.parse_search(response(b"* SEARCH 2 84 4294967295")) == [2, 84, 4294967295]
    assert imap.parse_search(response(b"* SEARCH 5 (MODSEQ 917162500)")) == [5]
    assert imap.parse_search(response(b"* SEARCH")) == []
    assert imap.parse_search(response(b"* 3 EXISTS")) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'* STATUS "a b" (UIDVALIDITY 3 uidnext 9 MESSAGES 2)', FolderStatus(2, 9, 3)),
        (b"* STATUS Junk (E-Mail) (MESSAGES 0 UIDNEXT 1)", FolderStatus(0, 1, None)),
        (b'* STATUS a\tb" (UIDNEXT 9 UIDVALIDITY 0)', FolderStatus(None, 9, None)),
        (b"* STATUS \n (UIDNEXT 9 UIDVALIDITY 3) ", FolderStatus(None, 9, 3)),
        (b'* STATUS "Junk" ()', FolderStatus(None, None, None)),
        (b"* STATUS a (UIDNEXT x UIDVALIDITY 99999999999 MESSAGES)", FolderStatus(None, None, None)),
        (b"* STATUS a", FolderStatus(None, None, None)),
    ],
)
def test_status(line: bytes, expected: FolderStatus) -> None:
    """STATUS gives its items in any order, from the last list, with any folder name."""
    assert imap.parse_status(response(line, *[b"name"] * line.count(b"\n"))) == expected


def test_no_status() -> None:
    """Other responses are not STATUS."""
    assert imap.parse_status(response(b"* SEARCH")) is None


def test_list() -> None:
    """LIST gives a folder's decoded name, its delimiter and attributes; more may follow."""
    line = b'* LIST (\\HasNoChildren \\Junk) "/" "Entw&APw-rfe &- Ablage" ("CHILDINFO" ("x"))'
    attributes = frozenset({"\\HASNOCHILDREN", "\\JUNK"})
    assert imap.parse_list(response(line)) == Folder("Entwürfe & Ablage", "/", attributes)
    assert imap.parse_list(response(b"* LIST () NIL \n", b"inbox")) == Folder("INBOX", None, frozenset())
    assert imap.parse_list(response(b"* FLAGS ()")) is None


def test_namespace() -> None:
    """NAMESPACE gives only the prefixes of the personal namespaces."""
    line = b'* NAMESPACE (("" "/") ("#mh/" "/" "X" ("y"))) (("~" "/")) NIL'
    assert imap.parse_namespace(response(line)) == ["", "#mh/"]
    assert imap.parse_namespace(response(b"* NAMESPACE NIL NIL NIL")) == []


@pytest.mark.parametrize(
    ("read", "line"),
    [
        (imap.parse_fetch, b"* 1 FETCH"),
        (imap.parse_fetch, b"* 1 FETCH UID"),
        (imap.parse_fetch, b"* 1 FETCH (UID)"),
        (imap.parse_fetch, b'* 1 FETCH (UID x BODY[] "")'),
        (imap.parse_search, b"* SEARCH 1 two"),
        (imap.parse_search, b"* SEARCH -1"),
        (imap.parse_search, b"* SEARCH 99999999999"),
        (imap.parse_list, b"* LIST"),
        (imap.parse_list, b'* LIST "a" "/" b'),
        (imap.parse_list, b'* LIST () "/" NIL'),
        (imap.parse_namespace, b"* NAMESPACE a"),
    ],
)
def test_data_that_is_none(read: Callable[[Response], object], line: bytes) -> None:
    """An unreadable answer is never taken for an empty one."""
    parsed = response(line)
    with pytest.raises(ProbeFault) as caught:
        read(parsed)
    assert caught.value.reason is Reason.PROTOCOL_ERROR


READERS = (imap.parse_fetch, imap.parse_search, imap.parse_status, imap.parse_list, imap.parse_namespace)


@pytest.mark.parametrize(
    ("name", "coded"),
    [
        ("INBOX", b'"INBOX"'),
        ("~peter/mail/台北/日本語", b'"~peter/mail/&U,BTFw-/&ZeVnLIqe-"'),
        ("Entwürfe & Ablage", b'"Entw&APw-rfe &- Ablage"'),
        ('a"b\\c', b'"a\\"b\\\\c"'),
        ("a\r\nb\0", b'"a&AA0ACg-b&AAA-"'),
        ("😀", b'"&2D3eAA-"'),
    ],
)
def test_folder_names(name: str, coded: bytes) -> None:
    """Names are sent in modified UTF-7 (RFC 3501 section 5.1.3), quoted, and decoded back."""
    assert imap.encode_folder(name) == coded
    (value,) = imap.parse_values(response(b"* X " + coded))
    assert isinstance(value, bytes)
    assert imap.decode_folder(value) == name


@pytest.mark.parametrize(
    ("coded", "name"),
    [
        (b"a & b", "a & b"),
        (b"&2D0-", "&2D0-"),
        (b"&A-", "&A-"),
        (b"&****-", "&****-"),
        ("Entwürfe".encode(), "Entwürfe"),
        (b"\xff", "\\xff"),
    ],
)
def test_names_that_are_no_utf_7(coded: bytes, name: str) -> None:
    """An invalid name is shown as it is, so that the others are found."""
    assert imap.decode_folder(coded) == name


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_folder_name_fits_a_command(name: str) -> None:
    """Any name becomes one quoted string of printable ASCII, and can be decoded back."""
    coded = imap.encode_folder(name)
    assert coded.isascii()
    assert coded.decode().isprintable()
    (value,) = imap.parse_values(response(b"* X " + coded))
    assert isinstance(value, bytes)
    assert imap.decode_folder(value) == ("INBOX" if name.upper() == "INBOX" else name)


def test_how_login_is_written() -> None:
    """Printable ASCII is quoted; anything else is a literal, which waits for the server's go-ahead."""
    assert imap.login_lines("a b", 'c"\\') == [b'LOGIN "a b" "c\\"\\\\"']
    assert imap.login_lines("a", "pä\0s") == [b'LOGIN "a" {5}', "pä\0s".encode()]
    assert imap.login_lines("ü", "ß") == [b"LOGIN {2}", "ü {2}".encode(), "ß".encode()]


@given(st.lists(st.integers(1, 40)))
def test_a_set_of_uids(uids: list[int]) -> None:
    """A sequence set has exactly the requested uids, in as few ranges as possible."""
    ranges = [part.split(b":") for part in imap.uid_set(uids).split(b",") if part]
    asked = [uid for part in ranges for uid in range(int(part[0]), int(part[-1]) + 1)]
    assert asked == sorted(set(uids))
    assert all(int(after[0]) > int(before[-1]) + 1 for before, after in pairwise(ranges))


HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"* ",
                b"1 ",
                b"FETCH ",
                b"LIST ",
                b"(",
                b")",
                b'"',
                b"\\",
                b"\n",
                b"NIL",
                b"UID 1",
                b" ",
                b"BODY[",
            ]
        ),
        st.binary(max_size=10),
    ),
    max_size=30,
)


@given(HOSTILE, st.lists(st.binary(max_size=5)))
def test_garbage_is_understood_or_refused(pieces: list[bytes], literals: list[bytes]) -> None:
    """Any octets are parsed or raise the expected fault."""
    line = b"".join(pieces)
    for text in (
        line,
        *(b"* " + kind + b" " + line for kind in (b"1 FETCH", b"LIST", b"STATUS", b"NAMESPACE")),
    ):
        with suppress(ProbeFault):
            imap.literal_size(text)
        text = text.replace(b"\n", b"", max(0, text.count(b"\n") - len(literals)))
        with suppress(ProbeFault):
            parsed = Response.parse(text, literals)
            imap.capabilities_of(parsed)
            imap.refusal(parsed, Reason.IMAP_NO)
            for read in READERS:
                with suppress(ProbeFault):
                    read(parsed)


@pytest.mark.parametrize("text", [b"BODY[ ", b'"', b"(", b"[", b"\\", b'"\\', b"{1", b"&a", b"a{"])
def test_long_hostile_lines_take_no_long_time(text: bytes) -> None:
    """The largest line takes time proportional to its length, for any content."""
    line = b"* LIST " + text * (imap.SEARCH_LIMIT // len(text))
    with suppress(ProbeFault):
        imap.parse_list(response(line))
    with suppress(ProbeFault):
        imap.literal_size(line + b"}")
    imap.decode_folder(line)
    imap.refusal(response(b"M1 NO " + line), Reason.IMAP_NO)
