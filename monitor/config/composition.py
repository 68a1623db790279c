"""A configuration as its files write it, put together: inclusions followed, ``for_each`` written out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monitor.config.defaults import sections
from monitor.config.document import FILE_LIMIT, Document, Location, Mistake, Place
from monitor.config.for_each import Allowance, ForEachError, repeated
from monitor.config.including import read_files
from monitor.config.sources import Sources
from probes.core.garbage import take_apart

_TABLES = ("oauth2", "servers", "mailboxes", "hybrid", "maintenance")
"""Mappings of names to entries, whose names are unique over all files."""

_LISTS = ("probes",)
_REPEATED = frozenset({"servers", "mailboxes", "maintenance", "probes"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an entry, or a whole part of the configuration, is written."""

    document: Document
    location: Location
    item: str = ""
    """The item of a ``for_each`` that the entry is made for, in words."""

    def place(self, further: Location = ()) -> Place:
        """Return where the setting at ``further`` within the entry is written."""
        found = self.document.place((*self.location, *further))
        return Place(found.path, found.line, found.location, self.item)

    def has(self, further: Location) -> bool:
        """Return whether the setting at ``further`` within the entry is written."""
        return self.document.has((*self.location, *further))


@dataclass
class Composition:
    """The data of all files of a configuration as one, with the origin of each entry, and the mistakes."""

    path: Path
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Location, Origin] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    is_complete: bool = True
    """Whether every file could be read and every ``for_each`` written out."""
    sources: Sources = field(default_factory=Sources)
    documents: list[Document] = field(default_factory=list)
    allowance: Allowance = field(default_factory=Allowance)
    """What is left for further entries of ``for_each``."""

    def dispose(self) -> None:
        """Free what is written, which may be much; the composition is of no use afterwards."""
        for part in self.data.values():
            if isinstance(part, list | dict):
                take_apart(part)
        for document in self.documents:
            take_apart(document.lines)
        take_apart(self.origins)

    def has(self, location: Location) -> bool:
        """Return whether something is written at ``location``."""
        depth, origin = self._origin(location)
        return origin is not None and origin.has(location[depth:])

    def place(self, location: Location) -> Place:
        """Return where ``location`` is written: in its entry, in ``defaults``, or else the entry itself."""
        depth, origin = self._origin(location)
        if origin is None:
            return Place(self.path, 1, location)
        if depth == 2 and not origin.has(location[2:]):
            for section in self._sections(location):
                default = ("defaults", section, *location[2:])
                if self.has(default):
                    return self.place(default)
        return origin.place(location[depth:])

    def _origin(self, location: Location) -> tuple[int, Origin | None]:
        for depth in (2, 1):
            if len(location) >= depth and (origin := self.origins.get(location[:depth])) is not None:
                return depth, origin
        return 0, None

    def _sections(self, location: Location) -> tuple[str, ...]:
        part, entry = str(location[0]), location[1]
        entries = self.data.get(part)
        written = entries.get(entry) if isinstance(entries, dict) else entries[entry] if entries else None
        return sections(part, written) if isinstance(written, Mapping) else ()


def compose(path: Path, sources: Sources | None = None, limit: int = FILE_LIMIT) -> Composition:
    """Return what the file ``path`` and the files that it includes say, together at most ``limit`` bytes.

    ``sources`` notes which files are read.
    """
    sources = sources or Sources()
    files = read_files(path, sources, limit)
    composition = Composition(
        path,
        mistakes=files.mistakes,
        is_complete=files.are_complete,
        sources=sources,
        documents=files.documents,
    )
    for document in files.documents:
        for key, value in document.data.items():
            _add(composition, document, str(key), value)
    return composition


def _add(composition: Composition, document: Document, part: str, value: object) -> None:
    """Add one part of a file: its entries to those of other files, or a part that only one file can have."""
    if part.startswith("x-") or (part == "include" and document.path != composition.path):
        return
    known = composition.data.get(part)
    if value is None and part in composition.data:
        return  # an empty part adds nothing
    if part in _TABLES and isinstance(value, dict) and isinstance(known, dict | None):
        _add_to_table(composition, document, part, value)
    elif part in _LISTS and isinstance(value, list) and isinstance(known, list | None):
        _add_to_list(composition, document, part, value)
    elif known is None:
        composition.data[part] = value
    else:
        told = f"is in {_named(composition.place((part,)), document)} already; write all of it in one file"
        composition.mistakes.append(document.mistake((part,), told))
    composition.origins.setdefault((part,), Origin(document, (part,)))


def _add_to_table(composition: Composition, document: Document, table: str, written: dict[Any, Any]) -> None:
    entries = composition.data[table] = composition.data.get(table) or {}
    for key, value in written.items():
        for name, settings, item in _written_out(composition, document, (table, str(key)), key, value):
            place, origin = (table, str(name)), Origin(document, (table, str(key)), item)
            if (other := composition.origins.setdefault(place, origin)) is not origin:
                composition.mistakes.append(_repeated_name(name, origin, other))
            else:
                entries[name] = settings


def _add_to_list(composition: Composition, document: Document, part: str, written: list[Any]) -> None:
    entries = composition.data[part] = composition.data.get(part) or []
    for index, value in enumerate(written):
        for _, settings, item in _written_out(composition, document, (part, index), "", value):
            composition.origins[part, len(entries)] = Origin(document, (part, index), item)
            entries.append(settings)


def _written_out(
    composition: Composition, document: Document, at: Location, name: object, settings: Any
) -> Iterator[tuple[object, Any, str]]:
    """Yield the entries that the one at ``at`` stands for: itself, or one for each item."""
    if at[0] not in _REPEATED or not isinstance(settings, dict) or "for_each" not in settings:
        yield name, settings, ""
        return
    try:
        for each in repeated(document, at, name, settings, composition.allowance, composition.sources):
            yield each.name, each.settings, each.item
    except ForEachError as error:
        composition.mistakes += error.mistakes
        composition.is_complete = False


def _repeated_name(name: object, origin: Origin, other: Origin) -> Mistake:
    document = origin.document
    if (other.document, other.location) == (document, origin.location):
        told = f"for_each makes the name {name!r} more than once; put its variables into the name"
    else:
        told = f"the name {name!r} is taken in {_named(other.place(), document)}; choose another"
    return document.mistake(origin.location, told)


def _named(place: Place, document: Document) -> str:
    """Return a place in words: its line, with the file if that is not ``document``."""
    return f"line {place.line}" if place.path == document.path else f"{place.path}:{place.line}"
