"""Reads a configuration file and the files that it includes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from monitor.config.document import CHANGED, FILE_LIMIT, Document, Location, Mistake, read_document
from monitor.config.sources import Sources, matches

FILES_LIMIT = 10_000
"""Maximum number of files in one configuration."""

DEPTH_LIMIT = 20
"""Maximum number of files that each include the next one."""


@dataclass
class Files:
    """The files of a configuration, the main one first, and the mistakes in reading them."""

    documents: list[Document] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    are_complete: bool = True
    """Whether each file could be read."""


def read_files(path: Path, sources: Sources, limit: int = FILE_LIMIT) -> Files:
    """Return the file ``path`` and the files that it includes, each once; together at most ``limit`` bytes.

    Files that a pattern matches are read in the order of their names. ``sources`` notes what is read.
    """
    files = Files()
    _Reader(files, path, sources, limit).read(path)
    files.mistakes += [Mistake(each.path, 0, "", CHANGED) for each in files.documents if each.has_changed()]
    return files


class _Reader:
    def __init__(self, files: Files, main: Path, sources: Sources, limit: int) -> None:
        self._files = files
        self._main = main
        self._sources = sources
        self._limit = limit
        self._read: set[str] = set()

    def read(self, path: Path) -> None:
        """Read the main file, and what it includes."""
        self._read.add(os.path.realpath(path))
        self._sources.note(path)
        document = read_document(path, limit=self._limit)
        if isinstance(document, Mistake):
            self._files.mistakes.append(document)
            self._files.are_complete = False
        else:
            self._add(document, (os.path.realpath(path),))

    def _add(self, document: Document, through: tuple[str, ...]) -> None:
        """Add a file, and read what it includes; ``through`` has the real paths up to this one."""
        self._limit -= document.size
        self._files.documents.append(document)
        self._files.mistakes += document.duplicates
        for at, path in self._included(document):
            real = os.path.realpath(path)
            if real in through:
                way = "itself" if real == through[-1] else f"{path}, which leads to this file again"
                self._mistake(document, at, f"the file includes {way}; include files of another folder")
                return
            if len(through) > DEPTH_LIMIT:
                self._mistake(document, at, f"more than {DEPTH_LIMIT} files include each other in turn")
            elif len(self._read) >= FILES_LIMIT:
                self._mistake(document, at, f"there are more than {FILES_LIMIT} files in all")
                return
            elif real not in self._read:
                self._read.add(real)
                self._read_included(document, at, path, (*through, real))

    def _read_included(self, document: Document, at: Location, path: Path, through: tuple[str, ...]) -> None:
        self._sources.note(path)
        is_elsewhere = path.parent != self._main.parent
        found = read_document(path, limit=self._limit, directory=path.parent if is_elsewhere else None)
        if isinstance(found, Document):
            self._add(found, through)
        elif found.line:
            self._files.mistakes.append(found)
            self._files.are_complete = False
        else:
            self._mistake(document, at, f"{path} {found.text}")

    def _mistake(self, document: Document, at: Location, text: str) -> None:
        self._files.mistakes.append(document.mistake(at, text))
        self._files.are_complete = False

    def _included(self, document: Document) -> Iterator[tuple[Location, Path]]:
        """Yield each file that ``document`` includes, with the place that says so."""
        patterns = document.data.get("include", [])
        if not isinstance(patterns, list):
            self._mistake(document, ("include",), "must be a list of files, such as [conf.d/*.yaml]")
            return
        for index, pattern in enumerate(patterns):
            at = ("include", index)
            if not isinstance(pattern, str) or not _is_path(pattern):
                self._mistake(document, at, "must be the path of a file, or a pattern such as conf.d/*.yaml")
                continue
            folder = document.path.parent
            for told in _unlisted(folder, pattern):
                self._mistake(document, at, told)
            found = matches(folder, pattern)
            self._sources.note_pattern(folder, pattern, found)
            if not found and not glob.has_magic(pattern):
                found = [pattern]  # the file is missing, which reading it tells
            yield from ((at, folder / name) for name in found)


def _is_path(text: str) -> bool:
    """Return whether a file could have this path."""
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _unlisted(folder: Path, pattern: str) -> Iterator[str]:
    """Yield why folders that ``pattern`` looks into cannot be listed: their files would just be missing."""
    parts = Path(pattern).parts
    for depth, part in enumerate(parts):
        if glob.has_magic(part):
            above = os.path.join(*parts[:depth]) if depth else ""  # noqa: PTH118 # a pattern
            names = glob.glob(above, root_dir=folder) if glob.has_magic(above) else [above]  # noqa: PTH207 # as above
            for name in names:
                try:
                    os.scandir(folder / name).close()
                except (FileNotFoundError, NotADirectoryError):
                    pass  # no file is there
                except OSError as error:
                    yield f"the folder {folder / name} cannot be listed: {error.strerror}"
