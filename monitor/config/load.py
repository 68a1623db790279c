"""Reads a configuration file and reports all its mistakes, each with line, key and remedy."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from monitor.config.composition import compose
from monitor.config.document import Mistake
from monitor.config.mistakes import mistakes_of
from monitor.config.models import Configuration
from monitor.config.sources import Sources
from monitor.config.web_config import files_of, read_web_config
from probes.core.garbage import no_collection


class ConfigurationError(Exception):
    """The configuration cannot be used; ``mistakes`` lists every reason, ordered by file and line."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        files = list(dict.fromkeys(mistake.path for mistake in mistakes))
        self.mistakes = sorted(mistakes, key=lambda mistake: (files.index(mistake.path), mistake.line))
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


def load(path: Path, *, secrets: bool = True, sources: Sources | None = None) -> Configuration:
    """Return the configuration in the YAML file ``path``; raises `ConfigurationError`, without secrets.

    Without ``secrets``, none is read, and all have the value `NOT_READ`. ``sources`` notes which files are
    read.
    """
    with no_collection():  # it would take a quarter of the time for a large file, whose objects stay in use
        return _load(path, secrets=secrets, sources=sources or Sources())


def _load(path: Path, *, secrets: bool, sources: Sources) -> Configuration:
    composition = compose(path, sources)
    mistakes = composition.mistakes
    if not composition.is_complete:
        raise ConfigurationError(mistakes)
    try:
        configuration = Configuration.model_validate(
            composition.data,
            context={"directory": path.parent, "secrets": secrets, "sources": sources},
        )
    except ValidationError as error:
        mistakes += mistakes_of(error, composition, Configuration)
    else:
        web_config = configuration.agent.web_config if secrets else None  # it has hashes and a key
        if web_config is not None:
            for file in files_of(web_config):
                sources.note(file)
            if isinstance(found := read_web_config(web_config), list):
                mistakes += found
    composition.dispose()
    if mistakes:
        raise ConfigurationError(mistakes)
    return configuration
