"""Reads a configuration file and reports all its mistakes, each with line, key and remedy."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from monitor.config.composition import compose
from monitor.config.document import Mistake
from monitor.config.mistakes import mistakes_of
from monitor.config.models import Configuration


class ConfigurationError(Exception):
    """The configuration cannot be used; ``mistakes`` lists every reason, ordered by file and line."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        files = list(dict.fromkeys(mistake.path for mistake in mistakes))
        self.mistakes = sorted(mistakes, key=lambda mistake: (files.index(mistake.path), mistake.line))
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
    composition = compose(path)
    mistakes = composition.mistakes
    if not composition.is_complete:
        raise ConfigurationError(mistakes)
    try:
        configuration = Configuration.model_validate(
            composition.data, context={"directory": path.parent, "secrets": secrets}
        )
    except ValidationError as error:
        mistakes += mistakes_of(error, composition, Configuration)
    if mistakes:
        raise ConfigurationError(mistakes)
    return configuration
