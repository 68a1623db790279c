"""Reads a configuration file and reports all its mistakes, each with line, key and remedy."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from monitor.config.document import Mistake, read_document
from monitor.config.mistakes import mistakes_of
from monitor.config.models import Configuration


class ConfigurationError(Exception):
    """The file cannot be used; ``mistakes`` lists every reason, ordered by line."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda mistake: mistake.line)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


def load(path: Path, *, secrets: bool = True) -> Configuration:
    """Return the configuration in the YAML file ``path``; raises `ConfigurationError`, without secrets.

    Without ``secrets``, none is read, and all have the value `NOT_READ`.
    """
    with _no_collection():
        return _load(path, secrets=secrets)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage during the block: it makes a large file's objects, which all stay in use.

    Scanning them again and again would take a quarter of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _load(path: Path, *, secrets: bool) -> Configuration:
    document = read_document(path)
    if isinstance(document, Mistake):
        raise ConfigurationError([document])
    mistakes = list(document.duplicates)
    try:
        configuration = Configuration.model_validate(
            document.data, context={"directory": path.parent, "secrets": secrets}
        )
    except ValidationError as error:
        mistakes += mistakes_of(error, document, Configuration)
    if mistakes:
        raise ConfigurationError(mistakes)
    return configuration
