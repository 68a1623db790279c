"""XML from servers: without a DTD, so that no entity is ever defined, expanded or fetched."""

from __future__ import annotations

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from probes.core.faults import ProbeFault, legible
from probes.core.reasons import Reason


def parse_xml(body: bytes) -> Element:
    """Return the root of a document, with names of elements without prefixes; raises `ProbeFault`.

    Parsing stops at the start of a document type declaration. The caller limits the size. Namespaces (XML
    Names 1.0) are not resolved: a long one would become part of the name of every element, and so take
    time and memory in proportion to the square of the size.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ProbeFault(Reason.PROTOCOL_ERROR, "has a document type declaration (DTD), which is not allowed")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: builder.start(name.rpartition(":")[2], attributes)
    parser.EndElementHandler = lambda name: builder.end(name.rpartition(":")[2])
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        told = f"is not well-formed XML: {legible(str(error), 80)}"
        raise ProbeFault(Reason.PROTOCOL_ERROR, told) from error
    root: Element = builder.close()
    return root
