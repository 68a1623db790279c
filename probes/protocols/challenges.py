"""Challenges of HTTP authentication (RFC 9110 section 11.6.1), read tolerantly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from probes.core.faults import ProbeFault
from probes.core.reasons import Reason

MOST_CHALLENGES = 20
"""Maximum number of challenges in one answer."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105 # RFC 9110 section 5.6.2, no secret
_BLANK = re.compile(r"[ \t,]*+")
_SCHEME = re.compile(rf"({_TOKEN})(?:[ \t]++(?:([A-Za-z0-9._~+/-]++=*+)(?=[ \t]*+(?:,|\Z)))?|(?=,|\Z))")
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*+=[ \t]*+(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]*+))', re.DOTALL)
_REST = re.compile(r"[^,]*+")
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: its scheme and the names of its parameters in lower case; values are untrusted.

    ``token`` is its token68 (section 11.2), such as a message of NTLM; empty without one.
    """

    scheme: str
    parameters: Mapping[str, str]
    token: str = ""


def challenges(fields: Sequence[str]) -> tuple[Challenge, ...]:
    """Return the challenges in the values of ``WWW-Authenticate`` fields, in their order.

    What is not valid is passed over up to the next comma, because a server with one odd challenge still
    offers the others. Raises `ProbeFault` for more than `MOST_CHALLENGES`. Takes time in proportion to the
    text.
    """
    found: list[tuple[str, dict[str, str], str]] = []
    for text in fields:
        begin = len(found)  # a parameter belongs to a challenge in the same field
        position = _end(_BLANK, text, 0)
        while position < len(text):
            if parameter := _PARAMETER.match(text, position):
                if len(found) > begin:
                    name, quoted, plain = parameter.groups()
                    value = plain if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
                    found[-1][1].setdefault(name.lower(), value)
                position = parameter.end()
            elif scheme := _SCHEME.match(text, position):
                if len(found) == MOST_CHALLENGES:
                    told = f"more than {MOST_CHALLENGES} challenges in WWW-Authenticate"
                    raise ProbeFault(Reason.PROTOCOL_ERROR, told)
                found.append((scheme[1].lower(), {}, scheme[2] or ""))
                position = scheme.end()
            else:
                position = _end(_REST, text, position)
            position = _end(_BLANK, text, position)
    return tuple(Challenge(*each) for each in found)


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Return where the match at ``position`` of a pattern ends that also matches nothing."""
    found = pattern.match(text, position)
    assert found is not None  # noqa: S101 # it also matches nothing
    return found.end()
