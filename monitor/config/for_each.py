"""``for_each``: one entry written for many items, such as a probe for each of fifty domains."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from monitor.config.document import Document, Location, Mistake
from probes.core.secret import read_at_most
from probes.core.setting_types import TextOfDirectory

ENTRIES_LIMIT = 100_000
"""Maximum number of entries that one ``for_each`` makes."""

SETTINGS_LIMIT = 4_000_000
"""Maximum number of settings in the entries that one ``for_each`` makes."""

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


class ForEachError(Exception):
    """The ``for_each`` of an entry cannot be used; has the mistakes."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = mistakes
        super().__init__("; ".join(map(str, mistakes)))


def repeated(document: Document, at: Location, name: object, entry: Mapping[str, Any]) -> Iterator[Repeated]:
    """Yield the entries that the one at ``at`` in ``document`` stands for, one for each item.

    In its texts and its ``name``, ``${NAME}`` is the item of a variable, and ``$${`` is ``${``. Several
    variables make every combination. Raises `ForEachError`.
    """
    template = {key: value for key, value in entry.items() if key != "for_each"}
    variables = _variables(document, (*at, "for_each"), entry["for_each"])
    known = f"for_each has {', '.join(variables)}"
    unknown = [
        document.mistake(place, f"there is no variable {placeholder!r}; {known}")
        for place, placeholder in (*_placeholders(name, at), *_placeholders(template, at))
        if placeholder not in variables
    ]
    if unknown:
        raise ForEachError(unknown)
    count = math.prod(map(len, variables.values()))
    if count > ENTRIES_LIMIT or count * _size(template) > SETTINGS_LIMIT:
        arithmetic = " × ".join(f"{len(items):,} of {key}" for key, items in variables.items())
        told = f"makes {count:,} entries ({arithmetic}); at most {ENTRIES_LIMIT:,} are possible"
        if count <= ENTRIES_LIMIT:
            told = f"makes {count * _size(template):,} settings; at most {SETTINGS_LIMIT:,} are possible"
        raise ForEachError([document.mistake((*at, "for_each"), told)])
    for combination in itertools.product(*variables.values()):
        values = dict(zip(variables, combination, strict=True))
        told = ", ".join(f"{key}={value}" for key, value in values.items())
        yield Repeated(_filled(name, values), _filled(template, values), told)


def _variables(document: Document, at: Location, written: object) -> dict[str, list[Item]]:
    if not isinstance(written, Mapping) or not written:
        told = "must be a mapping of variables to items, such as {domain: [a.example, b.example]}"
        raise ForEachError([document.mistake(at, told)])
    mistakes, found = [], {}
    for key, items in written.items():
        try:
            if not isinstance(key, str) or not _VARIABLE.fullmatch(key):
                told = f"{key!r} is not a variable; use lower-case letters, digits and underscores"
                raise ValueError(told)  # noqa: TRY301 # told like mistakes in the items
            found[key] = _items(document, items)
        except ValueError as error:
            mistakes.append(document.mistake((*at, str(key)), str(error)))
    if mistakes:
        raise ForEachError(mistakes)
    return found


def _items(document: Document, written: object) -> list[Item]:
    """Return the items of a list or of a file, whose empty lines and comments after ``#`` do not count."""
    if isinstance(written, Mapping) and set(written) == {"file"} and isinstance(written["file"], str):
        path = document.path.parent / written["file"]
        try:
            text = read_at_most(path, ITEMS_FILE_LIMIT, "file").decode()
        except UnicodeDecodeError:
            raise ValueError(f"file {path} is not UTF-8 text") from None
        lines = [line.strip() for line in text.splitlines()]
        items: list[Item] = [line for line in lines if line and not line.startswith("#")]
    elif isinstance(written, list):
        items = written
    else:
        raise ValueError("must be a list of items, or {file: PATH} with one item per line")
    if not items:
        raise ValueError("has no items")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int):
            raise ValueError(f"{item!r} is neither a text nor a whole number; put it in quotes")  # noqa: TRY004 # a mistake of the file
    item, times = Counter(items).most_common(1)[0]
    if times > 1:
        raise ValueError(f"the item {item!r} appears twice; keep one")
    return items


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


def _size(value: object) -> int:
    """Return the number of settings in ``value``."""
    if isinstance(value, dict):
        return 1 + sum(map(_size, value.values()))
    return 1 + sum(map(_size, value)) if isinstance(value, list) else 1
