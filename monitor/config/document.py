"""A YAML file as data, with the place of every key."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from probes.core.faults import legible
from probes.core.garbage import take_apart
from probes.core.regular_file import FileVersion, open_regular, version_of
from probes.core.setting_types import TextOfDirectory

if TYPE_CHECKING or not yaml.__with_libyaml__:
    from yaml import SafeLoader
else:
    from yaml import CSafeLoader as SafeLoader  # ten times as fast

FILE_LIMIT = 16 * 1024 * 1024
"""Maximum size of a configuration file, in bytes: some 30,000 routes with a mailbox and labels each."""

ALIASED_LIMIT = 200_000
"""Maximum number of YAML nodes that aliases repeat, so that nested aliases cannot exhaust the memory."""

MISTAKE_LIMIT = 2000
"""Maximum length of a mistake's text, in characters: a key or a value can be as long as the file."""

CHANGED = "changed while it was read; read it again when it is complete"

_REMEDIES = {
    errno.ENOENT: "check its path",
    errno.ENOTDIR: "check its path",
    errno.EINVAL: "check its path",
    errno.EISDIR: "name the file itself, such as mailsonde.yaml in it",
}

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake: the file, the line (0 for the whole file), the key, and how to fix it."""

    path: Path
    line: int
    key: str
    text: str
    count: int = 1
    """How many mistakes it stands for."""
    is_of_secret: bool = False
    """Whether the file itself is right, and only the secret that it refers to cannot be used."""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else str(self.path)
        told = f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}"
        return legible(told, MISTAKE_LIMIT)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is written: the file, the line, the key, and the item if it is made by ``for_each``."""

    path: Path
    line: int
    location: Location
    item: str = ""

    @property
    def key(self) -> str:
        """The key as people write it, such as ``probes[0].interval``."""
        return key_of(self.location)


class Written(Protocol):
    """Data that knows where it is written."""

    @property
    def path(self) -> Path:
        """The file, or the one that includes the others."""

    def has(self, location: Location) -> bool:
        """Return whether something is written at ``location``."""

    def place(self, location: Location) -> Place:
        """Return where ``location`` is written, or the nearest entry that contains it."""


@dataclass(frozen=True, slots=True)
class Document:
    """The data of a file, the line of each key, and mistakes that are visible only in the raw file."""

    path: Path
    data: dict[str, Any]
    lines: dict[Location, int]
    duplicates: tuple[Mistake, ...]
    size: int = 0
    """Size of the file in bytes."""
    version: FileVersion | None = None

    def has(self, location: Location) -> bool:
        """Return whether something is written at ``location``."""
        return location in self.lines

    def place(self, location: Location) -> Place:
        """Return where ``location`` is written, or the nearest entry that contains it."""
        at = location
        while at and at not in self.lines:
            at = at[:-1]
        return Place(self.path, self.lines.get(at, 1), location)

    def has_changed(self) -> bool:
        """Return whether the file is no longer the one that was read."""
        return version_of(self.path) != self.version

    def mistake(self, location: Location, text: str) -> Mistake:
        """Return a mistake at ``location``."""
        return Mistake(self.path, self.place(location).line, key_of(location), text)


def key_of(location: Location) -> str:
    """Return ``location`` as people write it, such as ``probes[0].interval``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


_STRING = "tag:yaml.org,2002:str"
_PLAIN = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "null", "timestamp"))


class _TooManyNodesError(Exception):
    pass


class _Loader(SafeLoader):
    """Raises only YAML's own errors, with a line, also for a value that does not fit its tag."""

    def __init__(self, stream: bytes, directory: Path | None) -> None:
        super().__init__(stream)
        self._directory = directory
        self._tags: dict[str, str] = {}  # of plain scalars: the keys of a large file are the same few

    def resolve(self, kind: type[yaml.Node], value: str, implicit: Any) -> Any:
        """Return the tag of a node without one; PyYAML tries a regular expression for each type."""
        resolve = super().resolve
        if kind is not yaml.ScalarNode or not implicit[0]:
            return resolve(kind, value, implicit)  # type: ignore[no-untyped-call] # PyYAML has no types here
        if value not in self._tags:
            self._tags[value] = resolve(kind, value, implicit)  # type: ignore[no-untyped-call] # as above
        return self._tags[value]

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of ``node``; PyYAML's converters fail in many ways, such as for ``!!int ""``."""
        if node.tag == _STRING and isinstance(node, yaml.ScalarNode):  # most nodes, made quickly
            return node.value if self._directory is None else TextOfDirectory(node.value, self._directory)
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            value = repr(legible(node.value, 80)) if isinstance(node.value, str) else "this value"
            kind = node.tag.rpartition(":")[2]
            told = f"{value} is no valid {kind}; put it in quotes if it is a text"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """Return a mapping whose keys are texts as written: ``no``, ``on`` and ``404`` are names here."""
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag in _PLAIN:
                key.tag = _STRING
        return super().construct_mapping(node, deep)


