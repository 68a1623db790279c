"""``for_each``: one entry written for many items, such as a probe for each of fifty domains."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitor.config.document import Document, Location, Mistake
from monitor.config.sources import Sources
from probes.core.secret import read_at_most
from probes.core.setting_types import TextOfDirectory

ENTRIES_LIMIT = 100_000
"""Maximum number of entries that all ``for_each`` of a configuration make."""

SIZE_LIMIT = 100_000_000
"""Maximum size of these entries: their characters, and `SETTING_SIZE` for each setting."""

SETTING_SIZE = 20

ITEM_LIMIT = 255
"""Maximum length of an item, in characters."""

ITEMS_FILE_LIMIT = 1024 * 1024
"""Maximum size of a file of items, in bytes."""

_VARIABLE = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PLACEHOLDER = re.compile(r"\$(?:\{([^{}]*)\}|\$(?=\{))")
"""``${NAME}``, or the ``$$`` that stands for a dollar sign before a brace."""

Item = str | int


@dataclass(frozen=True, slots=True)
class Repeated:
    """An entry for one item: its name, if it is an entry of a table, its settings, and the item in words."""

    name: object
    settings: dict[str, Any]
    item: str


@dataclass(slots=True)
class Allowance:
    """How many more entries a configuration can have, and of which size."""

    entries: int = ENTRIES_LIMIT
    size: int = SIZE_LIMIT


class ForEachError(Exception):
    """The ``for_each`` of an entry cannot be used; has the mistakes."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = mistakes
        super().__init__("; ".join(map(str, mistakes)))


def repeated(
    document: Document,
    at: Location,
    name: object,
    entry: Mapping[str, Any],
    allowance: Allowance,
    sources: Sources,
) -> Iterator[Repeated]:
    """Yield the entries that the one at ``at`` in ``document`` stands for, one for each item.

    In its texts and its ``name``, ``${NAME}`` is the item of a variable, and ``$${`` is ``${``. Several
    variables make every combination. ``sources`` notes the files of items. Raises `ForEachError`.
    """
    template = {key: value for key, value in entry.items() if key != "for_each"}
    variables = _variables(document, (*at, "for_each"), entry["for_each"], sources)
    known = f"for_each has {', '.join(variables)}"
    unknown = [
        document.mistake(place, f"there is no variable {placeholder!r}; {known}")
        for place, placeholder in (*_placeholders(name, at), *_placeholders(template, at))
        if placeholder not in variables
    ]
    if unknown:
        raise ForEachError(unknown)
    _require_few(document, (*at, "for_each"), variables, allowance)
    for combination in itertools.product(*variables.values()):
        values = dict(zip(variables, combination, strict=True))
        told = ", ".join(f"{key}={value}" for key, value in values.items())
        settings = _filled(template, values)
        if "name" in settings:
            settings["name"] = _text(settings["name"])
        if isinstance(labels := settings.get("labels"), dict):
            settings["labels"] = {label: _text(value) for label, value in labels.items()}
        made = Repeated(_text(_filled(name, values)), settings, told)
        allowance.size -= _size(made.settings)
        if allowance.size < 0:
            told = f"makes entries of more than {SIZE_LIMIT:,} characters; shorten their texts"
            raise ForEachError([document.mistake((*at, "for_each"), told)])
        yield made


def _require_few(
    document: Document, at: Location, variables: Mapping[str, list[Item]], allowance: Allowance
) -> None:
    """Take the entries off the allowance; raises `ForEachError` if it is used up."""
    count = math.prod(map(len, variables.values()))
    allowance.entries -= count
    if allowance.entries < 0:
        arithmetic = " × ".join(f"{len(items):,} of {key}" for key, items in variables.items())
        told = f"makes {count:,} entries ({arithmetic}); a configuration can have {ENTRIES_LIMIT:,} in all"
        raise ForEachError([document.mistake(at, told)])


