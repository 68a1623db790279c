"""The receiving host's SPF, DKIM and DMARC results, from the field Authentication-Results (RFC 8601)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from probes.core.faults import legible
from probes.messages.header_section import values_of, without_comments

METHODS = ("spf", "dkim", "dmarc")
"""The methods whose results are kept."""

_RESULTS = frozenset(
    {"none", "pass", "fail", "softfail", "neutral", "policy", "temperror", "permerror"}
)  # RFC 8601 section 2.7
_OLD_NAMES = {"hardfail": "fail"}
_RESULT = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]{0,40})\s*(?:/\s*[0-9]{1,4}\s*)?=\s*([A-Za-z]{1,40})")
_VALUE_LIMIT = 8000
_OLDEST_HOP = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class AuthenticationResults:
    """Results by method: words of RFC 8601, or ``other``. Methods that were not checked are absent."""

    authserv_id: str  # the host that checked, safe to show; empty for Exchange, which omits it
    methods: Mapping[str, str]

    def as_object(self) -> dict[str, object]:
        """Return the object for JSON."""
        return {"authserv_id": self.authserv_id, **{method: self.methods.get(method) for method in METHODS}}


def results(header_section: bytes, authserv_id: str | None = None) -> AuthenticationResults | None:
    """Return the results of the host ``authserv_id`` or, without one, of the host in the topmost field.

    Fields below the oldest Received came with the message and are ignored (RFC 8601 section 7.1). A host on
    the route can still forge a field. To rule this out, name the receiving host's ``authserv_id``: section 5
    requires that host to remove other fields with its name.
    """
    if not values_of(header_section, "Authentication-Results"):
        return None
    hops = list(_OLDEST_HOP.finditer(header_section))
    above = header_section[: hops[-1].start()] if hops else header_section
    wanted = authserv_id.lower() if authserv_id is not None else None
    found: dict[str, str] = {}
    for value in values_of(above, "Authentication-Results"):
        said_by, *statements = _statements(without_comments(value[:_VALUE_LIMIT]))
        if wanted is None:
            wanted = said_by.lower()
        if said_by.lower() != wanted:
            continue
        for statement in statements:
            _take_in(found, statement)
    return None if not found else AuthenticationResults(legible(wanted or "", 255), found)


def _statements(value: str) -> list[str]:
    """Return the authserv-id and the statements; Exchange omits the id."""
    first, *others = value.split(";")
    if "=" in first:
        return ["", first, *others]
    return [first.split()[0] if first.split() else "", *others]


def _take_in(found: dict[str, str], statement: str) -> None:
    match = _RESULT.match(statement)
    if match is None or match[1].lower() not in METHODS:
        return
    method, word = match[1].lower(), match[2].lower()
    word = _OLD_NAMES.get(word, word)
    result = word if word in _RESULTS else "other"
    if result == "pass" or method not in found:  # of several signatures, one that verifies is enough
        found[method] = result