def read_document(
    path: Path,
    expected: str = "the keys agent, servers, mailboxes and probes",
    limit: int = FILE_LIMIT,
    directory: Path | None = None,
) -> Document | Mistake:
    """Return the file's data with lines, or the mistake that makes the file unreadable.

    ``expected`` says what a file without a mapping should contain; ``limit`` is its maximum size in bytes.
    Texts know the ``directory``, if one is given, for the paths among them.
    """
    try:
        with open_regular(path) as file:
            version = version_of(file.fileno())
            raw = file.read(limit + 1)
            is_torn = version_of(file.fileno()) != version
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, f"user {os.geteuid()} must be able to read it")
        return Mistake(path, 0, "", f"cannot be read: {error.strerror}; {remedy}")
    if len(raw) > limit:
        return Mistake(path, 0, "", f"is longer than {limit} bytes, the limit for this file")
    if is_torn:
        return Mistake(path, 0, "", CHANGED)
    walk = _Walk(path)
    try:
        loader = _Loader(raw, directory)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            must = "must be" if root is not None else "is empty, and must be"
            return Mistake(path, 1, "", f"{must} a mapping with {expected}")
        walk.visit(root, ())
        data = loader.construct_document(root)
        for _, part in root.value:
            if isinstance(part, yaml.CollectionNode):
                take_apart(part.value)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = min(mark.line, raw.count(b"\n")) if mark else 0  # libyaml ends every file with a newline
        written = raw.splitlines()[line : line + 1]
        hint = "; indent with spaces" if written and b"\t" in written[0] else ""
        return Mistake(path, line + 1, "", f"is not valid YAML: {error.problem}{hint}")
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        return Mistake(path, 1, "", f"is not valid YAML: {str(error).splitlines()[0]}")
    except _TooManyNodesError:
        return Mistake(
            path, 1, "", f"its aliases repeat more than {ALIASED_LIMIT} YAML nodes; write fewer aliases"
        )
    return Document(path, data, walk.lines, tuple(walk.duplicates), len(raw), version)


class _Walk:
    """A walk along every key, through aliases: collects their lines, and the keys that appear twice."""

    def __init__(self, path: Path) -> None:
        self.lines: dict[Location, int] = {}
        self.duplicates: list[Mistake] = []
        self._path = path
        self._met: set[int] = set()
        self._repeated = 0

    def visit(self, node: yaml.Node, at: Location) -> None:
        """Visit a node and all that it contains; raises _TooManyNodesError."""
        if id(node) in self._met:
            self._repeated += 1
            if self._repeated > ALIASED_LIMIT:
                raise _TooManyNodesError
        self._met.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines[(*at, index)] = item.start_mark.line + 1
                self.visit(item, (*at, index))
        elif isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, at)

    def _visit_mapping(self, node: yaml.MappingNode, at: Location) -> None:
        seen: set[str] = set()
        for key, value in node.value:  # merged keys first: the mapping's own ones replace them
            if key.value == "<<":
                for merged in value.value if isinstance(value, yaml.SequenceNode) else (value,):
                    self.visit(merged, at)
        for key, value in node.value:
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in seen and name != "<<":
                told = "this key appears twice; keep one"
                self.duplicates.append(Mistake(self._path, line, key_of((*at, name)), told))
            seen.add(name)
            self.lines[(*at, name)] = line
            if name != "<<":
                self.visit(value, (*at, name))