def _variables(document: Document, at: Location, written: object, sources: Sources) -> dict[str, list[Item]]:
    if not isinstance(written, Mapping) or not written:
        told = "must be a mapping of variables to items, such as {domain: [a.example, b.example]}"
        raise ForEachError([document.mistake(at, told)])
    mistakes, found = [], {}
    for key, items in written.items():
        try:
            if not isinstance(key, str) or not _VARIABLE.fullmatch(key):
                told = f"{key!r} is not a variable; use lower-case letters, digits and underscores"
                raise ValueError(told)  # noqa: TRY301 # told like mistakes in the items
            found[key] = _items(document, items, sources)
        except ValueError as error:
            mistakes.append(document.mistake((*at, str(key)), str(error)))
    if mistakes:
        raise ForEachError(mistakes)
    return found


def _items(document: Document, written: object, sources: Sources) -> list[Item]:
    """Return the items of a list or of a file, whose empty lines and comments after ``#`` do not count."""
    if isinstance(written, Mapping) and set(written) == {"file"} and isinstance(written["file"], str):
        items: list[Item] = [*_lines(document.path.parent, written["file"], sources)]
    elif isinstance(written, list):
        items = written
    else:
        raise ValueError("must be a list of items, or {file: PATH} with one item per line")
    if not items:
        raise ValueError("has no items")
    for place, item in enumerate(items, start=1):
        if isinstance(item, bool) or not isinstance(item, str | int):
            told = f"item {place} is neither a text nor a whole number; put it in quotes"
            raise ValueError(told)  # noqa: TRY004 # a mistake of the file
        if len(str(item)) > ITEM_LIMIT:
            raise ValueError(f"item {place} is longer than {ITEM_LIMIT} characters")
    item, times = Counter(items).most_common(1)[0]
    if times > 1:
        raise ValueError(f"the item {item!r} appears twice; keep one")
    return items


def _lines(folder: Path, where: str, sources: Sources) -> Iterator[str]:
    """Yield the items in the file ``where``; it is relative to ``folder``, and so are paths among them."""
    try:
        path = folder / Path(where).expanduser()
        sources.note(path)
        text = read_at_most(path, ITEMS_FILE_LIMIT, "file").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"file {where} is not UTF-8 text") from None
    except RuntimeError:
        raise ValueError(f"{where!r}: there is no such home directory; write the whole path") from None
    for line in map(str.strip, text.splitlines()):
        if line and not line.startswith("#"):
            yield TextOfDirectory(line, folder)


def _placeholders(value: object, at: Location) -> Iterator[tuple[Location, str]]:
    """Yield each ``${NAME}`` in the texts of ``value``, which is at ``at``."""
    if isinstance(value, str):
        yield from ((at, match[1]) for match in _PLACEHOLDER.finditer(value) if match[1] is not None)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _placeholders(each, (*at, str(key)))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _placeholders(each, (*at, index))


def _filled(value: Any, values: Mapping[str, Item]) -> Any:
    """Return ``value`` with items in place of variables; a text that is one variable becomes the item."""
    if isinstance(value, str):
        match = _PLACEHOLDER.search(value)
        if match is None:
            return value
        if match[0] == value and match[1] is not None:
            return values[match[1]]
        text = _PLACEHOLDER.sub(lambda found: "$" if found[1] is None else str(values[found[1]]), value)
        return TextOfDirectory(text, value.directory) if isinstance(value, TextOfDirectory) else text
    if isinstance(value, dict):
        return {key: _filled(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, values) for each in value]
    return value


def _text(value: Any) -> Any:
    """Return a number as text: names and labels are texts."""
    return str(value) if isinstance(value, int) else value


def _size(value: object) -> int:
    """Return the size of ``value``, as `SIZE_LIMIT` counts it."""
    if isinstance(value, dict):
        return sum(SETTING_SIZE + _size(each) for each in value.values())
    if isinstance(value, list):
        return sum(SETTING_SIZE + _size(each) for each in value)
    return len(value) if isinstance(value, str) else 0
