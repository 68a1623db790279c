"""What a configuration that was read again has in common with the one in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from monitor.config.cross_checks import references_of
from monitor.config.models import AgentSettings, Configuration
from monitor.config.sources import Sources
from probes.core.settings import Settings

RELOADED = frozenset({"max_connections", "retention"})
"""Settings of ``agent`` that a reload can change. All others stay as they are until a restart."""

Entry = TypeVar("Entry", bound=Settings)


def needing_restart(configuration: Configuration, earlier: Configuration) -> list[str]:
    """Return the settings that differ from those in use, and that only a restart can change."""
    new, old = configuration.agent, earlier.agent
    return [
        f"agent.{name}"
        for name in AgentSettings.model_fields
        if name not in RELOADED and getattr(new, name) != getattr(old, name)
    ]


def settled(
    configuration: Configuration, sources: Sources, earlier: Configuration, earlier_sources: Sources
) -> Configuration:
    """Return ``configuration`` with the very entries of ``earlier`` in place of those that say the same.

    So little of a large configuration stays twice in memory, and which entries have changed is seen at once.
    An entry has also changed if a file has that it names, such as that of its CA. Settings that need a
    restart are those of ``earlier``.
    """

    def kept(new: Entry, old: Settings | None) -> Entry:
        is_same = (
            type(new) is type(old)
            and new == old
            and all(sources.has_same_content(path, earlier_sources) for path in _files_of(new))
        )
        return old if is_same else new  # type: ignore[return-value] # of the same type

    def table(new: Mapping[str, Entry], old: Mapping[str, Settings]) -> dict[str, Entry]:
        return {name: kept(entry, old.get(name)) for name, entry in new.items()}

    probes = {probe.name: probe for probe in earlier.probes}
    fixed = {
        name: getattr(earlier.agent, name) for name in AgentSettings.model_fields if name not in RELOADED
    }
    return configuration.model_copy(
        update={
            "agent": configuration.agent.model_copy(update=fixed),
            "alerts": kept(configuration.alerts, earlier.alerts),
            "oauth2": table(configuration.oauth2, earlier.oauth2),
            "servers": table(configuration.servers, earlier.servers),
            "mailboxes": table(configuration.mailboxes, earlier.mailboxes),
            "probes": tuple(kept(probe, probes.get(probe.name)) for probe in configuration.probes),
        }
    )


def _files_of(value: object) -> Iterator[Path]:
    """Yield the paths in settings."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Settings):
        for each in value.__dict__.values():
            if not isinstance(each, str | float | int | bool | None):
                yield from _files_of(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _files_of(each)


class Unchanged:
    """Which entries of a configuration are those of an earlier one, with all entries that they refer to.

    The configuration must be `settled` on the earlier one. If there is none, all entries have changed.
    """

    def __init__(self, configuration: Configuration, earlier: Configuration | None) -> None:
        self._configuration = configuration
        self._earlier = earlier
        self._known: dict[tuple[str, str], bool] = {}

    def has(self, table: str, name: str) -> bool:
        """Return whether an entry of ``oauth2``, ``servers`` or ``mailboxes`` has not changed."""
        if self._earlier is None:
            return False
        known = self._known.get((table, name))
        if known is None:
            new, old = (getattr(of, table).get(name) for of in (self._configuration, self._earlier))
            known = self._known[table, name] = new is not None and self.is_same(new, old)
        return known

    def is_same(self, new: Settings, old: Settings | None) -> bool:
        """Return whether nothing has changed from ``old`` to ``new``."""
        return new is old and all(self.has(table, name) for table, name in references_of(new))
