"""Where a message waited, by the Received timestamps of the hosts on its route (RFC 5321 section 4.4).

The hosts' clocks are never mixed with our own. Most timestamps are in whole seconds, so a difference of less
than one second is meaningless.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from probes.core.faults import legible
from probes.messages.header_section import values_of, without_comments

HOPS_LIMIT = 50
"""Maximum number of hops to examine, the newest."""

ROUNDING = 1.0
"""Maximum rounding error of the difference of two timestamps in whole seconds."""

_VALUE_LIMIT = 4000
_DATE_LIMIT = 100
_CLAUSES = frozenset({"from", "by", "via", "with", "id", "for"})
_FRACTION = re.compile(r"([0-9][0-9]:[0-9][0-9]:[0-9][0-9])\.([0-9]{1,9})")
_ZONE = re.compile(
    r"[ \t](?:[+-][0-9]{4}(?:[ \t]+[A-Z]{1,5})?|UTC?|GMT|[ECMP][SD]T)$", re.IGNORECASE | re.ASCII
)  # RFC 5322 sections 3.3 and 4.3; a name after the offset is a comment without its parentheses
_EARLIEST, _LATEST = 631_152_000.0, 4_102_444_800.0  # the years 1990 to 2099


@dataclass(frozen=True, slots=True)
class Hop:
    """One Received field. Texts are safe to show, and empty if the field lacks them."""

    by: str  # the host that added the field
    sender: str  # the host that it received the message from
    protocol: str  # such as ESMTPS or LMTP
    stamped_at: float | None  # unix seconds on its clock; None if the date is missing or unreadable
    delay_seconds: float | None  # since the previous hop's timestamp; None if either is missing
    skewed: bool  # the timestamp is impossible
    clock_error_seconds: float  # minimum by which its clock is fast (below 0: slow); 0 if not proven

    def as_object(self) -> dict[str, object]:
        """Return the object for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def hops(header_section: bytes, *, sent_at: float, arrived_by: float) -> list[Hop]:
    """Return the hops, oldest first.

    ``sent_at`` and ``arrived_by``, in unix seconds, are when we connected to send the message and when we saw
    it. A timestamp outside this range proves that its clock differs from ours.
    """
    found: list[Hop] = []
    previous: float | None = None
    for value in reversed(values_of(header_section, "Received")[:HOPS_LIMIT]):
        clauses, date = clauses_of(value)
        stamp = unix_seconds(date)
        error = 0.0
        if stamp is not None:
            error = min(stamp + ROUNDING - sent_at, 0.0) or max(stamp - ROUNDING - arrived_by, 0.0)
        delay = stamp - previous if stamp is not None and previous is not None else None
        found.append(
            Hop(
                by=legible(clauses.get("by", "").partition(" ")[0], 255),
                sender=legible(clauses.get("from", "").partition(" ")[0], 255),
                protocol=legible(clauses.get("with", ""), 60),
                stamped_at=stamp,
                delay_seconds=round(delay, 6) if delay is not None else None,
                skewed=error != 0.0 or (delay is not None and delay < -ROUNDING),
                clock_error_seconds=round(error, 6),
            )
        )
        previous = stamp
    return found


def waits(found: Sequence[Hop]) -> dict[str, float]:
    """Return delays in seconds by position, from hops with possible timestamps.

    ``submission`` is the delay at the host that accepted the message from us. If there are more than two
    hosts, ``final`` is the delay before the last one, and ``relay`` is all in between. Their sum is the time
    from the first timestamp to the last.
    """
    seconds: dict[str, float] = {}
    for number, hop in enumerate(found):
        if hop.delay_seconds is None or hop.skewed or found[number - 1].skewed:
            continue
        position = "submission" if number == 1 else "final" if number == len(found) - 1 else "relay"
        seconds[position] = seconds.get(position, 0.0) + max(0.0, hop.delay_seconds)
    return seconds


def clauses_of(value: str) -> tuple[dict[str, str], str]:
    """Return the first of each clause of a Received field by its keyword, and the date."""
    text, _, date = without_comments(value[:_VALUE_LIMIT]).rpartition(";")
    clauses: dict[str, str] = {}
    keyword = ""
    for word in text.split():
        if word.lower() in _CLAUSES:
            keyword = word.lower() if word.lower() not in clauses else ""
            if keyword:
                clauses[keyword] = ""
        elif keyword:
            clauses[keyword] = f"{clauses[keyword]} {word}".strip()
    return clauses, date


def unix_seconds(date: str) -> float | None:
    """Return a date (RFC 5322 section 3.3) in unix seconds; ``None`` if it or its zone cannot be read.

    The only names of zones that mean the same everywhere are UTC and those in section 4.3. IST, for example,
    is used in India, Ireland and Israel.
    """
    date = date.strip()[:_DATE_LIMIT]
    fraction = _FRACTION.search(date)
    if not _ZONE.search(date):
        return None
    try:
        instant = parsedate_to_datetime(_FRACTION.sub(r"\1", date))
        # -0000 means UTC with an unknown local zone.
        seconds = (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    if fraction is not None:
        seconds += float(f"0.{fraction[2]}")
    return seconds if _EARLIEST <= seconds < _LATEST else None
