"""XML from servers is harmless: no DTD, and what is broken is a fault of the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.parsers import expat

import pytest

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason
from probes.protocols.https import BODY_LIMIT
from probes.protocols.xml_document import parse_xml

LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE lolz [
 <!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
]><clientConfig>&c;</clientConfig>"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "document",
    [
        LAUGHS,
        '<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
        '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><x>&f;</x>',
        "<!DOCTYPE x><x/>",
    ],
)
def test_document_type_is_refused(document: str, encoding: str) -> None:
    """A DTD in any encoding is refused before any entity can be expanded."""
    with pytest.raises(ProbeFault) as caught:
        parse_xml(document.replace('<?xml version="1.0"?>\n', "").encode(encoding))
    assert caught.value.reason is Reason.PROTOCOL_ERROR
    assert caught.value.detail.startswith("has a document type declaration")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<a",
        b"<a>",
        b"<a/><b/>",
        b"\xff\xfe\x00",
        b"<a>&lol;</a>",
        b'<?xml version="1.0" encoding="x"?><a/>',
    ],
)
def test_broken_document(document: bytes) -> None:
    """Malformed XML is an error of the page only."""
    with pytest.raises(ProbeFault) as caught:
        parse_xml(document)
    assert caught.value.reason is Reason.PROTOCOL_ERROR
    assert caught.value.detail.startswith("is not well-formed XML")


def test_deep_document() -> None:
    """A document as deep as the limit allows is parsed and searched."""
    depth = BODY_LIMIT // 7
    root = parse_xml(b"<a>" * depth + b"</a>" * depth)
    assert sum(1 for _ in root.iter("a")) == depth


def test_names_lose_their_namespace() -> None:
    """Elements are found by their plain names, with any namespace or prefix."""
    root = parse_xml(b'<x xmlns="urn:a" xmlns:b="urn:b"><b:y>z</b:y><c:w>v</c:w></x>')
    assert (root.tag, root.findtext("y"), root.findtext("w")) == ("x", "z", "v")


@pytest.mark.parametrize(
    ("start", "each"),
    [
        ('<a xmlns="{}">', "<b/>"),
        ('<a xmlns:p="{}">', "<p:b/>"),
        ('<a xmlns:p="{}">', '<b p:c=""/>'),
        ('<a xmlns:xml="http://www.w3.org/XML/1998/namespace" d="{}">', '<b xml:lang=""/>'),
        ("<a><{}/>", "<b/>"),
    ],
)
def test_no_text_is_multiplied(start: str, each: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser hands over each text of a document at most twice, for both ends of an empty element."""
    handed = [0]

    class Counting:
        """A parser that counts the characters in the names that it hands over."""

        def __init__(self, parser: Any) -> None:
            vars(self)["parser"] = parser

        def __setattr__(self, name: str, handler: Callable[..., None]) -> None:
            def counted(*given: Any) -> None:
                handed[0] += sum(map(len, given)) + sum(map(len, given[1] if len(given) > 1 else ()))
                handler(*given)

            setattr(vars(self)["parser"], name, counted)

        def __getattr__(self, name: str) -> Any:
            return getattr(vars(self)["parser"], name)

    create = expat.ParserCreate
    monkeypatch.setattr(expat, "ParserCreate", lambda *given, **named: Counting(create(*given, **named)))
    document = start.format("x" * 3000) + each * 500 + "</a>"
    root = parse_xml(document.encode())
    assert len(list(root.iter("b"))) == 500
    assert 0 < handed[0] <= 2 * len(document)
