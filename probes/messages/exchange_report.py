"""What Exchange wrote into a message: latencies by stage, builds of servers, its spam filter's verdict.

Microsoft does not document the latency fields, so they are read tolerantly: an entry that cannot be read is
left out. Any host on the route can write such fields, so they are that host's word: they never decide a
verdict or an alert, labels come from closed lists, and a duration that is longer than the whole delivery is
not believed. Exchange removes the fields of its organization when mail leaves it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from probes.core.faults import legible
from probes.messages.header_section import first_value_of, values_of, without_comments
from probes.messages.hops import ROUNDING, clauses_of, unix_seconds
from probes.messages.junk import pairs

STAGES = ("front_end", "hub", "categorizer", "agents", "delivery", "other")
"""Where a message may spend its time inside Exchange."""

LATENCY_LIMIT = 32 * 1024
"""Maximum characters to read of all latency fields together."""

FILTER_FIELD_LIMIT = 16 * 1024
"""Maximum characters to read of the field of the spam filter."""

SERVERS_EXAMINED = 20
"""Maximum number of Received fields, and of latency fields of one name, to read: each server adds one."""

_LATENCIES = (
    "X-MS-Exchange-Organization-MessageLatency",
    "X-MS-Exchange-Organization-OrderedPrecisionLatencyInProgress",
)
_ARRIVALS = (
    "X-MS-Exchange-Organization-OriginalArrivalTime",
    "X-MS-Exchange-CrossTenant-OriginalArrivalTime",
)
_SERVERS = MappingProxyType({"FE": "front_end", "HUB": "hub", "SUB": "hub", "DEL": "delivery"})
# A name is looked for where a word begins only: each octet is read once.
_NAME = r"(?<![A-Za-z0-9-])[A-Za-z][A-Za-z0-9-]{0,60}"
_SECONDS = r"[0-9]{1,9}(?:\.[0-9]{1,9})?(?![\w.])"
_BUILD = re.compile(r"[0-9]{1,5}(?:\.[0-9]{1,5}){3}", re.ASCII)
_ENTRY = re.compile(rf"L?SRV=|({_NAME})=({_SECONDS})|[()]", re.ASCII)
_SPAN = re.compile(r"(?:([0-9]{1,3})\.)?([0-9]{2}):([0-9]{2}):([0-9]{2}(?:\.[0-9]{1,9})?)", re.ASCII)
_VERDICTS = frozenset({"NSPM", "SPM", "SKB", "SKN", "SKQ", "SKS", "SKA", "SKI", "SFE", "BLK"})
_CATEGORIES = frozenset(
    {"NONE", "AMP", "BIMP", "BULK", "DIMP", "FTBP", "GIMP", "HPHSH", "HPHISH", "HSPM", "INTOS", "MALW"}
    | {"OSPM", "PHSH", "SAP", "SPM", "SPOOF", "UIMP"}
)
_LEVELS = frozenset(map(str, range(-1, 10)))


@dataclass(frozen=True, slots=True)
class ExchangeReport:
    """Exchange's word about an arrival; all of it may be missing. Times are by its own clocks.

    ``stages`` has seconds by the names in `STAGES`, each second in one stage only. ``end_to_end_seconds`` is
    Exchange's own total, and ``original_arrival_at`` (unix seconds) when its first server had the message.
    ``scl`` is the spam confidence level, -1 to 9, ``sfv`` the filter's verdict and ``cat`` its category, each
    empty if missing and ``other`` if not known. ``disbelieved`` counts durations that are impossible.
    ``builds`` has each server's build, such as ``15.2.1748.36``, by the name that it gave itself.
    """

    stages: Mapping[str, float] = field(default_factory=dict)
    end_to_end_seconds: float | None = None
    original_arrival_at: float | None = None
    scl: str = ""
    sfv: str = ""
    cat: str = ""
    disbelieved: int = 0
    builds: Mapping[str, str] = field(default_factory=dict)

    def as_object(self) -> dict[str, object]:
        """Return the object for JSON."""
        own = {name: getattr(self, name) for name in self.__slots__}
        return own | {"stages": dict(self.stages), "builds": dict(self.builds)}


def exchange_report(header_section: bytes, *, longest: float) -> ExchangeReport | None:
    """Return what Exchange wrote; ``None`` if it wrote nothing of this.

    ``longest`` is how many seconds the message can have been on its way, by our own clock.
    """
    stages, disbelieved = dict.fromkeys(STAGES, 0.0), 0
    found = [value for name in _LATENCIES for value in values_of(header_section, name)[:SERVERS_EXAMINED]]
    unread = LATENCY_LIMIT
    for value in found:
        for stage, seconds in _own_times(value[:unread]):
            stages[stage] += seconds
        unread = max(0, unread - len(value))
    told = {stage: round(seconds, 6) for stage, seconds in stages.items() if seconds > 0}
    believed = {stage: seconds for stage, seconds in told.items() if seconds <= longest + ROUNDING}
    total = _span(first_value_of(header_section, "X-MS-Exchange-Transport-EndToEndLatency"))
    if total is not None and total > longest + ROUNDING:
        total, disbelieved = None, 1
    said = pairs(first_value_of(header_section, "X-Forefront-Antispam-Report")[:FILTER_FIELD_LIMIT])
    level = first_value_of(header_section, "X-MS-Exchange-Organization-SCL") or said.get("SCL", "")
    report = ExchangeReport(
        stages=believed,
        end_to_end_seconds=total,
        original_arrival_at=_original_arrival(header_section),
        scl=_listed(level, _LEVELS),
        sfv=_listed(said.get("SFV", ""), _VERDICTS),
        cat=_listed(said.get("CAT", ""), _CATEGORIES),
        disbelieved=disbelieved + len(told) - len(believed),
        builds=_builds(header_section),
    )
    return None if report == ExchangeReport() else report


@dataclass(slots=True)
class _Entry:
    stage: str
    seconds: float
    inside: float = 0.0  # seconds of the entries within it


def _own_times(value: str) -> list[tuple[str, float]]:
    """Return each entry's stage, and its seconds without those of the entries inside it.

    An entry looks like ``CAT=0.067(CATOS=0.011)``. ``TOTAL-HUB`` begins a server's entries, which it includes
    although they follow it. Fields are folded anywhere, also within a name or a number.
    """
    entries: list[_Entry] = []
    brackets: list[_Entry | None] = []  # the entries that are open
    total = latest = None
    for match in _ENTRY.finditer("".join(value.split())):
        if match[0] == "(":
            brackets.append(latest)
        elif match[0] == ")":
            latest = brackets.pop() if brackets else None
        elif match[1] is None:  # the next server
            brackets, total = [], None
        else:
            is_total = match[1].upper().startswith("TOTAL")
            around = None if is_total else (brackets[-1] if brackets else total)
            seconds = float(match[2])
            latest = _Entry(_stage_of(match[1].upper(), around.stage if around else "other"), seconds)
            entries.append(latest)
            if around is not None:
                around.inside += seconds
            if is_total:
                brackets, total = [], latest
    return [(entry.stage, max(0.0, entry.seconds - entry.inside)) for entry in entries]


def _stage_of(name: str, around: str) -> str:
    """Return the stage of an entry; one that is not known belongs to the stage ``around`` it."""
    if name.startswith("TOTAL"):
        return _SERVERS.get(name.rpartition("-")[2], "other")
    if name.endswith("AGENT") and "-" in name:
        return "agents"
    return "categorizer" if name.startswith("CAT") else "delivery" if name.startswith("SD") else around


def _builds(header_section: bytes) -> dict[str, str]:
    """Return the builds in Received fields, such as ``by B with Microsoft SMTP Server id 15.2.1748.36``."""
    found = {}
    for value in values_of(header_section, "Received")[:SERVERS_EXAMINED]:
        clauses, _ = clauses_of(value)
        build = clauses.get("id", "")
        if clauses.get("with", "").startswith("Microsoft SMTP Server") and _BUILD.fullmatch(build):
            found[legible(clauses.get("by", "").partition(" ")[0], 255)] = build
    return found


def _span(text: str) -> float | None:
    """Return a duration such as ``00:00:03.6827753``, perhaps with days before a point, in seconds."""
    match = _SPAN.fullmatch(text)
    if match is None:
        return None
    return int(match[1] or 0) * 86400 + int(match[2]) * 3600 + int(match[3]) * 60 + float(match[4])


def _original_arrival(header_section: bytes) -> float | None:
    """Return when Exchange first had the message, from a date such as ``23 Apr 2025 09:10:25.4494 (UTC)``."""
    values = filter(None, (first_value_of(header_section, name) for name in _ARRIVALS))
    date = without_comments(next(values, "")[:100]).strip()
    return unix_seconds(f"{date} +0000") if date else None


def _listed(word: str, known: frozenset[str]) -> str:
    word = word.strip().upper()
    return word if word in known else "other" if word else ""
