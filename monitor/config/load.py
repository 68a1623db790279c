"""Reads a configuration file and reports all its mistakes, each with line, key and remedy."""

from __future__ import annotations

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
