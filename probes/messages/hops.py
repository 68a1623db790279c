"""Where a message waited, as the hosts on its way stamped it on their own clocks (RFC 5321 section 4.4).

These figures are never mixed with our own clock's. Stamps are mostly whole seconds, so a difference of
less than one says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from probes.core.faults import legible
from probes.messages.header_section import values_of, without_comments

HOPS_LIMIT = 50
"""Most hops that are looked at, the newest."""

ROUNDING = 1.0
"""What whole seconds can hide, in seconds."""

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
    """One Received field. Texts are fit to show, and empty where the field does not say."""

    by: str  # the host that stamped it
    sender: str  # the host that it had the message from
    protocol: str  # such as ESMTPS or LMTP
    stamped_at: float | None  # unix seconds on its clock; None where there is no readable date
    delay_seconds: float | None  # since the stamp of the hop before; None where one is missing
    skewed: bool  # the stamp cannot be true
    clock_error_seconds: (
        float  # how far at least its clock is fast (or, below 0, slow); 0 where none is proven
    )

    def as_object(self) -> dict[str, object]:
        """Return what JSON shows."""
        return asdict(self)


def hops(header_section: bytes, *, sent_at: float, arrived_by: float) -> list[Hop]:
    """Return the hops, oldest first.

    ``sent_at`` and ``arrived_by``, in unix seconds, are when we handed the message over and when we saw it:
    a stamp outside of them proves that its clock is off ours.
    """
    found: list[Hop] = []
    previous: float | None = None
    for value in reversed(values_of(header_section, "Received")[:HOPS_LIMIT]):
        clauses, date = _clauses(value[:_VALUE_LIMIT])
        stamp = _unix_seconds(date)
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
    """Return seconds by position, from the hops whose stamps can be true.

    ``submission`` is the wait at the host that took the message from us, ``final`` the way into the last
    host, where there are more than two, and ``relay`` all between. Their sum is the time from the
    first stamp to the last.
    """
    seconds: dict[str, float] = {}
    for number, hop in enumerate(found):
        if hop.delay_seconds is None or hop.skewed or found[number - 1].skewed:
            continue
        position = "submission" if number == 1 else "final" if number == len(found) - 1 else "relay"
        seconds[position] = seconds.get(position, 0.0) + max(0.0, hop.delay_seconds)
    return seconds


def _clauses(value: str) -> tuple[dict[str, str], str]:
    """Return the first of each clause by its keyword, and the date."""
    text, _, date = without_comments(value).rpartition(";")
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


def _unix_seconds(date: str) -> float | None:
    """Return the instant of a date (RFC 5322 section 3.3); ``None`` where it or its zone cannot be read.

    Of the names of zones, only UTC and those in section 4.3 mean the same everywhere. IST, for example, is
    used in India, Ireland and Israel.
    """
    date = date.strip()[:_DATE_LIMIT]
    fraction = _FRACTION.search(date)
    if not _ZONE.search(date):
        return None
    try:
        instant = parsedate_to_datetime(_FRACTION.sub(r"\1", date))
        # -0000 says that the zone is not known, and the time is UTC.
        seconds = (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    if fraction is not None:
        seconds += float(f"0.{fraction[2]}")
    return seconds if _EARLIEST <= seconds < _LATEST else None
